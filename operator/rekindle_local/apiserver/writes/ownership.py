"""Server-side apply: who owns which field, conflicts, and what an apply adds and removes.

A manager's set is every leaf of what it applied, as paths: `f:name` for a field, `k:{...}` for an
item of a map-like list, `v:...` for a member of a set; lists that are neither are one leaf, as in
the schema (`x-kubernetes-list-type`). An apply merges its leaves into the object, removes those it
owned before and no longer names (unless another manager owns them too), and conflicts when it
would change a leaf that another manager owns; `force` takes it over instead.

Two simplifications, both on the cautious side. Ownership is tracked from the first apply on: an
object nobody applied carries no managedFields, and its fields then belong to `before-first-apply`,
as on a real server for objects older than the feature. And an apply in one version is not compared
with one in another version of the same kind.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json
from rekindle_local.apiserver.schemas.schema import Schema, child

Path = tuple[str, ...]

_UNOWNED = {
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{key}")
        for key in (
            "name",
            "namespace",
            "generateName",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        )
    ),
}
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Manager:
    """One entry of `managedFields`."""

    name: str
    operation: str
    api_version: str
    subresource: str
    time: str
    paths: frozenset[Path]

    def entry(self) -> Json:
        """Return the entry as the API shows it."""
        entry = {
            "manager": self.name,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": _tree(self.paths),
        }
        return {**entry, "subresource": self.subresource} if self.subresource else entry

    def same(self, name: str, operation: str, subresource: str) -> bool:
        """Tell whether this is the entry of a manager's kind of write."""
        return (self.name, self.operation, self.subresource) == (name, operation, subresource)


def apply_owned(
    current: Json | None,
    config: Json,
    schema: Schema,
    *,
    manager: str,
    force: bool,
    subresource: str,
    now: str,
) -> Json:
    """Return the object after an apply, `managedFields` included; raises 409 on conflicts."""
    wanted = frozenset(leaves(config, schema))
    managers = _managers(current, schema)
    previous = next((m for m in managers if m.same(manager, "Apply", subresource)), None)
    others = [m for m in managers if m is not previous]
    conflicts = []
    for path in sorted(wanted):
        new, have = _value(config, path), _value(current, path)
        if have is not _ABSENT and (new == have or _is_item(path)):
            continue
        conflicts += [(other, path) for other in others if path in other.paths]
    if conflicts and not force:
        raise _conflict(conflicts)
    lost = {path for _, path in conflicts}
    others = [replace(other, paths=other.paths - lost) for other in others]
    merged: Json = _merge(current or {}, config, schema.resolve(schema.root), schema)
    if previous is not None:
        shared = {path for other in others for path in other.paths}
        held = shared | wanted
        for path in sorted(previous.paths - wanted):
            if not _is_key(path) and not any(other[: len(path)] == path for other in held):
                _drop(merged, path)
    mine = Manager(
        name=manager,
        operation="Apply",
        api_version=str(config["apiVersion"]),
        subresource=subresource,
        time=now if previous is None or previous.paths != wanted or lost else previous.time,
        paths=wanted,
    )
    entries = [m.entry() for m in (mine, *others) if m.paths]
    merged["metadata"] = {**merged["metadata"], "managedFields": entries}
    return merged


def track_update(
    old: Json, new: Json, schema: Schema, *, manager: str, subresource: str, now: str
) -> list[Json]:
    """Return `managedFields` after a write that is no apply: what it changed is now its own."""
    before, after = frozenset(leaves(old, schema)), frozenset(leaves(new, schema))
    changed = frozenset(
        path
        for path in after
        if (was := _value(old, path)) is _ABSENT
        or (not _is_item(path) and was != _value(new, path))
    )
    removed = before - after
    managers = _managers(old, schema)
    mine = next((m for m in managers if m.same(manager, "Update", subresource)), None)
    result = []
    for entry in managers:
        kept = entry.paths - removed
        result.append(replace(entry, paths=(kept | changed) if entry is mine else (kept - changed)))
    if mine is None and changed:
        result.append(
            Manager(
                name=manager,
                operation="Update",
                api_version=str(new["apiVersion"]),
                subresource=subresource,
                time=now,
                paths=changed,
            )
        )
    return [entry.entry() for entry in result if entry.paths]


def leaves(obj: Json, schema: Schema) -> Iterator[Path]:
    """Yield the path of every field of an object that can have an owner."""
    for path in _leaves(obj, schema.resolve(schema.root), schema, ()):
        if path[:2] not in _UNOWNED and path not in _UNOWNED:
            yield path


def _leaves(value: Any, node: Json, schema: Schema, path: Path) -> Iterator[Path]:
    if isinstance(value, dict) and value and node.get("x-kubernetes-map-type") != "atomic":
        for key, item in value.items():
            inner = schema.resolve(_below(node, key, path))
            yield from _leaves(item, inner, schema, (*path, f"f:{key}"))
    elif isinstance(value, list) and node.get("x-kubernetes-list-type") == "map":
        items = schema.resolve(node.get("items") or {})
        for item in value:
            where = (*path, _item_key(item, node, items))
            yield where
            for key, inner in item.items():
                yield from _leaves(
                    inner, schema.resolve(child(items, key) or {}), schema, (*where, f"f:{key}")
                )
    elif isinstance(value, list) and node.get("x-kubernetes-list-type") == "set":
        for item in value:
            yield (*path, f"v:{_canonical(item)}")
    else:
        yield path


