"""A checkpoint as one safetensors file that any tool opens, and a JSON file with the rest.

The bytes are streamed: a chunk is read, verified, and put where it belongs in the file, so a
checkpoint larger than memory can be exported. The file gets its name when it is complete. Tensors
carry the names of the state (`model.conv1.weight`); with a prefix only those below it, without it.
Complex numbers, which safetensors does not know, become a last dimension of two.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rekindle.checkpoint.format import checksum, encoding
from rekindle.checkpoint.format.manifest import (
    DTYPES,
    Commit,
    IntegrityError,
    ObjectEntry,
    Slice,
    TensorEntry,
)
from rekindle.checkpoint.objects.interface import NotFound, Objects
from rekindle.checkpoint.verify import PARALLEL_READS, Block, chunks


def export(objects: Objects, commit: Commit, path: str, *, prefix: str = "") -> int:
    """Write the file; returns the number of tensors.

    Raises `ValueError` when nothing has the prefix, `IntegrityError` for damage, `OSError` for the
    file. Nothing is left under `path` unless all is well.
    """
    chosen = [tensor for tensor in commit.tensors if tensor.name.startswith(prefix)]
    if prefix and not chosen:
        known = [tensor.name for tensor in commit.tensors[:5]]
        raise ValueError(f"no tensor begins with {prefix!r}; there are {known} and so on")
    header, starts = head(chosen, prefix, commit)
    unfinished = f"{path}.unfinished"
    try:
        with open(unfinished, "w+b") as file:
            file.write(header)
            # Reserved, so that a full disk is an error here and no signal while the map is written.
            os.posix_fallocate(file.fileno(), 0, len(header) + sum(t.nbytes for t in chosen))
            file.flush()
            with mmap.mmap(file.fileno(), 0) as memory, memoryview(memory) as view:
                _fill(objects, commit, chosen, [len(header) + start for start in starts], view)
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    return len(chosen)


def head(tensors: Sequence[TensorEntry], prefix: str, commit: Commit) -> tuple[bytes, list[int]]:
    """The header of a safetensors file, and where each tensor begins behind it."""
    about = {"format": "rekindle", "step": str(commit.ref.step), "attempt": str(commit.ref.fence)}
    table: dict[str, Any] = {"__metadata__": about}
    starts: list[int] = []
    at = 0
    for tensor in tensors:
        known, _, factor = DTYPES[tensor.dtype]
        name = tensor.name[len(prefix) :] or "value"
        shape = [*tensor.shape, factor] if factor > 1 else list(tensor.shape)
        table[name] = {"dtype": known, "shape": shape, "data_offsets": [at, at + tensor.nbytes]}
        starts.append(at)
        at += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def skeleton(commit: Commit) -> dict[str, Any]:
    """What the tensors do not say: the tree around them, and the meta."""
    return {
        "format": "rekindle",
        "step": commit.ref.step,
        "attempt": commit.ref.fence,
        "world_size": commit.world_size,
        "created": commit.created,
        "meta": encoding.encode(commit.meta, "meta"),
        "tree": commit.tree,
        "dtypes": {tensor.name: tensor.dtype for tensor in commit.tensors},
    }


def _fill(
    objects: Objects,
    commit: Commit,
    tensors: Sequence[TensorEntry],
    starts: Sequence[int],
    view: memoryview,
) -> None:
    def copy(job: tuple[Slice, int, Block, int]) -> None:
        piece, start, block, done = job
        data = _read(objects, commit.objects[piece.object], block, commit)
        scatter(piece, done, data, view[start:])

    jobs = [
        (piece, start, block, block.offset - piece.offset)
        for tensor, start in zip(tensors, starts, strict=True)
        for piece in tensor.slices
        for block in chunks(piece, commit.chunk)
    ]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for _ in pool.map(copy, jobs):
            pass


def _read(objects: Objects, entry: ObjectEntry, block: Block, commit: Commit) -> memoryview:
    """One verified chunk."""
    crc = checksum.crc(entry.alg)
    memory = memoryview(bytearray(block.length))
    for _ in range(2):
        try:
            if objects.get_into(entry.key, memory, block.offset) != block.length:
                continue
        except NotFound:
            raise IntegrityError(
                f"R16 checkpoint step {commit.ref.step}: object {entry.key} is missing."
            ) from None
        if crc(memory) == block.crc:
            return memory
    raise IntegrityError(
        f"R16 checkpoint step {commit.ref.step}: object {entry.key} failed {entry.alg.upper()} at "
        f"byte {block.offset}."
    )


def scatter(piece: Slice, done: int, data: memoryview, tensor: memoryview) -> None:
    """Put bytes of a slice, of which `done` came before, where they belong in the tensor."""
    run = piece.length // piece.count
    while len(data):
        number, inside = divmod(done, run)
        count = min(run - inside, len(data))
        at = piece.start + number * piece.stride + inside
        tensor[at : at + count] = data[:count]
        data = data[count:]
        done += count
