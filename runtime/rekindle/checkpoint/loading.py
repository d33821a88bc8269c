"""From manifest entries to a state tree with its tensors.

Tensors that the caller wants filled in place and that are plain host memory receive the verified
bytes directly. Others (on a GPU, or strided) get them through a host tensor of their size, one
copy; what the caller did not provide is allocated here, after the sizes have been proven.
"""

from collections.abc import Mapping, Sequence

import torch

from rekindle.checkpoint import shards
from rekindle.checkpoint.encoding import DecodingError, Json, Tree
from rekindle.checkpoint.manifest import IntegrityError, ObjectEntry, TensorEntry
from rekindle.checkpoint.objects import Objects
from rekindle.checkpoint.tensors import TORCH_DTYPES, rebuild


def load(
    objects: Objects,
    entries: Sequence[ObjectEntry],
    tensors: Sequence[TensorEntry],
    tree: Json,
    *,
    into: Mapping[str, torch.Tensor],
    chunk: int,
    what: str,
) -> Tree:
    """Read all tensors and rebuild the tree around them; `IntegrityError` or `ValueError`."""
    stored = {tensor.name: tensor for tensor in tensors}
    if unknown := sorted(set(into) - set(stored)):
        raise ValueError(
            f"checkpoint {what} has no tensors {unknown[:5]}; it has {sorted(stored)[:5]} ..."
        )
    for name, tensor in into.items():
        entry = stored[name]
        if tuple(tensor.shape) != entry.shape or tensor.dtype != TORCH_DTYPES.get(entry.dtype):
            raise ValueError(
                f"checkpoint {what}: tensor {name!r} is {entry.dtype}{list(entry.shape)}, the one "
                f"to fill is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            )
    targets = {name: _target(entry, into.get(name), what) for name, entry in stored.items()}
    shards.read(objects, entries, tensors, targets, chunk=chunk, what=what)
    found = dict(targets)
    with torch.no_grad():
        for name, tensor in into.items():
            if targets[name] is not tensor:
                tensor.copy_(targets[name])
            found[name] = tensor
    try:
        return rebuild(tree, found)
    except DecodingError as error:
        raise IntegrityError(f"R16 checkpoint {what}: {error}.") from error


def _target(entry: TensorEntry, given: torch.Tensor | None, what: str) -> torch.Tensor:
    if given is not None and given.device.type == "cpu" and given.is_contiguous():
        return given
    if entry.dtype not in TORCH_DTYPES:
        raise ValueError(
            f"checkpoint {what}: tensor {entry.name!r} is {entry.dtype}, which torch "
            f"{torch.__version__} does not have; use a newer torch"
        )
    return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
