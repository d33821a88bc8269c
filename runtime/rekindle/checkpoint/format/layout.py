"""Which rank uploads which bytes, and how they lie in shard objects. Pure arithmetic.

The replicated state is the same on every rank, so W ranks share the upload: the tensors are laid
end to end, cut into chunks that never cross a tensor, and a chunk belongs to the rank in whose W-th
of the total it begins. The result depends on sizes and W alone, so all ranks compute the same plan
without talking. A chunk is also the unit of the checksum, and chunk borders are multiples of the
chunk size *from the start of the tensor*, whatever W was: a reader at another world size meets the
same borders.

A rank's pieces are then packed into shard objects. A piece is contiguous in the rank's memory and
in its object. In the whole tensor it is contiguous too, or, for a tensor that is sharded along
another dimension than the first, a number of runs of equal length at equal distances.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

CHUNK_BYTES = 8 * 2**20
"""Bytes under one checksum: small enough for ranged reads, large enough for short manifests."""
SHARD_BYTES = 256 * 2**20
"""A shard object takes no further piece beyond this size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Bytes `start` to `stop` of what this rank holds of one tensor, by its index in the state."""

    tensor: int
    start: int
    stop: int
    shift: int = 0
    """The first byte lies at `start + shift` of the whole tensor."""
    count: int = 1
    """Runs of equal length that the bytes are in the whole tensor."""
    stride: int = 0
    """Bytes from one run's begin to the next one's; 0 for a single run."""


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
            if piece.count > 1:
                stop = piece.stop  # cut anywhere, its runs would no longer be of equal length
            shards[-1].append(replace(piece, start=start, stop=stop))
            room -= stop - start
            start = stop
    return shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The part of a tensor that one rank holds: an offset and a length along each dimension."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    replica: int = 0
    """Which of the ranks that hold the same part this is; they take turns in storing tensors."""
    replicas: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StridedRuns:
    """`count` runs of `length` bytes, the first at byte `start`, one every `stride` bytes.

    What they are runs of lies densely somewhere else, beginning at byte `at` there.
    """

    start: int
    length: int
    count: int
    stride: int
    at: int


def runs(box: Box, width: int) -> list[StridedRuns]:
    """The bytes of a box in the whole tensor, in the order in which the rank holds them."""
    if 0 in box.sizes:
        return []
    strides = [width] * len(box.shape)
    for d in range(len(box.shape) - 1, 0, -1):
        strides[d - 1] = strides[d] * box.shape[d]
    # From the last dimension on: whole ones are contiguous, up to and including one in part.
    inner = len(box.shape) - 1
    while inner > 0 and box.sizes[inner] == box.shape[inner]:
        inner -= 1
    length = math.prod(box.sizes[inner:]) * width
    # The next ones are runs at one distance, again up to and including one in part.
    outer = inner
    while outer > 0:
        outer -= 1
        if box.sizes[outer] != box.shape[outer]:
            break
    count = math.prod(box.sizes[outer:inner])
    base = sum(o * s for o, s in zip(box.offsets, strides, strict=True))
    found: list[StridedRuns] = []
    for index in itertools.product(*map(range, box.sizes[:outer])):
        start = base + sum(i * s for i, s in zip(index, strides, strict=False))
        found.append(
            StridedRuns(
                start=start,
                length=length,
                count=count,
                stride=strides[inner - 1] if count > 1 else 0,
                at=len(found) * count * length,
            )
        )
    return found


def box_pieces(box: Box, width: int, tensor: int) -> list[Piece]:
    """The pieces of a tensor that a rank holds in part."""
    return [
        Piece(
            tensor=tensor,
            start=own.at,
            stop=own.at + own.count * own.length,
            shift=own.start - own.at,
            count=own.count,
            stride=own.stride,
        )
        for own in runs(box, width)
    ]


def common(source: StridedRuns, target: StridedRuns) -> Iterator[tuple[int, int, int]]:
    """What two sets of runs share: (place in the source, place in the target, length)."""
    step = target.stride or 1
    for i in range(source.count):
        begin = source.start + i * source.stride
        end = begin + source.length
        # The first run of the target that ends after `begin`.
        k = max(0, -(-(begin - target.start - target.length + 1) // step)) if target.stride else 0
        while k < target.count:
            left = target.start + k * target.stride
            low, high = max(begin, left), min(end, left + target.length)
            if left >= end:
                break
            if low < high:
                yield (
                    source.at + i * source.length + low - begin,
                    target.at + k * target.length + low - left,
                    high - low,
                )
            k += 1


def within(whole: StridedRuns, begin: int, end: int) -> list[StridedRuns]:
    """Bytes `begin` to `end` of what some runs hold, as runs that lie densely from 0 on."""
    if whole.count == 1:
        return [StridedRuns(start=whole.start + begin, length=end - begin, count=1, stride=0, at=0)]
    found: list[StridedRuns] = []
    at = begin
    while at < end:
        number, inside = divmod(at, whole.length)
        start = whole.start + number * whole.stride + inside
        full = (end - at) // whole.length if inside == 0 else 0
        if full:
            stride = whole.stride if full > 1 else 0
            one = StridedRuns(
                start=start, length=whole.length, count=full, stride=stride, at=at - begin
            )
        else:
            length = min(end - at, whole.length - inside)
            one = StridedRuns(start=start, length=length, count=1, stride=0, at=at - begin)
        found.append(one)
        at += one.count * one.length
    return found
