"""OpenAPI documents, as far as kubectl reads them: `apply` (validation) and `explain`.

kubectl looks up a kind by `x-kubernetes-group-version-kind`: on a path operation, to see that the
server validates fields itself (`fieldValidation` on `patch`), and on a component, to explain it.
The documents therefore hold every kind with its full schema, and the paths with just that much.
OpenAPI v2 is asked for by old code paths only; an empty document is a valid answer there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.kinds import models
from rekindle_local.apiserver.registry import Registry, Resource

_REF = "#/components/schemas/"

V2_PROTOBUF = b"\x0a\x032.0\x12\x0f\x0a\x0aKubernetes\x12\x01v"
"""A v2 document in protobuf: swagger "2.0" and an info with a title and a version."""


def v2() -> Json:
    """Return the /openapi/v2 document: valid, and without definitions."""
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": f"v{models.VERSION}.0"},
        "paths": {},
        "definitions": {},
    }


def index(registry: Registry) -> Json:
    """Return the /openapi/v3 document: one entry for each group version, with a hash."""
    paths = {}
    for group, versions in registry.groups().items():
        for version in versions:
            path = f"apis/{group}/{version}" if group else f"api/{version}"
            digest = _digest(registry, group, version)
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def _digest(registry: Registry, group: str, version: str) -> str:
    digest = hashlib.sha256()
    for resource in registry.in_version(group, version):
        digest.update(resource.plural.encode())
        if resource.custom and resource.schema is not None:
            digest.update(json.dumps(resource.schema.root, sort_keys=True).encode())
    return digest.hexdigest().upper()


def document(registry: Registry, group: str, version: str) -> Json | None:
    """Return the OpenAPI v3 document of a group version, None when there is none."""
    resources = registry.in_version(group, version)
    if not resources:
        return None
    schemas: dict[str, Json] = {}
    paths: Json = {}
    for resource in resources:
        name = _component(resource, schemas)
        for path, item in _paths(resource, name):
            paths[path] = item
    _add(schemas, f"{models.META}.DeleteOptions")
    _add(schemas, f"{models.META}.Status")
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": f"v{models.VERSION}.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _component(resource: Resource, schemas: dict[str, Json]) -> str:
    """Add the schemas of a kind and of its list; return the name of the former."""
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    if not resource.custom:
        name = models.definition_name(resource.group, resource.version, resource.kind)
        _add(schemas, name)
        return name
    reverse = ".".join(reversed(resource.group.split(".")))
    name = f"{reverse}.{resource.version}.{resource.kind}"
    assert resource.schema is not None
    root = dict(resource.schema.root)
    root["properties"] = {
        **(root.get("properties") or {}),
        "apiVersion": _described("apiVersion"),
        "kind": _described("kind"),
        "metadata": {
            "description": "Standard object's metadata.",
            "allOf": [{"$ref": f"{_REF}{models.META}.ObjectMeta"}],
        },
    }
    root["x-kubernetes-group-version-kind"] = [gvk]
    schemas[name] = root
    _add(schemas, f"{models.META}.ObjectMeta")
    _add(schemas, f"{models.META}.ListMeta")
    schemas[f"{name}List"] = {
        "description": f"{resource.list_kind} is a list of {resource.kind}",
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": _described("apiVersion"),
            "kind": _described("kind"),
            "items": {"type": "array", "items": {"$ref": f"{_REF}{name}"}},
            "metadata": {"$ref": f"{_REF}{models.META}.ListMeta"},
        },
        "x-kubernetes-group-version-kind": [{**gvk, "kind": resource.list_kind}],
    }
    return name


def _described(field: str) -> Json:
    pod = models.definitions()["io.k8s.api.core.v1.Pod"]
    return {"type": "string", "description": pod["properties"][field]["description"]}


def _add(schemas: dict[str, Json], name: str) -> None:
    """Add a built-in definition and all it refers to."""
    if name in schemas:
        return
    node = models.definitions()[name]
    schemas[name] = _with_all_of(node)
    for reference in set(_references(node)):
        _add(schemas, reference)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(_REF)
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def _with_all_of(node: Any) -> Any:
    """Wrap references that have siblings: beside `$ref` OpenAPI ignores every other keyword."""
    if isinstance(node, list):
        return [_with_all_of(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str) and len(node) > 1:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**rest, "allOf": [{"$ref": node["$ref"]}]}
    return {key: _with_all_of(value) for key, value in node.items()}


def _paths(resource: Resource, name: str) -> Iterator[tuple[str, Json]]:
    base = f"/apis/{resource.group}" if resource.group else "/api"
    base = f"{base}/{resource.version}"
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    body = {"content": {"*/*": {"schema": {"$ref": f"{_REF}{name}"}}}}
    reply = {
        "200": {
            "description": "OK",
            "content": {"application/json": {"schema": {"$ref": f"{_REF}{name}"}}},
        }
    }

    def operation(action: str, **more: Any) -> Json:
        return {
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
            "responses": reply,
            **more,
        }

    writing = [
        _query("dryRun", "string"),
        _query("fieldManager", "string"),
        _query("fieldValidation", "string"),
    ]
    collection: Json = {"post": operation("post", parameters=writing, requestBody=body)}
    item: Json = {}
    if "list" in resource.verbs:
        collection["get"] = operation("list")
        item = {
            "get": operation("get"),
            "put": operation("put", parameters=writing, requestBody=body),
            "patch": operation(
                "patch", parameters=[*writing, _query("force", "boolean")], requestBody=body
            ),
            "delete": operation("delete", parameters=[_query("dryRun", "string")]),
        }
    yield f"{base}{scope}/{resource.plural}", collection
    if item:
        yield f"{base}{scope}/{resource.plural}/{{name}}", item


def _query(name: str, kind: str) -> Json:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}
