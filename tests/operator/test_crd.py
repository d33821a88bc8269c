"""The API itself: what is refused at the door, in which words, and what is filled in.

The rules run in the embedded API server's own schema and CEL modules. The words in the table are
those of the CRD or of Kubernetes' own checks, so that any server says the same.
"""

import copy
from pathlib import Path

import pytest
import yaml

from rekindle.api import changes
from rekindle_local.apiserver.schemas import rules as cel
from rekindle_local.apiserver.schemas import schema as schemas

ROOT = Path(__file__).parents[2]
CRD = yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())
SCHEMA = schemas.Schema(root=CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
META = schemas.Schema(root={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
RULES, BROKEN = cel.compile_rules(SCHEMA.root, "schema")
TRAINER = {"name": "trainer", "image": "rekindle/runtime:0.1", "args": ["train.py"]}


def job(**spec):
    return {
        "apiVersion": "rekindle.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "ml"},
        "spec": {
            "template": {"spec": {"containers": [TRAINER]}},
            "checkpoint": {"uri": "s3://bucket/run"},
            **spec,
        },
    }


def named(name):
    return {**job(), "metadata": {"name": name, "namespace": "ml"}}


def pods(**fields):
    return job(template={"spec": {"containers": [TRAINER], **fields}})


def containers(*found):
    return pods(containers=list(found))


def notice(**fields):
    return job(capacity={"notices": [fields]})


def checkpoint(**fields):
    return job(checkpoint={"uri": "s3://bucket/run", **fields})


def answer(body, old=None):
    """What an API server says to strict `kubectl apply`; empty when it accepts."""
    unknown: list[str] = []
    body = schemas.prune(copy.deepcopy(body), SCHEMA, meta=META, unknown=unknown)
    if unknown:
        return ", ".join(f'unknown field "{path}"' for path in unknown)
    body = schemas.fill_defaults(body, SCHEMA)
    causes = schemas.validate(body, SCHEMA)
    if not causes:
        before = schemas.fill_defaults(copy.deepcopy(old), SCHEMA) if old else None
        causes = cel.check(RULES, body, before)
    return "; ".join(cause.text() for cause in causes)


BAD = [
    # what, manifest, field, what is allowed
    ("no spec", {k: v for k, v in job().items() if k != "spec"}, "spec", "Required"),
    ("no template", job(template=None), "spec.template", "Required"),
    ("no checkpoint", job(checkpoint=None), "spec.checkpoint", "Required"),
    ("replicas as text", job(replicas="2"), "spec.replicas", "integer"),
    ("replicas 0", job(replicas=0), "spec.replicas", "greater than or equal to 1"),
    ("replicas negative", job(replicas=-1), "spec.replicas", "greater than or equal to 1"),
    ("replicas huge", job(replicas=1001), "spec.replicas", "less than or equal to 1000"),
    ("replicas fraction", job(replicas=1.5), "spec.replicas", "integer"),
    (
        "min > max",
        job(replicas=3, elastic={"minReplicas": 4, "maxReplicas": 2}),
        "spec.elastic.minReplicas",
        "raise spec.elastic.maxReplicas",
    ),
    (
        "replicas < min",
        job(replicas=1, elastic={"minReplicas": 2}),
        "spec.replicas",
        "raise spec.replicas",
    ),
    (
        "replicas > max",
        job(replicas=5, elastic={"maxReplicas": 4}),
        "spec.replicas",
        "raise spec.elastic.maxReplicas",
    ),
    ("min 0", job(elastic={"minReplicas": 0}), "spec.elastic.minReplicas", "equal to 1"),
    ("elastic as list", job(elastic=[1, 2]), "spec.elastic", "object"),
    ("spares negative", job(elastic={"spares": -1}), "spec.elastic.spares", "equal to 0"),
    ("spares huge", job(elastic={"spares": 101}), "spec.elastic.spares", "equal to 100"),
    ("notice of nothing", notice(seconds=5), "spec.capacity.notices[0].sign", "Required"),
    (
        "notice in words",
        notice(sign="Rebooting", seconds="soon"),
        "spec.capacity.notices[0].seconds",
        "integer",
    ),
    (
        "notice negative",
        notice(sign="Rebooting", seconds=-1),
        "spec.capacity.notices[0].seconds",
        "equal to 0",
    ),
    (
        "notice of a day",
        notice(sign="Rebooting", seconds=86401),
        "spec.capacity.notices[0].seconds",
        "equal to 86400",
    ),
    ("notice of Ready", notice(sign="Ready", seconds=5), "notices[0].sign", "not-ready"),
    ("notice of no key", notice(sign="two words", seconds=5), "notices[0].sign", "should match"),
    ("notice without end", notice(sign="Rebooting"), "notices[0]", "exactly one of seconds and"),
    (
        "notice with two ends",
        notice(sign="Rebooting", seconds=5, advice=True),
        "notices[0]",
        "exactly one of seconds and advice",
    ),
    ("SIGTERM as advice", notice(sign="SIGTERM", advice=True), "notices[0].seconds", "SIGKILL"),
    ("SIGTERM 0", notice(sign="SIGTERM", seconds=0), "notices[0].seconds", "1 or more"),
    ("notices as a number", job(capacity={"notices": 5}), "spec.capacity.notices", "array"),
    ("slow nodes", job(capacity={"slowNodes": "kill"}), "spec.capacity.slowNodes", '"tell"'),
    ("capacity unknown", job(capacity={"spot": True}), "spec.capacity.spot", "unknown field"),
    ("procPerNode 0", job(procPerNode=0), "spec.procPerNode", "from 1 to 1024"),
    ("procPerNode word", job(procPerNode="all"), "spec.procPerNode", "auto, gpu, cpu"),
    ("procPerNode list", job(procPerNode=[1]), "spec.procPerNode", "integer,string"),
    ("no containers", pods(containers=[]), "spec.template.spec.containers", "at least 1"),
    ("containers absent", job(template={"spec": {}}), "spec.template.spec.containers", "Required"),
    (
        "no trainer",
        containers({**TRAINER, "name": "main"}),
        "spec.template.spec.containers",
        "must be named trainer",
    ),
    (
        "two trainers",
        containers(TRAINER, TRAINER),
        "spec.template.spec.containers",
        "exactly one container must be named trainer",
    ),
    (
        "no image",
        containers({"name": "trainer"}),
        "spec.template.spec.containers[0].image",
        "Required",
    ),
    (
        "empty image",
        containers({**TRAINER, "image": ""}),
        "spec.template.spec.containers[0].image",
        "at least 1 chars",
    ),
    (
        "args as text",
        containers({**TRAINER, "args": "train.py"}),
        "spec.template.spec.containers[0].args",
        "array",
    ),
    (
        "args with numbers",
        containers({**TRAINER, "args": ["--epochs", 10]}),
        "spec.template.spec.containers[0].args[1]",
        "string",
    ),
    (
        "container name with dot",
        containers(TRAINER, {**TRAINER, "name": "side.car"}),
        "spec.template.spec.containers[1].name",
        "should match",
    ),
    (
        "restartPolicy Always",
        pods(restartPolicy="Always"),
        "spec.template.spec.restartPolicy",
        "must be Never or absent",
    ),
    (
        "grace 0",
        pods(terminationGracePeriodSeconds=0),
        "spec.template.spec.terminationGracePeriodSeconds",
        "greater than or equal to 1",
    ),
    ("uri without //", checkpoint(uri="s3:/x"), "spec.checkpoint.uri", "s3://bucket/prefix"),
    ("uri http", checkpoint(uri="http://host/x"), "spec.checkpoint.uri", "s3://bucket/prefix"),
    ("uri with space", checkpoint(uri="s3://bucket/a b"), "spec.checkpoint.uri", "s3://bucket/"),
    ("uri bucket only", checkpoint(uri="s3://bucket"), "spec.checkpoint.uri", "s3://bucket/prefix"),
    ("uri upper case", checkpoint(uri="s3://Bucket/x"), "spec.checkpoint.uri", "s3://bucket/"),
    ("uri relative", checkpoint(uri="file://data/x"), "spec.checkpoint.uri", "file:///absolute"),
    ("uri empty", checkpoint(uri=""), "spec.checkpoint.uri", "at least 1 chars"),
    ("uri a number", checkpoint(uri=5), "spec.checkpoint.uri", "string"),
    ("uri too long", checkpoint(uri="s3://b/" + "x" * 1100), "spec.checkpoint.uri", "1024"),
    (
        "steps and seconds",
        checkpoint(every={"steps": 5, "seconds": 5}),
        "spec.checkpoint.every",
        "exactly one of steps, seconds",
    ),
    ("neither", checkpoint(every={}), "spec.checkpoint.every", "exactly one of steps, seconds"),
    (
        "auto and steps",
        checkpoint(every={"auto": True, "steps": 5}),
        "spec.checkpoint.every",
        "exactly one of steps, seconds",
    ),
    ("auto off", checkpoint(every={"auto": False}), "spec.checkpoint.every", "exactly one"),
    ("best what", checkpoint(keep={"best": {}}), "spec.checkpoint.keep.best.metric", "Required"),
    (
        "best mode",
        checkpoint(keep={"best": {"metric": "a", "mode": "most"}}),
        "spec.checkpoint.keep.best.mode",
        '"min", "max"',
    ),
    ("steps 0", checkpoint(every={"steps": 0}), "spec.checkpoint.every.steps", "equal to 1"),
    ("seconds -1", checkpoint(every={"seconds": -1}), "spec.checkpoint.every.seconds", "to 1"),
    ("keep 0", checkpoint(keep={"latest": 0}), "spec.checkpoint.keep.latest", "equal to 1"),
    (
        "secret name",
        checkpoint(secretRef={"name": "My_Secret"}),
        "spec.checkpoint.secretRef.name",
        "should match",
    ),
    (
        "addressing",
        checkpoint(addressing="auto"),
        "spec.checkpoint.addressing",
        '"path", "virtual"',
    ),
    ("commit", checkpoint(commit="none"), "spec.checkpoint.commit", '"conditional", "lease"'),
    ("region", checkpoint(region="EU"), "spec.checkpoint.region", "a-z0-9"),
    (
        "region of a file",
        checkpoint(uri="file:///mnt/x", region="eu-1"),
        "spec.checkpoint",
        "for s3:// only",
    ),
    (
        "endpoint of a file",
        checkpoint(uri="file:///mnt/x", endpointUrl="http://minio:9000"),
        "spec.checkpoint",
        "endpointUrl, region and addressing are for s3:// only",
    ),
    (
        "addressing of a file",
        checkpoint(uri="file:///mnt/x", addressing="path"),
        "spec.checkpoint",
        "for s3:// only",
    ),
    ("secret without", checkpoint(secretRef={}), "spec.checkpoint.secretRef.name", "Required"),
    (
        "endpoint without scheme",
        checkpoint(endpointUrl="minio:9000"),
        "spec.checkpoint.endpointUrl",
        "must begin with http:// or https://",
    ),
    (
        "endpoint without host",
        checkpoint(endpointUrl="http:///x"),
        "spec.checkpoint.endpointUrl",
        "name a host",
    ),
    (
        "endpoint with a password",
        checkpoint(endpointUrl="http://me:pw@minio:9000"),
        "spec.checkpoint.endpointUrl",
        "must not hold credentials, name a Secret with them in secretRef",
    ),
    ("unknown at the top", job(replica=2), "spec.replica", "unknown field"),
    ("unknown in elastic", job(elastic={"min": 1}), "spec.elastic.min", "unknown field"),
    (
        "unknown in every",
        checkpoint(every={"steps": 1, "minutes": 1}),
        "spec.checkpoint.every.minutes",
        "unknown field",
    ),
    (
        "unknown in restart",
        job(restart={"user": {"maximum": 1}}),
        "spec.restart.user.maximum",
        "unknown field",
    ),
    (
        "a label of the operator's",
        job(
            template={
                "metadata": {"labels": {"rekindle.dev/index": "7"}},
                "spec": {"containers": [TRAINER]},
            }
        ),
        "spec.template.metadata.labels",
        "are the operator's; remove them",
    ),
    (
        "unknown in metadata of the template",
        job(template={"metadata": {"name": "x"}, "spec": {"containers": [TRAINER]}}),
        "spec.template.metadata.name",
        "unknown field",
    ),
    (
        "budget -1",
        job(restart={"user": {"max": -1}}),
        "spec.restart.user.max",
        "greater than or equal to 0",
    ),
    (
        "window words",
        job(restart={"user": {"window": "one hour"}}),
        "spec.restart.user.window",
        "90s, 30m or 1h30m",
    ),
    (
        "window 0s",
        job(restart={"infrastructure": {"window": "0s"}}),
        "spec.restart.infrastructure.window",
        "positive duration",
    ),
    (
        "deadline in days",
        job(deadlines={"active": "2d"}),
        "spec.deadlines.active",
        "90s, 30m or 1h30m",
    ),
    ("deadline empty", job(deadlines={"startup": ""}), "spec.deadlines.startup", "duration"),
    ("deadline number", job(deadlines={"startup": 30}), "spec.deadlines.startup", "string"),
    ("pending in words", job(deadlines={"pending": "long"}), "spec.deadlines.pending", "90s, 30m"),
    (
        "two sources of steps",
        job(progress={"file": "p.jsonl", "tensorboard": "runs"}),
        "spec.progress",
        "at most one source: file, tensorboard or log",
    ),
    ("a file without a name", job(progress={"file": ""}), "spec.progress.file", "at least 1"),
    ("no such source", job(progress={"wandb": "x"}), "spec.progress.wandb", "unknown field"),
    ("lines of what", job(progress={"log": {}}), "spec.progress.log", "exactly one of pattern and"),
    (
        "lines of two kinds",
        job(progress={"log": {"pattern": "(?P<step>x)", "preset": "huggingface"}}),
        "spec.progress.log",
        "exactly one of pattern and preset",
    ),
    (
        "a pattern without a step",
        job(progress={"log": {"pattern": "step ([0-9]+)"}}),
        "spec.progress.log.pattern",
        "must contain the named group (?P<step>...)",
    ),
    (
        "lines of nobody",
        job(progress={"log": {"preset": "keras"}}),
        "spec.progress.log.preset",
        '"huggingface"',
    ),
    (
        "an image that nothing is copied from",
        job(launcher={"image": "rekindle/runtime:0.1"}),
        "spec.launcher.image",
        "set spec.launcher.inject to true or remove image",
    ),
    ("inject as text", job(launcher={"inject": "yes"}), "spec.launcher.inject", "boolean"),
    ("hang seconds as a number", job(hang={"timeout": 60}), "spec.hang.timeout", "string"),
    ("hang soon", job(hang={"timeout": "soon"}), "spec.hang.timeout", "auto, never, or a positive"),
    ("hang 0s", job(hang={"timeout": "0s"}), "spec.hang.timeout", "positive duration"),
    ("suspend as text", job(suspend="yes"), "spec.suspend", "boolean"),
    ("ttl -1", job(ttlSecondsAfterFinished=-1), "spec.ttlSecondsAfterFinished", "equal to 0"),
    ("cleanPods", job(cleanPods="Some"), "spec.cleanPods", '"All", "Running", "None"'),
    ("name too long", named("d" * 51), "metadata.name", "longer than 50 characters"),
    ("name with a dot", named("my.job"), "metadata.name", "use letters, digits and '-'"),
]


def test_the_rules_of_the_crd_compile():
    assert not BROKEN


@pytest.mark.parametrize(
    ("body", "field", "allowed"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_manifest_is_refused_with_the_field_and_the_fix(body, field, allowed):
    said = answer(body)
    assert field in said
    assert allowed in said


def test_the_uri_of_a_job_cannot_be_changed():
    said = answer(checkpoint(uri="s3://bucket/other"), old=job())
    assert "spec.checkpoint.uri" in said
    assert "create a new job" in said


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("replicas", 4),
        ("suspend", True),
        ("elastic", {"minReplicas": 1, "maxReplicas": 9}),
        ("cleanPods", "All"),
    ],
)
def test_everything_else_can_be(field, new):
    assert answer(job(**{field: new}), old=job()) == ""


GOOD = [
    ("least", job()),
    ("file", checkpoint(uri="file:///mnt/shared/run")),
    ("deep prefix", checkpoint(uri="s3://my-bucket.x1/team/digits/v2/")),
    ("a place in S3", checkpoint(region="eu-central-1", addressing="virtual", commit="lease")),
    ("a shared file system without locks", checkpoint(uri="file:///mnt/x", commit="lease")),
    (
        "endpoint",
        checkpoint(endpointUrl="http://minio.storage:9000", secretRef={"name": "s3.cred"}),
    ),
    ("steps", checkpoint(every={"steps": 500}, keep={"latest": 1})),
    ("workers by number", job(procPerNode=8)),
    ("workers by word", job(procPerNode="gpu")),
    ("scale bounds", job(replicas=4, elastic={"minReplicas": 2, "maxReplicas": 8})),
    ("no limits", job(restart={"user": {"max": None}, "preemption": {"max": 3}})),
    ("no deadlines", job(deadlines={"startup": None, "active": "1h30m"})),
    ("waits a day for capacity", job(deadlines={"pending": "24h"})),
    ("no source of steps", job(progress={})),
    ("steps from a file", job(progress={"file": "progress.jsonl"})),
    ("steps from lines", job(progress={"log": {"pattern": r"step (?P<step>\d+)/(?P<total>\d+)"}})),
    ("steps of transformers", job(progress={"log": {"preset": "huggingface"}})),
    ("an image without us", job(launcher={"inject": True})),
    ("from another image", job(launcher={"inject": True, "image": "r.example/launcher@sha256:0"})),
    ("hangs", job(hang={"timeout": "1m30s"})),
    ("hangs are nobody's business", job(hang={"timeout": "never"})),
    ("spares", job(elastic={"spares": 2})),
    ("a sign of their own", notice(sign="a.b/c_D.e-f", seconds=0)),
    ("an advice", notice(sign="Rebooting", advice=True)),
    ("less than the grace", notice(sign="SIGTERM", seconds=15)),
    ("sidecar", containers(TRAINER, {"name": "logs", "image": "fluent-bit"})),
    (
        "a whole pod",
        pods(
            restartPolicy="Never",
            terminationGracePeriodSeconds=120,
            nodeSelector={"spot": "true"},
            tolerations=[{"key": "spot", "operator": "Exists"}],
            volumes=[{"name": "data", "emptyDir": {}}],
            securityContext={"runAsNonRoot": True},
        ),
    ),
    ("longest name", named("d" * 50)),
    ("after the end", job(ttlSecondsAfterFinished=0, cleanPods="None", suspend=True)),
]


@pytest.mark.parametrize("body", [g[1] for g in GOOD], ids=[g[0] for g in GOOD])
def test_a_good_manifest_is_accepted(body):
    assert answer(body) == ""


def test_defaults_are_filled_in():
    spec = schemas.fill_defaults(job(), SCHEMA)["spec"]
    assert spec == {
        **job()["spec"],
        "replicas": 1,
        "elastic": {"minReplicas": 1, "spares": 0},
        "procPerNode": "auto",
        "checkpoint": {
            "uri": "s3://bucket/run",
            "commit": "conditional",
            "every": {"seconds": 120},
            "keep": {"latest": 3},
        },
        "restart": {
            "user": {"max": 3, "window": "1h"},
            "infrastructure": {"max": 50, "window": "24h"},
            "preemption": {},
        },
        "capacity": {"slowNodes": "tell"},
        "hang": {"timeout": "auto"},
        "deadlines": {"startup": "30m"},
        "suspend": False,
        "cleanPods": "Running",
    }


def test_every_field_has_a_description():
    def bare(node, path):
        for key, inner in (node.get("properties") or {}).items():
            if "description" not in inner:
                yield f"{path}.{key}"
            yield from bare(inner, f"{path}.{key}")

    missing = [p for p in bare(SCHEMA.at("spec"), "spec") if ".template.spec.containers" not in p]
    allowed = {"name", "restartPolicy", "containers", "labels", "annotations"}
    assert [p for p in missing if p.rsplit(".", 1)[-1] not in allowed] == []


def rows_above(path):
    return [row for row in changes.EFFECTS if path == row or path.startswith(f"{row}.")]


def test_every_field_says_when_a_change_takes_effect():
    """A field is in one row of rekindle.api.changes, whose words its description holds."""

    def leaves(node, path):
        inner = node.get("properties") or {}
        for key, below in inner.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
        if not inner:
            yield path

    found = list(leaves(SCHEMA.at("spec"), ""))
    assert [path for path in found if len(rows_above(path)) != 1] == []
    for row, effect in changes.EFFECTS.items():
        node = SCHEMA.at("spec")
        for part in row.split("."):
            node = node["properties"][part]
        assert str(effect) in node["description"], row


def test_the_chart_carries_the_same_crd():
    copy_of = ROOT / "charts" / "rekindle" / "crds" / "trainingjob.yaml"
    assert copy_of.read_bytes() == (ROOT / "crds" / "trainingjob.yaml").read_bytes()
