"""Directories of torch's distributed checkpoint (DCP), read without running anything in them.

DCP keeps its table of contents, `.metadata`, as a pickle, and `dcp.load` unpickles it without
restriction: whoever can write the directory runs code in the reader. Here the pickle is read by an
interpreter that knows a dozen names, those of DCP's own records and of torch's dtypes, and maps
each to an inert stand-in that only keeps what it is given. Any other name is refused before it is
looked up, so nothing is imported and nothing is called. The pure Python interpreter is used on
purpose: the one in C sizes its memo table by a number in the file.

Tensors lie in the data files as streams of `torch.save`, which are read with `weights_only=True`.
"""

import io
import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

MAX_METADATA = 512 * 2**20
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_RECORDS = {
    "Metadata",
    "BytesStorageMetadata",
    "TensorStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "MetadataIndex",
    "StorageMeta",
    "_StorageInfo",
    "_MEM_FORMAT_ENCODING",
}
_DTYPES = {
    name: value for name in dir(torch) if isinstance(value := getattr(torch, name), torch.dtype)
}


class DcpRefused(Exception):
    """The file asks for code to be run, or is not what it should be."""


class UnpickledRecord:
    """Stands for any of DCP's classes: keeps arguments and state, does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        # Some of the classes pickle a tuple instead of their attributes; `dtype` comes first then.
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = state[1]
        if isinstance(state, tuple):
            state = {"properties": state}
        if not isinstance(state, dict):
            raise DcpRefused(f"a record of .metadata has the state {state!r:.60}")
        self.state = state

    def __hash__(self) -> int:
        return hash((self.state.get("fqn"), repr(self.state.get("offset"))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnpickledRecord) and (
            self.state.get("fqn"),
            repr(self.state.get("offset")),
        ) == (other.state.get("fqn"), repr(other.state.get("offset")))


def _size(*arguments: Any) -> tuple[int, ...]:
    items = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else arguments
    if not all(type(item) is int and 0 <= item < 2**50 for item in items):
        raise DcpRefused(f".metadata has the size {items!r:.60}")
    return tuple(items)


def _layout(*_: Any) -> str:
    return "layout"


def _member(owner: Any, name: Any) -> UnpickledRecord:
    """A memory format, as the first releases of Python 3.11 pickle members of an enumeration."""
    if getattr(owner, "__name__", None) != "_MEM_FORMAT_ENCODING" or not isinstance(name, str):
        raise DcpRefused(f".metadata asks for {name!r:.60} of {owner!r:.60}, no enumeration")
    return UnpickledRecord(name)


_UNUSED = b"\x96\x97\x98\x82\x83\x84PQio"
"""Opcodes that DCP's metadata does without: buffers (one allocates by a number in the file),
extensions, persistent ids, and two old ways to make an instance."""


class Interpreter(pickle._Unpickler):
    """The restricted pickle interpreter for `.metadata`."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: handler for code, handler in pickle._Unpickler.dispatch.items() if code not in _UNUSED
    }

    def load_build(self) -> None:
        """Give a record its state, and nothing else: not a function, not a class."""
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, UnpickledRecord):
            raise DcpRefused(f".metadata gives a state to a {type(record).__name__}")
        record.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Only names from the list, and never the things themselves."""
        if module in _MODULES and name in _RECORDS:
            return type(name, (UnpickledRecord,), {})
        if module in {"pathlib", "pathlib._local"} and name.endswith("Path"):
            return type("Path", (UnpickledRecord,), {})  # where it was saved, for the record
        if module == "torch" and name == "Size":
            return _size
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _layout
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise DcpRefused(
            f".metadata names {module}.{name}, which DCP's own metadata never does: that is code, "
            f"and it was not run"
        )


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One stored item: where its bytes are, and which part of the tensor they hold."""

    path: str
    offset: int
    length: int
    start: tuple[int, ...] | None


@dataclass(kw_only=True)
class _Item:
    """One name of the state."""

    dtype: torch.dtype | None = None
    size: tuple[int, ...] = ()
    pieces: list[_Piece] = field(default_factory=list)


class Weights(Protocol):
    """Reads one stream of `torch.save` without running code."""

    def __call__(self, stream: io.BytesIO, what: str) -> Any:
        """The value; raises when the stream needs code to be read."""
        ...


def is_dcp(path: str) -> bool:
    """Whether a directory is one of DCP's."""
    return os.path.isfile(os.path.join(path, ".metadata"))


def load(directory: str, weights: Weights) -> dict[str, Any]:
    """The state as a nested dict; raises `DcpRefused` and `OSError`."""
    metadata = read_metadata(os.path.join(directory, ".metadata"))
    items = _items(metadata)
    paths = metadata.state.get("planner_data")
    state: dict[str, Any] = {}
    for name, item in items.items():
        value = _value(directory, name, item, weights)
        path = paths.get(name) if isinstance(paths, dict) else None
        _place(state, path if isinstance(path, tuple) and path else (name,), value, name)
    return state


def read_metadata(path: str) -> UnpickledRecord:
    """The table of contents; raises `DcpRefused` for anything that is not one."""
    if os.path.getsize(path) > MAX_METADATA:
        raise DcpRefused(f"{path} is longer than {MAX_METADATA} bytes")
    with open(path, "rb") as file:
        raw = file.read()
    try:
        found = Interpreter(io.BytesIO(raw)).load()
    except DcpRefused:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DcpRefused(f"{path} cannot be read: {type(error).__name__}: {error!s:.100}") from None
    if not isinstance(found, UnpickledRecord) or type(found).__name__ != "Metadata":
        raise DcpRefused(f"{path} holds a {type(found).__name__} and not the metadata of DCP")
    return found


