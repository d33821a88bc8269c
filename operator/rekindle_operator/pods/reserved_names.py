"""Names in a pod template that are the operator's own: said, and never silently won or lost.

Of two variables of one name Kubernetes takes the last, of two ports or volumes it refuses the pod
in words that name something the user has not written. The schema sees labels only, since the rest
of a pod is for the API server to judge; so the rest is looked at here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rekindle.api import (
    ACCESS_PATH,
    GROUP,
    POD_METRICS_PORT,
    POD_METRICS_PORT_NAME,
    TRAINER_CONTAINER,
)
from rekindle.api.spec import SpecError, TrainingJob
from rekindle_operator.pods.manifests import (
    ACCESS,
    LAUNCHER,
    LAUNCHER_PATH,
    SHM,
    TERMINATION_LOG,
    VARIABLES,
    entries,
)


def check(job: TrainingJob) -> None:
    """Raise SpecError for the first name that is taken, with its field and what to do."""
    for complaint in _complaints(job):
        raise SpecError(complaint)


def _complaints(job: TrainingJob) -> Iterator[str]:
    base, pod = "spec.template", job.template["spec"]
    labels = (job.template.get("metadata") or {}).get("labels") or {}
    for key in labels:
        if key.startswith(f"{GROUP}/"):
            yield f"{base}.metadata.labels[{key}]: {GROUP}/ is the operator's; remove the label"
    for at, volume in _numbered(pod.get("volumes")):
        if volume.get("name") in {SHM, LAUNCHER, ACCESS}:
            yield f"{base}.spec.volumes[{at}].name: {_ours(volume['name'])}; choose another"
    for group in ("initContainers", "containers"):
        for at, container in _numbered(pod.get(group)):
            field = f"{base}.spec.{group}[{at}]"
            if container.get("name") == LAUNCHER:
                yield f"{field}.name: {_ours(LAUNCHER)}; choose another"
            yield from _ports(field, container)
            if group == "containers" and container.get("name") == TRAINER_CONTAINER:
                yield from _trainer(field, container, job.launcher.inject)


def _ports(field: str, container: Mapping[str, Any]) -> Iterator[str]:
    """All containers of a pod share its ports."""
    for at, port in _numbered(container.get("ports")):
        if port.get("name") == POD_METRICS_PORT_NAME:
            yield f"{field}.ports[{at}].name: {_ours(POD_METRICS_PORT_NAME)}; choose another"
        udp = port.get("protocol") not in {None, "TCP"}
        if port.get("containerPort") == POD_METRICS_PORT and not udp:
            text = f"{POD_METRICS_PORT} serves the metrics of the pod; use another port"
            yield f"{field}.ports[{at}].containerPort: {text}"


def _trainer(field: str, container: Mapping[str, Any], inject: bool) -> Iterator[str]:
    for at, variable in _numbered(container.get("env")):
        if variable.get("name") in VARIABLES:
            text = "is set by the operator; remove it, or set the field of the job that it is from"
            yield f"{field}.env[{at}].name: {variable['name']} {text}"
    for at, mount in _numbered(container.get("volumeMounts")):
        path = str(mount.get("mountPath")).rstrip("/")
        if _below(path, ACCESS_PATH):
            text = f"{ACCESS_PATH} holds the job's secret; mount it elsewhere"
            yield f"{field}.volumeMounts[{at}].mountPath: {text}"
        if inject and _below(path, LAUNCHER_PATH):
            text = f"{LAUNCHER_PATH} holds the launcher (spec.launcher.inject); mount it elsewhere"
            yield f"{field}.volumeMounts[{at}].mountPath: {text}"
    if container.get("terminationMessagePath") not in {None, "", TERMINATION_LOG}:
        text = f"must be {TERMINATION_LOG} or absent: the launcher leaves its last words there"
        yield f"{field}.terminationMessagePath: {text}"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _numbered(given: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    known = entries(given)
    for at, entry in enumerate(given if known else ()):
        if isinstance(entry, Mapping):
            yield at, entry


def _ours(name: str) -> str:
    return f"{name} is a name of the operator's"
