"""Shard objects before and after they are filled, without torch.

A shard is laid out before a byte is copied: the header's length follows from names and shapes, so
the header and the tensors go into one contiguous stretch of the host buffer and the whole object is
one memoryview for the uploader. A piece that is a whole tensor keeps its name and shape, so any
safetensors tool can open it; a piece of a larger tensor is a flat entry `name[start:stop]`, in
elements of what the rank holds.

A plan also travels: the process that uploads gets it beside the bytes and needs no tensor to
describe them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rekindle.checkpoint.format import checksum
from rekindle.checkpoint.format.layout import Piece
from rekindle.checkpoint.format.manifest import DTYPES, ObjectEntry, Slice


@dataclass(frozen=True, kw_only=True)
class LocalShard:
    """What a rank holds of one tensor: all of it, or its own box."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of what is held here."""
    nbytes: int


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


def plan(shards: Iterable[Sequence[Piece]], tensors: Sequence[LocalShard]) -> list[ShardPlan]:
    """Lay out shards whose pieces refer to `tensors` by index."""
    return [_plan(pieces, tensors) for pieces in shards]


def _plan(pieces: Sequence[Piece], tensors: Sequence[LocalShard]) -> ShardPlan:
    table: dict[str, object] = {"__metadata__": {"format": "rekindle"}}
    at = 0
    starts: list[int] = []
    for piece in pieces:
        held = tensors[piece.tensor]
        name = held.name
        known, width, factor = DTYPES[held.dtype]
        length = piece.stop - piece.start
        if length == held.nbytes:
            shape = [*held.shape, factor] if factor > 1 else list(held.shape)
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


def describe(
    shard: ShardPlan, key: str, memory: memoryview, index: int, *, chunk: int
) -> tuple[ObjectEntry, list[tuple[int, Slice]]]:
    """The manifest entries of a filled shard: the object, and (tensor index, slice) pairs."""
    crc = checksum.crc(checksum.DEFAULT)
    head = len(shard.header)
    slices = []
    for placed in shard.pieces:
        piece = placed.piece
        length = piece.stop - piece.start
        found = Slice(
            object=index,
            offset=placed.offset,
            start=piece.start + piece.shift,
            length=length,
            crcs=checksums(memory[placed.offset : placed.offset + length], chunk),
            count=piece.count,
            stride=piece.stride,
        )
        slices.append((piece.tensor, found))
    entry = ObjectEntry(
        key=key, size=shard.size, head=head, crc=crc(memory[:head]), alg=checksum.DEFAULT
    )
    return entry, slices


def checksums(memory: memoryview, chunk: int) -> tuple[int, ...]:
    """The checksum of each chunk."""
    crc = checksum.crc(checksum.DEFAULT)
    return tuple(crc(memory[at : at + chunk]) for at in range(0, len(memory), chunk))
