"""CEL rules of a CRD (`x-kubernetes-validations`), compiled once and checked on every write.

The evaluator is the official C++ one. What Kubernetes adds to the language and the library lacks
is declared here (`isSorted`, `sum`, `min`, `max`, `find`, `findAll`, `isURL`, `url`, `quantity`,
`isQuantity` and their methods); a rule that uses anything else (`indexOf` of a list, `ip`, `cidr`,
`format`, `sets`) does not compile, and the CRD is refused with 422, never accepted unchecked.

Values are declared dynamic, not typed from the schema: a rule that names a field which does not
exist is therefore found when it is evaluated, not when the CRD is created. There is no cost limit.

A rule that mentions `oldSelf` is a transition rule: it is checked on updates only, and only where
the old value can be found (below lists that are no maps it cannot, and such a rule is refused).
Other rules are skipped where an update leaves the value as it was, as on a real server: a CRD may
become stricter without making every status write of an older object fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings

from rekindle_local.apiserver.errors import Json, StatusCause, bad_value, show
from rekindle_local.apiserver.schemas.schema import compiled, type_name

_REASONS = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")

_RESERVED = frozenset(
    ("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function")
    + ("if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while")
)

_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?"
)
_SUFFIXES = {
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(10**3)},
    **{name: Decimal(10 ** (6 + 3 * at)) for at, name in enumerate("MGTPE")},
    **{f"{name}i": Decimal(2 ** (10 + 10 * at)) for at, name in enumerate("KMGTPE")},
}


@dataclass(frozen=True, kw_only=True)
class _Rule:
    program: Any
    text: str
    message: str
    message_program: Any | None
    field_path: str
    reason: str
    transition: bool
    optional_old: bool


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one schema node and of all nodes below it."""

    schema: Json
    rules: tuple[_Rule, ...] = ()
    properties: Mapping[str, Rules] = field(default_factory=dict)
    items: Rules | None = None
    additional: Rules | None = None

    transitions: bool = False
    """Whether a rule here or below compares with the old value."""

    def empty(self) -> bool:
        """Tell whether there is nothing to check here and below."""
        return not (self.rules or self.properties or self.items or self.additional)


# --- compiling ----------------------------------------------------------------------------------


def compile_rules(schema: Json, path: str) -> tuple[Rules, list[StatusCause]]:
    """Compile every rule of a schema; the causes name each that does not compile."""
    causes: list[StatusCause] = []
    return _compile(schema, path, causes, correlatable=True), causes


def _compile(node: Json, path: str, causes: list[StatusCause], *, correlatable: bool) -> Rules:
    rules = []
    for at, raw in enumerate(node.get("x-kubernetes-validations") or []):
        rule = _compile_rule(raw, f"{path}.x-kubernetes-validations[{at}]", causes, correlatable)
        if rule is not None:
            rules.append(rule)
    properties = {}
    for key, inner in (node.get("properties") or {}).items():
        found = _compile(inner, f"{path}.properties[{key}]", causes, correlatable=correlatable)
        if not found.empty():
            properties[key] = found
    items = additional = None
    if isinstance(node.get("items"), dict):
        is_map = node.get("x-kubernetes-list-type") == "map"
        items = _compile(
            node["items"], f"{path}.items", causes, correlatable=correlatable and is_map
        )
    if isinstance(node.get("additionalProperties"), dict):
        additional = _compile(
            node["additionalProperties"],
            f"{path}.additionalProperties",
            causes,
            correlatable=correlatable,
        )
    below = [*properties.values(), *(node for node in (items, additional) if node is not None)]
    return Rules(
        transitions=any(rule.transition for rule in rules) or any(r.transitions for r in below),
        schema=node,
        rules=tuple(rules),
        properties=properties,
        items=None if items is None or items.empty() else items,
        additional=None if additional is None or additional.empty() else additional,
    )


