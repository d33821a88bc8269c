"""Structural schemas at work: prune unknown fields, fill defaults, validate, and check the schema.

The order is the real server's: prune (and remember what was unknown), default, validate. The same
functions serve custom resources, whose schema comes from their CRD, and built-in kinds, whose
schema has `$ref`s; `Schema` carries the definitions they point into.

Messages follow the words of the real server ("spec.replicas in body should be greater than or
equal to 0"), since users search for them.
"""

from __future__ import annotations

import base64
import binascii
import copy
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from rekindle_local.apiserver.errors import (
    Json,
    StatusCause,
    bad_type,
    bad_value,
    duplicate,
    forbidden_field,
    not_supported,
    required,
)

TYPES = ("object", "array", "string", "integer", "number", "boolean")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A schema and the definitions its references point into."""

    root: Json
    definitions: Mapping[str, Json] = field(default_factory=dict)

    def resolve(self, node: Json) -> Json:
        """Follow a `$ref`; keywords beside it win, as descriptions do in Kubernetes schemas."""
        while "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[-1]
            node = {
                **self.definitions.get(name, {}),
                **{k: v for k, v in node.items() if k != "$ref"},
            }
        return node

    def at(self, *path: str) -> Json:
        """Return the schema of a field below the root, empty when it is not described."""
        node = self.resolve(self.root)
        for part in path:
            node = self.resolve(child(node, part) or {})
        return node


def child(node: Json, key: str) -> Json | None:
    """Return the schema of one field of an object schema; None when the field is unknown."""
    found = (node.get("properties") or {}).get(key)
    if isinstance(found, dict):
        return found
    extra = node.get("additionalProperties")
    if isinstance(extra, dict):
        return extra
    return {} if extra is True else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# --- pruning ------------------------------------------------------------------------------------


def prune(
    value: Any,
    schema: Schema,
    *,
    meta: Schema | None = None,
    unknown: list[str] | None = None,
) -> Any:
    """Return a value without the fields its schema does not know; their paths go to `unknown`.

    `meta` describes `metadata` of the object itself and of embedded resources; with it, the
    fields that every resource has are known at the root.
    """
    return _prune(value, schema.resolve(schema.root), schema, meta, "", unknown, meta is not None)


def _prune(
    value: Any,
    node: Json,
    schema: Schema,
    meta: Schema | None,
    path: str,
    unknown: list[str] | None,
    resource: bool,
) -> Any:
    if isinstance(value, dict):
        keep = bool(node.get("x-kubernetes-preserve-unknown-fields"))
        shapeless = "properties" not in node and node.get("additionalProperties") is None
        if (
            shapeless
            and not resource
            and (keep or "type" not in node or node.get("type") == "object" and schema.definitions)
        ):
            # A schema without any shape: free-form in the built-in definitions, or preserved.
            return value
        result = {}
        for key, item in value.items():
            where = _join(path, key)
            if resource and key in {"apiVersion", "kind"}:
                result[key] = item
            elif resource and key == "metadata" and meta is not None:
                result[key] = _prune(
                    item, meta.resolve(meta.root), meta, None, where, unknown, False
                )
            elif (inner := child(node, key)) is not None:
                inner = schema.resolve(inner)
                embedded = bool(inner.get("x-kubernetes-embedded-resource"))
                result[key] = _prune(item, inner, schema, meta, where, unknown, embedded)
            elif keep:
                result[key] = item
            elif unknown is not None:
                unknown.append(where)
        return result
    if isinstance(value, list):
        items = schema.resolve(node.get("items") or {})
        embedded = bool(items.get("x-kubernetes-embedded-resource"))
        return [
            _prune(item, items, schema, meta, f"{path}[{at}]", unknown, embedded)
            if isinstance(item, (dict, list))
            else item
            for at, item in enumerate(value)
        ]
    return value


# --- defaulting ---------------------------------------------------------------------------------


def fill_defaults(value: Any, schema: Schema) -> Any:
    """Return a value with the defaults of its schema filled in, at every depth that exists.

    A null for a field that is not nullable and has a default counts as absent.
    """
    return _fill(value, schema.resolve(schema.root), schema)


def _fill(value: Any, node: Json, schema: Schema) -> Any:
    if isinstance(value, dict):
        result = dict(value)
        for key, raw in (node.get("properties") or {}).items():
            inner = schema.resolve(raw)
            absent = key not in result or (result[key] is None and not inner.get("nullable"))
            if absent and "default" in inner:
                result[key] = copy.deepcopy(inner["default"])
            elif absent and key in result:
                # Neither nullable nor defaulted: the null is dropped, as a decoder would.
                del result[key]
            if key in result:
                result[key] = _fill(result[key], inner, schema)
        extra = node.get("additionalProperties")
        if isinstance(extra, dict):
            inner = schema.resolve(extra)
            known = node.get("properties") or {}
            for key, item in result.items():
                if key not in known:
                    absent = item is None and not inner.get("nullable") and "default" in inner
                    filled = copy.deepcopy(inner["default"]) if absent else item
                    result[key] = _fill(filled, inner, schema)
        return result
    if isinstance(value, list) and isinstance(node.get("items"), dict):
        items = schema.resolve(node["items"])
        return [_fill(item, items, schema) for item in value]
    return value


# --- validation ---------------------------------------------------------------------------------


def validate(value: Any, schema: Schema, path: str = "") -> list[StatusCause]:
    """Return a cause for every place where a value breaks its schema."""
    return list(_validate(value, schema.resolve(schema.root), schema, path))


def type_name(value: Any) -> str:
    """Return the JSON type of a value, as messages name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _has_type(value: Any, wanted: str) -> bool:
    actual = type_name(value)
    if wanted == "number":
        return actual in {"integer", "number"}
    if wanted == "integer":
        return actual == "integer" or (isinstance(value, float) and value.is_integer())
    return actual == wanted


