"""Tensors as leaves of a state tree, and as plain bytes in memory.

`flatten` turns a tree into its JSON skeleton and the tensors in it, named by their path
(`model.conv1.weight`); numpy arrays count as tensors, numpy scalars are stored inline. `rebuild` is
the inverse. Two leaves whose paths would read the same (`{"a.b": x, "a": {"b": y}}`, or keys 0 and
"0") get different names, in tree order, so the same tree always has the same names.

Only plain dense tensors are taken: a subclass would come back as something else. The exception is a
`DTensor`, which stands for the whole tensor of which this rank holds a box: it is stored under the
shape of the whole, each rank its own box, and whoever reads it need not know that it was sharded.
Gradients and devices are not kept; a restored tensor lies in host memory unless it was given to be
filled.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rekindle.checkpoint.format import encoding
from rekindle.checkpoint.format.layout import Box
from rekindle.checkpoint.format.manifest import DTYPES

assert sys.byteorder == "little", "shards hold little-endian bytes, as safetensors demands"

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)
}
"""Our dtype names that this torch has."""
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NUMPY_KINDS = "biufc"
_CLASSES = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A tree taken apart."""

    tree: encoding.Json
    tensors: dict[str, torch.Tensor]
    """In tree order; the tensors themselves, not copies; of a sharded one what is held here."""
    boxes: dict[str, Box]
    """Of the sharded ones, where in the whole tensor that lies."""


def flatten(tree: encoding.Tree) -> Flat:
    """Take a tree apart; raises `EncodingError` with the path of what cannot be stored."""
    tensors: dict[str, torch.Tensor] = {}
    boxes: dict[str, Box] = {}

    def leaf(value: object, path: str) -> encoding.Json:
        if isinstance(value, torch.Tensor) and is_sharded(value):
            local, box = held(value, path)
            name = add(_plain(local, path), path)
            if box is not None:
                boxes[name] = box
            return {"$": "tensor", "v": name}
        if isinstance(value, torch.Tensor):
            return {"$": "tensor", "v": add(_plain(value, path), path)}
        if type(value) is np.ndarray:
            return {"$": "ndarray", "v": add(_from_numpy(value, path), path)}
        if isinstance(value, np.generic) and value.dtype.kind in _NUMPY_KINDS:
            _check_numpy(value.dtype, path)
            return {"$": "numpy", "v": [value.dtype.name, value.tobytes().hex()]}
        return encoding.refuse(value, path)

    def add(tensor: torch.Tensor, path: str) -> str:
        name, count = path or "value", 1
        while name in tensors:
            count += 1
            name = f"{path}~{count}"
        tensors[name] = tensor
        return name

    return Flat(tree=encoding.encode(tree, leaf=leaf), tensors=tensors, boxes=boxes)


def rebuild(tree: encoding.Json, tensors: Mapping[str, torch.Tensor]) -> encoding.Tree:
    """Put a tree together again; raises `DecodingError` for one that `flatten` did not write."""

    def leaf(tag: str, content: encoding.Json) -> encoding.Tree:
        if tag in {"tensor", "ndarray"} and isinstance(content, str):
            if content not in tensors:
                raise encoding.DecodingError(f"the stored tree names no tensor {content[:80]!r}")
            tensor = tensors[content]
            return tensor if tag == "tensor" else tensor.numpy()
        if tag == "numpy" and isinstance(content, list) and len(content) == 2:
            return _numpy_scalar(*content)
        return encoding.no_leaves(tag, content)

    return encoding.decode(tree, leaf=leaf)


