"""The schemas of the built-in kinds, from the Kubernetes OpenAPI definitions.

The `kubernetes-validate` package carries them as one JSON file per Kubernetes minor version, with
descriptions and the `x-kubernetes-*` keywords. One file (1.5 MB, 20 ms) thus gives type checks,
strict decoding, `kubectl explain`, the merge keys of strategic merge patches and the list types of
server-side apply, complete and for every built-in list. The package itself is never imported: its
data file is read.

The file writes optional fields as `["string", "null"]`; they are turned back into plain OpenAPI.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json, StatusCause, bad_request
from rekindle_local.apiserver.schemas.schema import Schema, child, type_name
from rekindle_local.quantity import canonical

VERSION = "1.34"
"""The Kubernetes minor version that this server speaks."""

META = "io.k8s.apimachinery.pkg.apis.meta.v1"

_SPECIAL: dict[str, Json] = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {
        "x-kubernetes-int-or-string": True,
        "format": "int-or-string",
    },
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"x-kubernetes-int-or-string": True},
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": {},
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": {},
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": {},
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": {},
    f"{META}.FieldsV1": {"type": "object"},
    "io.k8s.apimachinery.pkg.runtime.RawExtension": {"type": "object"},
}
"""Definitions whose JSON form differs from what the file says about them."""


class Definitions(Mapping[str, Json]):
    """The definitions by full name, brought into OpenAPI v3 form when first looked at."""

    def __init__(self, raw: dict[str, Json]) -> None:
        self._raw = raw
        self._ready: dict[str, Json] = {}

    def __getitem__(self, name: str) -> Json:
        if name not in self._ready:
            plain = _plain(self._raw[name])
            if name in _SPECIAL:
                plain = {"description": plain.get("description", ""), **_SPECIAL[name]}
            self._ready[name] = plain
        return self._ready[name]

    def __iter__(self) -> Any:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, list):
            result[key] = next(item for item in value if item != "null")
        elif key == "$ref":
            result[key] = "#/components/schemas/" + value.rsplit("/", 1)[-1]
        elif key == "properties":
            # Field names are data: a field may be called `type` or `enum`.
            result[key] = {name: _plain(inner) for name, inner in value.items()}
        elif key == "enum":
            # Only apiVersion and kind have one, their own names; the server checks those itself.
            continue
        else:
            result[key] = _plain(value)
    return result


@cache
def definitions() -> Definitions:
    """Load the definitions once per process; raises RuntimeError when their package is missing."""
    spec = importlib.util.find_spec("kubernetes_validate")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the embedded API server needs the schemas of the package kubernetes-validate: "
            "install rekindle[local]"
        )
    folder = Path(spec.origin).parent / "kubernetes-json-schema" / f"v{VERSION}.0-local"
    raw = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    return Definitions(raw["$defs"])


@cache
def _names() -> dict[tuple[str, str, str], str]:
    names: dict[tuple[str, str, str], str] = {}
    for name, node in definitions()._raw.items():
        for gvk in node.get("x-kubernetes-group-version-kind") or []:
            names.setdefault((gvk["group"], gvk["version"], gvk["kind"]), name)
    return names


def definition_name(group: str, version: str, kind: str) -> str:
    """Return the full name of a built-in kind's definition."""
    return _names()[(group, version, kind)]


@cache
def builtin(group: str, version: str, kind: str) -> Schema:
    """Return the schema of a built-in kind."""
    return Schema(
        root={"$ref": f"#/components/schemas/{definition_name(group, version, kind)}"},
        definitions=definitions(),
    )


@cache
def object_meta() -> Schema:
    """Return the schema of `metadata`."""
    return Schema(
        root={"$ref": f"#/components/schemas/{META}.ObjectMeta"}, definitions=definitions()
    )


