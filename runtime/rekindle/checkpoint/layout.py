"""Which rank uploads which bytes, and how they lie in shard objects. Pure arithmetic.

The replicated state is the same on every rank, so W ranks share the upload: the tensors are laid
end to end, cut into chunks that never cross a tensor, and a chunk belongs to the rank in whose W-th
of the total it begins. The result depends on sizes and W alone, so all ranks compute the same plan
without talking. A chunk is also the unit of the checksum, and chunk borders are multiples of the
chunk size *from the start of the tensor*, whatever W was: a reader at another world size meets the
same borders.

A rank's pieces are then packed into shard objects. A piece is contiguous in its tensor and in its
object; that also fits a tensor that is sharded by rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_BYTES = 8 * 2**20
"""Bytes under one checksum: small enough for ranged reads, large enough for short manifests."""
SHARD_BYTES = 256 * 2**20
"""A shard object takes no further piece beyond this size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Bytes `start` to `stop` of one tensor, by its index in the state."""

    tensor: int
    start: int
    stop: int


def share(sizes: Sequence[int], *, rank: int, world_size: int, chunk: int) -> list[Piece]:
    """The pieces that one rank uploads of tensors with these sizes in bytes."""
    total = sum(sizes)
    # A chunk that begins at byte b belongs to the rank for which low <= b < high.
    low, high = -(-rank * total // world_size), -(-(rank + 1) * total // world_size)
    pieces: list[Piece] = []
    base = 0
    for tensor, size in enumerate(sizes):
        chunks = -(-size // chunk)
        first = max(0, min(chunks, -(-(low - base) // chunk)))
        last = max(0, min(chunks, -(-(high - base) // chunk)))
        if first < last:
            pieces.append(Piece(tensor=tensor, start=first * chunk, stop=min(size, last * chunk)))
        base += size
    return pieces


def pack(pieces: Sequence[Piece], *, shard: int, chunk: int) -> list[list[Piece]]:
    """Distribute pieces over shard objects of about `shard` bytes, cutting at chunk borders."""
    shards: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            if room < chunk and room < piece.stop - start:
                shards.append([])
                room = max(shard, chunk)
            stop = min(piece.stop, start + max(chunk, room // chunk * chunk))
            shards[-1].append(Piece(tensor=piece.tensor, start=start, stop=stop))
            room -= stop - start
            start = stop
    return shards
