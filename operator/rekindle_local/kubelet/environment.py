"""The environment of a container, from its spec and what the spec refers to.

Pure: secrets and config maps are read before (`references` says which) and handed in, so that the
whole of Kubernetes' rules is one function. A reference that does not resolve is a ConfigError with
the message a real kubelet writes; the container then waits with CreateContainerConfigError and is
tried again, because the object may be about to appear.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rekindle_local.client import Manifest
from rekindle_local.kubelet.expansion import expand
from rekindle_local.quantity import ceil_div, parse_quantity

_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class CreateContainerConfigError(Exception):
    """A container cannot be configured yet; the message is for its waiting state."""


Sources = Mapping[tuple[str, str], Manifest | None]
"""(kind, name) to the object, or None when it does not exist; kind is Secret or ConfigMap."""


@dataclass(frozen=True, kw_only=True)
class PodPlacement:
    """What the node decided about a pod."""

    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]


def references(container: Manifest) -> set[tuple[str, str]]:
    """Every secret and config map the container's environment names."""
    found: set[tuple[str, str]] = set()
    for entry in container.get("env") or ():
        source = entry.get("valueFrom") or {}
        if ref := source.get("secretKeyRef"):
            found.add(("Secret", ref["name"]))
        if ref := source.get("configMapKeyRef"):
            found.add(("ConfigMap", ref["name"]))
    for entry in container.get("envFrom") or ():
        if ref := entry.get("secretRef"):
            found.add(("Secret", ref["name"]))
        if ref := entry.get("configMapRef"):
            found.add(("ConfigMap", ref["name"]))
    return found


def data_of(kind: str, source: Manifest) -> dict[str, bytes]:
    """The decoded entries of a secret or config map."""
    if kind == "Secret":
        return {key: base64.b64decode(text) for key, text in (source.get("data") or {}).items()}
    plain = {key: str(text).encode() for key, text in (source.get("data") or {}).items()}
    binary = source.get("binaryData") or {}
    return {**plain, **{key: base64.b64decode(text) for key, text in binary.items()}}


def not_found(kind: str, name: str) -> str:
    """The message for a missing object, as the API server words it."""
    return f'{kind.lower()} "{name}" not found'


def build(
    pod: Manifest, container: Manifest, sources: Sources, placement: PodPlacement
) -> dict[str, str]:
    """The variables of spec.env and spec.envFrom, expanded; raises ConfigError."""
    env: dict[str, str] = {}
    for entry in container.get("envFrom") or ():
        env.update(_from_whole(entry, sources))
    for entry in container.get("env") or ():
        if "valueFrom" in entry and entry["valueFrom"]:
            value = _from_source(entry["valueFrom"], pod, container, sources, placement)
            if value is None:
                continue
        else:
            value = expand(entry.get("value") or "", env)
        env[entry["name"]] = value
    return env


def _from_whole(entry: Manifest, sources: Sources) -> dict[str, str]:
    prefix = entry.get("prefix") or ""
    kind = "Secret" if entry.get("secretRef") else "ConfigMap"
    ref = entry.get("secretRef") or entry.get("configMapRef") or {}
    source = sources.get((kind, ref.get("name", "")))
    if source is None:
        if ref.get("optional"):
            return {}
        raise CreateContainerConfigError(not_found(kind, ref.get("name", "")))
    return {
        prefix + key: data.decode(errors="replace") for key, data in data_of(kind, source).items()
    }


def _from_source(
    source: Manifest, pod: Manifest, container: Manifest, sources: Sources, placement: PodPlacement
) -> str | None:
    if ref := source.get("fieldRef"):
        return field_value(pod, ref["fieldPath"], placement)
    if ref := source.get("resourceFieldRef"):
        return resource_value(container, ref, placement)
    kind = "Secret" if source.get("secretKeyRef") else "ConfigMap"
    ref = source.get("secretKeyRef") or source.get("configMapKeyRef") or {}
    found = sources.get((kind, ref["name"]))
    if found is None:
        if ref.get("optional"):
            return None
        raise CreateContainerConfigError(not_found(kind, ref["name"]))
    data = data_of(kind, found)
    if ref["key"] not in data:
        if ref.get("optional"):
            return None
        where = f"{pod['metadata'].get('namespace', 'default')}/{ref['name']}"
        raise CreateContainerConfigError(f"couldn't find key {ref['key']} in {kind} {where}")
    return data[ref["key"]].decode(errors="replace")


def field_value(pod: Manifest, path: str, placement: PodPlacement) -> str:
    """A downward API field of the pod; raises ConfigError for one that does not exist."""
    meta, spec = pod["metadata"], pod["spec"]
    if match := _MAP_FIELD.fullmatch(path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    fields: dict[str, Any] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta.get("namespace", "default"),
        "metadata.uid": meta.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.podIP": placement.pod_ip,
        "status.podIPs": placement.pod_ip,
        "status.hostIP": placement.host_ip,
        "status.hostIPs": placement.host_ip,
    }
    if path in ("metadata.labels", "metadata.annotations"):
        entries = sorted((meta.get(path.partition(".")[2]) or {}).items())
        return "\n".join(f'{key}="{value}"' for key, value in entries)
    if path not in fields:
        raise CreateContainerConfigError(
            f"unsupported fieldPath {path!r}: use one of {', '.join(fields)}"
        )
    return str(fields[path])


def resource_value(container: Manifest, ref: Manifest, placement: PodPlacement) -> str:
    """A limit or request of a container divided by the divisor, rounded up.

    A limit that is not set counts as all the node has, a request that is not set as its limit.
    """
    section, _, resource = str(ref["resource"]).partition(".")
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    if section == "requests":
        text = requests.get(resource, limits.get(resource, "0"))
    elif section == "limits":
        text = limits.get(resource, placement.allocatable.get(resource, "0"))
    else:
        raise CreateContainerConfigError(f"unsupported container resource: {ref['resource']}")
    divisor = parse_quantity(ref.get("divisor") or "1") or Fraction(1)
    return str(ceil_div(parse_quantity(text), divisor))
