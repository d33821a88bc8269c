"""The children of a job, as manifests: pods, the secret that they show the coordinator, a service.

Pure: the same job, index and generation always give the same manifest. Names are made from what a
child is (``digits-0``, and ``digits-0r1`` for the pod that took over index 0), so that creating a
child a second time, because the first attempt's answer was lost or the cache is behind, meets
AlreadyExists instead of making another one.

What the user's template says stays; the operator adds the launcher, its environment, the metrics
port, a memory-backed /dev/shm (containers get 64 MiB otherwise, too little for workers that share
memory) and restartPolicy Never, because restarts are decided here.

The launcher comes first whatever the template's command is: pods that start a command of their own
know nothing of each other, train N times alone and end well. The command follows it after ``--``,
in args, so that $(VAR) in it still is expanded. An image without the launcher gets it from an init
container. Its folder is put on the module path by the interpreter that starts the launcher and not
by the pod's environment, whose $(PYTHONPATH) knows neither the image's variable nor those of
envFrom: both stay.
"""

import base64
import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rekindle.api import (
    ACCESS_CA,
    ACCESS_PATH,
    ACCESS_TOKEN,
    ACCESS_URL,
    ENV_ACCESS,
    ENV_CHECKPOINT_ADDRESSING,
    ENV_CHECKPOINT_COMMIT,
    ENV_CHECKPOINT_ENDPOINT,
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_KEEP,
    ENV_CHECKPOINT_REGION,
    ENV_CHECKPOINT_URI,
    ENV_COORDINATOR,
    ENV_GRACE,
    ENV_HANG_TIMEOUT,
    ENV_JOB,
    ENV_JOB_UID,
    ENV_MTBF,
    ENV_NAMESPACE,
    ENV_POD,
    ENV_POD_IP,
    ENV_POD_UID,
    ENV_PROC_PER_NODE,
    ENV_PROGRESS,
    ENV_TERMINATION_LOG,
    ENV_TOKEN,
    ENV_WORKERS,
    GROUP,
    KIND,
    LABEL_GENERATION,
    LABEL_INDEX,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    POD_METRICS_PORT,
    POD_METRICS_PORT_NAME,
    TRAINER_CONTAINER,
    VERSION,
)
from rekindle.api.spec import TrainingJob
from rekindle_operator.observed.observations import AVOIDS, LABEL_TEMPLATE

TERMINATION_LOG = "/dev/termination-log"
SHM = "rekindle-shm"
"""Name of the volume behind /dev/shm."""
LAUNCHER = "rekindle-launcher"
"""Name of the init container that brings the launcher, and of the volume for it."""
LAUNCHER_PATH = "/rekindle"
"""Where that volume is mounted."""
RUNTIME_IMAGE = "rekindle/runtime"
"""The image that has the launcher, unless the operator was told another one."""
_RUNS_THE_LAUNCHER = re.compile(r"(?:^|\s)-m\s*rekindle\.launch(?:\s|$)")
_PYTHON = re.compile(r"python[0-9.]*")
_BEGIN = """\
import os, sys
if sys.version_info < (3, 11):
    had = sys.version.split()[0]
    sys.exit("spec.launcher.inject needs Python 3.11 or newer in the image, which has " + had)
folder, *command = sys.argv[1:]
known = os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = folder + (os.pathsep + known if known else "")
os.execvp(command[0], command)
"""
"""Puts a folder on the module path and goes on as what follows. Any Python can read it."""
ACCESS = "rekindle-access"
"""Name of the volume with the job's secret."""
HOSTNAME = "kubernetes.io/hostname"
"""Label of nodes by which pods are kept away from some of them."""


VARIABLES = {
    *(ENV_JOB, ENV_NAMESPACE, ENV_JOB_UID, ENV_POD, ENV_POD_UID, ENV_POD_IP),
    *(ENV_ACCESS, ENV_COORDINATOR, ENV_TOKEN),
    *(ENV_PROC_PER_NODE, ENV_GRACE, ENV_TERMINATION_LOG, ENV_HANG_TIMEOUT, ENV_MTBF),
    ENV_WORKERS,
    *(ENV_CHECKPOINT_URI, ENV_CHECKPOINT_ENDPOINT, ENV_CHECKPOINT_REGION, ENV_CHECKPOINT_COMMIT),
    *(ENV_CHECKPOINT_ADDRESSING, ENV_CHECKPOINT_EVERY_STEPS, ENV_CHECKPOINT_EVERY_SECONDS),
    *(ENV_CHECKPOINT_EVERY, ENV_CHECKPOINT_KEEP, ENV_PROGRESS),
}
"""Variables that a template cannot set: the operator does."""


