"""Reading a whole checkpoint back and comparing every checksum, without loading it anywhere.

A load checks what it reads; this checks everything: the commit, every rank's part, and every byte
of every shard object, header included. It needs neither torch nor memory for the state, so a cron
job beside the bucket can do it. A block that fails is read once more before it counts as damaged,
since the wire may have been at fault.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rekindle.checkpoint.format import checksum, manifest
from rekindle.checkpoint.format.manifest import (
    Commit,
    CommitRef,
    IntegrityError,
    ManifestError,
    ObjectEntry,
    Slice,
    TensorEntry,
)
from rekindle.checkpoint.objects.interface import NotFound, Objects
from rekindle.checkpoint.store import Store

READ_BYTES = 16 * 2**20
PARALLEL_READS = 4


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something in an object that is not what was stored."""

    key: str
    what: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What reading one checkpoint back has shown."""

    ref: CommitRef
    objects: int
    nbytes: int
    """Bytes that were compared."""
    damage: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A stretch of an object under one checksum."""

    offset: int
    length: int
    crc: int


def verify(store: Store, ref: CommitRef) -> VerifyReport:
    """Compare everything; raises `NotFound`, `StoreError`, `VersionError` and no `IntegrityError`.

    Raises `ChecksumUnavailable` when this installation cannot compute the algorithm used.
    """
    try:
        commit = store.read(ref)
    except IntegrityError as error:
        damage = Damage(key=manifest.commit_key(ref), what=str(error))
        return VerifyReport(ref=ref, objects=1, nbytes=0, damage=(damage,))
    blocks: dict[str, list[Block]] = {entry.key: [] for entry in commit.objects}
    entries = {entry.key: entry for entry in commit.objects}
    collect(blocks, commit.objects, commit.tensors, commit.chunk)
    found: list[Damage] = []
    size = 0
    for rank in range(commit.world_size):
        try:
            part, length = _part(store, commit, rank)
        except (IntegrityError, NotFound) as error:
            found.append(Damage(key=manifest.part_key(ref, rank), what=_plain(error)))
            continue
        size += length
        for entry in part.objects:
            entries.setdefault(entry.key, entry)
            blocks.setdefault(entry.key, [])
        collect(blocks, part.objects, part.rank_tensors, part.chunk)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        jobs = [(store.objects, entries[key], blocks[key]) for key in sorted(blocks)]
        for own in pool.map(lambda job: check(*job), jobs):
            found += own
    size += sum(entries[key].size for key in blocks)
    return VerifyReport(
        ref=ref, objects=1 + commit.world_size + len(blocks), nbytes=size, damage=tuple(found)
    )


def _part(store: Store, commit: Commit, rank: int) -> tuple[manifest.Part, int]:
    raw = store.objects.get(manifest.part_key(commit.ref, rank), limit=manifest.MAX_DOCUMENT)
    expected = commit.parts[rank]
    if len(raw) != expected.size or hashlib.sha256(raw).hexdigest() != expected.sha256:
        raise ManifestError("failed SHA-256")
    return manifest.read_part(raw, commit.ref, rank), len(raw)


def collect(
    blocks: dict[str, list[Block]],
    objects: Sequence[ObjectEntry],
    tensors: Iterable[TensorEntry],
    chunk: int,
) -> None:
    """Add the blocks of these tensors, by the key of the object that holds them."""
    for tensor in tensors:
        for piece in tensor.slices:
            blocks[objects[piece.object].key] += chunks(piece, chunk)


def chunks(piece: Slice, chunk: int) -> list[Block]:
    """The checksummed blocks of a slice, in the order of the object."""
    return [
        Block(
            offset=piece.offset + number * chunk,
            length=min(chunk, piece.length - number * chunk),
            crc=crc,
        )
        for number, crc in enumerate(piece.crcs)
    ]


def check(objects: Objects, entry: ObjectEntry, blocks: Iterable[Block]) -> list[Damage]:
    """The damage in one object."""
    try:
        size = objects.head(entry.key).size
    except NotFound:
        return [Damage(key=entry.key, what="is missing")]
    if size != entry.size:
        return [Damage(key=entry.key, what=f"has {size} bytes, {entry.size} were stored")]
    header = Block(offset=0, length=entry.head, crc=entry.crc)
    crc = checksum.crc(entry.alg)
    found: list[Damage] = []
    memory = memoryview(bytearray(0))
    for stretch in _stretches([header, *sorted(blocks, key=lambda block: block.offset)]):
        begin = stretch[0].offset
        length = stretch[-1].offset + stretch[-1].length - begin
        if len(memory) < length:
            memory = memoryview(bytearray(length))
        try:
            count = objects.get_into(entry.key, memory[:length], begin)
            for block in stretch:
                view = memory[block.offset - begin : block.offset - begin + block.length]
                if count >= block.offset - begin + block.length and crc(view) == block.crc:
                    continue
                if objects.get_into(entry.key, view, block.offset) == block.length:
                    if (got := crc(view)) == block.crc:
                        continue
                    what = f"failed {entry.alg.upper()} (got {got:x}, want {block.crc:x})"
                else:
                    what = "is truncated"
                end = block.offset + block.length
                found.append(Damage(key=entry.key, what=f"bytes {block.offset} to {end}: {what}"))
        except NotFound:
            return [*found, Damage(key=entry.key, what="vanished while it was read")]
    return found


def _stretches(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbouring blocks, up to READ_BYTES at a time."""
    found: list[list[Block]] = []
    for block in blocks:
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


def _plain(error: Exception) -> str:
    return "is missing" if isinstance(error, NotFound) else str(error)
