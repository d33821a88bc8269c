"""JSON documents as frozen dataclasses, with a limit for each field."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Name:
    """A word that something is known by. One that is too long, or not printable, is refused."""

    most: int
    """Characters."""

    def __call__(self, value: object, name: str) -> str:
        """Check."""
        text: str = _of(value, str, name)
        if len(text) > self.most:
            raise ValueError(
                f"field {name!r} has {len(text)} characters, may have no more than {self.most}"
            )
        if _UNPRINTABLE.search(text):
            raise ValueError(f"field {name!r} has characters that cannot be printed")
        return text


@dataclass(frozen=True)
class Text:
    """Words for people: what moves a cursor or is no character is taken out, the rest is cut.

    They come from programs and exceptions, and no report is worth losing for them.
    """

    most: int
    """Characters."""
    lines: bool = False
    """Whether it may have several."""

    def __call__(self, value: object, name: str) -> str:
        """Clean."""
        text: str = _of(value, str, name)
        if not text.isprintable():
            text = _COLOURS.sub("", text).replace("\r\n", "\n").replace("\t", "    ")
            parts = text.split("\n") if self.lines else [text.replace("\n", " ")]
            text = "\n".join(_UNPRINTABLE.sub("\ufffd", part) for part in parts)
        if len(text) <= self.most:
            return text
        if not self.lines:
            return text[: self.most - 3] + "..."
        # Of a traceback the head says where in the user's code, and the tail says what.
        head = (self.most - len(_LEFT_OUT)) // 3
        return text[:head] + _LEFT_OUT + text[head + len(_LEFT_OUT) - self.most :]


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds."""

    least: int
    most: int

    def __call__(self, value: object, name: str) -> int:
        """Check."""
        number: int = _of(value, int, name)
        if not self.least <= number <= self.most:
            bounds = f"from {self.least} to {self.most}"
            raise ValueError(f"{name} is {_shown(number)}, must be {bounds}")
        return number


@dataclass(frozen=True)
class Seconds:
    """A time or a duration: finite, not negative, within calendars."""

    def __call__(self, value: object, name: str) -> float:
        """Check."""
        number: float = _of(value, (int, float), name)
        if not 0 <= number < 1e11:
            bounds = "a number of seconds from 0 to 1e11"
            raise ValueError(f"field {name!r} is {_shown(number)}, must be {bounds}")
        return number


@dataclass(frozen=True)
class Measure:
    """A figure out of somebody's training. Any float is a fact: a loss may well be NaN."""

    def __call__(self, value: object, name: str) -> float:
        """Check; a whole number that no float can hold is infinite."""
        number = _of(value, (int, float), name)
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf


@dataclass(frozen=True)
class Most:
    """A list, or a table of names, that has so many entries at most; what they are comes next.

    Where the rest can be done without, it is left out; else a list that is too long is refused.
    """

    most: int
    rest: bool = False

    def cut(self, value: Any, name: str) -> Any:
        """Check the number of entries."""
        if len(value) <= self.most:
            return value
        if not self.rest:
            raise ValueError(f"field {name!r} has {len(value)} entries, may have {self.most}")
        kept = list(value)[: self.most]
        return {key: value[key] for key in kept} if isinstance(value, Mapping) else kept


_LEFT_OUT = "\n[...]\n"
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""What moves a cursor, breaks a line or turns its direction, and halves of characters."""
_COLOURS = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)")
"""What terminals are sent between the words."""
POD_NAME, UID, ADDRESS = Name(253), Name(64), Name(253)
COUNT = Whole(0, 2**53)
"""Steps and the like: what every reader of JSON can hold."""
SECONDS = Seconds()
MEASURE = Measure()
PORT = Whole(0, 65535)
NPROC = Whole(1, 1024)
PHRASE = Text(200)
"""A few words, or a stable code."""
SENTENCE = Text(1000)
PLACE = Text(1024)
"""A URI of a checkpoint."""
PAGE = Text(4000, lines=True)
"""Stacks of threads."""


def _of(value: object, kind: type | tuple[type, ...], name: str) -> Any:
    """The value, if it is of this type."""
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, kind):
        raise ValueError(f"field {name!r} has a value of type {type(value).__name__}")
    return value


def _shown(number: float) -> str:
    """A number that may be long, in short."""
    return str(number) if isinstance(number, float) or abs(number) < 10**30 else "out of range"


Rule = Callable[[object, str], Any]
"""Gives what a field may hold for what it was given, or raises ValueError naming it."""


def _rule(kind: Any, where: str) -> Rule:
    """The rule that a field's annotation states."""
    limits: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *found = get_args(kind)
        limits = tuple(found)
    if get_origin(kind) in (Union, UnionType):
        inner = next(k for k in get_args(kind) if k is not type(None))
        rule = _rule(_limited(inner, limits), where)
        return lambda value, name: None if value is None else rule(value, name)
    if isinstance(kind, type) and issubclass(kind, Document):
        made: type[Document] = kind
        return lambda value, name: value if isinstance(value, made) else made.from_json(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda value, name: _one_of(kind, value, name)
    if kind is bool:
        return lambda value, name: _of(value, bool, name)
    bound = next((limit for limit in limits if isinstance(limit, Most)), None)
    if get_origin(kind) is tuple and bound is not None:
        each = _rule(_limited(get_args(kind)[0], limits[1:]), where)
        return lambda value, name: tuple(
            each(one, name) for one in bound.cut(_of(value, (list, tuple), name), name)
        )
    if get_origin(kind) is dict and bound is not None:
        key_of = limits[1]
        each = _rule(_limited(get_args(kind)[1], limits[-1:]), where)
        return lambda value, name: {
            key_of(key, name): each(one, name)
            for key, one in bound.cut(_of(value, dict, name), name).items()
        }
    if len(limits) == 1 and callable(limits[0]):
        return limits[0]  # type: ignore[no-any-return]
    raise TypeError(f"{where} has no limit: annotate it with one of those above")


def _one_of(words: type[StrEnum], value: object, name: str) -> StrEnum:
    word: str = _of(value, str, name)
    if word not in list(words):
        raise ValueError(f"field {name!r} must be one of {', '.join(words)}")
    return words(word)


def _limited(kind: Any, limits: Sequence[Any]) -> Any:
    """The annotation of a type with these limits."""
    for limit in limits:
        kind = Annotated[kind, limit]
    return kind


class Document:
    """JSON both ways for the frozen dataclasses below; unknown fields are ignored.

    Each field states its limits where it is declared. They hold for whoever makes a document, too,
    so that nobody sends what the other side refuses.
    """

    def __post_init__(self) -> None:
        for name, rule in _rules(type(self)).items():  # type: ignore[arg-type]
            given = getattr(self, name)
            value = rule(given, name)
            if value is not given:
                object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Give a tree of plain values, ready for json.dumps."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Parse; raises ValueError naming the document and what is wrong with it."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} must be a JSON object, not {type(data).__name__}")
        known = _rules(cls)  # type: ignore[arg-type]
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"bad {cls.__name__}: {error}") from error


@cache
def _rules(kind: type[Document]) -> dict[str, Rule]:
    """The rule of each field."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return {name: _rule(hints[name], f"{kind.__name__}.{name}") for name in names}
