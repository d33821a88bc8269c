"""The children of a job, as manifests: pods, the secret that they show the coordinator, a service.

Pure: the same job, slot and incarnation always give the same manifest. Names are made from what a
child is (``digits-0``, and ``digits-0r1`` for the pod that took over slot 0), so that creating a
child a second time, because the first attempt's answer was lost or the cache is behind, meets
AlreadyExists instead of making another one.

What the user's template says stays; the operator adds the launcher as command, its environment, the
metrics port, a memory-backed /dev/shm (containers get 64 MiB otherwise, too little for workers that
share memory) and restartPolicy Never, because restarts are decided here.
"""

import base64
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rekindle.contract import (
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
    ENV_MTBF,
    ENV_NAMESPACE,
    ENV_POD,
    ENV_POD_IP,
    ENV_POD_UID,
    ENV_PROC_PER_NODE,
    ENV_TERMINATION_LOG,
    ENV_TOKEN,
    GROUP,
    KIND,
    LABEL_INCARNATION,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    LABEL_SLOT,
    POD_METRICS_PORT,
    POD_METRICS_PORT_NAME,
    TRAINER_CONTAINER,
    VERSION,
)
from rekindle_operator.observed import LABEL_TEMPLATE
from rekindle_operator.spec import TrainingJob

TERMINATION_LOG = "/dev/termination-log"
SHM = "rekindle-shm"
"""Name of the volume behind /dev/shm."""
TOKEN_KEY = "token"
"""Key of the job's secret."""
HOSTNAME = "kubernetes.io/hostname"
"""Label of nodes by which pods are kept away from some of them."""


@dataclass(frozen=True, kw_only=True)
class Avoid:
    """Nodes, by the value of their hostname label, that a new pod should not be on."""

    never: tuple[str, ...] = ()
    """They go: rather no node than one of these."""
    rather_not: tuple[str, ...] = ()
    """They may go, or were slow: any other is better."""


NOWHERE = Avoid()


def selector(job: str) -> dict[str, str]:
    """Labels that exactly the pods of one job carry."""
    return {LABEL_JOB: job, LABEL_MANAGED_BY: "rekindle"}


def secret_name(job: str) -> str:
    """Name of the secret of a job."""
    return f"{job}-rekindle"


def service_name(job: str) -> str:
    """Name of the headless service of a job."""
    return f"{job}-pods"


def pod_name(job: str, slot: int, incarnation: int) -> str:
    """Name of a pod; the last part tells slot and incarnation apart from any job's name."""
    return f"{job}-{slot}" + (f"r{incarnation}" if incarnation else "")


