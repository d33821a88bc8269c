"""Claims, volumes and storage classes as the server knows them: defaults and refusals.

Binding and provisioning are a controller's work, as on a real cluster.
"""

from __future__ import annotations

from typing import Any

from rekindle_local.apiserver.errors import (
    Json,
    StatusCause,
    bad_value,
    forbidden_field,
    not_supported,
    required,
)
from rekindle_local.apiserver.schemas.rules import is_quantity, parse_quantity

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
CLAIM_PROTECTION = "kubernetes.io/pvc-protection"

_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")


def fill_defaults(kind: str, obj: Json) -> None:
    """Fill the defaults of one of these kinds in place."""
    spec = obj.setdefault("spec", {}) if kind != "StorageClass" else {}
    match kind:
        case "PersistentVolumeClaim":
            spec.setdefault("volumeMode", "Filesystem")
        case "PersistentVolume":
            spec.setdefault("volumeMode", "Filesystem")
            spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
            if "hostPath" in spec:
                spec["hostPath"].setdefault("type", "")
        case "StorageClass":
            obj.setdefault("reclaimPolicy", "Delete")
            obj.setdefault("volumeBindingMode", "Immediate")


def start_claim(claim: Json, classes: list[Json]) -> Json:
    """Return a new claim as admission leaves it: protected, and of the default class."""
    spec = dict(claim["spec"])
    if spec.get("storageClassName") is None:
        defaults = [one for one in classes if is_default(one)]
        if defaults:
            newest = max(defaults, key=lambda one: str(one["metadata"]["creationTimestamp"]))
            spec["storageClassName"] = newest["metadata"]["name"]
    finalizers = list(claim["metadata"].get("finalizers") or [])
    if CLAIM_PROTECTION not in finalizers:
        finalizers.append(CLAIM_PROTECTION)
    metadata = {**claim["metadata"], "finalizers": finalizers}
    return {**claim, "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


def is_default(storage_class: Json) -> bool:
    """Tell whether claims that name no class get this one."""
    annotations = storage_class["metadata"].get("annotations") or {}
    return bool(annotations.get(DEFAULT_CLASS) == "true")


def check_claim(spec: Json, old: Json | None, path: str = "spec") -> list[StatusCause]:
    """Return the causes in the spec of a claim."""
    causes = _check_modes(spec, path)
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if size is None:
        causes.append(required(f"{path}.resources[storage]"))
    else:
        causes += _check_size(size, f"{path}.resources[storage]")
    if old is not None:
        before = old.get("spec") or {}
        if _fixed(spec) != _fixed(before) and before.get("volumeName"):
            causes.append(
                forbidden_field(
                    path,
                    "spec is immutable after creation except resources.requests and "
                    "volumeAttributesClassName for bound claims",
                )
            )
    return causes


def _fixed(spec: Json) -> Json:
    return {key: value for key, value in spec.items() if key not in {"resources", "volumeName"}}


def check_volume(spec: Json) -> list[StatusCause]:
    """Return the causes in the spec of a volume."""
    causes = _check_modes(spec, "spec")
    size = (spec.get("capacity") or {}).get("storage")
    causes += (
        [required("spec.capacity")] if size is None else _check_size(size, "spec.capacity[storage]")
    )
    policy = spec.get("persistentVolumeReclaimPolicy")
    if policy not in {"Delete", "Recycle", "Retain"}:
        causes.append(
            not_supported(
                "spec.persistentVolumeReclaimPolicy", policy, ("Delete", "Recycle", "Retain")
            )
        )
    return causes


def check_class(obj: Json) -> list[StatusCause]:
    """Return the causes in a storage class."""
    causes: list[StatusCause] = []
    if not obj.get("provisioner"):
        causes.append(required("provisioner"))
    for key, allowed in (
        ("reclaimPolicy", ("Delete", "Retain")),
        ("volumeBindingMode", ("Immediate", "WaitForFirstConsumer")),
    ):
        if obj.get(key) not in allowed:
            causes.append(not_supported(key, obj.get(key), allowed))
    return causes


def _check_modes(spec: Json, path: str) -> list[StatusCause]:
    modes = spec.get("accessModes") or []
    if not modes:
        return [required(f"{path}.accessModes", "at least 1 access mode is required")]
    return [
        not_supported(f"{path}.accessModes", mode, _MODES) for mode in modes if mode not in _MODES
    ]


def _check_size(size: Any, path: str) -> list[StatusCause]:
    if not is_quantity(size):
        return [bad_value(path, size, "must be a quantity such as 10Gi")]
    if parse_quantity(str(size)) <= 0:
        return [bad_value(path, size, "must be greater than zero")]
    return []
