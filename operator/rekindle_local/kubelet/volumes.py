"""Volumes: directories with content, and where they are mounted.

An emptyDir is a directory of the pod (with `medium: Memory` one under /dev/shm, so that it is
memory, as asked); a claim is the directory of its bound volume; config maps, secrets, the downward
API and projections are written as files when the pod starts. Config maps and secrets are looked at
again now and then while it runs, as a kubelet does, and files that have changed are replaced, one
by one; the downward API stays as it was. A projected service account token is not signed: this API
server asks nobody who they are. What does not exist yet raises VolumeError with the kubelet's own
message; the pod waits and it is tried again.
"""

import base64
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rekindle_local import timestamps
from rekindle_local.client import Manifest
from rekindle_local.kubelet.environment import (
    CreateContainerConfigError,
    PodPlacement,
    Sources,
    data_of,
    field_value,
    not_found,
    resource_value,
)
from rekindle_local.kubelet.expansion import expand
from rekindle_local.quantity import parse_quantity

SHM = Path("/dev/shm")


class VolumeError(Exception):
    """A volume cannot be set up yet; the message is for an event."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a volume, with a path relative to the volume."""

    path: str
    content: bytes
    mode: int


def mounted(pod: Manifest) -> list[Manifest]:
    """The volumes that a container mounts; a kubelet does not even look at the others."""
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    names = {mount["name"] for one in containers for mount in one.get("volumeMounts") or ()}
    return [volume for volume in spec.get("volumes") or () if volume["name"] in names]


def references(pod: Manifest) -> set[tuple[str, str]]:
    """Every secret and config map that the pod's mounted volumes name, as (kind, name)."""
    found: set[tuple[str, str]] = set()
    for volume in mounted(pod):
        if secret := volume.get("secret"):
            found.add(("Secret", secret["secretName"]))
        if config := volume.get("configMap"):
            found.add(("ConfigMap", config["name"]))
        for source in (volume.get("projected") or {}).get("sources") or ():
            if ref := source.get("secret"):
                found.add(("Secret", ref["name"]))
            if ref := source.get("configMap"):
                found.add(("ConfigMap", ref["name"]))
    return found


def claim_name(pod: Manifest, volume: Manifest) -> str | None:
    """The claim that a volume is, by name or as one that the pod brings along; None for others."""
    if claim := volume.get("persistentVolumeClaim"):
        return str(claim["claimName"])
    return f"{pod['metadata']['name']}-{volume['name']}" if volume.get("ephemeral") else None


def files(pod: Manifest, volume: Manifest, sources: Sources, placement: PodPlacement) -> list[File]:
    """The files a volume starts with; raises VolumeError."""
    if secret := volume.get("secret"):
        return _keys("Secret", secret["secretName"], secret, sources, _mode(secret, 0o644))
    if config := volume.get("configMap"):
        return _keys("ConfigMap", config["name"], config, sources, _mode(config, 0o644))
    if downward := volume.get("downwardAPI"):
        return _downward(pod, downward, placement, _mode(downward, 0o644))
    if projected := volume.get("projected"):
        mode = _mode(projected, 0o644)
        out: list[File] = []
        for source in projected.get("sources") or ():
            if ref := source.get("secret"):
                out += _keys("Secret", ref["name"], ref, sources, mode)
            elif ref := source.get("configMap"):
                out += _keys("ConfigMap", ref["name"], ref, sources, mode)
            elif ref := source.get("downwardAPI"):
                out += _downward(pod, ref, placement, mode)
            elif ref := source.get("serviceAccountToken"):
                out.append(File(path=ref["path"], content=_token(pod, ref), mode=mode))
        return out
    return []


def _mode(source: Manifest, default: int) -> int:
    value = source.get("defaultMode")
    return default if value is None else int(value)


def _keys(kind: str, name: str, ref: Manifest, sources: Sources, mode: int) -> list[File]:
    source = sources.get((kind, name))
    if source is None:
        if ref.get("optional"):
            return []
        raise VolumeError(not_found(kind, name))
    data = data_of(kind, source)
    if not ref.get("items"):
        return [File(path=key, content=content, mode=mode) for key, content in data.items()]
    out = []
    for item in ref["items"]:
        if item["key"] in data:
            own = item.get("mode")
            out.append(
                File(
                    path=item["path"],
                    content=data[item["key"]],
                    mode=mode if own is None else int(own),
                )
            )
        elif not ref.get("optional"):
            what = "secret" if kind == "Secret" else "config"
            head = "" if kind == "Secret" else "configmap "
            raise VolumeError(f"{head}references non-existent {what} key: {item['key']}")
    return out


def _downward(pod: Manifest, ref: Manifest, placement: PodPlacement, mode: int) -> list[File]:
    out = []
    for item in ref.get("items") or ():
        own = item.get("mode")
        try:
            if field := item.get("fieldRef"):
                text = field_value(pod, field["fieldPath"], placement)
            else:
                resource = item["resourceFieldRef"]
                container = next(
                    one
                    for one in pod["spec"]["containers"]
                    if one["name"] == resource.get("containerName")
                )
                text = resource_value(container, resource, placement)
        except (CreateContainerConfigError, StopIteration) as error:
            raise VolumeError(f"downwardAPI item {item['path']}: {error}") from error
        out.append(
            File(path=item["path"], content=text.encode(), mode=mode if own is None else int(own))
        )
    return out