@dataclass(frozen=True, kw_only=True)
class Avoid:
    """Nodes, by the value of their hostname label, that a new pod should not be on."""

    never: tuple[str, ...] = ()
    """They go: rather no node than one of these."""
    rather_not: tuple[str, ...] = ()
    """They may go, or were slow: any other is better."""


NOWHERE = Avoid()
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def selector(job: str) -> dict[str, str]:
    """Labels that exactly the pods of one job carry."""
    return {LABEL_JOB: job, LABEL_MANAGED_BY: "rekindle"}


def secret_name(job: str) -> str:
    """Name of the secret of a job."""
    return f"{job}-rekindle"


def service_name(job: str) -> str:
    """Name of the headless service of a job."""
    return f"{job}-pods"


def pod_name(job: str, index: int, generation: int) -> str:
    """Name of a pod; the last part tells index and generation apart from any job's name."""
    return f"{job}-{index}" + (f"r{generation}" if generation else "")


def index_of(job: str, pod: str) -> int | None:
    """The index in a pod's name; None for the name of something else."""
    index = pod.removeprefix(f"{job}-").partition("r")[0]
    return int(index) if index.isdecimal() else None


def owner_reference(name: str, uid: str) -> dict[str, Any]:
    """How the children of a job name it: they go with it, and a foreground deletion waits."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _meta(job: TrainingJob, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner_reference(job.name, job.uid)],
    }


@dataclass(frozen=True, kw_only=True)
class PodAccess:
    """How a job's pods reach the coordinator (see rekindle.launch.pod.access)."""

    token: str
    url: str
    authority: str = ""
    """Certificates, PEM; empty where pods need none."""


def secret(job: TrainingJob, access: PodAccess) -> dict[str, Any]:
    """How the job's pods reach the coordinator, and by what it knows them.

    It is mounted, so that pods which run see another address, token or authority, too.
    """
    data = {ACCESS_TOKEN: access.token, ACCESS_URL: access.url}
    if access.authority:
        data[ACCESS_CA] = access.authority
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _meta(job, secret_name(job.name), selector(job.name)),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def service(job: TrainingJob) -> dict[str, Any]:
    """A headless service: DNS names for the pods, and one target list for whoever scrapes them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(job, service_name(job.name), selector(job.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector(job.name),
            "ports": [{"name": POD_METRICS_PORT_NAME, "port": POD_METRICS_PORT}],
        },
    }


def pod(
    job: TrainingJob,
    index: int,
    generation: int,
    mtbf: float | None = None,
    avoid: Avoid = NOWHERE,
    *,
    runtime_image: str = RUNTIME_IMAGE,
) -> dict[str, Any]:
    """One pod of the job; ``mtbf`` is the seconds between incidents so far, if there were any."""
    given = job.template.get("metadata") or {}
    labels = {
        **(given.get("labels") or {}),
        **selector(job.name),
        LABEL_INDEX: str(index),
        LABEL_GENERATION: str(generation),
        LABEL_TEMPLATE: job.template_hash,
    }
    meta = _meta(job, pod_name(job.name, index, generation), labels)
    if given.get("annotations"):
        meta["annotations"] = dict(given["annotations"])
    spec = copy.deepcopy(dict(job.template["spec"]))
    spec["restartPolicy"] = "Never"
    spec["containers"] = [
        _trainer(job, container, mtbf)
        if container["name"] == TRAINER_CONTAINER
        else _that_tells(container)
        for container in spec["containers"]
    ]
    if isinstance(spec.get("initContainers"), list):
        spec["initContainers"] = [_that_tells(one) for one in spec["initContainers"]]
    access = {"name": ACCESS, "secret": {"secretName": secret_name(job.name)}}
    spec["volumes"] = _beside(spec.get("volumes"), after=access)
    if _mounts_shm(spec["containers"]):
        memory = {"name": SHM, "emptyDir": {"medium": "Memory"}}
        spec["volumes"] = _beside(spec.get("volumes"), after=memory)
    if job.launcher.inject:
        image = job.launcher.image or runtime_image
        trainer = next(c for c in spec["containers"] if c["name"] == TRAINER_CONTAINER)
        brought = _bring(image, trainer)
        spec["initContainers"] = _beside(spec.get("initContainers"), before=[brought])
        shared = {"name": LAUNCHER, "emptyDir": {}}
        spec["volumes"] = _beside(spec.get("volumes"), after=shared)
    if avoid != NOWHERE:
        spec["affinity"] = _kept_away(spec.get("affinity") or {}, avoid)
    if avoid.never:
        meta["annotations"] = {**(meta.get("annotations") or {}), AVOIDS: ",".join(avoid.never)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _beside(given: Any, *, before: Iterable[Any] = (), after: Any = None) -> Any:
    """A list of the user's with ours beside it.

    What is no list is left as it is: the API server refuses it, in words that name the field.
    """
    if given is not None and not isinstance(given, list):
        return given
    return [*before, *(given or ()), *([after] if after else ())]


def entries(given: Any) -> list[Mapping[str, Any]]:
    """The objects in a list of the user's, whatever else it holds or is."""
    return [e for e in given if isinstance(e, Mapping)] if isinstance(given, list) else []