def _compile_rule(
    raw: Json, path: str, causes: list[StatusCause], correlatable: bool
) -> _Rule | None:
    text = str(raw.get("rule") or "").strip()
    if not text:
        causes.append(
            StatusCause(
                field=f"{path}.rule",
                reason="FieldValueRequired",
                message="Required value: rule is not specified",
            )
        )
        return None
    if raw.get("reason") not in (None, *_REASONS):
        causes.append(
            bad_value(f"{path}.reason", raw["reason"], f"use one of {', '.join(_REASONS)}")
        )
        return None
    if "\n" in str(raw.get("message") or ""):
        causes.append(
            bad_value(f"{path}.message", raw["message"], "message must not contain line breaks")
        )
        return None
    transition = _mentions_old(text)
    if transition and not correlatable:
        causes.append(
            bad_value(
                f"{path}.rule",
                text,
                "oldSelf cannot be used on the uncorrelatable portion of the schema",
            )
        )
        return None
    optional_old = bool(raw.get("optionalOldSelf"))
    program = _program(_OPTIONAL % text if optional_old else text, f"{path}.rule", "bool", causes)
    message_text = raw.get("messageExpression")
    message_program = (
        _program(
            _OPTIONAL % message_text if optional_old else message_text,
            f"{path}.messageExpression",
            "string",
            causes,
        )
        if message_text
        else None
    )
    if program is None:
        return None
    return _Rule(
        program=program,
        text=text,
        message=str(raw.get("message") or ""),
        message_program=message_program,
        field_path=str(raw.get("fieldPath") or ""),
        reason=str(raw.get("reason") or "FieldValueInvalid"),
        transition=transition,
        optional_old=optional_old,
    )


_OPTIONAL = "cel.bind(oldSelf, size(__old__) == 0 ? optional.none() : optional.of(__old__[0]), %s)"
"""An optional is built by the language and cannot be handed in: a list of none or one is."""


def _mentions_old(text: str) -> bool:
    without_strings = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "''", text)
    return re.search(r"\boldSelf\b", without_strings) is not None


def _program(text: str, path: str, wanted: str, causes: list[StatusCause]) -> Any | None:
    try:
        program = _environment().compile(text)
    except (RuntimeError, ValueError) as error:
        reason = str(error).removesuffix(" [INVALID_ARGUMENT]").removeprefix("INVALID_ARGUMENT: ")
        causes.append(bad_value(path, text, f"compilation failed: {reason}"))
        return None
    returned = program.return_type().name().lower()
    if returned not in {wanted, "dyn"}:
        causes.append(bad_value(path, text, f"must evaluate to a {wanted}, not to {returned}"))
        return None
    return program


# --- checking -----------------------------------------------------------------------------------


_MISSING = object()


def check(rules: Rules, value: Any, old: Any = None) -> list[StatusCause]:
    """Return a cause for every rule that a value breaks; `old` is None on create."""
    return list(_check(rules, value, _MISSING if old is None else old, "", root=True))


