"""Writing checkpoints beside the training.

`save` copies what this rank has to store into host memory that is reused from save to save, and
returns. One background thread then uploads it and writes the rank's part; on rank 0 it goes on to
wait until all parts are listed, proves that they cover every tensor, makes sure that no newer
attempt has taken the lease, and writes the commit under the condition that there is none. Ranks
coordinate through the store alone: no collective runs outside the training's own thread, so a
dead rank costs one checkpoint, never a hang.

    all ranks   tensors -> host memory (save returns) -> shard objects -> part
    rank 0      parts of all ranks -> coverage -> lease -> COMMIT -> retention

What may happen at each arrow, and what a reader sees:

- before the commit object: nothing; the objects are garbage until a later commit removes them;
- during its write: it exists or does not; a lost answer is resolved by reading it;
- after it: the checkpoint is durable, whatever happens to this process.

At most one save is in flight per rank. A second one waits for it: explicit back-pressure instead of
memory that grows. A save that fails in the background does not end the training: it is kept in
`error`, reported to `on_error`, and the next save is a new try. Shard objects of a repeated try get
new names, so nothing that an earlier part refers to is ever overwritten.

Steps of one attempt only grow. To go back to an older checkpoint within a process, take a new lease
and make a new saver whose base is that checkpoint; the live line (`lineage`) then follows it.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rekindle.checkpoint import encoding, layout, manifest, shards
from rekindle.checkpoint.cleanup import Housekeeper
from rekindle.checkpoint.manifest import (
    Commit,
    CommitRef,
    IntegrityError,
    ManifestError,
    Part,
    TensorEntry,
)
from rekindle.checkpoint.objects import (
    Conflict,
    NotFound,
    PreconditionFailed,
    StoreError,
    Unreachable,
)
from rekindle.checkpoint.retention import Retention
from rekindle.checkpoint.store import LeaseLost, Store
from rekindle.checkpoint.tensors import dtype_name, flatten, nbytes, view

log = logging.getLogger(__name__)

COMMIT_SECONDS = 600.0
"""How long a save may take when the caller sets no deadline."""


class SaveError(Exception):
    """A checkpoint was not committed; the training may go on and save again."""


class SaveTimeout(SaveError):
    """The deadline passed before the checkpoint was durable."""


@dataclass(kw_only=True)
class _Job:
    """One save on its way; owned by the background thread once it has started."""

    ref: CommitRef
    started: float
    limit: float
    wait: bool
    meta: dict[str, Any]
    upload: "_Upload | None"
    finished: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """The staged bytes and everything that the part says about them."""

    plans: list[shards.ShardPlan]
    memory: list[memoryview]
    entries: list[TensorEntry]
    """State tensors, then rank tensors, without slices."""
    replicated: int
    """How many of the entries are state tensors."""
    tree: encoding.Json
    rank_tree: encoding.Json
    attempt: int


class Saver:
    """Saves of one rank in one attempt.

    `on_commit(ref, seconds, bytes)` and `on_error(error)` are called from the background thread;
    seconds count from the call of `save`, bytes are those of all ranks. On ranks above 0 a commit
    is noticed only by `wait=True`.
    """

    def __init__(
        self,
        store: Store,
        *,
        lease_fence: int,
        base: CommitRef | None,
        rank: int,
        world_size: int,
        keep_latest: int = 3,
        retention: Retention | None = None,
        on_commit: Callable[[CommitRef, float, int], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        chunk_bytes: int = layout.CHUNK_BYTES,
        shard_bytes: int = layout.SHARD_BYTES,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}, world_size {world_size}: need 0 <= rank < world_size"
            )
        policy = retention or Retention(latest=keep_latest)
        if chunk_bytes % 16 or not 16 <= chunk_bytes <= manifest.MAX_CHUNK:
            raise ValueError(
                f"chunk_bytes is {chunk_bytes}: need a multiple of 16 up to {manifest.MAX_CHUNK}"
            )
        self._store = store
        self._objects = store.objects
        self._fence = lease_fence
        self._base = base
        self._rank = rank
        self._world_size = world_size
        self._housekeeper = Housekeeper(store, policy, fence=lease_fence, restored=base)
        self._on_commit = on_commit
        self._on_error = on_error
        self._chunk = chunk_bytes
        self._shard = shard_bytes
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._thread: threading.Thread | None = None
        self._attempts: Counter[CommitRef] = Counter()
        self._stored: CommitRef | None = None
        self._closed = False
        self.last_commit: CommitRef | None = None
        """The newest commit that this rank has seen become durable."""
        self.error: Exception | None = None
        """Why the last save failed; None once one has succeeded."""

    def save(
        self,
        step: int,
        state: encoding.Tree,
        *,
        rank_state: encoding.Tree | None = None,
        meta: Mapping[str, Any] | None = None,
        wait: bool = False,
        deadline: float | None = None,
    ) -> float:
        """Snapshot the state and store it in the background; returns the seconds it took here.

        `state` must be the same on all ranks, `rank_state` belongs to this one; `meta` (plain
        values) is rank 0's and readable without tensors. All ranks must call with the same steps.
        The tensors may be changed as soon as this returns. `deadline` is a `time.monotonic()`
        value. With `wait` the call returns only when the checkpoint is durable.

        Raises `EncodingError` for what cannot be stored, `LeaseLost` (R15) when a newer attempt
        has taken over, `SaveTimeout` when the deadline passes; with `wait` also whatever made this
        save fail, otherwise that is kept in `error`.
        """
        started = time.monotonic()
        limit = started + COMMIT_SECONDS if deadline is None else deadline
        if self._closed:
            raise ValueError("this saver is closed; make a new one")
        flat = flatten(state)
        own = None if rank_state is None else flatten(rank_state)
        plain = encoding.decode(encoding.encode(dict(meta or {}), "meta"))
        self._drain(limit)
        if isinstance(self.error, LeaseLost):
            raise self.error
        ref = CommitRef(step=step, fence=self._fence)
        newest = max(filter(None, (self.last_commit, self._stored)), default=None)
        if newest is not None and step < newest.step:
            raise ValueError(
                f"step {step} is before step {newest.step}, which this attempt has saved already; "
                f"to go back, take a new lease and make a new Saver with that base"
            )
        if ref == self.last_commit:
            return time.monotonic() - started
        upload = None
        if ref != self._stored:
            upload = self._stage(ref, flat, own)
        job = _Job(ref=ref, started=started, limit=limit, wait=wait, meta=plain, upload=upload)
        self._thread = threading.Thread(
            target=self._run, args=(job,), name=f"rekindle-save-{step}", daemon=True
        )
        self._thread.start()
        if wait:
            # The thread keeps to the limit itself; the second is for it to say so.
            job.finished.wait(max(0.0, limit - time.monotonic()) + 1.0)
            if not job.finished.is_set():
                raise SaveTimeout(self._late(ref, "its upload did not end"))
            if job.error is not None:
                raise job.error
        return time.monotonic() - started

    def close(self, timeout: float = COMMIT_SECONDS) -> None:
        """Wait for the save in flight and release the memory; `SaveTimeout` if it does not end."""
        self._closed = True
        self._drain(time.monotonic() + timeout)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _drain(self, limit: float) -> None:
        """Wait until nothing is in flight."""
        thread = self._thread
        if thread is None:
            return
        thread.join(max(0.0, min(limit - time.monotonic(), threading.TIMEOUT_MAX)))
        if thread.is_alive():
            raise SaveTimeout(
                f"the save before ({thread.name}) is still in flight to {self._store.uri}: save "
                f"less often, or check the throughput of {self._objects.endpoint}"
            )
        self._thread = None

    # The snapshot

    def _stage(self, ref: CommitRef, flat: Any, own: Any | None) -> _Upload:
        replicated = list(flat.tensors.items())
        private = [] if own is None else list(own.tensors.items())
        tensors = replicated + private
        pieces = layout.share(
            [nbytes(tensor) for _, tensor in replicated],
            rank=self._rank,
            world_size=self._world_size,
            chunk=self._chunk,
        )
        pieces += [
            layout.Piece(tensor=index, start=0, stop=nbytes(tensor))
            for index, (_, tensor) in enumerate(private, start=len(replicated))
            if nbytes(tensor)
        ]
        packed = layout.pack(pieces, shard=self._shard, chunk=self._chunk)
        plans = shards.plan(packed, tensors)
        memory = self._copy(plans, tensors)
        self._attempts[ref] += 1
        return _Upload(
            plans=plans,
            memory=memory,
            entries=[
                TensorEntry(name=name, dtype=dtype_name(t), shape=tuple(t.shape), slices=())
                for name, t in tensors
            ],
            replicated=len(replicated),
            tree=flat.tree,
            rank_tree=None if own is None else own.tree,
            attempt=self._attempts[ref],
        )

    def _copy(
        self, plans: list[shards.ShardPlan], tensors: list[tuple[str, torch.Tensor]]
    ) -> list[memoryview]:
        """One copy into the host memory of this saver, which grows to the largest state seen."""
        devices = {tensor.device for _, tensor in tensors if tensor.device.type == "cuda"}
        total = sum(plan.size for plan in plans)
        if self._memory.numel() < total:
            self._memory = torch.empty(total, dtype=torch.uint8, pin_memory=bool(devices))
        at = 0
        filled: list[memoryview] = []
        for plan in plans:
            memory = self._memory[at : at + plan.size]
            shards.fill(plan, tensors, memory)
            filled.append(view(memory))
            at += plan.size
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return filled

    # The background thread

    def _run(self, job: _Job) -> None:
        try:
            if job.upload is not None:
                self._upload(job, job.upload)
                job.upload = None
            self._stored = job.ref
            commit = None
            if self._rank == 0:
                commit = self._commit(job)
                self._seen(job, commit.nbytes)
            elif job.wait:
                self._await_commit(job)
                self._seen(job, self._store.read(job.ref).nbytes)
        except Exception as error:  # whatever it is must reach the trainer, not die in a thread
            job.error = self.error = error
            log.warning("checkpoint of step %d was not committed: %s", job.ref.step, error)
            if self._on_error is not None:
                self._on_error(error)
            return
        finally:
            job.finished.set()
        if commit is not None:
            try:
                self._housekeeper.tidy(job.ref)
            except StoreError as error:
                # The checkpoint is durable; what is left over is found again after the next one.
                log.warning("old checkpoints in %s were not removed: %s", self._store.uri, error)

    def _seen(self, job: _Job, size: int) -> None:
        self.last_commit, self.error = job.ref, None
        if self._on_commit is not None:
            self._on_commit(job.ref, time.monotonic() - job.started, size)

    def _upload(self, job: _Job, upload: _Upload) -> None:
        """Shard objects, then the part that names them."""
        objects: list[manifest.ObjectEntry] = []
        slices: list[list[manifest.Slice]] = [[] for _ in upload.entries]
        for index, (plan, memory) in enumerate(zip(upload.plans, upload.memory, strict=True)):
            # A second try of a step must not touch objects that a part of the first may name.
            number = (upload.attempt - 1) * 10_000 + index
            key = manifest.data_key(job.ref, self._rank, number)
            entry, found = shards.describe(plan, key, memory, index, chunk=self._chunk)
            self._objects.put(key, memory)
            objects.append(entry)
            for tensor, piece in found:
                slices[tensor].append(piece)
            self._in_time(job, "its shards are not stored")
        entries = [
            TensorEntry(name=e.name, dtype=e.dtype, shape=e.shape, slices=tuple(own))
            for e, own in zip(upload.entries, slices, strict=True)
        ]
        state = entries[: upload.replicated]
        part = Part(
            ref=job.ref,
            rank=self._rank,
            world_size=self._world_size,
            chunk=self._chunk,
            layout=manifest.layout_digest((e.name, e.dtype, e.shape) for e in state),
            objects=tuple(objects),
            tensors=tuple(e for e in state if e.slices or self._rank == 0),
            tree=upload.tree if self._rank == 0 else None,
            rank_tensors=tuple(entries[upload.replicated :]),
            rank_tree=upload.rank_tree,
        )
        self._put_part(job, manifest.part_bytes(part))

    def _put_part(self, job: _Job, body: bytes) -> None:
        """Create the part; one that exists already is ours from a try whose answer was lost.

        That one is kept, and with it the objects it names: they hold the same step of the same
        attempt, and rank 0 may have read it already.
        """
        key = manifest.part_key(job.ref, self._rank)
        for attempt in range(5):
            try:
                self._objects.put(key, body, if_none_match=True)
            except PreconditionFailed:
                manifest.read_part(
                    self._objects.get(key, limit=manifest.MAX_DOCUMENT), job.ref, self._rank
                )
                return
            except (Conflict, Unreachable):
                # It may have arrived all the same; then the next try is told that it exists.
                if attempt == 4:
                    raise
                self._pause(job, attempt, "its part is not stored")
            else:
                return

    def _commit(self, job: _Job) -> Commit:
        commit = manifest.merge(
            self._collect(job),
            base=self._base,
            meta=job.meta,
            created=time.time(),
            mode=self._store.commit,
        )
        body = manifest.commit_bytes(commit)
        # The reader's own checks prove the coverage, before anybody could read a commit without it.
        manifest.read_commit(body, job.ref)
        self._check_objects(commit)
        self._check_lease()
        self._publish(job, commit, body)
        return commit

    def _collect(self, job: _Job) -> list[tuple[Part, bytes]]:
        """All parts in rank order, found by listing."""
        found: dict[int, tuple[Part, bytes]] = {}
        for attempt in range(10**9):
            for stat in self._objects.list(manifest.part_prefix(job.ref)):
                rank = manifest.rank_of(stat.key)
                if rank is None or rank in found or rank >= self._world_size:
                    continue
                raw = self._objects.get(stat.key, limit=manifest.MAX_DOCUMENT)
                found[rank] = (manifest.read_part(raw, job.ref, rank), raw)
            missing = sorted(set(range(self._world_size)) - set(found))
            if not missing:
                break
            if attempt % 10 == 9:
                self._check_lease()
                self._check_given_up(job, missing)
            self._pause(job, attempt, f"the parts of ranks {missing[:8]} are missing")
        return [found[rank] for rank in range(self._world_size)]

    def _check_given_up(self, job: _Job, missing: list[int]) -> None:
        """Do not wait for a rank whose save has failed: it shows by a part of a later step."""
        for stat in self._objects.list("part/"):
            ref = manifest.ref_of(stat.key)
            rank = manifest.rank_of(stat.key)
            if (
                ref is not None
                and rank in missing
                and ref.fence == self._fence
                and ref.step > job.ref.step
            ):
                raise SaveError(
                    f"checkpoint step {job.ref.step} was given up: rank {rank} could not store its "
                    f"part and has gone on to step {ref.step}; its own log says why"
                )

    def _check_objects(self, commit: Commit) -> None:
        """Every object that the parts promise is there in its full size."""
        prefix = manifest.data_prefix(commit.ref)
        sizes = {stat.key: stat.size for stat in self._objects.list(prefix)}
        for entry in commit.objects:
            if sizes.get(entry.key) != entry.size:
                raise ManifestError(
                    f"{entry.key} has {sizes.get(entry.key)} bytes in {self._store.uri}, but "
                    f"{entry.size} were stored"
                )

    def _check_lease(self) -> None:
        newest = self._store.newest_fence()
        if newest > self._fence:
            raise LeaseLost(
                f"R15 attempt {self._fence} lost the writer lease to attempt {newest} (this "
                f"process was declared dead but lives). This process stops; no data was "
                f"overwritten."
            )

    def _publish(self, job: _Job, commit: Commit, body: bytes) -> None:
        """The commit. Whoever gets no clear answer reads what is there."""
        key = manifest.commit_key(job.ref)
        for attempt in range(5):
            try:
                self._objects.put(key, body, if_none_match=True)
            except PreconditionFailed:
                if not self._is_committed(commit):
                    raise LeaseLost(
                        f"R15 another process commits with fence {self._fence}: {key} exists and "
                        f"holds something else. This process stops; no data was overwritten."
                    ) from None
                return
            except (Conflict, Unreachable):
                with contextlib.suppress(NotFound, Unreachable):
                    if self._is_committed(commit):
                        return
                if attempt == 4:
                    raise
                self._pause(job, attempt, "the store did not take the commit")
            else:
                return

    def _is_committed(self, commit: Commit) -> bool:
        """The commit that exists is this one (its time of creation aside)."""
        try:
            return self._store.read(commit.ref).parts == commit.parts
        except IntegrityError:
            return False

    def _await_commit(self, job: _Job) -> None:
        for attempt in range(10**9):
            try:
                self._objects.head(manifest.commit_key(job.ref))
            except NotFound:
                if attempt % 10 == 9:
                    self._check_lease()
                self._pause(job, attempt, "rank 0 has not committed it")
            else:
                return

    def _pause(self, job: _Job, attempt: int, why: str) -> None:
        """Sleep a little longer each time, and not past the deadline."""
        self._in_time(job, why)
        pause = min(0.5, 0.01 * 1.3 ** min(attempt, 30))
        time.sleep(min(pause, max(0.0, job.limit - time.monotonic())))

    def _in_time(self, job: _Job, why: str) -> None:
        if time.monotonic() >= job.limit:
            raise SaveTimeout(self._late(job.ref, why))

    def _late(self, ref: CommitRef, why: str) -> str:
        return (
            f"checkpoint step {ref.step} was not durable in {self._store.uri} by its deadline: "
            f"{why}. The newest checkpoint stays the one before."
        )
