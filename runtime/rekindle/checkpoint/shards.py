"""Shard objects between tensors and memory: filled by one copy, read back verified.

A reader does not believe the header. It knows every offset from the manifest, reads stretches of
neighbouring chunks in parallel into scratch memory, verifies each chunk (and the header, so that
a flipped bit anywhere is found) and only then copies it to where it belongs: what is in a parameter
has been verified. A chunk that fails is read once more, since the wire may have been at fault;
after that the checkpoint is damaged (R16).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from rekindle.checkpoint import checksum
from rekindle.checkpoint.manifest import IntegrityError, ObjectEntry, TensorEntry
from rekindle.checkpoint.objects import NotFound, Objects
from rekindle.checkpoint.packing import ShardPlan
from rekindle.checkpoint.tensors import as_bytes, view

READ_BYTES = 16 * 2**20
"""A read gathers neighbouring chunks up to this size."""
PARALLEL_READS = 8


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
