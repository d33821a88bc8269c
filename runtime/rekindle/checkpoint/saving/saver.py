"""Saving without stopping: one copy of what this rank has to store, and the training goes on.

`save` copies this rank's share into host memory that already exists, and returns. Everything after
that (`writer`) happens beside the training, coordinated through the store alone: no collective runs
outside the training's own thread, so a dead rank costs one checkpoint, never a hang.

Where the copy goes depends on what there is to store:

- **small states** (below PROCESS_BYTES) into memory of this process, stored by a thread. They are
  done before another process would have started.
- **large ones** into one of two slots of shared memory (`snapshot`), stored by a process of their
  own (`uploader`), which does not compete for the interpreter and finishes if this process dies.
- **larger ones than the memory takes** nowhere: the shards are stored one by one through a small
  buffer while the training waits. A line in the log says so.

Back-pressure is explicit. A slot is not touched before what it holds is stored; with both of them
full, `save` waits. So there are never two uploads of one slot, and never more memory than the
slots. A save that fails in the background does not end the training: it is kept in `error`,
reported to `on_error`, and the next save is a new try. Shard objects of a repeated try get new
names, so nothing that an earlier part refers to is ever overwritten.

Parameters that are named as `frozen` are not stored again while their bytes stay the same: their
checksums are computed in place, and the part refers to the object of the earlier checkpoint.

Steps of one attempt only grow. To go back to an older checkpoint within a process, take a new lease
and make a new saver whose base is that checkpoint; the live line (`lineage`) then follows it.
"""

import contextlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rekindle import threads
from rekindle.checkpoint import shards
from rekindle.checkpoint.format import encoding, layout, manifest, packing
from rekindle.checkpoint.format.layout import Box
from rekindle.checkpoint.format.manifest import CommitRef, TensorEntry
from rekindle.checkpoint.format.packing import LocalShard, ShardPlan
from rekindle.checkpoint.format.tensors import Flat, dtype_name, flatten, nbytes, view
from rekindle.checkpoint.retention import Retention
from rekindle.checkpoint.saving import snapshot_memory as memory
from rekindle.checkpoint.saving.frozen import Frozen
from rekindle.checkpoint.saving.snapshot import SnapshotMemory
from rekindle.checkpoint.saving.uploader_client import Uploader
from rekindle.checkpoint.saving.writer import SaveError, SaveTimeout, Task, Writer, late
from rekindle.checkpoint.store import LeaseLost, Store

__all__ = ["COMMIT_SECONDS", "SaveError", "SaveTimeout", "Saver"]

log = logging.getLogger(__name__)

COMMIT_SECONDS = 600.0
"""How long a save may take when the caller sets no deadline."""
TIDY_SECONDS = 60.0
"""For threads whose work is done to be gone. An interpreter that ends while one of them frees
tensors goes down with it; one that the system holds up longer than that is left behind."""
PROCESS_BYTES = 16 * 2**20
"""From this size on a snapshot is stored by a process of its own.

Measured on two cores: 16 MiB are committed 18 ms after the call by a thread and 40 ms by a process,
which takes another 130 ms to start and 14 to 30 MB; at 512 MiB the training's own time decides.
"""
_TICKET_BYTES = 256 * 2**10
"""Room that is kept for tickets to grow."""
DIRECT_BYTES = 64 * 2**20
"""Size of the buffer, and of the shards, when there is no memory for a snapshot."""


