"""From HTTP to values: paths, query parameters, Accept headers and bodies.

Nothing here touches an object. A parameter with a bad value is a 400 that names it; a parameter of
the API that this server does not honour is refused rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rekindle_local.apiserver import errors
from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.http.protobuf import PROTOBUF, decode_body
from rekindle_local.apiserver.writes.options import APPLY_PATCH, DeleteOptions, WriteOptions


@dataclass(frozen=True, kw_only=True)
class RequestTarget:
    """What a path under /api or /apis names."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_path(parts: list[str]) -> RequestTarget | None:
    """Return what the segments of a resource path name; None when they name no resource."""
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3:
        # Only `proxy` has a path behind the subresource.
        return (
            None
            if rest[2] != "proxy"
            else RequestTarget(
                group=group,
                version=version,
                plural=rest[0],
                namespace=namespace,
                name=rest[1],
                subresource="proxy",
            )
        )
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    return RequestTarget(
        group=group,
        version=version,
        plural=rest[0],
        namespace=namespace,
        name=name,
        subresource=subresource,
    )


# --- query parameters ---------------------------------------------------------------------------


def flag(query: Mapping[str, str], name: str) -> bool:
    """Return a boolean parameter; raises a 400 for what is neither true nor false."""
    text = query.get(name, "").lower()
    if text in {"", "0", "f", "false"}:
        return False
    if text in {"1", "t", "true"}:
        return True
    raise errors.bad_request(f"the parameter {name} is {text!r}: use true or false")


def number(query: Mapping[str, str], name: str) -> int | None:
    """Return a non-negative integer parameter, None when it is absent."""
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise errors.bad_request(f"the parameter {name} is {text!r}: use a whole number")
    return int(text)


def dry_run(query: Mapping[str, str]) -> bool:
    """Tell whether nothing may be stored."""
    text = query.get("dryRun", "")
    if text not in {"", "All"}:
        raise errors.bad_request(f"the parameter dryRun is {text!r}: the only value is All")
    return text == "All"


def write_options(
    query: Mapping[str, str], agent: str, duplicates: tuple[str, ...]
) -> WriteOptions:
    """Return the options of a write from its query and user agent."""
    validation = query.get("fieldValidation") or "Warn"
    if validation not in {"Strict", "Warn", "Ignore"}:
        raise errors.bad_request(
            f"the parameter fieldValidation is {validation!r}: use Strict, Warn or Ignore"
        )
    return WriteOptions(
        dry_run=dry_run(query),
        validation=validation,
        manager=query.get("fieldManager") or agent.partition("/")[0] or "unknown",
        force=flag(query, "force"),
        duplicates=duplicates,
    )


def delete_options(query: Mapping[str, str], body: Any) -> DeleteOptions:
    """Return the options of a delete; the body wins over the query."""
    body = body or {}
    if not isinstance(body, dict) or body.get("kind") not in {None, "DeleteOptions"}:
        raise errors.bad_request("the body of a delete is a DeleteOptions object")
    grace = body.get("gracePeriodSeconds")
    if grace is None and query.get("gracePeriodSeconds"):
        try:
            grace = int(query["gracePeriodSeconds"])
        except ValueError:
            raise errors.bad_request("gracePeriodSeconds must be a whole number") from None
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise errors.bad_request("gracePeriodSeconds must be a whole number")
    conditions = body.get("preconditions") or {}
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy")
    orphan = body.get("orphanDependents")
    if orphan is not None and propagation is None:
        propagation = "Orphan" if orphan else "Background"
    return DeleteOptions(
        grace_seconds=grace,
        propagation=propagation or None,
        uid=conditions.get("uid"),
        resource_version=conditions.get("resourceVersion"),
        dry_run=dry_run(query) or bool(body.get("dryRun")),
    )


# --- what the client can read -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The form in which objects are sent: as they are, as a Table, or their metadata only."""

    table: bool = False
    partial: bool = False


def accepted(header: str) -> Accepted:
    """Return the first form in an Accept header that this server can send; raises 406."""
    if not header.strip():
        return Accepted()
    for part in header.split(","):
        media, *rest = [item.strip() for item in part.split(";")]
        if media not in {"application/json", "*/*", "application/*"}:
            continue
        parameters = dict(item.partition("=")[::2] for item in rest)
        kind = parameters.get("as", "")
        if kind and (parameters.get("g"), parameters.get("v")) != ("meta.k8s.io", "v1"):
            continue
        if kind == "Table":
            return Accepted(table=True)
        if kind in {"PartialObjectMetadata", "PartialObjectMetadataList"}:
            return Accepted(partial=True)
        if not kind:
            return Accepted()
    raise errors.not_acceptable(["application/json"])


# --- bodies -------------------------------------------------------------------------------------


class _Twice(dict[str, Any]):
    """An object in which a key appeared more than once."""

    twice: tuple[str, ...] = ()


def parse_json(raw: bytes) -> tuple[Any, tuple[str, ...]]:
    """Parse a JSON body; also return the paths of the fields that it holds twice."""
    seen = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal seen
        made = dict(items)
        if len(made) == len(items):
            return made
        seen = True
        marked = _Twice(made)
        keys = [key for key, _ in items]
        marked.twice = tuple(dict.fromkeys(key for key in keys if keys.count(key) > 1))
        return marked

    try:
        value = json.loads(raw, object_pairs_hook=pairs)
    except ValueError as error:
        raise errors.bad_request(f"the body of the request is no JSON: {error}") from error
    return value, tuple(_duplicates(value, "")) if seen else ()


def _duplicates(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value, _Twice):
            yield from (f"{path}.{key}".lstrip(".") for key in value.twice)
        for key, item in value.items():
            yield from _duplicates(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _duplicates(item, f"{path}[{at}]")


def parse_body(raw: bytes, content_type: str) -> tuple[Any, tuple[str, ...]]:
    """Parse a body by its media type; raises 415 for a type that is not understood."""
    media = content_type.partition(";")[0].strip().lower()
    if not raw:
        return None, ()
    if media == PROTOBUF:
        return decode_body(raw), ()
    if media in {"application/yaml", APPLY_PATCH}:
        try:
            return yaml.safe_load(raw), ()
        except yaml.YAMLError as error:
            raise errors.bad_request(f"the body of the request is no YAML: {error}") from error
    if media in {"", "application/json", "application/octet-stream"} or media.endswith("+json"):
        return parse_json(raw)
    raise errors.unsupported_media_type(
        content_type, ["application/json", "application/yaml", PROTOBUF]
    )


def as_object(value: Any) -> Json:
    """Return a parsed body that must be an object; raises 400 otherwise."""
    if not isinstance(value, dict):
        raise errors.bad_request("the body of the request must be an object")
    return value