def _items(metadata: UnpickledRecord) -> dict[str, _Item]:
    table, storage = (metadata.state.get(n) for n in ("state_dict_metadata", "storage_data"))
    if not isinstance(table, dict) or not isinstance(storage, dict):
        raise DcpRefused(".metadata lacks state_dict_metadata or storage_data")
    items: dict[str, _Item] = {}
    for name, record in table.items():
        if type(name) is not str or not isinstance(record, UnpickledRecord):
            raise DcpRefused(f".metadata has the entry {name!r:.60}")
        items[name] = _Item()
        if type(record).__name__ == "TensorStorageMetadata":
            properties = record.state.get("properties")
            dtype = properties.state if isinstance(properties, UnpickledRecord) else {}
            first = dtype.get("dtype") or (dtype.get("properties") or (None,))[0]
            if not isinstance(first, torch.dtype):
                raise DcpRefused(f".metadata gives {name!r:.60} no dtype")
            items[name].dtype = first
            items[name].size = _size(record.state.get("size"))
    for index, info in storage.items():
        if not isinstance(index, UnpickledRecord) or not isinstance(info, UnpickledRecord):
            raise DcpRefused(".metadata has a place that is no record")
        name = index.state.get("fqn")
        if name not in items:
            raise DcpRefused(f".metadata places {name!r:.60}, which it does not describe")
        items[name].pieces.append(_piece(index, info, name))
    return items


def _piece(index: UnpickledRecord, info: UnpickledRecord, name: str) -> _Piece:
    path, offset, length = (info.state.get(n) for n in ("relative_path", "offset", "length"))
    if type(path) is not str or os.path.basename(path) != path or path in {"", ".", ".."}:
        raise DcpRefused(f".metadata places {name!r:.60} in {path!r:.60}, not in the directory")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise DcpRefused(f".metadata places {name!r:.60} at {offset!r:.20}, length {length!r:.20}")
    if info.state.get("transform_descriptors"):
        raise DcpRefused(f"{name!r:.60} is stored compressed, which this reader does not know")
    start = index.state.get("offset")
    return _Piece(
        path=path, offset=offset, length=length, start=None if start is None else _size(start)
    )


def _value(directory: str, name: str, item: _Item, weights: Weights) -> Any:
    if item.dtype is None:
        if len(item.pieces) != 1:
            raise DcpRefused(f"{name!r:.60} is stored {len(item.pieces)} times")
        return weights(_bytes(directory, item.pieces[0]), name)
    parts = []
    for piece in item.pieces:
        part = weights(_bytes(directory, piece), name)
        if not isinstance(part, torch.Tensor) or part.dtype != item.dtype:
            raise DcpRefused(
                f"{name!r:.60} is stored as {type(part).__name__}, not as {item.dtype}"
            )
        parts.append((piece.start or (0,) * part.dim(), part))
    # Before memory of the promised size is taken, the stored parts must add up to it.
    total = 1
    for side in item.size:
        total *= side
    if sum(part.numel() for _, part in parts) != total:
        raise DcpRefused(f"the stored parts of {name!r:.60} do not add up to {list(item.size)}")
    whole = torch.empty(item.size, dtype=item.dtype)
    for start, part in parts:
        ends = [begin + side for begin, side in zip(start, part.shape, strict=False)]
        if (
            len(start) != whole.dim()
            or len(ends) != whole.dim()
            or any(end > side for end, side in zip(ends, item.size, strict=True))
        ):
            raise DcpRefused(f"a part of {name!r:.60} lies outside of {list(item.size)}")
        whole[tuple(slice(b, e) for b, e in zip(start, ends, strict=True))] = part
    return whole


def _bytes(directory: str, piece: _Piece) -> io.BytesIO:
    with open(os.path.join(directory, piece.path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if piece.offset + piece.length > size:
            raise DcpRefused(f"{piece.path} has {size} bytes, fewer than .metadata says")
        file.seek(piece.offset)
        return io.BytesIO(file.read(piece.length))


def _place(state: dict[str, Any], path: tuple[Any, ...], value: Any, name: str) -> None:
    """Put a value where it was in the nested state before DCP flattened it."""
    if len(path) > 100 or not all(type(key) in {str, int} for key in path):
        raise DcpRefused(f".metadata gives {name!r:.60} the path {path!r:.60}")
    here: Any = state
    for key, following in zip(path, [*path[1:], None], strict=True):
        last = following is None
        if isinstance(here, list):
            # A list grows by one at a time, in order, so a number in the file makes no huge one.
            if type(key) is not int or not 0 <= key <= len(here) + 10_000:
                raise DcpRefused(f".metadata gives {name!r:.60} the path {path!r:.60}")
            here.extend([None] * (key + 1 - len(here)))
            known = here[key] is not None
        elif isinstance(here, dict):
            known = key in here
        else:
            raise DcpRefused(f".metadata gives {name!r:.60} the path {path!r:.60}")
        if last:
            here[key] = value
            return
        if not known:
            here[key] = [] if type(following) is int else {}
        here = here[key]