def _kept_away(given: Any, avoid: Avoid) -> Any:
    """The user's affinity, which holds as it is, and no node that is to be avoided.

    The terms of a node selector are alternatives, so that the condition has to be in each of them.
    """
    node = given.get("nodeAffinity") or {} if isinstance(given, Mapping) else None
    if not isinstance(node, Mapping):
        return given
    node = dict(node)
    required = node.get(REQUIRED) or {}
    if avoid.never and isinstance(required, Mapping):
        terms = entries(required.get("nodeSelectorTerms")) or [{}]
        node[REQUIRED] = {
            **required,
            "nodeSelectorTerms": [
                {
                    **term,
                    "matchExpressions": _beside(
                        term.get("matchExpressions"), after=_not_in(avoid.never)
                    ),
                }
                for term in terms
            ],
        }
    if avoid.rather_not:
        wish = {"weight": 100, "preference": {"matchExpressions": [_not_in(avoid.rather_not)]}}
        node[PREFERRED] = _beside(node.get(PREFERRED), after=wish)
    return {**given, "nodeAffinity": node}


def _not_in(hosts: tuple[str, ...]) -> dict[str, Any]:
    return {"key": HOSTNAME, "operator": "NotIn", "values": list(hosts)}


def _mounts_shm(containers: list[dict[str, Any]]) -> bool:
    return any(m.get("name") == SHM for c in containers for m in entries(c.get("volumeMounts")))


def _that_tells(given: Any) -> Any:
    """A container of the user's whose last lines are in its status, should it fail."""
    if not isinstance(given, Mapping):
        return given
    container = dict(given)
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    return container


def _trainer(job: TrainingJob, given: Mapping[str, Any], mtbf: float | None) -> dict[str, Any]:
    """The container that trains: the user's, with the launcher in front."""
    container = dict(given)
    command = _command(given.get("command") or (), given.get("args") or (), job.launcher.inject)
    container |= {key: words for key, words in command.items() if words}
    container["terminationMessagePath"] = TERMINATION_LOG
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    ours = _environment(job, mtbf)
    container["env"] = _beside(container.get("env"), before=ours)
    if job.checkpoint.secret:
        source = {"secretRef": {"name": job.checkpoint.secret}}
        container["envFrom"] = _beside(container.get("envFrom"), before=[source])
    port = {"name": POD_METRICS_PORT_NAME, "containerPort": POD_METRICS_PORT}
    container["ports"] = _beside(container.get("ports"), after=port)
    access = {"name": ACCESS, "mountPath": ACCESS_PATH, "readOnly": True}
    mounts = _beside(container.get("volumeMounts"), after=access)
    if not any(mount.get("mountPath") == "/dev/shm" for mount in entries(mounts)):
        mounts = _beside(mounts, after={"name": SHM, "mountPath": "/dev/shm"})
    if job.launcher.inject:
        mount = {"name": LAUNCHER, "mountPath": LAUNCHER_PATH, "readOnly": True}
        mounts = _beside(mounts, after=mount)
    container["volumeMounts"] = mounts
    return container


def _command(given: Sequence[str], args: Sequence[str], inject: bool) -> dict[str, list[str]]:
    """The launcher, and after it what the user gives; with the user's own interpreter."""
    runs_it = _RUNS_THE_LAUNCHER.search(" ".join([*given, *args]))
    own = given and _PYTHON.fullmatch(given[0].rsplit("/", 1)[-1])
    python = given[0] if own else "python3" if given or inject else "python"
    begin = [python, "-c", _BEGIN, LAUNCHER_PATH] if inject else []
    if given and runs_it:
        return {"command": [*begin, *given], "args": list(args)}
    launcher = [*begin, python, "-m", "rekindle.launch"]
    if not given:
        return {"command": launcher, "args": list(args)}
    return {"command": [*launcher, "--"], "args": [*given, *args]}


