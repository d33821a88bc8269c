"""Shard objects between tensors and memory: filled by one copy, read back verified.

A reader does not believe a shard's header. It knows every offset from the manifest, reads stretches
of neighbouring chunks in parallel into a few scratch buffers, verifies each chunk (and the header,
so that a flipped bit anywhere is found) and only then copies it to where it belongs: what is in a
parameter has been verified, and reading takes no more memory than the buffers. A chunk that fails
is read once more, since the wire may have been at fault; after that the checkpoint is damaged
(R16).

What is read need not be what was saved by one rank: a chunk knows which bytes of the whole tensor
it holds, a target which ones it wants, and the common ones are copied.

Ranks that all need the same bytes can share the work: stretch i is read by rank i mod W, sent to
the others, and verified again by each of them before use. Every stretch carries one more byte that
says whether it is good, so a rank that fails to read takes the others with it and leaves none
waiting.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rekindle.checkpoint.format import checksum, layout
from rekindle.checkpoint.format.layout import StridedRuns
from rekindle.checkpoint.format.manifest import IntegrityError, ObjectEntry, Slice, TensorEntry
from rekindle.checkpoint.format.packing import ShardPlan
from rekindle.checkpoint.format.tensors import as_bytes, view
from rekindle.checkpoint.objects.interface import NotFound, Objects, StoreError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

READ_BYTES = 8 * 2**20
"""A read gathers neighbouring chunks up to this size."""
PARALLEL_READS = 8
"""Reads at once; each has a buffer of READ_BYTES, or of a chunk if that is larger."""


def fill(shard: ShardPlan, sources: Sequence[torch.Tensor], memory: torch.Tensor) -> None:
    """Copy header and tensor bytes into host memory of the shard's size.

    Copies from a GPU are only queued; the caller synchronises once for all shards.
    """
    memory[: len(shard.header)] = torch.frombuffer(bytearray(shard.header), dtype=torch.uint8)
    for placed in shard.pieces:
        piece = placed.piece
        tensor = sources[piece.tensor]
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            tensor = tensor.contiguous().resolve_conj().resolve_neg()
        source = as_bytes(tensor)
        target = memory[placed.offset : placed.offset + piece.stop - piece.start]
        on_gpu = source.device.type == "cuda"
        target.copy_(source[piece.start : piece.stop], non_blocking=on_gpu and target.is_pinned())


class TensorTarget:
    """Where the bytes of one tensor go: a contiguous tensor, and what of the whole it holds."""

    def __init__(self, tensor: torch.Tensor, runs: Sequence[StridedRuns]) -> None:
        self.runs = runs
        self._flat = as_bytes(tensor)
        self._memory = view(self._flat) if tensor.device.type == "cpu" else None

    def write(self, at: int, found: memoryview) -> None:
        """Copy verified bytes to their place."""
        if self._memory is not None:
            self._memory[at : at + len(found)] = found
        else:
            self._flat[at : at + len(found)].copy_(torch.frombuffer(found, dtype=torch.uint8))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A verifiable stretch of an object, and the bytes of a tensor that it holds."""

    offset: int
    length: int
    crc: int
    target: TensorTarget | None
    """None for the header."""
    sources: Sequence[StridedRuns]

    def deliver(self, found: memoryview) -> None:
        """Copy what the target wants of it."""
        if self.target is None:
            return
        for source in self.sources:
            for wanted in self.target.runs:
                for begin, at, length in layout.common(source, wanted):
                    self.target.write(at, found[begin : begin + length])

    @property
    def wanted(self) -> bool:
        """Whether the target wants anything of it."""
        return self.target is not None and any(
            True
            for source in self.sources
            for wanted in self.target.runs
            for _ in layout.common(source, wanted)
        )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Neighbouring blocks of one object, read at once."""

    entry: ObjectEntry
    blocks: list[_Block]

    @property
    def start(self) -> int:
        """Offset in the object."""
        return self.blocks[0].offset

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.blocks[-1].offset + self.blocks[-1].length - self.start


def stretches(
    entries: Sequence[ObjectEntry],
    tensors: Iterable[TensorEntry],
    targets: Mapping[str, TensorTarget],
    *,
    chunk: int,
) -> list[Stretch]:
    """What has to be read to fill the targets; tensors without one are skipped."""
    blocks: list[list[_Block]] = [[] for _ in entries]
    for tensor in tensors:
        if (target := targets.get(tensor.name)) is not None:
            for piece in tensor.slices:
                blocks[piece.object] += _blocks(piece, target, chunk)
    return [
        Stretch(entry=entry, blocks=gathered)
        for entry, own in zip(entries, blocks, strict=True)
        if own
        for gathered in _gathered(entry, own)
    ]


def _blocks(piece: Slice, target: TensorTarget, chunk: int) -> list[_Block]:
    held = StridedRuns(
        start=piece.start,
        length=piece.length // piece.count,
        count=piece.count,
        stride=piece.stride,
        at=0,
    )
    found = []
    for number, crc in enumerate(piece.crcs):
        begin = number * chunk
        end = min(begin + chunk, piece.length)
        block = _Block(
            offset=piece.offset + begin,
            length=end - begin,
            crc=crc,
            target=target,
            sources=layout.within(held, begin, end),
        )
        if block.wanted:
            found.append(block)
    return found


def _gathered(entry: ObjectEntry, blocks: list[_Block]) -> list[list[_Block]]:
    """Neighbouring blocks up to READ_BYTES, the header first."""
    found: list[list[_Block]] = []
    header = _Block(offset=0, length=entry.head, crc=entry.crc, target=None, sources=())
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


class _Buffers:
    """Scratch memory, made when needed and used again."""

    def __init__(self, todo: Sequence[Stretch]) -> None:
        # One more byte for the word on whether the rest is good.
        self._size = max((stretch.size for stretch in todo), default=0) + 1
        self._free: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def take(self) -> torch.Tensor:
        with self._lock:
            if self._free:
                return self._free.pop()
        return torch.empty(self._size, dtype=torch.uint8)

    def give(self, buffer: torch.Tensor) -> None:
        with self._lock:
            self._free.append(buffer)


def read(objects: Objects, todo: Sequence[Stretch], *, what: str) -> None:
    """Fill the targets with verified bytes; `IntegrityError` naming `what` and the object."""
    buffers = _Buffers(todo)

    def fetch(stretch: Stretch) -> None:
        buffer = buffers.take()
        try:
            found = view(buffer)[: stretch.size]
            _fetch(objects, stretch, found, what=what)
            _deliver(stretch, found)
        finally:
            buffers.give(buffer)

    if len(todo) == 1:
        fetch(todo[0])
    if len(todo) <= 1:
        return
    with ThreadPoolExecutor(min(PARALLEL_READS, len(todo))) as pool:
        futures = [pool.submit(fetch, stretch) for stretch in todo]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


_GOOD, _DAMAGED, _FAILED = 0, 1, 2


def exchange(
    objects: Objects, todo: Sequence[Stretch], group: "ProcessGroup", *, what: str
) -> None:
    """Do what `read` does on all ranks of a group together, each reading its share; collective.

    The stretches must be the same on all ranks, and the group must be able to send host memory. An
    error of one rank is raised by all of them.
    """
    import torch.distributed as dist

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    buffers = _Buffers(todo)
    mine = [stretch for index, stretch in enumerate(todo) if index % size == rank]

    def fetch(stretch: Stretch) -> tuple[torch.Tensor, Exception | None]:
        buffer, error = buffers.take(), None
        buffer[stretch.size] = _GOOD
        try:
            _fetch(objects, stretch, view(buffer)[: stretch.size], what=what)
        except Exception as failure:
            error = failure
            damaged = isinstance(failure, IntegrityError)
            buffer[stretch.size] = _DAMAGED if damaged else _FAILED
        return buffer, error

    wrong: Exception | None = None
    error: Exception | None = None
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        # Bounded, since what is read ahead has to be kept until its turn to be sent.
        ahead: list[Future[tuple[torch.Tensor, Exception | None]]] = [
            pool.submit(fetch, stretch) for stretch in mine[:PARALLEL_READS]
        ]
        taken = 0
        for index, stretch in enumerate(todo):
            owner = index % size
            if owner == rank:
                buffer, error = ahead[taken].result()
                if taken + PARALLEL_READS < len(mine):
                    ahead.append(pool.submit(fetch, mine[taken + PARALLEL_READS]))
                taken += 1
            else:
                buffer = buffers.take()
            dist.broadcast(buffer[: stretch.size + 1], group_src=owner, group=group)
            code = int(buffer[stretch.size])
            if code != _GOOD:
                break
            found = view(buffer)[: stretch.size]
            if owner != rank and (bad := _first_bad(stretch, found)) is not None:
                wrong = wrong or IntegrityError(
                    f"R16 checkpoint {what}: bytes {bad.offset} and following of "
                    f"{stretch.entry.key} were damaged on their way from rank {owner}."
                )
            else:
                _deliver(stretch, found)
            buffers.give(buffer)
    agree(error or wrong, group, what)


def agree(error: Exception | None, group: "ProcessGroup", what: str) -> None:
    """Raise on all ranks of a group what one of them has found; collective."""
    import torch.distributed as dist

    code = _GOOD
    if error is not None:
        code = _DAMAGED if isinstance(error, IntegrityError) else _FAILED
    worst = torch.tensor([code], dtype=torch.int64)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group=group)
    if int(worst) == _GOOD:
        return
    found: list[tuple[int, str]] = [(_GOOD, "")] * dist.get_world_size(group)
    dist.all_gather_object(found, (code, str(error)), group=group)
    if error is not None:
        raise error
    rank, (kind, text) = next((r, one) for r, one in enumerate(found) if one[0] != _GOOD)
    if kind == _DAMAGED:
        raise IntegrityError(text)
    raise StoreError(f"rank {rank} could not load checkpoint {what}: {text}")


def _deliver(stretch: Stretch, found: memoryview) -> None:
    for block in stretch.blocks:
        begin = block.offset - stretch.start
        block.deliver(found[begin : begin + block.length])


def _first_bad(stretch: Stretch, found: memoryview) -> _Block | None:
    crc: Callable[[memoryview], int] = checksum.crc(stretch.entry.alg)
    for block in stretch.blocks:
        begin = block.offset - stretch.start
        if crc(found[begin : begin + block.length]) != block.crc:
            return block
    return None


def _fetch(objects: Objects, stretch: Stretch, scratch: memoryview, *, what: str) -> None:
    """Read a stretch and verify it, bad blocks once more."""
    entry = stretch.entry
    crc = checksum.crc(entry.alg)
    count = _get(objects, entry, scratch, stretch.start, what)
    for block in stretch.blocks:
        begin = block.offset - stretch.start
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


def _get(objects: Objects, entry: ObjectEntry, into: memoryview, start: int, what: str) -> int:
    try:
        return objects.get_into(entry.key, into, start)
    except NotFound:
        raise IntegrityError(f"R16 checkpoint {what}: object {entry.key} is missing.") from None
