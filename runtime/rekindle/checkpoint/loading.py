"""From manifest entries to a state tree with its tensors.

Tensors that the caller wants filled in place and that are contiguous receive the verified bytes
directly, on any device; a sharded one (`DTensor`) receives the box that this rank holds. Strided
ones get them through a tensor of their size, one copy; what the caller did not provide is allocated
here, after the sizes have been proven.

With a group, ranks that load the same tensors whole read a share each and exchange the rest.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rekindle.checkpoint import shards
from rekindle.checkpoint.format import layout, tensors
from rekindle.checkpoint.format.encoding import DecodingError, Json, Tree
from rekindle.checkpoint.format.layout import StridedRuns
from rekindle.checkpoint.format.manifest import IntegrityError, ObjectEntry, TensorEntry
from rekindle.checkpoint.format.tensors import TORCH_DTYPES, rebuild
from rekindle.checkpoint.objects.interface import Objects
from rekindle.checkpoint.shards import TensorTarget

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def load(
    objects: Objects,
    entries: Sequence[ObjectEntry],
    stored: Sequence[TensorEntry],
    tree: Json,
    *,
    into: Mapping[str, Any],
    chunk: int,
    what: str,
    group: "ProcessGroup | None" = None,
    error: Exception | None = None,
) -> Tree:
    """Read all tensors and rebuild the tree around them; `IntegrityError` or `ValueError`.

    Collective with a group, and then an error of one rank is raised by all; `error` is what has
    gone wrong on this one already.
    """
    shared: list[shards.Stretch] = []
    own: list[shards.Stretch] = []
    found: dict[str, torch.Tensor] = {}
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        if error is not None:
            raise error
        given_tensors = tensors.named(into)
        _check(stored, given_tensors, what)
        whole: dict[str, TensorTarget] = {}
        boxes: dict[str, TensorTarget] = {}
        for entry in stored:
            given = given_tensors.get(entry.name)
            target, runs = _target(entry, given, what)
            found[entry.name] = target if given is None else given
            if given is not None and not target.is_contiguous():
                copies.append((target, torch.empty_like(target, memory_format=_CONTIGUOUS)))
                target = copies[-1][1]
            if runs is None:
                every = StridedRuns(start=0, length=entry.nbytes, count=1, stride=0, at=0)
                whole[entry.name] = TensorTarget(target, [every])
            else:
                boxes[entry.name] = TensorTarget(target, runs)
        shared = shards.stretches(entries, stored, whole, chunk=chunk)
        own = shards.stretches(entries, stored, boxes, chunk=chunk)
    except Exception as failure:
        error = failure
    if group is not None:
        shards.agree(error, group, what)
        shards.exchange(objects, shared, group, what=what)
        try:
            shards.read(objects, own, what=what)
        except Exception as failure:
            error = failure
        shards.agree(error, group, what)
    elif error is not None:
        raise error
    else:
        shards.read(objects, [*shared, *own], what=what)
    for target, filled in copies:
        target.copy_(filled)
    try:
        return rebuild(tree, found)
    except DecodingError as failure:
        raise IntegrityError(f"R16 checkpoint {what}: {failure}.") from failure


_CONTIGUOUS = torch.contiguous_format


def _check(stored: Sequence[TensorEntry], into: Mapping[str, torch.Tensor], what: str) -> None:
    entries = {entry.name: entry for entry in stored}
    if unknown := sorted(set(into) - set(entries)):
        raise ValueError(
            f"checkpoint {what} has no tensors {unknown[:5]}; it has {sorted(entries)[:5]} ..."
        )
    for name, tensor in into.items():
        entry = entries[name]
        if tuple(tensor.shape) != entry.shape or tensor.dtype != TORCH_DTYPES.get(entry.dtype):
            raise ValueError(
                f"checkpoint {what}: tensor {name!r} is {entry.dtype}{list(entry.shape)}, the one "
                f"to fill is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            )


def _target(
    entry: TensorEntry, given: torch.Tensor | None, what: str
) -> tuple[torch.Tensor, list[StridedRuns] | None]:
    """What to fill for a tensor, and which of its bytes that is; None for all."""
    if given is not None:
        if not tensors.is_sharded(given):
            return given.detach(), None
        local, box = tensors.held(given, entry.name)
        runs = None if box is None else layout.runs(box, given.element_size())
        return local.detach(), runs
    if entry.dtype not in TORCH_DTYPES:
        raise ValueError(
            f"checkpoint {what}: tensor {entry.name!r} is {entry.dtype}, which torch "
            f"{torch.__version__} does not have; use a newer torch"
        )
    return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype]), None