def _bring(image: str, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The init container that copies the launcher.

    What admits the container that trains admits it, too: it has the same security context, and of
    its resources those that quotas and LimitRanges ask for. It costs nothing, since a pod needs the
    larger of what its init containers and its containers need.
    """
    given = trainer.get("resources")
    resources = {
        kind: found
        for kind in ("requests", "limits")
        if isinstance(given, Mapping) and (found := _ordinary(given.get(kind)))
    }
    container: dict[str, Any] = {
        "name": LAUNCHER,
        "image": image,
        "command": ["python", "-m", "rekindle.launch.inject", LAUNCHER_PATH],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": LAUNCHER, "mountPath": LAUNCHER_PATH}],
    }
    if resources:
        container["resources"] = resources
    if trainer.get("securityContext"):
        container["securityContext"] = copy.deepcopy(trainer["securityContext"])
    return container


def _ordinary(amounts: Any) -> dict[str, Any]:
    given = amounts.items() if isinstance(amounts, Mapping) else ()
    return {k: v for k, v in given if k in {"cpu", "memory", "ephemeral-storage"}}


def variables_of_a_round(job: TrainingJob, mtbf: float | None, workers: int) -> dict[str, str]:
    """What the workers of the next round find in their environment, in place of the pod's.

    `workers` are those of the job when all its pods are there, which only a round can tell. A name
    that the template sets itself is left out: the user's word counts.
    """
    trainer = next(c for c in job.template["spec"]["containers"] if c["name"] == TRAINER_CONTAINER)
    own = {entry.get("name") for entry in trainer.get("env") or ()}
    return {
        name: "" if value is None else str(value)
        for name, value in (*_changeable(job, mtbf), (ENV_WORKERS, workers))
        if name not in own
    }


def _changeable(job: TrainingJob, mtbf: float | None) -> list[tuple[str, str | int | None]]:
    """The variables of OF_A_ROUND, which pods get for the time until their first round."""
    return [
        (ENV_GRACE, int(job.grace_seconds)),
        (ENV_CHECKPOINT_EVERY_STEPS, job.checkpoint.every_steps),
        (ENV_CHECKPOINT_EVERY_SECONDS, job.checkpoint.every_seconds),
        (ENV_CHECKPOINT_EVERY, "auto" if job.checkpoint.every_auto else None),
        (ENV_HANG_TIMEOUT, job.hang_timeout),
        (ENV_MTBF, None if mtbf is None else f"{mtbf:.0f}"),
        (ENV_CHECKPOINT_KEEP, json.dumps(job.checkpoint.keep, sort_keys=True)),
    ]


def _environment(job: TrainingJob, mtbf: float | None) -> list[dict[str, Any]]:
    """What the agent and its workers are told (see rekindle.api)."""

    def field(path: str) -> dict[str, Any]:
        return {"fieldRef": {"fieldPath": path}}

    values: list[tuple[str, str | int | None]] = [
        (ENV_JOB, job.name),
        (ENV_NAMESPACE, job.namespace),
        (ENV_JOB_UID, job.uid),
        (ENV_ACCESS, ACCESS_PATH),
        (ENV_PROC_PER_NODE, job.proc_per_node),
        (ENV_TERMINATION_LOG, TERMINATION_LOG),
        (ENV_CHECKPOINT_URI, job.checkpoint.uri),
        (ENV_CHECKPOINT_ENDPOINT, job.checkpoint.endpoint_url),
        (ENV_CHECKPOINT_REGION, job.checkpoint.region),
        (ENV_CHECKPOINT_ADDRESSING, job.checkpoint.addressing),
        (ENV_CHECKPOINT_COMMIT, job.checkpoint.commit),
        *_changeable(job, mtbf),
        (
            ENV_PROGRESS,
            _literally(json.dumps(job.progress, sort_keys=True)) if job.progress else None,
        ),
    ]
    return [
        {"name": ENV_POD, "valueFrom": field("metadata.name")},
        {"name": ENV_POD_UID, "valueFrom": field("metadata.uid")},
        {"name": ENV_POD_IP, "valueFrom": field("status.podIP")},
        *({"name": name, "value": str(value)} for name, value in values if value is not None),
    ]


def _literally(text: str) -> str:
    """A value of a variable in which Kubernetes finds no $(VAR): a pattern may look like one."""
    return text.replace("$", "$$")
