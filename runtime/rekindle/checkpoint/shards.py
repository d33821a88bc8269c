"""Shard objects: valid safetensors files, written from and read into memory without detours.

A shard is laid out before a byte is copied: the header's length follows from names and shapes, so
the header and the tensors go into one contiguous stretch of the host buffer and the whole object is
one memoryview for the uploader. A piece that is a whole tensor keeps its name and shape, so any
safetensors tool can open it; a piece of a larger tensor is a flat entry `name[start:stop]`.

A reader does not believe the header. It knows every offset from the manifest, reads stretches of
neighbouring chunks in parallel into scratch memory, verifies each chunk (and the header, so that
a flipped bit anywhere is found) and only then copies it to where it belongs: what is in a parameter
has been verified. A chunk that fails is read once more, since the wire may have been at fault;
after that the checkpoint is damaged (R16).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from rekindle.checkpoint import checksum
from rekindle.checkpoint.layout import Piece
from rekindle.checkpoint.manifest import (
    DTYPES,
    IntegrityError,
    ObjectEntry,
    Slice,
    TensorEntry,
)
from rekindle.checkpoint.objects import NotFound, Objects
from rekindle.checkpoint.tensors import as_bytes, dtype_name, view

READ_BYTES = 16 * 2**20
"""A read gathers neighbouring chunks up to this size."""
PARALLEL_READS = 8


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A piece and where its first byte lies in the shard."""

    piece: Piece
    offset: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard object before it is filled."""

    header: bytes
    pieces: tuple[Placed, ...]
    size: int


def plan(
    shards: Iterable[Sequence[Piece]], tensors: Sequence[tuple[str, torch.Tensor]]
) -> list[ShardPlan]:
    """Lay out shards whose pieces refer to `tensors` by index."""
    return [_plan(pieces, tensors) for pieces in shards]


def _plan(pieces: Sequence[Piece], tensors: Sequence[tuple[str, torch.Tensor]]) -> ShardPlan:
    table: dict[str, object] = {"__metadata__": {"format": "rekindle"}}
    at = 0
    starts: list[int] = []
    for piece in pieces:
        name, tensor = tensors[piece.tensor]
        known, width, factor = DTYPES[dtype_name(tensor)]
        length = piece.stop - piece.start
        if length == tensor.numel() * width:
            shape = [*tensor.shape, factor] if factor > 1 else list(tensor.shape)
        else:
            name = f"{name}[{piece.start // width}:{piece.stop // width}]"
            shape = [length // width * factor]
        while name in table:
            name += "~"
        table[name] = {"dtype": known, "shape": shape, "data_offsets": [at, at + length]}
        starts.append(at)
        at += length
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    placed = tuple(
        Placed(piece=piece, offset=len(header) + start)
        for piece, start in zip(pieces, starts, strict=True)
    )
    return ShardPlan(header=header, pieces=placed, size=len(header) + at)


def fill(
    shard: ShardPlan, tensors: Sequence[tuple[str, torch.Tensor]], memory: torch.Tensor
) -> None:
    """Copy header and tensor bytes into host memory of the shard's size.

    Copies from a GPU are only queued; the caller synchronises once for all shards.
    """
    memory[: len(shard.header)] = torch.frombuffer(bytearray(shard.header), dtype=torch.uint8)
    for placed in shard.pieces:
        piece = placed.piece
        source = as_bytes(tensors[piece.tensor][1].contiguous().resolve_conj().resolve_neg())
        target = memory[placed.offset : placed.offset + piece.stop - piece.start]
        target.copy_(source[piece.start : piece.stop], non_blocking=target.is_pinned())


def describe(
    shard: ShardPlan, key: str, memory: memoryview, index: int, *, chunk: int
) -> tuple[ObjectEntry, list[tuple[int, Slice]]]:
    """The manifest entries of a filled shard: the object, and (tensor index, slice) pairs."""
    crc = checksum.crc(checksum.DEFAULT)
    head = len(shard.header)
    slices = [
        (
            placed.piece.tensor,
            Slice(
                object=index,
                offset=placed.offset,
                start=placed.piece.start,
                length=placed.piece.stop - placed.piece.start,
                crcs=tuple(
                    crc(memory[begin : min(begin + chunk, end)])
                    for end in [placed.offset + placed.piece.stop - placed.piece.start]
                    for begin in range(placed.offset, end, chunk)
                ),
            ),
        )
        for placed in shard.pieces
    ]
    entry = ObjectEntry(
        key=key, size=shard.size, head=head, crc=crc(memory[:head]), alg=checksum.DEFAULT
    )
    return entry, slices


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A verifiable stretch of an object; `target` is where it goes, None for the header."""

    offset: int
    length: int
    crc: int
    target: memoryview | None


