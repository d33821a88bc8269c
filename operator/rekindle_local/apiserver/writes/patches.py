"""The three kinds of patch that change a document: JSON patch, merge patch, strategic merge patch.

All are pure: the document is never changed in place. Strategic merge needs to know which lists
are maps in disguise; that comes from the schema of the kind (`x-kubernetes-patch-merge-key` and
`x-kubernetes-patch-strategy`), not from a table here, so every built-in list is covered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json, bad_request

Resolve = Callable[[Json], Json]
"""Follows a schema's `$ref`; the identity for a schema without references."""


def _unprocessable(message: str) -> ApiError:
    return ApiError(
        422, "Invalid", f"the server rejected our request due to an error in our request: {message}"
    )


def json_patch(document: Any, operations: Any) -> Any:
    """Apply an RFC 6902 patch; raises 400 when malformed and 422 when it does not apply."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    result = copy.deepcopy(document)
    for index, operation in enumerate(operations):
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise bad_request(f"error decoding patch: operation {index} has no op or no path")
        name = operation.get("op")
        path = _pointer(operation["path"])
        match name:
            case "add" | "replace" | "test":
                if "value" not in operation:
                    raise bad_request(
                        f"error decoding patch: {name} at {operation['path']} has no value"
                    )
                value = copy.deepcopy(operation["value"])
            case "move" | "copy":
                if not isinstance(operation.get("from"), str):
                    raise bad_request(
                        f"error decoding patch: {name} at {operation['path']} has no from"
                    )
                source = _pointer(operation["from"])
                value = copy.deepcopy(_lookup(result, source, operation["from"]))
                if name == "move":
                    result = _remove(result, source, operation["from"])
                name = "add"
            case "remove":
                value = None
            case _:
                raise bad_request(f"error decoding patch: unknown operation {name!r}")
        if name == "test":
            if _get(result, path) != value:
                raise _unprocessable(f"testing path {operation['path']} failed")
        elif name == "remove":
            result = _remove(result, path, operation["path"])
        else:
            result = _put(result, path, value, operation["path"], replace=name == "replace")
    return result


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise bad_request(
            f"error decoding patch: {text!r} is no JSON pointer, it must begin with /"
        )
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _index(items: list[Any], part: str, text: str, *, end: bool = False) -> int:
    if end and part == "-":
        return len(items)
    if not part.isdigit() or int(part) > len(items) - (0 if end else 1):
        raise _unprocessable(f"{text}: no item {part!r} in a list of {len(items)}")
    return int(part)


def _lookup(document: Any, path: list[str], text: str) -> Any:
    for part in path:
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list):
            document = document[_index(document, part, text)]
        else:
            raise _unprocessable(f"{text}: {part!r} does not exist")
    return document


def _get(document: Any, path: list[str]) -> Any:
    """Return the value, or None when any step is missing: a test for null then succeeds."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def _put(document: Any, path: list[str], value: Any, text: str, *, replace: bool) -> Any:
    if not path:
        return value
    parent, last = _lookup(document, path[:-1], text), path[-1]
    if isinstance(parent, dict):
        if replace and last not in parent:
            raise _unprocessable(f"{text}: cannot replace what does not exist")
        parent[last] = value
    elif isinstance(parent, list):
        if replace:
            parent[_index(parent, last, text)] = value
        else:
            parent.insert(_index(parent, last, text, end=True), value)
    else:
        raise _unprocessable(f"{text}: the parent is neither an object nor a list")
    return document


def _remove(document: Any, path: list[str], text: str) -> Any:
    if not path:
        return None
    parent, last = _lookup(document, path[:-1], text), path[-1]
    if isinstance(parent, dict) and last in parent:
        del parent[last]
    elif isinstance(parent, list):
        del parent[_index(parent, last, text)]
    else:
        raise _unprocessable(f"{text}: cannot remove what does not exist")
    return document


def merge_patch(document: Any, patch: Any) -> Any:
    """Apply an RFC 7386 merge patch: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def strategic_merge_patch(document: Any, patch: Any, schema: Json, resolve: Resolve) -> Any:
    """Apply a strategic merge patch by the merge keys of a schema.

    Raises a 400 for an unknown directive and for a list item without its merge key.
    """
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: a strategic merge patch is an object")
    return _strategic_map(
        document if isinstance(document, dict) else {}, patch, resolve(schema), resolve
    )


def _strategic_map(document: Json, patch: Json, schema: Json, resolve: Resolve) -> Json:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in {None, "merge"}:
        raise bad_request(f"invalid patch: $patch is {directive!r}: use replace, delete or merge")
    result = dict(document)
    if (retained := patch.get("$retainKeys")) is not None:
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith(_DELETE):
            field = key.removeprefix(_DELETE)
            result[field] = [item for item in result.get(field) or [] if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        child = _child(schema, key, resolve)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = _strategic_map(
                old if isinstance(old, dict) else {}, value, child, resolve
            )
        elif isinstance(value, list):
            order = patch.get(_ORDER + key)
            result[key] = _strategic_list(result.get(key), value, child, resolve, order, key)
        else:
            result[key] = value
    for key, value in patch.items():
        field = key.removeprefix(_ORDER)
        if key.startswith(_ORDER) and field not in patch and isinstance(result.get(field), list):
            result[field] = _ordered(
                result[field], value, _merge_key(_child(schema, field, resolve))
            )
    return result


def _child(schema: Json, key: str, resolve: Resolve) -> Json:
    found = (schema.get("properties") or {}).get(key)
    if found is None:
        extra = schema.get("additionalProperties")
        found = extra if isinstance(extra, dict) else {}
    return resolve(found)


def _merge_key(schema: Json) -> str | None:
    if "merge" not in str(schema.get("x-kubernetes-patch-strategy", "")).split(","):
        return None
    key = schema.get("x-kubernetes-patch-merge-key")
    return str(key) if key else None


def _strategic_list(
    old: Any, patch: list[Any], schema: Json, resolve: Resolve, order: Any, name: str
) -> list[Any]:
    strategy = str(schema.get("x-kubernetes-patch-strategy", "")).split(",")
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    if "merge" not in strategy:
        return copy.deepcopy(patch)
    current = list(old) if isinstance(old, list) else []
    key = _merge_key(schema)
    if key is None:
        current += [item for item in patch if item not in current]
        return _ordered(current, order, None) if order else current
    item_schema = resolve(schema.get("items") or {})
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"invalid patch: an item of {name} has no {key}, its merge key")
        place = next(
            (
                at
                for at, have in enumerate(current)
                if isinstance(have, dict) and have.get(key) == item[key]
            ),
            None,
        )
        if item.get("$patch") == "delete":
            if place is not None:
                del current[place]
        elif place is None:
            current.append(_strategic_map({}, item, item_schema, resolve))
        else:
            current[place] = _strategic_map(current[place], item, item_schema, resolve)
    return _ordered(current, order, key) if order else current


def _ordered(items: list[Any], order: Any, key: str | None) -> list[Any]:
    """Put the items that `order` names into its order, in the places they hold together now."""

    def identity(item: Any) -> Any:
        return item.get(key) if key is not None and isinstance(item, dict) else item

    wanted = [identity(item) for item in order or []]
    places = [at for at, item in enumerate(items) if identity(item) in wanted]
    chosen = sorted((items[at] for at in places), key=lambda item: wanted.index(identity(item)))
    result = list(items)
    for at, item in zip(places, chosen, strict=True):
        result[at] = item
    return result