def _check(
    rules: Rules, value: Any, old: Any, path: str, *, root: bool = False
) -> Iterator[StatusCause]:
    # What did not change was checked when it was written; only transition rules look at it again.
    same = old is not _MISSING and value == old
    if same and not rules.transitions:
        return
    due = [
        rule
        for rule in rules.rules
        if not (same and not rule.transition)
        and not (rule.transition and old is _MISSING and not rule.optional_old)
    ]
    if due:
        own = to_cel(value, rules.schema, root=root)
        before = _MISSING if old is _MISSING else to_cel(old, rules.schema, root=root)
        for rule in due:
            cause = _evaluate(rule, value, own, before, path)
            if cause is not None:
                yield cause
    if isinstance(value, dict):
        for key, item in value.items():
            below = rules.properties.get(key) or (
                rules.additional if key not in (rules.schema.get("properties") or {}) else None
            )
            if below is not None and item is not None:
                was = old.get(key, _MISSING) if isinstance(old, dict) else _MISSING
                yield from _check(below, item, was, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and rules.items is not None:
        keys = rules.schema.get("x-kubernetes-list-map-keys") or []
        for at, item in enumerate(value):
            was = _correlated(item, old, keys)
            yield from _check(rules.items, item, was, f"{path}[{at}]")


def _correlated(item: Any, old: Any, keys: list[str]) -> Any:
    if not keys or not isinstance(old, list) or not isinstance(item, dict):
        return _MISSING
    for candidate in old:
        if all(candidate.get(key) == item.get(key) for key in keys):
            return candidate
    return _MISSING


def _evaluate(rule: _Rule, value: Any, own: Any, before: Any, path: str) -> StatusCause | None:
    data = {"self": own}
    if rule.optional_old:
        data["__old__"] = [] if before is _MISSING else [before]
    elif before is not _MISSING:
        data["oldSelf"] = before
    outcome, error = _run(rule.program, data)
    if outcome is True:
        return None
    where = path + rule.field_path
    where = where.removeprefix(".") if not path else where
    shown = value if not isinstance(value, (dict, list)) else type_name(value)
    if error is not None:
        return bad_value(where, shown, f"rule: {rule.text}: evaluation failed: {error}")
    message = rule.message or f"failed rule: {rule.text}"
    if rule.message_program is not None:
        text, failed = _run(rule.message_program, data)
        # An expression that fails or gives nothing readable falls back to the fixed message.
        if failed is None and isinstance(text, str) and text.strip() and "\n" not in text:
            message = text.strip()
    if rule.reason == "FieldValueRequired":
        return StatusCause(field=where, reason=rule.reason, message=f"Required value: {message}")
    if rule.reason == "FieldValueForbidden":
        return StatusCause(field=where, reason=rule.reason, message=f"Forbidden: {message}")
    if rule.reason == "FieldValueDuplicate":
        return StatusCause(
            field=where, reason=rule.reason, message=f"Duplicate value: {show(shown)}"
        )
    return bad_value(where, shown, message)


def _run(program: Any, data: Json) -> tuple[Any, str | None]:
    try:
        result = program.eval(data=data)
    except (RuntimeError, ValueError, TypeError) as error:
        return None, str(error)
    if result.type() == cel.Type.ERROR:
        return None, str(result.value())
    return result.plain_value(), None


@lru_cache(maxsize=4096)
def escaped(name: str) -> str | None:
    """Return a property name as CEL can select it; None when it cannot be written at all."""
    if name in _RESERVED:
        return f"__{name}__"
    text = (
        name.replace("__", "__underscores__")
        .replace(".", "__dot__")
        .replace("-", "__dash__")
        .replace("/", "__slash__")
    )
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) else None


def to_cel(value: Any, node: Json, *, root: bool = False) -> Any:
    """Return a JSON value as CEL sees it: described fields only, typed by the schema.

    `number` becomes a double. Formats `date-time` and `duration` stay strings, as the library takes
    no timestamps as input: a rule about such a field has to say timestamp(self.field), which the
    real server accepts as well.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        properties = node.get("properties")
        result: Json = {}
        embedded = root or node.get("x-kubernetes-embedded-resource")
        extra = node.get("additionalProperties")
        for key, item in value.items():
            if embedded and key in {"apiVersion", "kind"}:
                result[key] = item
            elif embedded and key == "metadata" and isinstance(item, dict):
                result[key] = {k: item[k] for k in ("name", "generateName") if k in item}
            elif properties is not None and key in properties:
                name = escaped(key)
                if name is not None and (item is not None or properties[key].get("nullable")):
                    result[name] = to_cel(item, properties[key])
            elif isinstance(extra, dict):
                result[key] = to_cel(item, extra)
        return result
    if isinstance(value, list):
        items = node.get("items")
        return [to_cel(item, items if isinstance(items, dict) else {}) for item in value]
    if node.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


# --- the functions Kubernetes adds --------------------------------------------------------------


def parse_quantity(text: str) -> Decimal:
    """Parse a resource quantity such as 500m or 1.5Gi; raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is no quantity: use a number with a suffix such as m, k, Mi or Gi"
        )
    number, exponent, suffix = found.groups()
    try:
        value = Decimal(number + (exponent or ""))
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is no quantity") from error
    return value * _SUFFIXES.get(suffix or "", Decimal(1))


def is_quantity(text: Any) -> bool:
    """Tell whether a text is a resource quantity."""
    try:
        parse_quantity(str(text))
    except ValueError:
        return False
    return True


def _quantity(text: str) -> Json:
    parse_quantity(text)
    return {"quantity": text}


def _amount(value: Any) -> Decimal:
    return (
        parse_quantity(str(value["quantity"])) if isinstance(value, dict) else Decimal(str(value))
    )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.path)) or text.startswith("/")