@dataclass(eq=False, kw_only=True)
class _Job:
    """One save on its way. Its methods are called by whoever stores it, in this order."""

    saver: "Saver"
    ref: CommitRef
    started: float
    slot: int | None = None
    """The slot that holds the snapshot until it is stored."""
    error: Exception | None = None
    thread: threading.Thread | None = None
    released: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def stored(self) -> None:
        self.saver._stored = self.ref
        self.saver._frozen.stored(self.ref)
        self.released.set()

    def committed(self, size: int) -> None:
        self.saver._committed(self, size)
        self.finished.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self.saver._failed(error)
        self.released.set()
        self.finished.set()

    def done(self) -> None:
        self.released.set()
        self.finished.set()
        self.ended.set()


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a state of known names, types and shapes is stored; the same from save to save."""

    signature: object
    plans: tuple[ShardPlan, ...]
    entries: tuple[TensorEntry, ...]
    replicated: int
    size: int


class Saver:
    """Saves of one rank in one attempt.

    `on_commit(ref, seconds, bytes)` and `on_error(error)` are called from a background thread;
    seconds count from the call of `save`, bytes are those of all ranks. On ranks above 0 a commit
    is noticed only by `wait=True`. `slots` is how many snapshots may exist at once; `process` says
    where they are stored (None: by size).
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
        slots: int = 2,
        process: bool | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}, world_size {world_size}: need 0 <= rank < world_size"
            )
        if chunk_bytes % 16 or not 16 <= chunk_bytes <= manifest.MAX_CHUNK:
            raise ValueError(
                f"chunk_bytes is {chunk_bytes}: need a multiple of 16 up to {manifest.MAX_CHUNK}"
            )
        if slots not in {1, 2}:
            raise ValueError(f"slots is {slots}: one or two snapshots can be kept in memory")
        if process and store.origin is None:
            raise ValueError(
                "process=True needs a store made by Store.open(), which another process can open"
            )
        self._store = store
        self._fence = lease_fence
        self._base = base
        self._rank = rank
        self._world_size = world_size
        self._policy = retention or Retention(latest=keep_latest)
        self._writer = Writer(store, fence=lease_fence, base=base, policy=self._policy)
        self._on_commit = on_commit
        self._on_error = on_error
        self._chunk = chunk_bytes
        self._shard = shard_bytes
        self._wanted_slots = slots
        self._process = process
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._slots: list[SnapshotMemory] = []
        self._usable = 0
        self._registered: dict[SnapshotMemory, int] = {}
        self._toucher: threading.Thread | None = None
        self._uploader: Uploader | None = None
        self._number = 0
        self._noticed: set[str] = set()
        self._jobs: list[_Job] = []
        self._layout: _Layout | None = None
        self._frozen = Frozen(store, base=base, chunk=chunk_bytes)
        self._attempts: Counter[CommitRef] = Counter()
        self._stored: CommitRef | None = None
        self._closed = False
        self.last_commit: CommitRef | None = None
        """The newest commit that this rank has seen become durable."""
        self.error: Exception | None = None
        """Why the last save failed; None once one has succeeded."""

    def prepare(self, state: encoding.Tree, *, rank_state: encoding.Tree | None = None) -> None:
        """Check that this state can be stored, and make its snapshots' memory ready.

        Call it before training, with a state as complete as it can be then: what cannot be encoded
        raises `EncodingError` with its path now and not at the first save. Memory is touched in the
        background.
        """
        flat = flatten(state)
        own = None if rank_state is None else flatten(rank_state)
        plan = self._lay_out(flat, own, frozenset(), frozenset())
        if self._by_process(plan.size):
            self._reserve(plan.size + _TICKET_BYTES, limit=None)

    def expect(self, more: int) -> None:
        """Make room for so many bytes more of replicated tensors than `prepare` has seen."""
        size = (0 if self._layout is None else self._layout.size) + -(-more // self._world_size)
        if self._by_process(size):
            self._reserve(size + _TICKET_BYTES, limit=None)

    def save(
        self,
        step: int,
        state: encoding.Tree,
        *,
        rank_state: encoding.Tree | None = None,
        meta: Mapping[str, Any] | None = None,
        wait: bool = False,
        deadline: float | None = None,
        frozen: Collection[str] = (),
        beside: bool = False,
    ) -> float:
        """Snapshot the state and store it in the background; returns the seconds it took here.

        `state` must be the same on all ranks (or sharded, as `DTensor`s), `rank_state` belongs to
        this one; `meta` (plain values) is rank 0's and readable without tensors. All ranks must
        call with the same steps. The tensors may be changed as soon as this returns. `deadline` is
        a `time.monotonic()` value. With `wait` the call returns only when the checkpoint is
        durable. `frozen` names tensors (`model.backbone.weight`) that rarely change, if ever; the
        same on all ranks. `beside` leaves a snapshot that has been handed to another process to it,
        whatever `wait` says; call `abandon` then, and end this process.

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
        plain = encoding.encode(dict(meta or {}), "meta")
        ref = CommitRef(step=step, fence=self._fence)
        if any(job.ref == ref or job.slot is None for job in self._jobs):
            # One after the other, wherever they are stored, so that steps stay in order.
            self._drain(limit)
        known = self._frozen.unchanged(flat, self._frozen_pieces(flat, frozen))
        plan = self._lay_out(flat, own, frozenset(frozen), frozenset(known))
        by_process = self._by_process(plan.size)
        if not by_process or self._stored == ref:
            self._drain(limit)
        if isinstance(self.error, LeaseLost):
            raise self.error
        newest = max(filter(None, (self.last_commit, self._stored, *self._refs())), default=None)
        if newest is not None and step < newest.step:
            raise ValueError(
                f"step {step} is before step {newest.step}, which this attempt has saved already; "
                f"to go back, take a new lease and make a new Saver with that base"
            )
        if ref == self.last_commit:
            return time.monotonic() - started
        fresh = ref != self._stored
        if fresh:
            self._attempts[ref] += 1
        task = Task(
            ref=ref,
            base=self._base,
            rank=self._rank,
            world_size=self._world_size,
            chunk=self._chunk,
            limit=limit,
            wait=wait,
            meta=plain,
            plans=plan.plans,
            known=tuple(piece for pieces in known.values() for piece in pieces),
            entries=plan.entries,
            replicated=plan.replicated,
            tree=flat.tree,
            rank_tree=None if own is None else own.tree,
            attempt=self._attempts[ref],
        )
        job = _Job(saver=self, ref=ref, started=started)
        sources = [*flat.tensors.values(), *([] if own is None else own.tensors.values())]
        if not fresh:
            self._in_thread(job, task, None)
        elif not by_process:
            self._in_thread(job, task, self._copy(task.plans, sources))
        elif not self._in_process(job, task, sources, limit):
            self._drain(limit)
            self._shard = min(self._shard, DIRECT_BYTES)
            plan = self._lay_out(flat, own, frozenset(frozen), frozenset(known))
            self._directly(job, replace(task, plans=plan.plans), sources)
        if wait and not (beside and job.slot is not None):
            # The other side keeps to the limit itself; the second is for it to say so.
            job.finished.wait(_seconds(limit) + 1.0)
            if not job.finished.is_set():
                raise SaveTimeout(late(ref, self._store, "its upload did not end"))
            if job.error is not None:
                raise job.error
        return time.monotonic() - started

    def close(self, timeout: float = COMMIT_SECONDS) -> None:
        """Wait for the saves in flight and release the memory; `SaveTimeout` if they do not end."""
        self._closed = True
        try:
            self._drain(time.monotonic() + timeout)
        finally:
            touched = self._touched(TIDY_SECONDS)
            if self._uploader is not None:
                # With work left it goes on by itself, and ends when that is done.
                busy = any(not job.ended.is_set() for job in self._jobs)
                self._uploader.close(0.0 if busy else 5.0)
                self._uploader = None
            for slot in self._slots if touched else ():
                self._unregister(slot)
                slot.close()
            self._slots = []
            self._memory = torch.empty(0, dtype=torch.uint8)

    def abandon(self) -> None:
        """Leave what is in flight to the process that stores it, if there is one.

        It goes on as that of a dead trainer, which no newer attempt stops before it has committed
        something itself; so end this process soon.
        """
        if self._uploader is None or all(job.ended.is_set() for job in self._jobs):
            return
        self._closed = True
        self._uploader.abandon()
        self._uploader = None

    # What is in flight

    def _refs(self) -> list[CommitRef]:
        self._jobs = [
            job
            for job in self._jobs
            if not job.ended.is_set() or (job.thread is not None and job.thread.is_alive())
        ]
        return [job.ref for job in self._jobs]

    def _drain(self, limit: float) -> None:
        """Wait until nothing is in flight."""
        for job in list(self._jobs):
            if not job.ended.wait(_seconds(limit)):
                raise SaveTimeout(self._congested(job))
            if job.thread is not None:
                # An interpreter that ends at this moment must not find it half alive.
                job.thread.join(TIDY_SECONDS)
        self._jobs = []

    def _congested(self, job: _Job) -> str:
        return (
            f"the save before (step {job.ref.step}) is still in flight to {self._store.uri}: save "
            f"less often, or check the throughput of {self._store.objects.endpoint}"
        )

    def _committed(self, job: _Job, size: int) -> None:
        self.last_commit, self.error = job.ref, None
        if self._on_commit is not None:
            self._on_commit(job.ref, time.monotonic() - job.started, size)

    def _failed(self, error: Exception) -> None:
        self.error = error
        if self._on_error is not None:
            self._on_error(error)

    # What is stored where

    def _frozen_pieces(self, flat: Flat, frozen: Collection[str]) -> dict[str, list[layout.Piece]]:
        """What of the frozen tensors this rank has to store, unless it is stored already."""
        if unknown := sorted(set(frozen) - set(flat.tensors)):
            raise ValueError(f"frozen names no tensors of the state: {unknown[:5]}")
        names = list(flat.tensors)
        found: dict[str, list[layout.Piece]] = {name: [] for name in frozen}
        for piece in self._pieces(flat, found.__contains__) if found else ():
            found[names[piece.tensor]].append(piece)
        return found

    def _pieces(self, flat: Flat, chosen: Callable[[str], bool]) -> list[layout.Piece]:
        """This rank's share of the chosen tensors: 1/W of replicated ones, its box of others."""
        sizes = [
            nbytes(tensor) if name not in flat.boxes and chosen(name) else 0
            for name, tensor in flat.tensors.items()
        ]
        pieces = layout.share(
            sizes, rank=self._rank, world_size=self._world_size, chunk=self._chunk
        )
        for index, (name, tensor) in enumerate(flat.tensors.items()):
            box = flat.boxes.get(name)
            if box is not None and chosen(name) and index % box.replicas == box.replica:
                pieces += layout.box_pieces(box, tensor.element_size(), index)
        return sorted(pieces, key=lambda piece: (piece.tensor, piece.start))

    def _lay_out(
        self, flat: Flat, own: Flat | None, frozen: frozenset[str], known: frozenset[str]
    ) -> _Layout:
        """The plan for such a state; computed once as long as names, types and shapes stay."""
        tensors = [*flat.tensors.items(), *([] if own is None else own.tensors.items())]
        signature = (
            [(name, tensor.dtype, tensor.shape) for name, tensor in tensors],
            flat.boxes,
            len(flat.tensors),
            frozen,
            known,
            self._shard,
        )
        if self._layout is not None and self._layout.signature == signature:
            return self._layout
        if own is not None and own.boxes:
            raise encoding.EncodingError(
                f"rank_state.{next(iter(own.boxes))}: a sharded DTensor belongs into the state, "
                f"where all ranks' shards make one tensor"
            )
        # Frozen ones are dealt out by themselves, and alike whether they are stored or not.
        pieces = self._pieces(flat, lambda name: name not in frozen)
        if frozen - known:
            names = list(flat.tensors)
            mine = self._pieces(flat, frozen.__contains__)
            pieces += [piece for piece in mine if names[piece.tensor] not in known]
        pieces += [
            layout.Piece(tensor=index, start=0, stop=nbytes(tensor))
            for index, (_, tensor) in enumerate(tensors[len(flat.tensors) :], len(flat.tensors))
            if nbytes(tensor)
        ]
        held = [
            LocalShard(name=name, dtype=dtype_name(t), shape=tuple(t.shape), nbytes=nbytes(t))
            for name, t in tensors
        ]
        packed = layout.pack(pieces, shard=self._shard, chunk=self._chunk)
        plans = tuple(packing.plan(packed, held))
        self._layout = _Layout(
            signature=signature,
            plans=plans,
            entries=tuple(
                TensorEntry(
                    name=name, dtype=dtype_name(t), shape=_whole(t, flat.boxes.get(name)), slices=()
                )
                for name, t in tensors
            ),
            replicated=len(flat.tensors),
            size=sum(plan.size for plan in plans),
        )
        return self._layout

    # In this process

    def _copy(self, plans: Sequence[ShardPlan], sources: list[torch.Tensor]) -> list[memoryview]:
        """One copy into memory of this process, which grows to the largest state seen."""
        size = sum(plan.size for plan in plans)
        if self._memory.numel() < size:
            pinned = any(source.device.type == "cuda" for source in sources)
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return _fill(plans, sources, self._memory)

    def _in_thread(self, job: _Job, task: Task, staged: list[memoryview] | None) -> None:
        def run() -> None:
            try:
                self._writer.run(task, staged, job)
            finally:
                job.done()

        self._jobs.append(job)
        job.thread = threads.task(run, name=f"rekindle-save-{task.ref.step}")

    def _directly(self, job: _Job, task: Task, sources: list[torch.Tensor]) -> None:
        """Store the shards one by one; only the commit is left for the background."""
        try:
            found = []
            for index, plan in enumerate(task.plans):
                (staged,) = self._copy([plan], sources)
                found.append(self._writer.put_shard(task, plan, staged, index))
            self._writer.put_part(task, found)
        except Exception as error:
            log.warning("checkpoint of step %d was not committed: %s", task.ref.step, error)
            self._writer.disturbed()
            job.failed(error)
            job.done()
        else:
            self._in_thread(job, task, None)

    # In another process

    def _by_process(self, size: int) -> bool:
        """Whether a snapshot of this size goes through a slot, if there is memory for one."""
        if self._process is not None:
            return self._process
        return size >= PROCESS_BYTES and self._store.origin is not None

    def _in_process(self, job: _Job, task: Task, sources: list[torch.Tensor], limit: float) -> bool:
        """Copy into a slot and hand it over; False if there is no memory, or no process."""
        ticket = json.dumps(task.to_json(), separators=(",", ":")).encode()
        if not self._reserve(task.size + len(ticket), limit=limit):
            return False
        index = self._free_slot(limit)
        slot = self._slots[index]
        try:
            slot.reserve(task.size + len(ticket))
            if self._uploader is None or not self._uploader.alive:
                self._start_uploader()
        except OSError as error:
            self._notice(f"it cannot be stored in the background ({error})")
            return False
        assert self._uploader is not None
        self._number += 1
        job.slot = index
        memory = slot.memory(task.size)
        _fill(task.plans, sources, self._registered_view(slot, memory, sources))
        slot.complete(self._number, task.size, ticket)
        self._jobs.append(job)
        self._uploader.submit(self._number, job)
        return True

    def _start_uploader(self) -> None:
        if self._uploader is not None:
            self._uploader.close(0.0)
        self._uploader = Uploader(
            self._store, self._slots, fence=self._fence, base=self._base, policy=self._policy
        )

    def _free_slot(self, limit: float) -> int:
        """A slot whose content is stored; waits for one."""
        while True:
            taken = [job for job in self._jobs if not job.released.is_set()]
            free = set(range(self._usable)) - {job.slot for job in taken}
            if free:
                return min(free)
            if not taken[0].released.wait(_seconds(limit)):
                raise SaveTimeout(self._congested(taken[0]))

    def _touched(self, seconds: float) -> bool:
        """Wait for the thread that makes room; whether it has ended, and the slots may be used."""
        if self._toucher is not None:
            self._toucher.join(seconds)
            if self._toucher.is_alive():
                return False
            self._toucher = None
        return True

    def _reserve(self, capacity: int, *, limit: float | None) -> bool:
        """Make the slots large enough, as many as memory allows; whether there is any by then.

        With None it begins to, and does not wait.
        """
        if not self._touched(COMMIT_SECONDS if limit is None else _seconds(limit)):
            return False
        if not self._slots:
            self._slots = [SnapshotMemory.create() for _ in range(self._wanted_slots)]
        if self._usable and all(s.capacity >= capacity for s in self._slots[: self._usable]):
            return True
        capacity += capacity // 100 + _TICKET_BYTES
        free = memory.available()
        usable = self._wanted_slots
        if free is not None:
            missing = [max(0, capacity - slot.capacity) for slot in self._slots]
            while usable and sum(missing[:usable]) > free * memory.SHARE:
                usable -= 1
            if usable < self._wanted_slots:
                how = "training waits for each upload to end"
                if usable:
                    how = "one snapshot is kept at a time"
                self._notice(
                    f"{capacity / 2**20:.0f} MiB per snapshot, {free / 2**20:.0f} MiB available: "
                    f"{how}"
                )
        self._usable = usable
        slots = self._slots[:usable]
        for slot in slots:
            if slot.capacity < capacity:
                self._unregister(slot)

        def touch() -> None:
            for slot in slots:
                # What cannot be had is found out by the save, which then does without.
                with contextlib.suppress(OSError):
                    slot.reserve(capacity)

        if usable:
            self._toucher = threads.task(touch, name="rekindle-touch")
        return usable > 0 and (limit is None or self._touched(_seconds(limit)))

    def _notice(self, why: str) -> None:
        """Say once that saving is not as it should be."""
        if why not in self._noticed:
            self._noticed.add(why)
            log.warning("R5 checkpoints in %s: %s", self._store.uri, why)

    def _registered_view(
        self, slot: SnapshotMemory, memory: memoryview, sources: list[torch.Tensor]
    ) -> torch.Tensor:
        """The slot as a tensor; page-locked for copies from a GPU, which are twice as fast then."""
        if not memory:
            return torch.empty(0, dtype=torch.uint8)
        staged = torch.frombuffer(memory, dtype=torch.uint8)
        if slot not in self._registered and any(s.device.type == "cuda" for s in sources):
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            code = cudart.cudaHostRegister(staged.data_ptr(), slot.capacity, 0)
            if int(code) == 0:
                self._registered[slot] = staged.data_ptr()
            else:
                self._notice(f"its memory could not be page-locked (CUDA error {int(code)})")
        return staged

    def _unregister(self, slot: SnapshotMemory) -> None:
        address = self._registered.pop(slot, None)
        if address is not None:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _fill(
    plans: Sequence[ShardPlan], sources: list[torch.Tensor], staged: torch.Tensor
) -> list[memoryview]:
    """Copy all shards, one after the other, and wait until the copies have been made."""
    at = 0
    filled: list[memoryview] = []
    for plan in plans:
        target = staged[at : at + plan.size]
        shards.fill(plan, sources, target)
        filled.append(view(target))
        at += plan.size
    for device in {source.device for source in sources if source.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return filled


def _whole(tensor: torch.Tensor, box: Box | None) -> tuple[int, ...]:
    return tuple(tensor.shape) if box is None else box.shape


def _seconds(limit: float) -> float:
    """From now to a deadline, as the waiting functions take it."""
    return max(0.0, min(limit - time.monotonic(), threading.TIMEOUT_MAX))