def _token(pod: Manifest, ref: Manifest) -> bytes:
    """A token with the claims of a real one and, as its header says, no signature."""
    meta = pod["metadata"]
    namespace = meta.get("namespace", "default")
    account = pod["spec"].get("serviceAccountName") or "default"
    now = int(timestamps.now().timestamp())
    claims = {
        "aud": [ref.get("audience") or "https://kubernetes.default.svc"],
        "exp": now + int(ref.get("expirationSeconds") or 3600),
        "iat": now,
        "sub": f"system:serviceaccount:{namespace}:{account}",
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": meta["name"], "uid": meta.get("uid", "")},
            "serviceaccount": {"name": account},
        },
    }
    parts = (json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims))
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts) + b"."


class PodVolumes:
    """The volumes of one pod on disk; `remove` takes all of it away."""

    def __init__(self, pod: Manifest, root: Path, memory_prefix: str) -> None:
        self._pod = pod
        self._volumes = mounted(pod)
        self._root = root
        self._memory_prefix = memory_prefix
        self._paths: dict[str, Path] = {}

    def setup(self, sources: Sources, placement: PodPlacement) -> None:
        """Create what is mounted, with its files; raises VolumeError and can be called again."""
        for volume in self._volumes:
            name = volume["name"]
            try:
                content = files(self._pod, volume, sources, placement)
            except VolumeError as error:
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{name}" : {error}'
                ) from error
            path = self._place(volume, sources)
            self._paths[name] = path
            for file in content:
                if ".." in Path(file.path).parts or file.path.startswith("/"):
                    raise VolumeError(
                        f'MountVolume.SetUp failed for volume "{name}" : path {file.path!r} '
                        "must be relative and must not contain '..'"
                    )
                _write(path, file)

    def refresh(self, sources: Sources, placement: PodPlacement) -> None:
        """Write what has changed in secrets and config maps since; raises VolumeError."""
        for volume in self._volumes:
            if not volume.keys() & {"secret", "configMap", "projected"}:
                continue
            for file in files(self._pod, volume, sources, placement):
                there = self._paths[volume["name"]] / file.path
                if not there.exists() or there.read_bytes() != file.content:
                    _write(self._paths[volume["name"]], file)

    def _place(self, volume: Manifest, sources: Sources) -> Path:
        name = volume["name"]
        host = volume.get("hostPath")
        if claim := claim_name(self._pod, volume):
            spec = (sources.get(("PersistentVolumeClaim", claim)) or {}).get("spec") or {}
            host = spec.get("hostPath") or spec.get("local")
            if host is None:
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{name}" : this node mounts persistent '
                    "volumes of the kinds hostPath and local only"
                )
        if host:
            path = Path(host["path"])
            if host.get("type") == "DirectoryOrCreate":
                path.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{name}" : '
                    f"hostPath type check failed: {path} does not exist on this machine"
                )
            return path
        in_memory = (volume.get("emptyDir") or {}).get("medium") == "Memory"
        if in_memory and os.access(SHM, os.W_OK):
            path = SHM / f"{self._memory_prefix}{name}"
        else:
            path = self._root / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def mounts(self, container: Manifest, variables: Mapping[str, str]) -> list[tuple[str, str]]:
        """(path in the container, path here) of each mount; raises VolumeError."""
        pairs = []
        for mount in container.get("volumeMounts") or ():
            base = self._paths.get(mount["name"])
            if base is None:
                raise VolumeError(
                    f'volumeMounts of container "{container["name"]}" name the volume '
                    f'"{mount["name"]}", which spec.volumes does not have'
                )
            inner = mount.get("subPath") or expand(mount.get("subPathExpr") or "", variables)
            if ".." in Path(inner).parts or inner.startswith("/"):
                raise VolumeError(f'subPath "{inner}" must be relative and must not contain ".."')
            target = base / inner if inner else base
            if inner and not target.exists():
                target.mkdir(parents=True)
            pairs.append((mount["mountPath"], str(target)))
        return pairs

    def limits(self) -> Mapping[str, tuple[Path, Fraction, str]]:
        """Volumes with a sizeLimit: where, how many bytes, and the limit as written."""
        found = {}
        for volume in self._volumes:
            limit = (volume.get("emptyDir") or {}).get("sizeLimit")
            if limit and volume["name"] in self._paths and parse_quantity(limit) > 0:
                found[volume["name"]] = (
                    self._paths[volume["name"]],
                    parse_quantity(limit),
                    str(limit),
                )
        return found

    def remove(self) -> None:
        """Delete everything this pod's volumes hold; what hostPath names stays."""
        for path in self._paths.values():
            if path.is_relative_to(self._root) or path.name.startswith(self._memory_prefix):
                shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self._root, ignore_errors=True)


def _write(volume: Path, file: File) -> None:
    target = volume / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # Replaced, not written over: it may be read-only from an earlier attempt.
    fresh = target.with_name(f".{target.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(file.content)
        os.fchmod(out.fileno(), file.mode | 0o400)
    os.replace(fresh, target)


def used_bytes(path: Path) -> int:
    """Bytes allocated below a directory; blocks, so not for the event loop."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue
    return total
