"""What becomes of a snapshot: shard objects, the rank's part, on rank 0 the commit. Without torch.

    all ranks   staged bytes -> shard objects -> part
    rank 0      parts of all ranks -> coverage -> lease -> COMMIT -> retention

It runs beside the training, in a thread of it or in a process of its own, and the two are the same
code: everything it needs is in the staged bytes and in a `Task`, which has a form as JSON.

What may happen at each arrow, and what a reader sees:

- before the commit object: nothing; the objects are garbage until a later commit removes them;
- during its write: it exists or does not; a lost answer is resolved by reading it;
- after it: the checkpoint is durable, whatever happens to this process.

A writer whose trainer has died (`orphaned`) may still commit, since all bytes are there and the
parts prove the coverage: under the same key, so the condition admits one, and until a newer attempt
has committed, because from then on nobody would see it. While the trainer lives the rule is
stricter: an attempt that has lost its lease is a zombie and stops at once.
"""

import base64
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from rekindle.checkpoint.cleanup import Housekeeper
from rekindle.checkpoint.format import encoding, manifest, packing
from rekindle.checkpoint.format.layout import Piece
from rekindle.checkpoint.format.manifest import (
    Commit,
    CommitRef,
    IntegrityError,
    ObjectEntry,
    Part,
    Slice,
    TensorEntry,
)
from rekindle.checkpoint.format.packing import Placed, ShardPlan
from rekindle.checkpoint.objects.interface import (
    Conflict,
    NotFound,
    PreconditionFailed,
    Unreachable,
)
from rekindle.checkpoint.retention import Retention
from rekindle.checkpoint.store import LeaseLost, Store

log = logging.getLogger(__name__)

FLUSH_SECONDS = float(os.environ.get("REKINDLE_FLUSH_SECONDS", "120"))
"""How long a writer goes on at most after its trainer has died (REKINDLE_FLUSH_SECONDS)."""


class SaveError(Exception):
    """A checkpoint was not committed; the training may go on and save again."""


class SaveTimeout(SaveError):
    """The deadline passed before the checkpoint was durable: the store, or a peer, was too slow."""

    transient = True


@dataclass(frozen=True, kw_only=True)
class StoredSlice:
    """A slice that an earlier checkpoint holds already, with the object it lies in."""

    tensor: int
    entry: ObjectEntry
    piece: Slice


