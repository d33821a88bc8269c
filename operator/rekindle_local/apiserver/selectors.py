"""Label and field selectors: parsed once per request, then a predicate on objects.

A watch needs the predicate on the old and on the new state of an object: one that starts to match
is reported as ADDED, one that stops as DELETED, whatever was done to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json, bad_request
from rekindle_local.apiserver.names import label_value, qualified_name

Predicate = Callable[[Json], bool]

_SET_TERM = re.compile(r"^\s*(\S+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_BINARY = re.compile(r"^\s*([^\s=!<>]+)\s*(==|=|!=|>|<)\s*([^\s=!<>]*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([^\s=!<>()]+)\s*$")
_SPLIT = re.compile(r",(?![^(]*\))")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a set of labels meets this term."""
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case ">":
                return _number(value) is not None and _number(value) > self._bound()  # type: ignore[operator]
            case "<":
                return _number(value) is not None and _number(value) < self._bound()  # type: ignore[operator]
        raise AssertionError(self.operator)

    def _bound(self) -> int:
        return int(next(iter(self.values)))


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse a `labelSelector` parameter; raises a 400 that shows the bad term."""
    terms = []
    for term in _SPLIT.split(text) if text.strip() else []:
        if found := _SET_TERM.match(term):
            key, operator, values = found.groups()
            items = frozenset(item.strip() for item in values.split(","))
        elif found := _BINARY.match(term):
            key, sign, value = found.groups()
            operator = {"=": "in", "==": "in", "!=": "notin"}.get(sign, sign)
            if operator in {"<", ">"} and _number(value) is None:
                raise bad_request(
                    f'unable to parse requirement: "{value}" in "{term}" is no integer'
                )
            items = frozenset([value])
        elif found := _EXISTS.match(term):
            negated, key = found.groups()
            operator, items = ("absent" if negated else "exists"), frozenset()
        else:
            raise bad_request(
                f'unable to parse requirement: "{term}" is not of the form key, !key, key=value, '
                "key!=value, key in (a,b) or key notin (a,b)"
            )
        problems = qualified_name(key) + [text for item in items for text in label_value(item)]
        if problems:
            raise bad_request(f'unable to parse requirement: "{term}": {problems[0]}')
        terms.append(Requirement(key=key, operator=operator, values=items))
    return tuple(terms)


def parse_fields(
    text: str, supported: Collection[str], resource: str
) -> tuple[tuple[str, str, bool], ...]:
    """Parse a `fieldSelector` parameter into (path, value, equal) terms.

    Raises a 400 for a field this resource cannot be selected by, naming those it can.
    """
    terms = []
    for term in text.split(",") if text.strip() else []:
        found = _BINARY.match(term)
        if not found or found.group(2) in {"<", ">"}:
            raise bad_request(f'invalid field selector "{term}": use field=value or field!=value')
        path, sign, value = found.groups()
        if path not in supported:
            raise bad_request(
                f'Unable to find "{resource}" that match field selector "{text}": '
                f"field label not supported: {path} (supported: {', '.join(sorted(supported))})"
            )
        terms.append((path, value, sign != "!="))
    return tuple(terms)


def field_text(obj: Json, path: str) -> str:
    """Return the value at a dotted path as selectors compare it; empty when it is absent."""
    value: Any = obj
    for part in path.split("."):
        if not isinstance(value, dict):
            return ""
        value = value.get(part)
    if value is None:
        return "false" if path in {"spec.unschedulable", "spec.hostNetwork"} else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def predicate(labels: Iterable[Requirement], fields: Iterable[tuple[str, str, bool]]) -> Predicate:
    """Return the predicate of both selectors together; always true when both are empty."""
    label_terms, field_terms = tuple(labels), tuple(fields)

    def matches(obj: Json) -> bool:
        own = obj["metadata"].get("labels") or {}
        return all(term.matches(own) for term in label_terms) and all(
            (field_text(obj, path) == value) == equal for path, value, equal in field_terms
        )

    return matches


def matches_selector(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Tell whether labels match a LabelSelector object; none matches nothing, empty everything."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    for term in selector.get("matchExpressions") or []:
        operator = names.get(term.get("operator"))
        if operator is None:
            raise ApiError(
                422, "Invalid", f"{term.get('operator')!r} is no label selector operator"
            )
        requirement = Requirement(
            key=term["key"], operator=operator, values=frozenset(term.get("values") or [])
        )
        if not requirement.matches(labels):
            return False
    return True


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
