"""From a job to its children: golden files, and what must hold for all of them.

A file of tests/data holds a job and the pod that is made from it. After a change that is meant,
REKINDLE_UPDATE_GOLDEN=1 writes the files anew; the difference is what a reviewer reads.
"""

import base64
import copy
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from rekindle.api import spec
from rekindle_local.apiserver.schemas import schema as schemas
from rekindle_local.kubelet.expansion import expand
from rekindle_operator.pods import manifests

DATA = Path(__file__).parents[1] / "data"
CRD = yaml.safe_load((DATA.parents[1] / "crds" / "trainingjob.yaml").read_text())
SCHEMA = schemas.Schema(root=CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
CASES = ["least", "whole", "own_shm", "torchrun", "injected"]
TOKEN = "not-a-real-token"
HOW = manifests.PodAccess(token=TOKEN, url="http://rekindle:8430", authority="PEM")


def load(name):
    document = yaml.safe_load((DATA / f"{name}.yaml").read_text())
    body = {"apiVersion": "rekindle.dev/v1alpha1", "kind": "TrainingJob", **document["job"]}
    return document, spec.parse(schemas.fill_defaults(body, SCHEMA), 0.0)


def made(document, job):
    return manifests.pod(job, document["index"], document["generation"])


@pytest.mark.parametrize("name", CASES)
def test_the_pod_is_the_golden_one(name):
    document, job = load(name)
    pod = made(document, job)
    path = DATA / f"{name}.pod.yaml"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN") == "1":
        path.write_text(yaml.safe_dump(pod, sort_keys=False, width=100))
    assert pod == yaml.safe_load(path.read_text())


def test_secret_and_service_are_the_golden_ones():
    _, job = load("least")
    children = [manifests.secret(job, HOW), manifests.service(job)]
    path = DATA / "least.children.yaml"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN") == "1":
        path.write_text(yaml.safe_dump_all(children, sort_keys=False, width=100))
    assert children == list(yaml.safe_load_all(path.read_text()))


def container(name):
    document, job = load(name)
    pod = made(document, job)
    found = {c["name"]: c for c in pod["spec"]["containers"]}
    given = {c["name"]: c for c in job.template["spec"]["containers"]}
    return pod, found, given


def test_what_the_user_says_stays():
    pod, found, given = container("whole")
    for key in ("args", "image", "workingDir", "resources", "securityContext"):
        assert found["trainer"][key] == given["trainer"][key]
    for key in ("env", "envFrom", "ports", "volumeMounts"):
        assert all(item in found["trainer"][key] for item in given["trainer"][key])
    assert found["logs"] == {**given["logs"], **LAST_LINES}, "a sidecar tells why it failed"
    assert pod["spec"]["initContainers"][0].items() >= LAST_LINES.items()
    assert pod["spec"]["volumes"][0]["name"] == "data"
    assert pod["metadata"]["labels"]["team"] == "vision"


def test_a_private_ca_and_a_profile_reach_the_pod_through_its_own_environment_and_volumes():
    document, _ = load("whole")
    body = {"apiVersion": "x", "kind": "x", **copy.deepcopy(document["job"])}
    pod = body["spec"]["template"]["spec"]
    trainer = pod["containers"][1]
    mount = {"name": "s3", "mountPath": "/etc/s3", "readOnly": True}
    variables = {"AWS_CA_BUNDLE": "/etc/s3/ca.pem", "AWS_PROFILE": "team"}
    trainer["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    trainer["volumeMounts"] = [mount]
    pod["volumes"] = [{"name": "s3", "secret": {"secretName": "s3-files"}}]
    found = made(document, spec.parse(schemas.fill_defaults(body, SCHEMA), 0.0))["spec"]
    container = found["containers"][1]
    assert container["env"][-2:] == trainer["env"]
    assert mount in container["volumeMounts"]
    assert pod["volumes"][0] in found["volumes"]


def test_a_users_variable_wins_over_ours():
    document, job = load("whole")
    names = [e["name"] for e in made(document, job)["spec"]["containers"][1]["env"]]
    assert names[-1] == "OMP_NUM_THREADS", "of two of one name Kubernetes takes the last"


def test_labels_that_select_pods_are_ours():
    pod, *_ = container("whole")
    assert pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "rekindle"
    assert manifests.selector("digits").items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("name", "volumes"),
    [
        ("least", ["rekindle-access", "rekindle-shm"]),
        ("own_shm", ["memory", "rekindle-access"]),
    ],
)
def test_shared_memory_is_of_memory_and_mounted_once(name, volumes):
    pod, found, _ = container(name)
    assert [v["name"] for v in pod["spec"]["volumes"]] == volumes
    (memory,) = [v["emptyDir"] for v in pod["spec"]["volumes"] if "emptyDir" in v]
    assert memory["medium"] == "Memory"
    mounts = [m for m in found["trainer"]["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    assert len(mounts) == 1


def test_the_token_is_in_the_secret_and_nowhere_else():
    document, job = load("whole")
    secret = manifests.secret(job, HOW)
    text = str(secret)
    assert TOKEN in text or base64.b64encode(TOKEN.encode()).decode() in text
    pod = made(document, job)
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
    assert volumes["rekindle-access"]["secret"]["secretName"] == "digits-rekindle"
    assert TOKEN not in str(pod)


@pytest.mark.parametrize("name", CASES)
def test_making_a_manifest_changes_nothing_of_the_job(name):
    document, job = load(name)
    before = copy.deepcopy(dict(job.template))
    first, second = made(document, job), made(document, job)
    assert first == second
    assert dict(job.template) == before


def test_children_belong_to_the_job():
    document, job = load("least")
    for child in (made(document, job), manifests.secret(job, HOW), manifests.service(job)):
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == ("5f1c", True)


def test_names_fit_even_for_the_longest_job():
    longest = max(
        len(manifests.pod_name("d" * 50, 999, 9_999)), len(manifests.secret_name("d" * 50))
    )
    assert longest <= 63


@pytest.mark.parametrize(
    ("index", "generation", "name"), [(0, 0, "digits-0"), (12, 3, "digits-12r3")]
)
def test_names_tell_slot_and_generation(index, generation, name):
    assert manifests.pod_name("digits", index, generation) == name


def test_only_changes_that_pods_can_feel_change_the_hash():
    document, job = load("whole")
    body = {"apiVersion": "x", "kind": "x", **copy.deepcopy(document["job"])}

    def hash_with(**fields):
        changed = copy.deepcopy(body)
        changed["spec"].update(fields)
        return spec.parse(schemas.fill_defaults(changed, SCHEMA), 0.0).template_hash

    assert hash_with(replicas=9, suspend=True, cleanPods="All") == job.template_hash
    assert hash_with(procPerNode=4) != job.template_hash
    assert hash_with(progress={"file": "steps.jsonl"}) == job.template_hash
    assert hash_with(launcher={"inject": False}) == job.template_hash
    assert hash_with(launcher={"inject": True}) != job.template_hash
    checkpoint = document["job"]["spec"]["checkpoint"]
    assert hash_with(checkpoint={**checkpoint, "commit": "conditional"}) == job.template_hash
    for field, value in {"commit": "lease", "region": "r", "addressing": "path"}.items():
        assert hash_with(checkpoint={**checkpoint, field: value}) != job.template_hash, field


START = ["-m", "rekindle.launch"]


def trainer_of(job=None, **container):
    """The container that trains of a pod whose template has these fields."""
    document, _ = load("least")
    body = {"apiVersion": "x", "kind": "x", **copy.deepcopy(document["job"])}
    body["spec"] |= job or {}
    given = {"name": "trainer", "image": "i", **container}
    body["spec"]["template"]["spec"]["containers"] = [given]
    return made(document, spec.parse(schemas.fill_defaults(body, SCHEMA), 0.0))["spec"][
        "containers"
    ][0]


@pytest.mark.parametrize(
    ("given", "command", "args"),
    [
        ({"args": ["t.py"]}, ["python", *START], ["t.py"]),
        ({"command": [], "args": ["t.py"]}, ["python", *START], ["t.py"]),
        (
            {"command": ["torchrun", "--nproc-per-node=2"], "args": ["t.py"]},
            ["python3", *START, "--"],
            ["torchrun", "--nproc-per-node=2", "t.py"],
        ),
        ({"command": ["python", "t.py"]}, ["python", *START, "--"], ["python", "t.py"]),
        (
            {"command": ["/opt/venv/bin/python3.12", "-u"], "args": ["t.py", "--to=$(OUT)"]},
            ["/opt/venv/bin/python3.12", *START, "--"],
            ["/opt/venv/bin/python3.12", "-u", "t.py", "--to=$(OUT)"],
        ),
        ({"command": ["pythonize"]}, ["python3", *START, "--"], ["pythonize"]),
        ({"command": ["bash", "-c", "t"]}, ["python3", *START, "--"], ["bash", "-c", "t"]),
        (
            {"command": ["tini", "--", "python"], "args": [*START, "t.py"]},
            ["tini", "--", "python"],
            [*START, "t.py"],
        ),
        (
            {"command": ["sh", "-c", "cd /app; exec python -m rekindle.launch t.py"]},
            ["sh", "-c", "cd /app; exec python -m rekindle.launch t.py"],
            None,
        ),
        (
            {"command": ["python", "tool.py", "rekindle.launch"]},
            ["python", *START, "--"],
            ["python", "tool.py", "rekindle.launch"],
        ),
    ],
)
def test_the_launcher_comes_first_whatever_the_command_is(given, command, args):
    found = trainer_of(**given)
    assert found["command"] == command
    assert found.get("args") == args


@pytest.mark.parametrize("given", [{}, {"command": ["torchrun"]}, {"command": ["python", *START]}])
def test_an_injected_launcher_is_found_by_the_interpreter_that_runs_it(given):
    found = trainer_of(job={"launcher": {"inject": True}}, args=["t.py"], **given)
    command = found["command"]
    python = command[0]
    assert command[1:4] == ["-c", manifests._BEGIN, "/rekindle"]
    assert command[4:7] == [python, *START]
    assert (python == "python") == (given.get("command", [""])[0] == "python")


@pytest.mark.parametrize("known", [None, "/image/lib"])
def test_a_module_path_of_the_image_or_the_user_stays_behind_the_launcher(known, monkeypatch):
    told = {}
    monkeypatch.setattr(os, "execvp", lambda file, words: told.update(file=file, words=words))
    monkeypatch.setattr(sys, "argv", ["-c", "/rekindle", "python3", *START, "--", "torchrun"])
    monkeypatch.setenv("PYTHONPATH", known or "")
    exec(manifests._BEGIN, {})
    assert told == {"file": "python3", "words": ["python3", *START, "--", "torchrun"]}
    assert os.environ["PYTHONPATH"] == ("/rekindle:/image/lib" if known else "/rekindle")


def test_a_python_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        exec(manifests._BEGIN, {})


def test_the_launcher_is_brought_by_a_container_that_every_namespace_admits_which_admits_the_pod():
    document, job = load("injected")
    pod = made(document, job)["spec"]
    bring, trainer = pod["initContainers"][0], pod["containers"][0]
    assert [c["name"] for c in pod["initContainers"]] == ["rekindle-launcher", "fetch"]
    assert bring["securityContext"] == trainer["securityContext"]
    assert bring["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert "nvidia.com/gpu" not in bring["resources"]["limits"]
    assert job.launcher.image is None
    assert bring["image"] == manifests.RUNTIME_IMAGE
    other = manifests.pod(job, 0, 0, runtime_image="mirror/r:1")
    assert other["spec"]["initContainers"][0]["image"] == "mirror/r:1"


def test_the_source_of_steps_reaches_the_pod_as_it_was_written():
    log = {"pattern": r"^step (?P<step>\d+)$(POD)"}
    environment = {
        e["name"]: e.get("value") for e in trainer_of(job={"progress": {"log": log}})["env"]
    }
    told = expand(environment["REKINDLE_PROGRESS"], {"POD": "expanded by mistake"})
    assert json.loads(told) == {"log": log}
    assert "REKINDLE_PROGRESS" not in {e["name"] for e in trainer_of()["env"]}


@pytest.mark.parametrize("pattern", ["(?P<step>[0-9+", "(?P<step>*)"])
def test_a_pattern_that_python_cannot_read_is_named(pattern):
    with pytest.raises(spec.SpecError, match=r"spec\.progress\.log\.pattern"):
        trainer_of(job={"progress": {"log": {"pattern": pattern}}})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h1s", 7201)]
)
def test_durations(text, seconds):
    assert spec.parse_duration(text, "f") == seconds


@pytest.mark.parametrize("text", ["", "1d", "5", "-1s", "1m1h", "1.5h"])
def test_bad_durations_name_the_field(text):
    with pytest.raises(spec.SpecError, match=r"spec\.deadlines\.active"):
        spec.parse_duration(text, "spec.deadlines.active")


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
NOT_A = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["a"]}
GPU = {"key": "gpu", "operator": "Exists"}
BY_NAME = {"key": "metadata.name", "operator": "In", "values": ["b"]}


def kept_away(affinity, **avoid):
    document, _ = load("least")
    body = {"apiVersion": "x", "kind": "x", **copy.deepcopy(document["job"])}
    if affinity is not None:
        body["spec"]["template"]["spec"]["affinity"] = affinity
    before = copy.deepcopy(body)
    job = spec.parse(schemas.fill_defaults(body, SCHEMA), 0.0)
    pod = manifests.pod(job, 0, 1, None, manifests.Avoid(**avoid))
    assert job.template["spec"].get("affinity") == before["spec"]["template"]["spec"].get(
        "affinity"
    ), "the user's words are not written into"
    return pod["spec"].get("affinity")


def terms(*terms):
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (None, terms({"matchExpressions": [NOT_A]})),
        (
            {"podAffinity": {"x": 1}},
            {"podAffinity": {"x": 1}} | terms({"matchExpressions": [NOT_A]}),
        ),
        (
            terms({"matchExpressions": [GPU]}, {"matchFields": [BY_NAME]}),
            terms(
                {"matchExpressions": [GPU, NOT_A]},
                {"matchFields": [BY_NAME], "matchExpressions": [NOT_A]},
            ),
        ),
    ],
    ids=["no affinity", "another kind", "alternatives"],
)
def test_a_pod_is_kept_off_nodes_that_go_in_each_alternative_of_the_user(given, made):
    assert kept_away(given, never=("a",)) == made