def _url(text: str) -> Json:
    if not _is_url(text):
        raise ValueError(f"{text!r} is no URL")
    return {"url": text}


def _pairs_sorted(items: list[Any]) -> bool:
    return all(a <= b for a, b in zip(items, items[1:], strict=False))


def _find(text: str, pattern: str) -> str:
    found = compiled(pattern).search(text)
    return found.group() if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match.group() for match in compiled(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _smallest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("min called on empty list")
    return min(items)


def _largest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("max called on empty list")
    return max(items)


@cache
def _environment() -> Any:
    dyn, text, boolean, integer = cel.Type.DYN, cel.Type.STRING, cel.Type.BOOL, cel.Type.INT
    # The runtime picks an overload by the value's kind, for which "dynamic" matches nothing: lists
    # are declared as lists, and URLs and quantities travel as maps with one key.
    items, boxed = cel.Type.List(dyn), cel.Type.Map(text, dyn)

    def member(name: str, takes: list[Any], gives: Any, impl: Callable[..., Any]) -> Any:
        return name, cel.Overload(f"k8s_{name}_{len(takes)}", gives, takes, True, impl)

    def function(name: str, takes: list[Any], gives: Any, impl: Callable[..., Any]) -> Any:
        return name, cel.Overload(f"k8s_{name}_global", gives, takes, False, impl)

    def url_part(get: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda value: get(urlsplit(value["url"]))

    rows = [
        member("isSorted", [items], boolean, _pairs_sorted),
        member("sum", [items], dyn, sum),
        member("min", [items], dyn, _smallest),
        member("max", [items], dyn, _largest),
        member("find", [text, text], text, _find),
        member("findAll", [text, text], cel.Type.List(text), _find_all),
        member("findAll", [text, text, integer], cel.Type.List(text), _find_all),
        function("isURL", [text], boolean, _is_url),
        function("url", [text], boxed, _url),
        member("getScheme", [boxed], text, url_part(lambda u: u.scheme)),
        member("getHost", [boxed], text, url_part(lambda u: u.netloc.rpartition("@")[2])),
        member("getHostname", [boxed], text, url_part(lambda u: u.hostname or "")),
        member("getPort", [boxed], text, url_part(lambda u: str(u.port or ""))),
        member("getEscapedPath", [boxed], text, url_part(lambda u: u.path)),
        member("getQuery", [boxed], dyn, url_part(lambda u: parse_qs(u.query))),
        function("isQuantity", [text], boolean, is_quantity),
        function("quantity", [text], boxed, _quantity),
        member("isGreaterThan", [boxed, boxed], boolean, lambda a, b: _amount(a) > _amount(b)),
        member("isLessThan", [boxed, boxed], boolean, lambda a, b: _amount(a) < _amount(b)),
        member(
            "compareTo",
            [boxed, boxed],
            integer,
            lambda a, b: (_amount(a) > _amount(b)) - (_amount(a) < _amount(b)),
        ),
        member("sign", [boxed], integer, lambda a: (_amount(a) > 0) - (_amount(a) < 0)),
        member("isInteger", [boxed], boolean, lambda a: _amount(a) == int(_amount(a))),
        member("asInteger", [boxed], integer, lambda a: int(_amount(a))),
        member("asApproximateFloat", [boxed], cel.Type.DOUBLE, lambda a: float(_amount(a))),
        member(
            "add", [boxed, boxed], boxed, lambda a, b: {"quantity": f"{_amount(a) + _amount(b):f}"}
        ),
        member(
            "sub", [boxed, boxed], boxed, lambda a, b: {"quantity": f"{_amount(a) - _amount(b):f}"}
        ),
    ]
    functions: dict[str, list[Any]] = {}
    for name, overload in rows:
        functions.setdefault(name, []).append(overload)
    return cel.NewEnv(
        variables={"self": dyn, "oldSelf": dyn, "__old__": dyn},
        extensions=[
            ext_strings.ExtStrings(),
            ext_optional.ExtOptional(),
            ext_math.ExtMath(),
            ext_bindings.ExtBindings(),
        ],
        functions=[cel.FunctionDecl(name, overloads) for name, overloads in functions.items()],
    )