def _meta(job: TrainingJob, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": dict(labels),
        "ownerReferences": [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def secret(job: TrainingJob, token: str) -> dict[str, Any]:
    """The secret by which the coordinator knows the job's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _meta(job, secret_name(job.name), selector(job.name)),
        "type": "Opaque",
        "data": {TOKEN_KEY: base64.b64encode(token.encode()).decode()},
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
    slot: int,
    incarnation: int,
    coordinator_url: str,
    mtbf: float | None = None,
    avoid: Avoid = NOWHERE,
) -> dict[str, Any]:
    """One pod of the job; ``mtbf`` is the seconds between incidents so far, if there were any."""
    given = job.template.get("metadata") or {}
    labels = {
        **(given.get("labels") or {}),
        **selector(job.name),
        LABEL_SLOT: str(slot),
        LABEL_INCARNATION: str(incarnation),
        LABEL_TEMPLATE: job.template_hash,
    }
    meta = _meta(job, pod_name(job.name, slot, incarnation), labels)
    if given.get("annotations"):
        meta["annotations"] = dict(given["annotations"])
    spec = copy.deepcopy(dict(job.template["spec"]))
    spec["restartPolicy"] = "Never"
    spec["containers"] = [
        _trainer(job, container, coordinator_url, mtbf)
        if container["name"] == TRAINER_CONTAINER
        else container
        for container in spec["containers"]
    ]
    if _mounts_shm(spec["containers"]):
        volumes = [*(spec.get("volumes") or ())]
        spec["volumes"] = [*volumes, {"name": SHM, "emptyDir": {"medium": "Memory"}}]
    if avoid != NOWHERE:
        spec["affinity"] = _kept_away(spec.get("affinity") or {}, avoid)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _kept_away(given: Mapping[str, Any], avoid: Avoid) -> dict[str, Any]:
    """The user's affinity, which holds as it is, and no node that is to be avoided.

    The terms of a node selector are alternatives, so that the condition has to be in each of them.
    """
    affinity = copy.deepcopy(dict(given))
    node = affinity.setdefault("nodeAffinity", {})
    if avoid.never:
        key = "requiredDuringSchedulingIgnoredDuringExecution"
        required = node.setdefault(key, {})
        required["nodeSelectorTerms"] = [
            {**term, "matchExpressions": [*term.get("matchExpressions", ()), _not_in(avoid.never)]}
            for term in required.get("nodeSelectorTerms") or [{}]
        ]
    if avoid.rather_not:
        key = "preferredDuringSchedulingIgnoredDuringExecution"
        wish = {"weight": 100, "preference": {"matchExpressions": [_not_in(avoid.rather_not)]}}
        node[key] = [*(node.get(key) or ()), wish]
    return affinity


def _not_in(hosts: tuple[str, ...]) -> dict[str, Any]:
    return {"key": HOSTNAME, "operator": "NotIn", "values": list(hosts)}


def _mounts_shm(containers: list[dict[str, Any]]) -> bool:
    return any(m["name"] == SHM for c in containers for m in c.get("volumeMounts") or ())


def _trainer(
    job: TrainingJob, given: Mapping[str, Any], coordinator_url: str, mtbf: float | None
) -> dict[str, Any]:
    """The container that trains: the user's, with the launcher in front."""
    container = dict(given)
    container.setdefault("command", ["python", "-m", "rekindle.launch"])
    container["terminationMessagePath"] = TERMINATION_LOG
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    container["env"] = [*_environment(job, coordinator_url, mtbf), *(container.get("env") or ())]
    if job.checkpoint.secret:
        source = {"secretRef": {"name": job.checkpoint.secret}}
        container["envFrom"] = [source, *(container.get("envFrom") or ())]
    ports = [*(container.get("ports") or ())]
    container["ports"] = [
        *ports,
        {"name": POD_METRICS_PORT_NAME, "containerPort": POD_METRICS_PORT},
    ]
    mounts = [*(container.get("volumeMounts") or ())]
    if not any(mount.get("mountPath") == "/dev/shm" for mount in mounts):
        container["volumeMounts"] = [*mounts, {"name": SHM, "mountPath": "/dev/shm"}]
    return container


def _environment(
    job: TrainingJob, coordinator_url: str, mtbf: float | None
) -> list[dict[str, Any]]:
    """What the agent and its workers are told (see rekindle.contract)."""

    def field(path: str) -> dict[str, Any]:
        return {"fieldRef": {"fieldPath": path}}

    token = {"secretKeyRef": {"name": secret_name(job.name), "key": TOKEN_KEY}}
    values: list[tuple[str, str | int | None]] = [
        (ENV_JOB, job.name),
        (ENV_NAMESPACE, job.namespace),
        (ENV_COORDINATOR, coordinator_url),
        (ENV_PROC_PER_NODE, job.proc_per_node),
        (ENV_GRACE, int(job.grace_seconds)),
        (ENV_TERMINATION_LOG, TERMINATION_LOG),
        (ENV_CHECKPOINT_URI, job.checkpoint.uri),
        (ENV_CHECKPOINT_ENDPOINT, job.checkpoint.endpoint_url),
        (ENV_CHECKPOINT_REGION, job.checkpoint.region),
        (ENV_CHECKPOINT_ADDRESSING, job.checkpoint.addressing),
        (ENV_CHECKPOINT_COMMIT, job.checkpoint.commit),
        (ENV_CHECKPOINT_EVERY_STEPS, job.checkpoint.every_steps),
        (ENV_CHECKPOINT_EVERY_SECONDS, job.checkpoint.every_seconds),
        (ENV_CHECKPOINT_EVERY, "auto" if job.checkpoint.every_auto else None),
        (ENV_HANG_TIMEOUT, job.hang_timeout),
        (ENV_MTBF, None if mtbf is None else f"{mtbf:.0f}"),
        (ENV_CHECKPOINT_KEEP, json.dumps(job.checkpoint.keep, sort_keys=True)),
    ]
    return [
        {"name": ENV_POD, "valueFrom": field("metadata.name")},
        {"name": ENV_POD_UID, "valueFrom": field("metadata.uid")},
        {"name": ENV_POD_IP, "valueFrom": field("status.podIP")},
        {"name": ENV_TOKEN, "valueFrom": token},
        *({"name": name, "value": str(value)} for name, value in values if value is not None),
    ]