def without_nulls(value: Any) -> Any:
    """Return a value without null fields, which a typed decoder does not tell from absent ones."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def check_types(value: Any, schema: Schema, kind: str, version: str, path: str = "") -> None:
    """Raise the 400 of a typed decoder when a field has another JSON type than its schema says."""
    problem = _wrong_type(value, schema.resolve(schema.root), schema, path)
    if problem:
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {problem}')


def _wrong_type(value: Any, node: Json, schema: Schema, path: str) -> str | None:
    wanted, actual = node.get("type"), type_name(value)
    if value is None:
        return None
    if node.get("x-kubernetes-int-or-string"):
        if actual not in {"string", "integer", "number"}:
            return f"{path}: expected a number or a string, got {actual} {json.dumps(value)[:80]}"
        return None
    if wanted and actual != wanted and not (wanted == "number" and actual == "integer"):
        return f"{path}: expected {wanted}, got {actual} {json.dumps(value)[:80]}"
    if isinstance(value, dict):
        for key, item in value.items():
            inner = child(node, key)
            if inner and (
                bad := _wrong_type(item, schema.resolve(inner), schema, f"{path}.{key}".lstrip("."))
            ):
                return bad
    elif isinstance(value, list) and node.get("items"):
        items = schema.resolve(node["items"])
        for at, item in enumerate(value):
            if bad := _wrong_type(item, items, schema, f"{path}[{at}]"):
                return bad
    return None


_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def canonical_quantities(value: Any, schema: Schema) -> Any:
    """Return a value with its quantities written as the server writes them: `1`, 1Gi, 500m.

    What is no quantity stays as it is: validation names it.
    """
    return _canonical(value, schema.root, schema)


def _canonical(value: Any, node: Json, schema: Schema) -> Any:
    name = node.get("$ref", "").rsplit("/", 1)[-1]
    if name == _QUANTITY:
        try:
            return canonical(value)
        except ValueError:
            return value
    if name and not _holds_quantity(name):
        return value
    node = schema.resolve(node)
    if isinstance(value, dict):
        return {
            key: _canonical(item, inner, schema) if (inner := child(node, key)) else item
            for key, item in value.items()
        }
    if isinstance(value, list) and node.get("items"):
        return [_canonical(item, node["items"], schema) for item in value]
    return value


@cache
def _holds_quantity(name: str) -> bool:
    """Tell whether objects of a definition can have quantities in them."""
    seen, queue = {name}, [name]
    while queue:
        for found in _referred(definitions()[queue.pop()]):
            if found == _QUANTITY:
                return True
            if found not in seen and found in definitions():
                seen.add(found)
                queue.append(found)
    return False


def _referred(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, item in node.items():
            if key == "$ref" and isinstance(item, str):
                yield item.rsplit("/", 1)[-1]
            else:
                yield from _referred(item)
    elif isinstance(node, list):
        for item in node:
            yield from _referred(item)


def missing_fields(value: Any, node: Json, schema: Schema, path: str) -> list[StatusCause]:
    """Return a cause for every field that the schema requires and the value lacks."""
    node = schema.resolve(node)
    causes: list[StatusCause] = []
    if isinstance(value, dict):
        for key in node.get("required") or []:
            if value.get(key) in (None, "") and not isinstance(value.get(key), bool):
                causes.append(
                    StatusCause(
                        field=f"{path}.{key}", reason="FieldValueRequired", message="Required value"
                    )
                )
        for key, item in value.items():
            inner = child(node, key)
            if inner:
                causes += missing_fields(item, inner, schema, f"{path}.{key}")
    elif isinstance(value, list) and node.get("items"):
        for at, item in enumerate(value):
            causes += missing_fields(item, node["items"], schema, f"{path}[{at}]")
    return causes


def unknown_kind(group: str, version: str, kind: str) -> ApiError:
    """Return the 400 for a body of a kind this server has no schema for."""
    where = f"{group}/{version}" if group else version
    return bad_request(f'no kind "{kind}" is registered for version "{where}"')
