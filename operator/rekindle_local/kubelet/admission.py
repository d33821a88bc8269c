"""Which pods this node takes.

A field that asks for something a process cannot give, and whose absence a program would notice, is
refused with the path of the field: the pod ends Failed with reason UnsupportedByThisNode. It is
never accepted and ignored. Isolation is different: `securityContext`, `readOnly`, CPU limits and
the like restrict a container, and a program runs the same without the restriction. What is only
partly here is remarked in an event.
"""

import os
from collections.abc import Iterator

from rekindle_local.client import Manifest

REASON = "UnsupportedByThisNode"
REMARK = "PartlySupportedByThisNode"

_VOLUMES = {
    "name", "emptyDir", "configMap", "secret", "downwardAPI", "projected", "hostPath",
    "persistentVolumeClaim", "ephemeral",
}  # fmt: skip
_SOURCES = {"secret", "configMap", "downwardAPI", "serviceAccountToken"}
_PROBES = ("readinessProbe", "livenessProbe", "startupProbe")


def unsupported(pod: Manifest) -> str | None:
    """Why the pod cannot run here, naming every field; None when it can."""
    problems = list(_problems(pod["spec"]))
    if not problems:
        return None
    return f"This node runs containers as processes and does not support {'; '.join(problems)}."


def remarks(pod: Manifest, address: str) -> list[str]:
    """What the pod gets less of than it asks for, each with a way round."""
    spec = pod["spec"]
    found = [
        f"hostPort {port['hostPort']} is reserved on this node and not forwarded: connect to "
        f"{address}:{port['containerPort']}"
        for container in spec.get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("hostPort") and not spec.get("hostNetwork")
    ]
    for container in spec.get("containers") or ():
        context = {
            **(spec.get("securityContext") or {}),
            **(container.get("securityContext") or {}),
        }
        user = context.get("runAsUser")
        if user is not None and user != os.getuid():
            found.append(
                f"container {container['name']} runs as user {os.getuid()}, not {user}: all "
                "containers are processes of the user who runs the cluster"
            )
    return found


def _problems(spec: Manifest) -> Iterator[str]:
    for index, volume in enumerate(spec.get("volumes") or ()):
        kinds = {key for key, value in volume.items() if value is not None} - _VOLUMES
        for kind in sorted(kinds):
            yield f"spec.volumes[{index}].{kind} (use persistentVolumeClaim, emptyDir or hostPath)"
        for number, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            for kind in sorted(set(source) - _SOURCES):
                yield f"spec.volumes[{index}].projected.sources[{number}].{kind}"
    if spec.get("resourceClaims"):
        yield "spec.resourceClaims"
    if (spec.get("os") or {}).get("name") == "windows":
        yield "spec.os.name=windows"
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            yield from _container_problems(f"spec.{kind}[{index}]", container)


def _container_problems(path: str, container: Manifest) -> Iterator[str]:
    if container.get("volumeDevices"):
        yield f"{path}.volumeDevices"
    if container.get("stdin") or container.get("tty"):
        yield f"{path}.stdin and tty"
    for probe in _PROBES:
        if (container.get(probe) or {}).get("grpc"):
            yield f"{path}.{probe}.grpc (use httpGet, tcpSocket or exec)"
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if (mount.get("mountPropagation") or "None") != "None":
            yield f"{path}.volumeMounts[{index}].mountPropagation"
        if mount["mountPath"].rstrip("/") == "":
            yield f"{path}.volumeMounts[{index}].mountPath=/"