def test_a_node_that_may_go_is_only_wished_away():
    wish = {"weight": 7, "preference": {"matchExpressions": [GPU]}}
    made = kept_away({"nodeAffinity": {PREFERRED: [wish]}}, rather_not=("a",))
    ours = {"weight": 100, "preference": {"matchExpressions": [NOT_A]}}
    assert made == {"nodeAffinity": {PREFERRED: [wish, ours]}}


def test_without_a_node_to_avoid_the_affinity_is_the_users():
    assert kept_away(None) is None
    assert kept_away({"nodeAffinity": {}}) == {"nodeAffinity": {}}


@pytest.mark.parametrize(("seconds", "grace"), [(None, "30"), (15, "15"), (300, "30")])
def test_a_pod_is_told_what_really_is_between_sigterm_and_the_end(seconds, grace):
    document, _ = load("least")
    body = {"apiVersion": "x", "kind": "x", **copy.deepcopy(document["job"])}
    if seconds:
        body["spec"]["capacity"] = {"notices": [{"sign": "SIGTERM", "seconds": seconds}]}
    job = spec.parse(schemas.fill_defaults(body, SCHEMA), 0.0)
    environment = made(document, job)["spec"]["containers"][0]["env"]
    assert {"name": "REKINDLE_GRACE_SECONDS", "value": grace} in environment


