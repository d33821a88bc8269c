"""What is different between two checkpoints, from their manifests alone. Pure.

Whether a tensor has changed is read off the checksums of its chunks, so comparing two checkpoints
of any size costs two small documents. That works when both cut the tensor alike, which checkpoints
of one run at one world size do; where they do not, the answer is "unknown" and not a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rekindle.checkpoint.format.manifest import Commit, TensorEntry

Change = Literal["added", "removed", "shape", "content", "unknown"]


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """One tensor that is not the same in both, or cannot be compared."""

    name: str
    change: Change
    before: str
    """dtype and shape, for example `float32[10, 3]`; empty where there was none."""
    after: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Everything that differs."""

    tensors: tuple[TensorChange, ...]
    same: int
    """Tensors that are bit-equal."""
    meta: Mapping[str, tuple[Any, Any]]
    """By path; None stands for a missing value."""
    world_size: tuple[int, int]


def difference(before: Commit, after: Commit) -> Difference:
    """Compare two checkpoints, of one run or of two."""
    old = {tensor.name: tensor for tensor in before.tensors}
    new = {tensor.name: tensor for tensor in after.tensors}
    changes: list[TensorChange] = []
    for name in [*old, *(name for name in new if name not in old)]:
        change = _change(before, old.get(name), after, new.get(name))
        if change is not None:
            was, now = (describe(side.get(name)) for side in (old, new))
            changes.append(TensorChange(name=name, change=change, before=was, after=now))
    was_meta, now_meta = flat(before.meta), flat(after.meta)
    paths = [*was_meta, *(path for path in now_meta if path not in was_meta)]
    return Difference(
        tensors=tuple(changes),
        same=len(set(old) | set(new)) - len(changes),
        meta={
            path: (was_meta.get(path), now_meta.get(path))
            for path in paths
            if repr(was_meta.get(path)) != repr(now_meta.get(path))  # so that nan equals nan
        },
        world_size=(before.world_size, after.world_size),
    )


def describe(tensor: TensorEntry | None) -> str:
    """dtype and shape of a tensor."""
    return "" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"


def flat(meta: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their path."""
    if not isinstance(meta, Mapping):
        return {path: meta}
    found: dict[str, Any] = {}
    for key, value in meta.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def _change(
    before: Commit, old: TensorEntry | None, after: Commit, new: TensorEntry | None
) -> Change | None:
    if old is None or new is None:
        return "added" if old is None else "removed"
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return "shape"
    was, now = _sums(before, old), _sums(after, new)
    if [where for where, _ in was] != [where for where, _ in now]:
        return "unknown"
    return None if was == now else "content"


def _sums(commit: Commit, tensor: TensorEntry) -> list[tuple[tuple[int | str, ...], int]]:
    """Every checksum with all that says which bytes it covers, in tensor order."""
    found: list[tuple[tuple[int | str, ...], int]] = []
    for piece in sorted(tensor.slices, key=lambda piece: piece.start):
        alg = commit.objects[piece.object].alg
        if piece.count == 1:
            # Chunks of a contiguous slice are named by where they lie, whatever the slice is.
            for number, crc in enumerate(piece.crcs):
                begin = number * commit.chunk
                length = min(commit.chunk, piece.length - begin)
                found.append(((alg, piece.start + begin, length), crc))
        else:
            runs = (piece.start, piece.length, piece.count, piece.stride)
            found += [((alg, commit.chunk, n, *runs), crc) for n, crc in enumerate(piece.crcs)]
    return found
