"""State trees as JSON, strictly: what goes in comes out equal, and nothing else goes in.

Pickle stores anything and runs anything. Here a value is either one of a fixed list of plain types
or a leaf that the caller knows (a tensor, see `tensors`); everything else raises when the *first*
checkpoint is encoded, naming its path, for example `callbacks.ema.schedule: function`. The types
are compared exactly: a subclass would come back as its base, and a restored state that is only
nearly the saved one is worse than an error.

JSON's own null, booleans, integers, finite floats (shortest form that reads back exactly), strings,
lists and objects stand for themselves. The rest is an object with the one reserved key `$`:

    {"$": "tuple", "v": [...]}            {"$": "bytes", "v": base64}
    {"$": "int", "v": "-0x1ff..."}        {"$": "float", "v": "7ff8000000000000"}  (inf, nan: bits)
    {"$": "dict", "v": [[key, value], ...]}    keys that are int, or strings beginning with `$`
    {"$": "ordered" | "counter", "v": [...]}   OrderedDict, Counter (schedulers use both)

Order of keys is kept. The module is free of torch, so that a manifest can be read without it.
"""

import base64
import binascii
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
"""Deeper nesting is refused, in both directions: a cycle, or an attack on the stack."""

_TAG = "$"
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_CLASSES = {tag: kind for kind, tag in _MAPPINGS.items()}
_WORD = 2**63

Tree = Any
"""A nested value of the types listed above."""
Json = Any
"""What `json.dumps` takes and `json.loads` gives."""


class EncodingError(TypeError):
    """A value cannot be stored; the message begins with its path in the state."""


class DecodingError(ValueError):
    """A stored tree is not one that `encode` wrote."""


def refuse(value: object, path: str) -> Json:
    """The leaf hook for trees that may hold plain values only."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    raise EncodingError(
        f"{path or 'state'}: {name} cannot be stored in a checkpoint. Allowed are None, bool, int, "
        f"float, str, bytes, list, tuple, dict with str or int keys, torch tensors and numpy "
        f"arrays; turn it into these, or leave it out and rebuild it on restore."
    )


def encode(
    value: Tree, path: str = "", *, leaf: Callable[[object, str], Json] = refuse, depth: int = 0
) -> Json:
    """The JSON form of a tree; `leaf` encodes what is not plain, and raises for what is unknown."""
    if depth > MAX_DEPTH:
        raise EncodingError(f"{path[:80]}...: nested deeper than {MAX_DEPTH}, or contains itself")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_WORD <= value < _WORD else {_TAG: "int", "v": hex(value)}
    if kind is float:
        if math.isfinite(value):
            return value
        return {_TAG: "float", "v": struct.pack(">d", value).hex()}
    if kind is bytes:
        return {_TAG: "bytes", "v": base64.b64encode(value).decode("ascii")}
    if kind is list or kind is tuple:
        items = [
            encode(item, join(path, index), leaf=leaf, depth=depth + 1)
            for index, item in enumerate(value)
        ]
        return items if kind is list else {_TAG: "tuple", "v": items}
    if kind in _MAPPINGS:
        for key in value:
            if type(key) is not str and type(key) is not int:
                raise EncodingError(
                    f"{path or 'state'}: key {key!r:.80} is a {type(key).__name__}; keys of a "
                    f"stored dict are str or int"
                )
        pairs = [
            (key, encode(item, join(path, key), leaf=leaf, depth=depth + 1))
            for key, item in value.items()
        ]
        if kind is dict and all(type(key) is str and not key.startswith(_TAG) for key, _ in pairs):
            return dict(pairs)
        return {_TAG: _MAPPINGS[kind], "v": [[_key(key), item] for key, item in pairs]}
    return leaf(value, path)


def _key(key: str | int) -> Json:
    return encode(key)


def join(path: str, key: str | int) -> str:
    """The path of a child, as messages and tensor names show it."""
    return f"{path}.{key}" if path else str(key)


def no_leaves(tag: str, value: Json) -> Tree:
    """The leaf hook for trees that hold plain values only."""
    raise DecodingError(f"a stored tree has the unknown tag {tag[:40]!r} ({value!r:.40})")


def decode(value: Json, *, leaf: Callable[[str, Json], Tree] = no_leaves, depth: int = 0) -> Tree:
    """The tree that `encode` saw; `leaf` gets tag and content of everything that is not plain."""
    if depth > MAX_DEPTH:
        raise DecodingError(f"a stored tree is nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [decode(item, leaf=leaf, depth=depth + 1) for item in value]
    if not isinstance(value, dict):
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise DecodingError(f"a stored tree has a {type(value).__name__}")
    if _TAG not in value:
        return {key: decode(item, leaf=leaf, depth=depth + 1) for key, item in value.items()}
    if set(value) != {_TAG, "v"} or not isinstance(value[_TAG], str):
        raise DecodingError(f"a stored tree has a malformed tag: {value!r:.80}")
    tag, content = value[_TAG], value["v"]
    if tag == "tuple" and isinstance(content, list):
        return tuple(decode(item, leaf=leaf, depth=depth + 1) for item in content)
    if tag in _CLASSES and isinstance(content, list):
        return _mapping(tag, content, leaf, depth)
    if tag in {"int", "float", "bytes"}:
        return _scalar(tag, content)
    return leaf(tag, content)


def _mapping(
    tag: str, content: list[Json], leaf: Callable[[str, Json], Tree], depth: int
) -> dict[Any, Any]:
    found: dict[Any, Any] = _CLASSES[tag]()
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DecodingError(f"a stored {tag} has an entry that is no pair: {pair!r:.80}")
        key = decode(pair[0], depth=depth + 1)
        if type(key) is not str and type(key) is not int:
            raise DecodingError(f"a stored {tag} has the key {key!r:.80}")
        if key in found:
            raise DecodingError(f"a stored {tag} has the key {key!r:.80} twice")
        found[key] = decode(pair[1], leaf=leaf, depth=depth + 1)
    return found


def _scalar(tag: str, content: Json) -> int | float | bytes:
    if not isinstance(content, str):
        raise DecodingError(f"a stored {tag} is a {type(content).__name__}")
    try:
        if tag == "int":
            return int(content, 16)
        if tag == "float":
            return float(struct.unpack(">d", bytes.fromhex(content))[0])
        return base64.b64decode(content.encode("ascii"), validate=True)
    except (ValueError, struct.error, binascii.Error) as error:
        raise DecodingError(f"a stored {tag} is malformed: {content[:40]!r}") from error
