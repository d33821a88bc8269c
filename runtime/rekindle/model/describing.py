"""Hyperparameters as plain values, and back: what JSON cannot hold goes by name, or is described.

A checkpoint is read by machines that may not have the script, and nothing in it may be run. So a
value that is no plain one becomes ``{"$is": kind, "value": ...}``: a path, a dtype, a small tensor
by its content; a class, a function or a member of an enum by where it can be imported from.
Whatever else there is (a layer, a lambda, an open file) is described in words and cannot be had
back: it is `Missing`, and who needs it has to give it again.

A name is looked up among the modules that this process has imported already, and never in the
standard library: what a checkpoint says can neither load code nor reach for ``os.system``.
"""

import base64
import enum
import re
import sys
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

_IS = "$is"
_MOST = 65536
"""Bytes of a tensor or array that are stored; a larger one is data, and is described."""
_BUILT_IN = {kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, dict, set)}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Missing:
    """A value that a checkpoint could only describe."""

    text: str

    def __repr__(self) -> str:
        return self.text


def describe(value: Any) -> Any:
    """The value as plain ones, the same for equal values in every process."""
    if isinstance(value, enum.Enum):
        return _is("enum", [*_place(type(value)), value.name], value)
    if value is None:
        return None
    for plain in (bool, int, float, str, bytes):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)  # type: ignore[arg-type]
    if isinstance(value, Missing):
        return {_IS: "text", "value": value.text}
    if isinstance(value, Mapping):
        return _mapping(value)
    if type(value) in _SIMPLE:
        kind_of, content = _SIMPLE[type(value)]
        return {_IS: kind_of, "value": content(value)}
    if isinstance(value, list):
        return [describe(item) for item in value]
    if isinstance(value, tuple):
        return tuple(describe(item) for item in value)
    if isinstance(value, PurePath):
        return {_IS: "path", "value": str(value)}
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, np.ndarray | torch.Tensor):
        return _array(value)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _is("object", _place(value), value)
    if is_dataclass(value) and not isinstance(value, type):
        inside = {each.name: describe(getattr(value, each.name)) for each in fields(value)}
        return _is("dataclass", [*_place(type(value)), inside], value)
    return _words(value)


def recall(stored: Any) -> Any:
    """What `describe` saw, with `Missing` for what it could only put into words."""
    if isinstance(stored, list):
        return [recall(item) for item in stored]
    if isinstance(stored, tuple):
        return tuple(recall(item) for item in stored)
    if not isinstance(stored, dict):
        return stored
    if _IS not in stored:
        return type(stored)({key: recall(item) for key, item in stored.items()})
    kind, value = stored[_IS], stored["value"]
    if kind in _BACK:
        return _BACK[kind](value)
    text = stored.get("text", f"{value}")
    if kind == "text":
        return Missing(value)
    found = _found(*value[:2])
    if found is None:
        return Missing(text)
    if kind == "enum":
        known = issubclass(found, enum.Enum) and value[2] in found.__members__
        return found[value[2]] if known else Missing(text)
    if kind == "dataclass":
        return _dataclass(found, recall(value[2])) if is_dataclass(found) else Missing(text)
    return found


def missing(value: Any) -> "Missing | None":
    """The first part of a value that a checkpoint could only describe."""
    if isinstance(value, Missing):
        return value
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif isinstance(value, Namespace) or (is_dataclass(value) and not isinstance(value, type)):
        parts = vars(value).values()
    return next((found for part in parts if (found := missing(part)) is not None), None)


def _words(value: object) -> dict[str, Any]:
    """What a value is, in words that are the same in every process."""
    text = _ADDRESS.sub("", repr(value))
    return {_IS: "text", "value": text if len(text) <= 200 else f"{text[:200]}..."}


def _place(thing: Any) -> list[str]:
    return [str(thing.__module__), str(thing.__qualname__)]


def _is(kind: str, value: list[Any], thing: object) -> dict[str, Any]:
    """By import path, if the path leads there."""
    whole = thing if kind == "object" else type(thing)
    if _found(value[0], value[1]) is not whole:
        return _words(thing)
    return {_IS: kind, "value": value, "text": _words(thing)["value"]}


def _found(module: str, name: str) -> Any:
    """What has this name in a module that is imported; None when there is no such thing."""
    if module == "builtins":
        return _BUILT_IN.get(name)
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    own = isinstance(found, type | FunctionType | BuiltinFunctionType) and found.__module__
    return found if own == module else None


def _mapping(value: Mapping[Any, Any]) -> Any:
    kind: Any = type(value) if type(value) in (OrderedDict, Counter) else dict
    items = [(key, describe(item)) for key, item in value.items()]
    if all(type(key) is str or type(key) is int for key, _ in items) and _IS not in value:
        return kind(dict(items))
    return {_IS: "pairs", "value": [[describe(key), item] for key, item in items]}


def _array(value: "np.ndarray[Any, Any] | torch.Tensor") -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc" or value.nbytes > _MOST:
            return _words(value)
        content = base64.b64encode(value.tobytes()).decode()
        return {_IS: "array", "value": [value.dtype.str, list(value.shape), content]}
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
    if not plain or value.is_meta or value.is_quantized or value.nbytes > _MOST:
        return _words(f"tensor of shape {list(value.shape)}, {value.dtype}")
    one = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    content = base64.b64encode(one).decode()
    return {_IS: "tensor", "value": [str(value.dtype), list(value.shape), content]}


def _to_array(value: list[Any]) -> Any:
    dtype, shape, content = value
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape).copy()


def _to_tensor(value: list[Any]) -> torch.Tensor:
    name, shape, content = value
    raw = torch.tensor(list(base64.b64decode(content)), dtype=torch.uint8)
    return raw.view(_dtype(name)).reshape(shape)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"a stored hyperparameter has the unknown type {name!r}")
    return found


def _dataclass(kind: Any, content: dict[str, Any]) -> Any:
    """An instance whose fields are these; nothing of the class is run."""
    made = object.__new__(kind)
    for name, value in content.items():
        object.__setattr__(made, name, value)
    return made


_SIMPLE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Namespace: ("namespace", lambda value: _mapping(vars(value))),
    torch.dtype: ("dtype", str),
    torch.device: ("device", str),
    torch.Size: ("size", list),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    set: ("set", lambda value: sorted(map(describe, value), key=repr)),
    frozenset: ("frozenset", lambda value: sorted(map(describe, value), key=repr)),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    complex: ("complex", lambda value: [value.real, value.imag]),
}
_BACK: dict[str, Callable[[Any], Any]] = {
    "namespace": lambda value: Namespace(**recall(value)),
    "dtype": _dtype,
    "device": torch.device,
    "size": torch.Size,
    "timedelta": lambda value: timedelta(*value),
    "set": lambda value: set(map(recall, value)),
    "frozenset": lambda value: frozenset(map(recall, value)),
    "range": lambda value: range(*value),
    "complex": lambda value: complex(*value),
    "path": Path,
    "pairs": lambda value: {recall(key): recall(item) for key, item in value},
    "array": _to_array,
    "tensor": _to_tensor,
}