def read(
    objects: Objects,
    entries: Sequence[ObjectEntry],
    tensors: Iterable[TensorEntry],
    targets: Mapping[str, torch.Tensor],
    *,
    chunk: int,
    what: str,
) -> None:
    """Fill `targets` (contiguous host tensors by name) with verified bytes.

    Raises `IntegrityError` naming `what` and the object. Tensors without a target are skipped.
    """
    blocks: list[list[_Block]] = [[] for _ in entries]
    for tensor in tensors:
        if tensor.name not in targets or not tensor.slices:
            continue
        memory = view(as_bytes(targets[tensor.name]))
        for piece in tensor.slices:
            for number, crc in enumerate(piece.crcs):
                begin = number * chunk
                length = min(chunk, piece.length - begin)
                at = piece.start + begin
                blocks[piece.object].append(
                    _Block(
                        offset=piece.offset + begin,
                        length=length,
                        crc=crc,
                        target=memory[at : at + length],
                    )
                )
    stretches = [
        (entry, stretch)
        for entry, own in zip(entries, blocks, strict=True)
        if own
        for stretch in _stretches(entry, own)
    ]
    if not stretches:
        return

    def fetch(job: tuple[ObjectEntry, list[_Block]]) -> None:
        _fetch(objects, *job, what=what)

    if len(stretches) == 1:
        fetch(stretches[0])
        return
    with ThreadPoolExecutor(min(PARALLEL_READS, len(stretches))) as pool:
        futures = [pool.submit(fetch, job) for job in stretches]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _stretches(entry: ObjectEntry, blocks: list[_Block]) -> list[list[_Block]]:
    """Neighbouring blocks up to READ_BYTES, the header first."""
    found: list[list[_Block]] = []
    header = _Block(offset=0, length=entry.head, crc=entry.crc, target=None)
    for block in [header, *sorted(blocks, key=lambda b: b.offset)]:
        last = found[-1] if found else []
        if (
            last
            and block.offset == last[-1].offset + last[-1].length
            and block.offset + block.length - last[0].offset <= READ_BYTES
        ):
            last.append(block)
        else:
            found.append([block])
    return found


def _fetch(objects: Objects, entry: ObjectEntry, blocks: list[_Block], *, what: str) -> None:
    crc = checksum.crc(entry.alg)
    start = blocks[0].offset
    scratch = memoryview(bytearray(blocks[-1].offset + blocks[-1].length - start))
    count = _get(objects, entry, scratch, start, what)
    for block in blocks:
        begin = block.offset - start
        found = scratch[begin : begin + block.length]
        if begin + block.length > count or crc(found) != block.crc:
            # Once more: the wire, a proxy or a server's cache may have been at fault.
            again = _get(objects, entry, found, block.offset, what)
            if again < block.length:
                raise IntegrityError(
                    f"R16 checkpoint {what}: object {entry.key} is truncated at byte "
                    f"{block.offset + again}, {entry.size} were stored."
                )
            if (got := crc(found)) != block.crc:
                raise IntegrityError(
                    f"R16 checkpoint {what}: object {entry.key} failed {entry.alg.upper()} "
                    f"at byte {block.offset} (got {got:x}, want {block.crc:x})."
                )
        if block.target is not None:
            block.target[:] = found


def _get(objects: Objects, entry: ObjectEntry, into: memoryview, start: int, what: str) -> int:
    try:
        return objects.get_into(entry.key, into, start)
    except NotFound:
        raise IntegrityError(f"R16 checkpoint {what}: object {entry.key} is missing.") from None
