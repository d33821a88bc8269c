"""Discovery: which groups, versions, resources and subresources there are.

Only the plain documents are served. Clients that ask for the aggregated form list the plain one as
an acceptable answer and fall back to it; a wrong aggregated document would be worse than none.
"""

from __future__ import annotations

from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.kinds.models import VERSION
from rekindle_local.apiserver.registry import Registry, Resource

_SUBRESOURCES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "scale": ("Scale", "autoscaling", "v1", ("get", "patch", "update")),
    "log": ("Pod", "", "", ("get",)),
    "binding": ("Binding", "", "", ("create",)),
    "eviction": ("Eviction", "policy", "v1", ("create",)),
}


def version() -> Json:
    """Return the /version document."""
    major, minor = VERSION.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"v{VERSION}.0-rekindle",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": "embedded",
    }


def core_versions(address: str) -> Json:
    """Return the /api document."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def groups(registry: Registry) -> Json:
    """Return the /apis document."""
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, found) for name, found in registry.groups().items() if name],
    }


def group(registry: Registry, name: str) -> Json | None:
    """Return the /apis/GROUP document, None when there is no such group."""
    versions = registry.groups().get(name)
    if not name or versions is None:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def _group(name: str, versions: list[str]) -> Json:
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def resources(registry: Registry, group_name: str, version_name: str) -> Json | None:
    """Return the resource list of a group version, None when there is none."""
    rows = registry.in_version(group_name, version_name)
    if not rows:
        return None
    entries: list[Json] = []
    for resource in rows:
        entries.append(_entry(resource))
        entries += [_subresource(resource, name) for name in sorted(resource.subresources)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group_name}/{version_name}" if group_name else version_name,
        "resources": entries,
    }


def _entry(resource: Resource) -> Json:
    entry: Json = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _subresource(resource: Resource, name: str) -> Json:
    entry: Json = {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
    }
    kind, group_name, version_name, verbs = _SUBRESOURCES.get(
        name, (resource.kind, "", "", ("get", "patch", "update"))
    )
    if group_name:
        entry["group"] = group_name
        entry["version"] = version_name
    return {**entry, "kind": kind, "verbs": list(verbs)}
