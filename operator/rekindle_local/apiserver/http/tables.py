"""The table form of objects: the columns that `kubectl get` prints, made by the server.

kubectl asks for it on get, list and on every watch event. Custom resources bring their columns as
JSON paths; those of built-in kinds are in `printers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.kinds.printers import (
    EVENT_COLUMNS,
    PLAIN,
    PRINTERS,
    age,
    event_cells,
    name_cell,
)
from rekindle_local.apiserver.registry import Column, Resource

# --- JSON paths ---------------------------------------------------------------------------------

_STEP = re.compile(
    r"\.(?P<field>(?:[A-Za-z0-9_/$-]|\\.)+)"
    r"|\[(?P<index>-?\d+|\*)\]"
    r"|\[['\"](?P<quoted>[^'\"]+)['\"]\]"
    r"|\[\?\(\s*@\.(?P<key>[\w.]+)\s*==\s*['\"](?P<value>[^'\"]*)['\"]\s*\)\]"
)


def json_path(obj: Any, path: str) -> list[Any]:
    """Return all values at a JSON path as printer columns write it; empty when there is none.

    Understood are fields, escaped dots, quoted fields, indexes, `[*]` and `[?(@.a=="b")]`.
    """
    found, at = [obj], 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return []
        at = step.end()
        found = [item for value in found for item in _step(value, step)]
    return found


def _step(value: Any, step: re.Match[str]) -> Iterable[Any]:
    field = step["field"] or step["quoted"]
    if field is not None:
        field = re.sub(r"\\(.)", r"\1", field)
        if isinstance(value, dict) and value.get(field) is not None:
            yield value[field]
    elif step["key"] is not None:
        for item in value if isinstance(value, list) else []:
            if json_path(item, f".{step['key']}") == [step["value"]]:
                yield item
    elif step["index"] == "*":
        yield from (
            value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
        )
    elif isinstance(value, list):
        index = int(step["index"])
        if -len(value) <= index < len(value):
            yield value[index]


def custom_cell(column: Column, obj: Json, now: float) -> Any:
    """Return one cell of a custom resource; None when the path leads nowhere."""
    values = json_path(obj, column.path)
    if not values:
        return None
    value = values[0]
    if column.type == "date":
        return age(value, now)
    if column.type == "string":
        if len(values) > 1:
            return ",".join(_text(item) for item in values)
        return _text(value)
    if column.type == "integer" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    if column.type == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return value if column.type == "boolean" and isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def columns(resource: Resource) -> list[Json]:
    """Return the column definitions of a resource's table."""
    if resource.custom:
        own = [
            {
                "name": column.name,
                "type": column.type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            }
            for column in resource.columns
        ]
        return [_name_column(), *own]
    if resource.kind == "Event":
        return [_column(*row) for row in EVENT_COLUMNS]
    return [
        _name_column(),
        *(_column(*row) for row in PRINTERS.get(resource.kind, PLAIN).columns),
    ]


def _name_column() -> Json:
    return {**_column("Name", "string", 0), "format": "name"}


def _column(name: str, kind: str, priority: int) -> Json:
    return {"name": name, "type": kind, "format": "", "description": name, "priority": priority}


def row(resource: Resource, obj: Json, now: float, include: str) -> Json:
    """Return the row of an object; `include` says how much of the object travels along."""
    if resource.custom:
        cells = [
            obj["metadata"]["name"],
            *(custom_cell(column, obj, now) for column in resource.columns),
        ]
    elif resource.kind == "Event":
        cells = event_cells(obj, now)
    else:
        cells = [name_cell(obj), *PRINTERS.get(resource.kind, PLAIN).cells(obj, now)]
    made: Json = {"cells": cells}
    if include == "Object":
        made["object"] = obj
    elif include != "None":
        made["object"] = partial(obj)
    return made


def partial(obj: Json) -> Json:
    """Return the metadata of an object as PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def table(
    resource: Resource,
    objects: Iterable[Json],
    metadata: Json,
    now: float,
    *,
    include: str = "Metadata",
    headers: bool = True,
) -> Json:
    """Return the table of some objects."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns(resource) if headers else None,
        "rows": [row(resource, obj, now, include) for obj in objects],
    }