def is_sharded(value: torch.Tensor) -> bool:
    """Whether it is a `DTensor`; does not import what only their users need."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def held(value: Any, path: str) -> tuple[torch.Tensor, Box | None]:
    """What this rank holds of a `DTensor`, and where it lies; no box if that is all of it."""
    for placement in value.placements:
        if placement.is_partial():
            raise encoding.EncodingError(
                f"{path or 'state'}: a DTensor with the placement {placement} is a sum that has "
                f"not been made yet; store it after `.full_tensor()` or a redistribute"
            )
    local = value.to_local()
    copies = [dim for dim, p in enumerate(value.placements) if p.is_replicate()]
    if len(copies) == len(value.placements):
        return local, None
    (chunk,) = value.__create_chunk_list__() or [None]
    offsets = tuple(chunk.offsets) if chunk is not None else (0,) * value.dim()
    coordinate = value.device_mesh.get_coordinate()
    replica, replicas = 0, 1
    for dim in copies:
        replica = replica * value.device_mesh.size(dim) + coordinate[dim]
        replicas *= value.device_mesh.size(dim)
    siblings, own = _siblings(value.device_mesh)
    replica, replicas = replica * siblings + own, replicas * siblings
    return local, Box(
        shape=tuple(value.shape),
        offsets=offsets,
        sizes=tuple(local.shape),
        replica=replica,
        replicas=replicas,
    )


def _siblings(mesh: Any) -> tuple[int, int]:
    """How many meshes like this one share the ranks out among them, and the number of this one.

    A tensor cut over one dimension of a mesh exists once for each index of the other dimension.
    """
    ranks = mesh.mesh.flatten().tolist()
    siblings = torch.distributed.get_world_size() // len(ranks)
    if siblings <= 1:
        return 1, 0
    contiguous = ranks[-1] - ranks[0] == len(ranks) - 1
    return siblings, ranks[0] // len(ranks) if contiguous else ranks[0]


def named(tree: encoding.Tree) -> dict[str, torch.Tensor]:
    """The tensors of a tree by the names that `flatten` gives them, as they are, for `load(into=)`.

    What could not be stored is passed over: this is for a tree that is about to be filled.
    """
    found: dict[str, torch.Tensor] = {}

    def leaf(value: object, path: str) -> encoding.Json:
        if isinstance(value, torch.Tensor):
            name, count = path or "value", 1
            while name in found:
                count += 1
                name = f"{path}~{count}"
            found[name] = value
        return None

    encoding.encode(tree, leaf=leaf)
    return found


def dtype_name(tensor: torch.Tensor) -> str:
    """Our name of a tensor's dtype."""
    return _NAMES[tensor.dtype]


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements."""
    return tensor.numel() * tensor.element_size()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory as a flat uint8 tensor, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def view(memory: torch.Tensor) -> memoryview:
    """The memory of a flat uint8 host tensor."""
    return memory.numpy().data


def _plain(value: torch.Tensor, path: str) -> torch.Tensor:
    """The tensor, if it is a dense one of a known dtype; else the error that says what it is."""
    what = None
    if type(value) not in _CLASSES:
        what = f"a {type(value).__name__}"
    elif value.layout is not torch.strided:
        what = f"a tensor of layout {value.layout}"
    elif value.device.type == "meta":
        what = "a tensor on the meta device, which has no data"
    elif value.dtype not in _NAMES:
        what = f"a tensor of {value.dtype}"
    if what is not None:
        raise encoding.EncodingError(
            f"{path or 'state'}: {what} cannot be stored in a checkpoint; store a plain dense "
            f"tensor with the same content"
        )
    return value.detach()


def _check_numpy(dtype: np.dtype[Any], path: str) -> None:
    if dtype.kind not in _NUMPY_KINDS or dtype.name not in DTYPES or not dtype.isnative:
        raise encoding.EncodingError(
            f"{path or 'state'}: a numpy value of dtype {dtype} cannot be stored in a checkpoint; "
            f"convert it to a number type of native byte order"
        )


def _from_numpy(value: np.ndarray[Any, Any], path: str) -> torch.Tensor:
    _check_numpy(value.dtype, path)
    # torch has no read-only tensors and no negative strides: both mean a copy first.
    if not value.flags.c_contiguous or not value.flags.writeable:
        value = value.copy()
    return torch.from_numpy(value)


def _numpy_scalar(name: encoding.Json, content: encoding.Json) -> np.generic:
    try:
        dtype = np.dtype(name if name in DTYPES else None)
        raw = bytes.fromhex(content)
        if name not in DTYPES or len(raw) != dtype.itemsize:
            raise ValueError("wrong size or dtype")
        scalar: np.generic = np.frombuffer(raw, dtype=dtype)[0]
    except (TypeError, ValueError) as error:
        raise encoding.DecodingError(f"a stored numpy scalar is malformed: {error}") from None
    return scalar