def _validate(value: Any, node: Json, schema: Schema, path: str) -> Iterable[StatusCause]:
    if value is None and node.get("nullable"):
        return
    wanted = node.get("type")
    if node.get("x-kubernetes-int-or-string"):
        if type_name(value) not in {"integer", "string"}:
            yield bad_type(path, value, "integer,string", type_name(value))
            return
    elif isinstance(wanted, str) and not _has_type(value, wanted):
        yield bad_type(path, value, wanted, type_name(value))
        return
    if "enum" in node and value not in node["enum"]:
        yield not_supported(path, value, node["enum"])
    if isinstance(value, str):
        yield from _validate_string(value, node, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _validate_number(value, node, path)
    elif isinstance(value, list):
        yield from _validate_list(value, node, schema, path)
    elif isinstance(value, dict):
        yield from _validate_object(value, node, schema, path)
    yield from _validate_combinations(value, node, schema, path)


def _validate_string(value: str, node: Json, path: str) -> Iterable[StatusCause]:
    if (limit := node.get("maxLength")) is not None and len(value) > limit:
        yield StatusCause(
            field=path,
            reason="FieldValueTooLong",
            message=f"Too long: may not be more than {limit} bytes",
        )
    if (limit := node.get("minLength")) is not None and len(value) < limit:
        yield bad_value(path, value, f"{path} in body should be at least {limit} chars long")
    if (pattern := node.get("pattern")) is not None and not compiled(pattern).search(value):
        yield bad_value(path, value, f"{path} in body should match '{pattern}'")
    if (name := node.get("format")) is not None:
        check = FORMATS.get(name)
        if check is not None and not check(value):
            yield bad_value(path, value, f'{path} in body must be of type {name}: "{value}"')


def _validate_number(value: float, node: Json, path: str) -> Iterable[StatusCause]:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and (value <= low if node.get("exclusiveMinimum") else value < low):
        words = "greater than" if node.get("exclusiveMinimum") else "greater than or equal to"
        yield bad_value(path, value, f"{path} in body should be {words} {low}")
    if high is not None and (value >= high if node.get("exclusiveMaximum") else value > high):
        words = "less than" if node.get("exclusiveMaximum") else "less than or equal to"
        yield bad_value(path, value, f"{path} in body should be {words} {high}")
    if (step := node.get("multipleOf")) and value % step:
        yield bad_value(path, value, f"{path} in body should be a multiple of {step}")
    width = {"int32": 31, "int64": 63}.get(node.get("format", ""))
    if width and not -(2**width) <= value < 2**width:
        yield bad_value(path, value, f"{path} in body must be of type {node['format']}")


def _validate_list(
    value: list[Any], node: Json, schema: Schema, path: str
) -> Iterable[StatusCause]:
    if (limit := node.get("maxItems")) is not None and len(value) > limit:
        yield StatusCause(
            field=path,
            reason="FieldValueTooMany",
            message=f"Too many: {len(value)}: must have at most {limit} items",
        )
    if (limit := node.get("minItems")) is not None and len(value) < limit:
        yield bad_value(path, value, f"{path} in body should have at least {limit} items")
    if node.get("uniqueItems") and any(item in value[:at] for at, item in enumerate(value)):
        yield bad_value(path, value, f"{path} in body shouldn't contain duplicates")
    if isinstance(node.get("items"), dict):
        items = schema.resolve(node["items"])
        for at, item in enumerate(value):
            yield from _validate(item, items, schema, f"{path}[{at}]")
    kind = node.get("x-kubernetes-list-type")
    if kind in {"set", "map"}:
        seen = []
        for at, item in enumerate(value):
            if kind == "map":
                if not isinstance(item, dict):
                    continue
                identity: Any = {
                    key: item.get(key) for key in node.get("x-kubernetes-list-map-keys") or []
                }
            else:
                identity = item
            if identity in seen:
                yield duplicate(f"{path}[{at}]", identity)
            seen.append(identity)


def _validate_object(value: Json, node: Json, schema: Schema, path: str) -> Iterable[StatusCause]:
    for key in node.get("required") or []:
        if key not in value:
            yield required(_join(path, key))
    if (limit := node.get("maxProperties")) is not None and len(value) > limit:
        yield StatusCause(
            field=path,
            reason="FieldValueTooMany",
            message=f"Too many: {len(value)}: must have at most {limit} properties",
        )
    if (limit := node.get("minProperties")) is not None and len(value) < limit:
        yield bad_value(path, value, f"{path} in body should have at least {limit} properties")
    for key, item in value.items():
        inner = child(node, key)
        if inner:
            yield from _validate(item, schema.resolve(inner), schema, _join(path, key))
    if node.get("x-kubernetes-embedded-resource"):
        for key in ("apiVersion", "kind"):
            if not isinstance(value.get(key), str) or not value[key]:
                yield required(_join(path, key), "must not be empty")


def _validate_combinations(
    value: Any, node: Json, schema: Schema, path: str
) -> Iterable[StatusCause]:
    def fits(option: Json) -> bool:
        return next(iter(_validate(value, schema.resolve(option), schema, path)), None) is None

    for option in node.get("allOf") or []:
        yield from _validate(value, schema.resolve(option), schema, path)
    if (options := node.get("anyOf")) and not any(fits(option) for option in options):
        yield bad_value(path, value, f'"{path}" must validate at least one schema (anyOf)')
    if (options := node.get("oneOf")) and sum(fits(option) for option in options) != 1:
        yield bad_value(path, value, f'"{path}" must validate one and only one schema (oneOf)')
    if (option := node.get("not")) is not None and fits(option):
        yield bad_value(path, value, f'"{path}" must not validate the schema (not)')


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a schema's RE2 pattern; raises `re.error` for what Python cannot read.

    `$` ends the text in RE2 but may stand before a last newline in Python: it becomes `\\Z`.
    """
    translated = re.sub(r"(\\.)|\[(?:\\.|[^\]\\])*\]|\$", _end_of_text, pattern)
    return re.compile(translated.replace("\\z", "\\Z"))


def _end_of_text(found: re.Match[str]) -> str:
    return "\\Z" if found.group() == "$" else found.group()


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, binascii.Error):
            return False
        return True

    return check


_DURATION = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))*|0"
)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*"
)


def _uri(text: str) -> object:
    parts = urlsplit(text)
    if not parts.scheme and not text.startswith("/"):
        raise ValueError(text)
    return parts


FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": lambda text: (
        bool(_RFC3339.fullmatch(text))
        and _parses(lambda t: datetime.fromisoformat(re.sub(r"\.\d+", "", t).upper()))(text)
    ),
    "date": _parses(date.fromisoformat),
    "duration": lambda text: bool(_DURATION.fullmatch(text)),
    "byte": _parses(lambda text: base64.b64decode(text, validate=True)),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "cidr": _parses(lambda text: ipaddress.ip_network(text, strict=False)),
    "uri": _parses(_uri),
    "hostname": lambda text: bool(_HOSTNAME.fullmatch(text)),
    "email": lambda text: bool(re.fullmatch(r"[^@\s]+@[^@\s]+", text)),
    "uuid": _parses(UUID),
    "mac": lambda text: bool(re.fullmatch(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", text)),
}
"""Formats that are checked; a real server ignores those it does not know, and so does this one."""


# --- the schema itself --------------------------------------------------------------------------

_FORBIDDEN = (
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "$ref",
    "$schema",
    "additionalItems",
)
_VALUE_ONLY = ("allOf", "anyOf", "oneOf", "not")


def check_structural(node: Any, path: str, *, root: bool = False) -> list[StatusCause]:
    """Return why a CRD's schema is not structural; empty when it is."""
    if not isinstance(node, dict):
        return [bad_type(path, node, "object", type_name(node))]
    causes: list[StatusCause] = []
    int_or_string = node.get("x-kubernetes-int-or-string") is True
    keeps = node.get("x-kubernetes-preserve-unknown-fields") is True
    kind = node.get("type")
    if kind is None and not int_or_string and not keeps:
        causes.append(required(f"{path}.type", "must not be empty for specified object fields"))
    elif kind is not None and kind not in TYPES:
        causes.append(not_supported(f"{path}.type", kind, TYPES))
    if root and kind != "object":
        causes.append(bad_value(f"{path}.type", kind, "must be object at the root"))
    if int_or_string and kind is not None:
        causes.append(
            forbidden_field(f"{path}.type", "must be empty if x-kubernetes-int-or-string is true")
        )
    for key in _FORBIDDEN:
        if key in node:
            causes.append(forbidden_field(f"{path}.{key}", f"{key} is not supported"))
    if node.get("uniqueItems"):
        causes.append(
            forbidden_field(
                f"{path}.uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            )
        )
    if "properties" in node and node.get("additionalProperties") is not None:
        causes.append(
            forbidden_field(
                f"{path}.additionalProperties",
                "additionalProperties and properties are mutual exclusive",
            )
        )
    if "pattern" in node:
        try:
            compiled(node["pattern"])
        except re.error as error:
            causes.append(
                bad_value(
                    f"{path}.pattern",
                    node["pattern"],
                    f"must be a valid regular expression, but isn't: {error}",
                )
            )
    if kind == "array" and not isinstance(node.get("items"), dict):
        causes.append(required(f"{path}.items", "must be specified"))
    if "default" in node:
        causes += [
            StatusCause(
                field=f"{path}.default{cause.field}", reason=cause.reason, message=cause.message
            )
            for cause in validate(
                fill_defaults(node["default"], Schema(root=node)),
                Schema(root={**node, "default": None}),
                "",
            )
        ]
    causes += _check_list_type(node, path)
    for key, inner in (node.get("properties") or {}).items():
        where = f"{path}.properties[{key}]"
        if root and key == "metadata":
            extra = set(inner) - {"type", "properties", "description"}
            if extra:
                causes.append(
                    forbidden_field(
                        where,
                        "only name and generateName of metadata may be restricted",
                    )
                )
            continue
        causes += check_structural(inner, where)
    if isinstance(node.get("items"), dict):
        causes += check_structural(node["items"], f"{path}.items")
    if isinstance(node.get("additionalProperties"), dict):
        causes += check_structural(node["additionalProperties"], f"{path}.additionalProperties")
    for key in _VALUE_ONLY:
        options = node.get(key)
        for at, option in enumerate([options] if isinstance(options, dict) else options or []):
            causes += _check_value_only(option, f"{path}.{key}[{at}]")
    return causes


def _check_value_only(node: Json, path: str) -> list[StatusCause]:
    causes = [
        forbidden_field(f"{path}.{key}", "must be empty to be structural")
        for key in ("type", "description", "title", "default", "additionalProperties", "nullable")
        if key in node and not (key == "type" and node["type"] in {"integer", "string"})
    ]
    for key, inner in (node.get("properties") or {}).items():
        causes += _check_value_only(inner, f"{path}.properties[{key}]")
    return causes


def _check_list_type(node: Json, path: str) -> list[StatusCause]:
    kind = node.get("x-kubernetes-list-type")
    if kind is None:
        return []
    if node.get("type") != "array":
        return [
            bad_value(
                f"{path}.type",
                node.get("type"),
                "must be array if x-kubernetes-list-type is specified",
            )
        ]
    if kind not in {"atomic", "set", "map"}:
        return [not_supported(f"{path}.x-kubernetes-list-type", kind, ("atomic", "map", "set"))]
    if kind != "map":
        return []
    keys = node.get("x-kubernetes-list-map-keys")
    if not keys:
        return [
            required(
                f"{path}.x-kubernetes-list-map-keys",
                "must not be empty if x-kubernetes-list-type is map",
            )
        ]
    items = node.get("items") or {}
    return [
        bad_value(
            f"{path}.x-kubernetes-list-map-keys",
            key,
            "each key must be a property of the items that is required or has a default",
        )
        for key in keys
        if key not in (items.get("properties") or {})
        or (key not in (items.get("required") or []) and "default" not in items["properties"][key])
    ]
