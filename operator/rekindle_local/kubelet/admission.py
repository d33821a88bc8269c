"""Which pods this node takes.

A field that asks for something a process cannot give, and whose absence a program would notice, is
refused with the path of the field: the pod ends Failed with reason UnsupportedByThisNode. It is
never accepted and ignored. Isolation is different: `securityContext`, `readOnly`, CPU limits and
the like restrict a container, and a program runs the same without the restriction.
"""

from collections.abc import Iterator

from rekindle_local.client import Manifest

REASON = "UnsupportedByThisNode"

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