@dataclass(frozen=True, kw_only=True)
class Task:
    """One save of one rank, after its bytes are staged."""

    ref: CommitRef
    base: CommitRef | None
    rank: int
    world_size: int
    chunk: int
    limit: float
    """`time.monotonic()` at which to give up; the clock is the same in all processes."""
    wait: bool
    """Whether this rank wants to see the commit, if it is not rank 0 that makes it."""
    meta: encoding.Json
    plans: tuple[ShardPlan, ...]
    known: tuple[StoredSlice, ...]
    entries: tuple[TensorEntry, ...]
    """State tensors, then rank tensors, without slices."""
    replicated: int
    """How many of the entries are state tensors."""
    tree: encoding.Json
    rank_tree: encoding.Json
    attempt: int

    @property
    def size(self) -> int:
        """Bytes of the staged shards."""
        return sum(plan.size for plan in self.plans)

    def to_json(self) -> dict[str, Any]:
        """For the process that uploads."""
        return {
            **{k: v for k, v in self.__dict__.items() if k not in _STRUCTURED},
            "ref": [self.ref.step, self.ref.fence],
            "base": None if self.base is None else [self.base.step, self.base.fence],
            "plans": [
                [
                    base64.b64encode(plan.header).decode(),
                    plan.size,
                    [[*asdict(placed.piece).values(), placed.offset] for placed in plan.pieces],
                ]
                for plan in self.plans
            ],
            "known": [[k.tensor, asdict(k.entry), asdict(k.piece)] for k in self.known],
            "entries": [[e.name, e.dtype, e.shape] for e in self.entries],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        base = document["base"]
        return cls(
            **{
                **document,
                "ref": CommitRef(step=document["ref"][0], fence=document["ref"][1]),
                "base": None if base is None else CommitRef(step=base[0], fence=base[1]),
                "plans": tuple(
                    ShardPlan(
                        header=base64.b64decode(header),
                        size=size,
                        pieces=tuple(
                            Placed(
                                piece=Piece(
                                    tensor=tensor,
                                    start=start,
                                    stop=stop,
                                    shift=shift,
                                    count=count,
                                    stride=stride,
                                ),
                                offset=offset,
                            )
                            for tensor, start, stop, shift, count, stride, offset in pieces
                        ),
                    )
                    for header, size, pieces in document["plans"]
                ),
                "known": tuple(
                    StoredSlice(
                        tensor=tensor,
                        entry=ObjectEntry(**entry),
                        piece=Slice(**{**piece, "crcs": tuple(piece["crcs"])}),
                    )
                    for tensor, entry, piece in document["known"]
                ),
                "entries": tuple(
                    TensorEntry(name=name, dtype=dtype, shape=tuple(shape), slices=())
                    for name, dtype, shape in document["entries"]
                ),
            }
        )


_STRUCTURED = {"ref", "base", "plans", "known", "entries"}


class SaveProgress(Protocol):
    """Who wants to know how a save goes on."""

    def stored(self) -> None:
        """The bytes and the part are in the store; the staged copy is not needed any more."""
        ...

    def committed(self, size: int) -> None:
        """The checkpoint is durable and has so many bytes over all ranks."""
        ...

    def failed(self, error: Exception) -> None:
        """It will not be, by this save."""
        ...


class Writer:
    """Stores tasks of one rank, one after the other."""

    def __init__(
        self, store: Store, *, fence: int, base: CommitRef | None, policy: Retention
    ) -> None:
        self._store = store
        self._objects = store.objects
        self._fence = fence
        self._housekeeper = Housekeeper(store, policy, fence=fence, restored=base)
        self.orphaned: Callable[[], float | None] = lambda: None
        """When the trainer that made the snapshots was found dead, in `time.monotonic()`."""

    def run(self, task: Task, memory: Sequence[memoryview] | None, report: SaveProgress) -> None:
        """Upload unless `memory` is None, make or await the commit, tidy up; raises nothing."""
        commit = None
        try:
            if memory is not None:
                self.upload(task, memory)
            report.stored()
            if task.rank == 0:
                commit = self.commit(task)
                report.committed(commit.nbytes)
            elif task.wait:
                self._await_commit(task)
                report.committed(self._store.read(task.ref).nbytes)
        except Exception as error:  # whatever it is must reach the trainer, not die here
            log.warning("checkpoint of step %d was not committed: %s", task.ref.step, error)
            self.disturbed()
            report.failed(error)
            return
        if commit is not None:
            try:
                self._housekeeper.tidy(task.ref)
            except Exception as error:
                # The checkpoint is durable; what is left over is found again after the next one.
                log.warning("old checkpoints in %s were not removed: %s", self._store.uri, error)

    def disturbed(self) -> None:
        """A save has failed somewhere, and may have left something behind."""
        self._housekeeper.disturbed()

    def upload(self, task: Task, memory: Sequence[memoryview]) -> None:
        """Shard objects, then the part that names them."""
        found = []
        for index, (plan, staged) in enumerate(zip(task.plans, memory, strict=True)):
            found.append(self.put_shard(task, plan, staged, index))
        self.put_part(task, found)

    def put_shard(
        self, task: Task, plan: ShardPlan, staged: memoryview, index: int
    ) -> tuple[ObjectEntry, list[tuple[int, Slice]]]:
        """One shard object, with its checksums."""
        # A second try of a step must not touch objects that a part of the first may name.
        number = (task.attempt - 1) * 10_000 + index
        key = manifest.data_key(task.ref, task.rank, number)
        found = packing.describe(plan, key, staged, index, chunk=task.chunk)
        self._objects.put(key, staged)
        self._in_time(task, "its shards are not stored")
        return found

    def put_part(
        self, task: Task, shards: Sequence[tuple[ObjectEntry, list[tuple[int, Slice]]]]
    ) -> None:
        """The part that names the shards, and what earlier checkpoints hold."""
        objects = [entry for entry, _ in shards]
        slices: list[list[Slice]] = [[] for _ in task.entries]
        for _, found in shards:
            for tensor, piece in found:
                slices[tensor].append(piece)
        places = {entry.key: index for index, entry in enumerate(objects)}
        for known in task.known:
            if places.setdefault(known.entry.key, len(objects)) == len(objects):
                objects.append(known.entry)
            slices[known.tensor].append(_moved(known.piece, places[known.entry.key]))
        entries = [
            TensorEntry(name=e.name, dtype=e.dtype, shape=e.shape, slices=tuple(own))
            for e, own in zip(task.entries, slices, strict=True)
        ]
        state = entries[: task.replicated]
        first = task.rank == 0
        part = Part(
            ref=task.ref,
            rank=task.rank,
            world_size=task.world_size,
            chunk=task.chunk,
            layout=manifest.layout_digest((e.name, e.dtype, e.shape) for e in state),
            objects=tuple(objects),
            tensors=tuple(e for e in state if e.slices or first),
            tree=task.tree if first else None,
            rank_tensors=tuple(entries[task.replicated :]),
            rank_tree=task.rank_tree,
            base=task.base if first else None,
            meta=task.meta if first else None,
        )
        self._put_part(task, manifest.part_bytes(part))

    def _put_part(self, task: Task, body: bytes) -> None:
        """Create the part; one that exists already is ours from a try whose answer was lost.

        That one is kept, and with it the objects it names: they hold the same step of the same
        attempt, and rank 0 may have read it already.
        """
        key = manifest.part_key(task.ref, task.rank)
        for attempt in range(5):
            try:
                self._objects.put(key, body, if_none_match=True)
            except PreconditionFailed:
                raw = self._objects.get(key, limit=manifest.MAX_DOCUMENT)
                manifest.read_part(raw, task.ref, task.rank)
                return
            except (Conflict, Unreachable):
                # It may have arrived all the same; then the next try is told that it exists.
                if attempt == 4:
                    raise
                self._pause(task, attempt, "its part is not stored")
            else:
                return

    def commit(self, task: Task) -> Commit:
        """Wait for all parts, prove that they are a whole checkpoint, and make it one."""
        parts = self._collect(task)
        commit, body = whole(self._store, parts, task.meta)
        self._check_lease()
        self._publish(task, commit, body)
        return commit

    def _collect(self, task: Task) -> list[tuple[Part, bytes]]:
        """All parts in rank order, found by listing."""
        found: dict[int, tuple[Part, bytes]] = {}
        for attempt in range(10**9):
            read_parts(self._store, task.ref, task.world_size, found)
            missing = sorted(set(range(task.world_size)) - set(found))
            if not missing:
                break
            if attempt % 10 == 9:
                self._check_lease()
                self._check_given_up(task, missing)
            self._pause(task, attempt, f"the parts of ranks {missing[:8]} are missing")
        return [found[rank] for rank in range(task.world_size)]

    def _check_given_up(self, task: Task, missing: list[int]) -> None:
        """Do not wait for a rank whose save has failed: it shows by a part of a later step."""
        for stat in self._objects.list("part/"):
            ref = manifest.ref_of(stat.key)
            rank = manifest.rank_of(stat.key)
            if (
                ref is not None
                and rank in missing
                and ref.fence == self._fence
                and ref.step > task.ref.step
            ):
                raise SaveError(
                    f"checkpoint step {task.ref.step} was given up: rank {rank} could not store "
                    f"its part and has gone on to step {ref.step}; its own log says why"
                )

    def _check_lease(self) -> None:
        if self.orphaned() is not None:
            newest = self._store.highest_committed()
            why = "which has committed since the trainer of this one died"
        else:
            newest = self._store.newest_fence()
            why = "this process was declared dead but lives"
        if newest > self._fence:
            raise LeaseLost(
                f"R15 attempt {self._fence} lost the writer lease to attempt {newest} ({why}). "
                f"This process stops; no data was overwritten."
            )

    def _publish(self, task: Task, commit: Commit, body: bytes) -> None:
        """The commit. Whoever gets no clear answer reads what is there."""
        key = manifest.commit_key(task.ref)
        for attempt in range(5):
            try:
                self._objects.put(key, body, if_none_match=True)
            except PreconditionFailed:
                if not is_committed(self._store, commit):
                    raise LeaseLost(
                        f"R15 another process commits with fence {self._fence}: {key} exists and "
                        f"holds something else. This process stops; no data was overwritten."
                    ) from None
                return
            except (Conflict, Unreachable):
                with contextlib.suppress(NotFound, Unreachable):
                    if is_committed(self._store, commit):
                        return
                if attempt == 4:
                    raise
                self._pause(task, attempt, "the store did not take the commit")
            else:
                return

    def _await_commit(self, task: Task) -> None:
        for attempt in range(10**9):
            try:
                self._objects.head(manifest.commit_key(task.ref))
            except NotFound:
                if attempt % 10 == 9:
                    self._check_lease()
                self._pause(task, attempt, "rank 0 has not committed it")
            else:
                return

    def _pause(self, task: Task, attempt: int, why: str) -> None:
        """Sleep a little longer each time, and not past the deadline."""
        self._in_time(task, why)
        pause = min(0.5, 0.01 * 1.3 ** min(attempt, 30))
        time.sleep(min(pause, max(0.0, self._limit(task) - time.monotonic())))

    def _limit(self, task: Task) -> float:
        lost_at = self.orphaned()
        return task.limit if lost_at is None else min(task.limit, lost_at + FLUSH_SECONDS)

    def _in_time(self, task: Task, why: str) -> None:
        if time.monotonic() >= self._limit(task):
            raise SaveTimeout(late(task.ref, self._store, why))


def late(ref: CommitRef, store: Store, why: str) -> str:
    """The message of a `SaveTimeout`."""
    return (
        f"checkpoint step {ref.step} was not durable in {store.uri} by its deadline: {why}. The "
        f"newest checkpoint stays the one before."
    )


def read_parts(
    store: Store, ref: CommitRef, world_size: int, found: dict[int, tuple[Part, bytes]]
) -> None:
    """Add the parts of a group that are listed and not in `found` yet, by rank."""
    for stat in store.objects.list(manifest.part_prefix(ref)):
        rank = manifest.rank_of(stat.key)
        if rank is None or rank in found or rank >= world_size:
            continue
        raw = store.objects.get(stat.key, limit=manifest.MAX_DOCUMENT)
        found[rank] = (manifest.read_part(raw, ref, rank), raw)


def whole(
    store: Store, parts: list[tuple[Part, bytes]], meta: encoding.Json
) -> tuple[Commit, bytes]:
    """The commit that these parts of all ranks make; `IntegrityError` if anything is missing."""
    commit = manifest.merge(
        parts,
        base=parts[0][0].base,
        meta=encoding.decode(meta),
        created=time.time(),
        mode=store.commit,
    )
    body = manifest.commit_bytes(commit)
    # The reader's own checks prove the coverage, before anybody could read a commit without it.
    manifest.read_commit(body, commit.ref)
    store.check_sizes(commit, f"step {commit.ref.step}")
    return commit, body


def is_committed(store: Store, commit: Commit) -> bool:
    """The commit that exists is this one (its time of creation aside)."""
    try:
        return store.read(commit.ref).parts == commit.parts
    except IntegrityError:
        return False


def _moved(piece: Slice, index: int) -> Slice:
    return Slice(**{**asdict(piece), "object": index})