LAST_LINES = {"terminationMessagePolicy": "FallbackToLogsOnError"}
ODD = [None, {}, [], "word", 8, {"a": 1}, ["word"], [{"a": None}], [None]]
WHERE = {
    "pod": (
        *("volumes", "initContainers", "affinity", "tolerations", "nodeSelector"),
        *("terminationGracePeriodSeconds", "imagePullSecrets", "securityContext"),
    ),
    "trainer": (
        *("env", "envFrom", "ports", "volumeMounts", "resources", "securityContext"),
        *("livenessProbe", "lifecycle"),
    ),
    "affinity": ("nodeAffinity",),
    "nodeAffinity": (manifests.REQUIRED, manifests.PREFERRED),
    "required": ("nodeSelectorTerms",),
}


@pytest.mark.parametrize("inject", [False, True], ids=["own", "injected"])
@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("place", [f"{a} {b}" for a, fields in WHERE.items() for b in fields])
def test_whatever_is_in_a_template_there_is_a_pod_for_the_api_server_to_judge(place, value, inject):
    where, key = place.split()
    if key == "terminationGracePeriodSeconds" and value is not None:
        value = 8  # the CRD lets nothing else through
    trainer = {"name": "trainer", "image": "i"}
    pod = {"containers": [trainer]}
    if where == "pod":
        pod[key] = value
    elif where == "trainer":
        trainer[key] = value
    elif where == "affinity":
        pod["affinity"] = {key: value}
    elif where == "nodeAffinity":
        pod["affinity"] = {"nodeAffinity": {key: value}}
    else:
        pod["affinity"] = {"nodeAffinity": {manifests.REQUIRED: {key: value}}}
    body = {
        "metadata": {"name": "digits", "namespace": "ml", "uid": "u"},
        "spec": {
            "template": {"spec": pod},
            "checkpoint": {"uri": "s3://b/r"},
            "launcher": {"inject": inject},
        },
    }
    avoid = manifests.Avoid(never=("a",), rather_not=("b",))
    made = manifests.pod(spec.parse(body, 0.0), 0, 0, 60.0, avoid)["spec"]
    found = {"pod": made, "trainer": made["containers"][0]}.get(where)
    lists = {"volumes", "initContainers", "env", "envFrom", "ports", "volumeMounts"}
    if found and value and (key not in lists or not isinstance(value, list)) and key != "affinity":
        assert found[key] == value, "left as it is"
    elif found and isinstance(value, list) and key in lists:
        more = LAST_LINES if key == "initContainers" else {}
        kept = [{**item, **more} if isinstance(item, dict) else item for item in value]
        assert all(item in found[key] for item in kept)