def _below(node: Json, key: str, path: Path) -> Json:
    found = child(node, key) or {}
    if path == ("f:metadata",) and not found:
        # A CRD's schema says nothing of metadata; its two shared lists behave as in every kind.
        if key == "finalizers":
            return {"x-kubernetes-list-type": "set"}
        if key == "ownerReferences":
            return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]}
    return found


def _item_key(item: Json, node: Json, items: Json) -> str:
    keys = {}
    for key in sorted(node.get("x-kubernetes-list-map-keys") or []):
        default = (child(items, key) or {}).get("default")
        if default is None and key == "protocol":
            # The definitions leave out the one default that is part of a key.
            default = "TCP"
        keys[key] = item.get(key, default)
    return f"k:{_canonical(keys)}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _is_item(path: Path) -> bool:
    return path[-1].startswith(("k:", "v:"))


def _is_key(path: Path) -> bool:
    """Tell whether a path is a key field of an item: it leaves with the item only."""
    if len(path) < 2 or not path[-2].startswith("k:"):
        return False
    return path[-1].removeprefix("f:") in json.loads(path[-2][2:])


def _find(value: Any, part: str) -> Any:
    kind, _, rest = part.partition(":")
    if kind == "f":
        return value.get(rest, _ABSENT) if isinstance(value, dict) else _ABSENT
    if not isinstance(value, list):
        return _ABSENT
    wanted = json.loads(rest)
    for item in value:
        if kind == "v" and item == wanted:
            return item
        if kind == "k" and isinstance(item, dict) and _has_keys(item, wanted):
            return item
    return _ABSENT


def _has_keys(item: Json, wanted: Json) -> bool:
    return all(
        item.get(key, "TCP" if key == "protocol" else None) == value
        for key, value in wanted.items()
    )


def _value(obj: Any, path: Path) -> Any:
    for part in path:
        obj = _find(obj, part)
        if obj is _ABSENT:
            return _ABSENT
    return obj


def _drop(obj: Any, path: Path) -> None:
    """Remove a path in place, and the objects above that it leaves empty."""
    chain = [obj]
    for part in path[:-1]:
        following = _find(chain[-1], part)
        if following is _ABSENT:
            return
        chain.append(following)
    for parent, part in zip(reversed(chain), reversed(path), strict=True):
        target = _find(parent, part)
        if target is _ABSENT:
            return
        if isinstance(parent, dict):
            del parent[part.removeprefix("f:")]
        else:
            parent.remove(target)
        if parent or parent is chain[0]:
            return


def _merge(current: Any, config: Any, node: Json, schema: Schema, path: Path = ()) -> Any:
    if isinstance(config, dict) and node.get("x-kubernetes-map-type") != "atomic":
        result = copy.deepcopy(current) if isinstance(current, dict) else {}
        for key, item in config.items():
            inner = schema.resolve(_below(node, key, path))
            result[key] = _merge(result.get(key), item, inner, schema, (*path, f"f:{key}"))
        return result
    kind = node.get("x-kubernetes-list-type")
    if isinstance(config, list) and isinstance(current, list) and kind in {"map", "set"}:
        items = schema.resolve(node.get("items") or {})
        if kind == "set":
            return [*copy.deepcopy(current), *(item for item in config if item not in current)]
        merged = copy.deepcopy(current)
        for item in config:
            wanted = json.loads(_item_key(item, node, items)[2:])
            at = next((i for i, have in enumerate(merged) if _has_keys(have, wanted)), None)
            if at is None:
                merged.append(copy.deepcopy(item))
            else:
                merged[at] = _merge(merged[at], item, items, schema)
        return merged
    return copy.deepcopy(config)


def _managers(obj: Json | None, schema: Schema) -> list[Manager]:
    if obj is None:
        return []
    entries = obj["metadata"].get("managedFields") or []
    if not entries:
        return [
            Manager(
                name="before-first-apply",
                operation="Update",
                api_version=str(obj["apiVersion"]),
                subresource="",
                time=str(obj["metadata"].get("creationTimestamp", "")),
                paths=frozenset(leaves(obj, schema)),
            )
        ]
    return [
        Manager(
            name=entry.get("manager", ""),
            operation=entry.get("operation", "Update"),
            api_version=entry.get("apiVersion", ""),
            subresource=entry.get("subresource", ""),
            time=entry.get("time", ""),
            paths=frozenset(_paths(entry.get("fieldsV1") or {}, ())),
        )
        for entry in entries
    ]


def _paths(tree: Json, path: Path) -> Iterator[Path]:
    if not tree and path:
        yield path
    for key, below in tree.items():
        if key == ".":
            yield path
        else:
            yield from _paths(below, (*path, key))


def _tree(paths: frozenset[Path]) -> Json:
    root: Json = {}
    for path in sorted(paths):
        node = root
        for part in path:
            node = node.setdefault(part, {})
    for path in paths:
        found: Json = root
        for part in path:
            found = found[part]
        if found:
            found["."] = {}
    return root


def _conflict(conflicts: list[tuple[Manager, Path]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager.name}" using {manager.api_version}',
            "field": readable(path),
        }
        for manager, path in conflicts
    ]
    count = f"{len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    texts = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return ApiError(
        409, "Conflict", f"Apply failed with {count}: {texts}", details={"causes": causes}
    )


def readable(path: Path) -> str:
    """Return a path as messages show it: .spec.template.containers[name="trainer"].image."""
    text = ""
    for part in path:
        kind, _, rest = part.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "v":
            text += f"[={rest}]"
        else:
            keys = json.loads(rest)
            text += (
                "[" + ",".join(f"{key}={_canonical(value)}" for key, value in keys.items()) + "]"
            )
    return text
