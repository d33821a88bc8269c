"""The checkpoints of one attempt: from the state between two steps to what outlives this process.

A state goes two ways. A copy in the memory of the pods (`keeping`) is made often and survives the
workers; a snapshot that the saver commits to the store is made when `cadence` says so and survives
the pods. Both need a place in the run's line of commits: a save the fence of this attempt (`lease`)
and the commit that it was made on top of, a copy a note of the same, for the attempt that begins
from it. Keeping the two ways in step with that line is what `CheckpointSession` is for; going back
to an older step, and saving a step once more, mean a fence of one's own.

What to begin from is found by `restore`, or by `recall` in the members' memory. In that case the
lease is taken beside the training, and there is no saver before it is joined.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from rekindle.api import ENV_JOB, ENV_NAMESPACE, ENV_POD
from rekindle.checkpoint import CommitRef, EncodingError, SaveError, Saver
from rekindle.checkpoint.saving import flush
from rekindle.errors.outcome import Preempted, headline, lost_peer
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Flags
from rekindle.metrics import prometheus
from rekindle.peer_memory import store
from rekindle.peer_memory.restore import Recall, pod_name
from rekindle.peer_memory.schedule import Keeper
from rekindle.peer_memory.store import Ancestry, HostMemory
from rekindle.persistence.exported_files import ExportedFiles
from rekindle.persistence.grace_period import Grace
from rekindle.persistence.lease import SharedLease
from rekindle.persistence.policy import interval, retention
from rekindle.persistence.restore import Candidates, Found, Room, from_memory
from rekindle.persistence.save_schedule import Cadence
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

FLUSH_SECONDS = 20.0
"""How long a process that ends waits for the save in flight to become durable."""
_PEER_SECONDS = 3.0
"""The same when it ends because it has lost a peer."""
_BACK_SECONDS = 120.0
"""How long going back waits for the save in flight."""
_REACH_SECONDS = 5.0
"""How long a save waits for a store that is being opened, while training stands still."""
_BESIDE_SECONDS = 2.0
"""The same for the save of workers that leave, when a pod that stays holds the state."""


class CheckpointSession:
    """The checkpoints of one attempt, as one rank sees them."""

    def __init__(self, flags: Flags, world: World, page: ControlPage | None) -> None:
        """Nobody is asked anything yet: a `recall` that finds something, or `lease.take`, comes."""
        self.lease = SharedLease(world, flags, page)
        self.cadence = Cadence(every=interval(flags), first=world.first)
        self.keeper: Keeper | None = None
        """Makes copies in the pods' memory; None where no pod keeps any."""
        self.saver: Saver | None = None
        """None until the store is reached."""
        self.into: Room | None = None
        self.pending: int | None = None
        """Step of the newest save of this attempt, durable or not."""
        self.origin: str | None = None
        """The `ckpt_path` that this run's line of checkpoints was begun with."""
        self.save_seconds: float | None = None
        """What the newest save has taken, in this attempt or in the one before."""
        self.files = ExportedFiles(
            lambda: self.lease.store, lambda text: print(text, file=sys.stderr)
        )
        """Copies of commits under paths; rank 0's are written."""
        self._world, self._page = world, page
        self._retention = retention(flags)
        self._grace = Grace()
        self._recall: Recall | None = None
        self._line: Ancestry | None = None
        """What the copy descends from that this attempt began with."""
        self._base: CommitRef | None = None
        self._beside = False
        """Whether what is on its way is left to the process that uploads."""

    # Beginning.

    def recall(
        self, resume: str, start_from: str | None, *, shared: Collection[str] = ()
    ) -> Found | None:
        """Begin from the members' memory; None when the store has to be asked. Collective.

        Only copies of this very run count: same job, same store, and begun with the same
        `ckpt_path` if there is one. `shared`: see `Copy.state`.
        """
        if resume == "never":
            return None
        job = f"{os.environ.get(ENV_NAMESPACE, '')}/{os.environ.get(ENV_JOB, '')}"
        whose = store.identity(self.lease.uri, job)
        memory = HostMemory.from_environment()
        # "last" is whatever this run has come to, as it is without a ckpt_path.
        origin = None if start_from == "last" else start_from
        recall = Recall(self._world, memory, whose, pod_name(os.environ.get(ENV_POD)), origin)
        if not recall.able:
            return None
        self.keeper = Keeper(self._world, memory, whose, recall.generation)
        recalled = recall.recall()
        if recalled is None:
            recall.release()
            return None
        self._recall = recall
        return from_memory(recalled, self._world, start_from=start_from, shared=shared)

    @property
    def candidates(self) -> Candidates:
        """What is in the store to begin from, once the lease is there."""
        return Candidates(world=self._world, lease=self.lease, into=self.into)

    def begin(self, found: Found) -> None:
        """Make the saver, on top of what was found, which is in place by now."""
        restored, label = found.restored, found.label
        step = 0 if restored is None else restored.ref.step
        if self._recall is not None:
            self._recall.release()
            self._recall = None
        if self.keeper is not None:
            done = 0.0 if restored is None else restored.state["loop"]["productive_seconds"]
            self.keeper.begin(step, done, label)
        if label is None:
            self._make(None if restored is None or found.foreign else restored.ref)
        else:
            self._line = label.line
            self.lease.take_beside(label.line)
        self.origin = found.origin or self.origin
        if restored is not None and self.origin is None:
            self.origin = restored.meta.get("started_from")
        if restored is not None and not found.foreign and self.save_seconds is None:
            self.save_seconds = restored.meta.get("save_seconds")
            if self.save_seconds is not None:
                self._grace.weigh(step, self.save_seconds)
        unsaved = 0.0
        if restored is not None and label is not None:
            unsaved = float(restored.meta["unsaved_seconds"])
        # The end of a run has to be in its own store, even if no step is left to do.
        self.cadence.begin(-1 if found.foreign else step, unsaved_seconds=unsaved)

    def prepare(self, state: Any, rank_state: Any, weigh: Callable[[], int] | None) -> None:
        """Prove that such a state can be stored, and make room for its snapshots; collective.

        `weigh` is asked after the first step how large what steps have made (optimizer state) is.
        Raises `EncodingError` (with its R23) on all ranks, before training instead of at the first
        save.
        """
        saver = self.saver
        assert saver is not None
        error: Exception | None = None
        try:
            saver.prepare(state, rank_state=rank_state)
        except EncodingError as failure:
            error = RequirementError(f"R23 {failure} Training was not started.")
        except Exception as failure:
            error = failure
        self._world.agree(error)
        self.cadence.after_first_step = None if weigh is None else lambda: saver.expect(weigh())

    # Saving.

    def save(
        self,
        step: int,
        state: Any,
        rank_state: Any,
        meta: dict[str, Any],
        *,
        wait: bool = False,
        deadline: float | None = None,
        frozen: Collection[str] = (),
        beside: bool = False,
    ) -> None:
        """Hand a snapshot to the saver; raises what it raises when `wait`. Collective.

        `beside` says that a pod which stays holds the state: then nobody waits for a process that
        uploads, which goes on beside the next round.
        """
        self.pending = step
        self.cadence.note(step)
        left = math.inf if deadline is None else deadline - time.monotonic()
        patience = _BACK_SECONDS if wait else _REACH_SECONDS
        self._reach(max(0.0, min(_BESIDE_SECONDS if beside else patience, left)))
        assert self.saver is not None
        self._beside = beside
        self.saver.save(
            step,
            state,
            rank_state=rank_state,
            meta=meta,
            wait=wait,
            deadline=deadline,
            frozen=frozen,
            beside=beside,
        )

    def copy(
        self,
        step: int,
        state: Any,
        rank_state: Any,
        meta: dict[str, Any],
        *,
        began: float,
        must: bool = False,
    ) -> None:
        """Copy the state into the pods' memory; collective, see `Keeper.take`."""
        if self.keeper is None:
            return
        if not must and self.lease.pending and all(self._world.gather(self.lease.ready)):
            # As soon as the store is there: the first save finds its own memory touched then.
            self._reach(0.0)
            self.prepare(state, rank_state, None)
        line = self._line
        if self.saver is not None:
            line = Ancestry(fence=self.lease.fence, step=step, base=self._base)
        assert line is not None
        self.keeper.take(
            step,
            state,
            rank_state,
            {**meta, "unsaved_seconds": 0.0 if must else self.cadence.unsaved_seconds},
            productive=state["loop"]["productive_seconds"],
            line=line,
            origin=self.origin,
            began=began,
            must=must,
        )

    def stalled(self, seconds: float) -> str | None:
        """Take note of what a save has cost; a line for people when there is something to say."""
        return self.tight() or self.cadence.stalled(seconds)

    def tight(self) -> str | None:
        """R18, once, when a save takes too long for the grace period."""
        line = self._grace.take()
        return line if self._world.first else None

    def _reach(self, seconds: float) -> None:
        """Join the store that is being opened, if one is; collective, see `SharedLease.join`."""
        opened = self.lease.join(seconds)
        if opened is not None:
            self._make(opened.base)

    def _make(self, base: CommitRef | None) -> None:
        self._base = base
        self.saver = Saver(
            self.lease.store,
            lease_fence=self.lease.fence,
            base=base,
            rank=self._world.rank,
            world_size=self._world.size,
            retention=self._retention,
            on_commit=self._committed,
            on_error=lambda _error: prometheus.CHECKPOINT_ERRORS.inc(),
        )

    def _committed(self, ref: CommitRef, seconds: float, size: int) -> None:
        """Called from the saver's thread."""
        self.files.committed(ref)
        if self.keeper is not None:
            self.keeper.note(ref)
        self.cadence.committed(seconds)
        self.save_seconds = seconds
        self._grace.weigh(ref.step, seconds)
        now = time.time()
        if self._world.local_rank == 0:
            prometheus.committed(step=ref.step, seconds=seconds, size=size, now=now)
            if self._page is not None:
                self._page.committed(step=ref.step, at=now, seconds=seconds)

    # What became of it.

    def stays(self, step: int) -> bool:
        """Whether the copy of a step lies in a pod that is there for the next round; collective."""
        if self.keeper is None:
            return False
        mine = self.keeper.holds(step) and self._page is not None and self._page.stays
        return any(self._world.gather(mine))

    @property
    def last_commit(self) -> int | None:
        """Step of the newest commit that this rank knows of."""
        if self.saver is None or self.saver.last_commit is None:
            return None
        return self.saver.last_commit.step

    @property
    def in_flight(self) -> int | None:
        """Step of a snapshot that is staged and not known to be durable yet."""
        return None if self.saver is None or self.pending == self.last_commit else self.pending

    # Leaving the line, and ending.

    def back(self, step: int) -> Found:
        """Load the newest good checkpoint of `step` or before, and go on from there; collective.

        What was saved after it is no part of the run any more: it goes on under a fence of its own.
        """
        self._reach(_BACK_SECONDS)
        if self.keeper is not None:
            self.keeper.forget()
        self.close(_BACK_SECONDS)
        found = self.candidates.before(step)
        if found.restored is not None:
            self.lease.renew()
            self.begin(found)
            self.pending = found.restored.ref.step
        return found

    def renew(self, step: int) -> None:
        """Make it possible to save at `step` once more, if that was done already; collective.

        The position may move while the step does not: when samples are left out. A commit is named
        by its step and its fence, so the next one needs a fence of its own.
        """
        if self.saver is None or self.cadence.saved != step:
            return
        self.close(_BACK_SECONDS)
        flush.wait(self.lease.store.uri)
        base = self.saver.last_commit
        self.lease.renew()
        self._make(self._world.share(base))
        self.cadence.saved = -1

    def failed(self, error: BaseException, step: int) -> None:
        """Let the save in flight end after an error (or `Preempted`) that came after `step`.

        No collective: the peers may be gone (R24).
        """
        try:
            self._end_of_failed(error, step)
            # What is not written by then is made anew when the run goes on.
            self.files.settle(_PEER_SECONDS)
        finally:
            self.lease.leave()

    def _end_of_failed(self, error: BaseException, step: int) -> None:
        if isinstance(error, Preempted):
            self.close(FLUSH_SECONDS if error.saved else 0.0)
            return
        if self.in_flight is not None:
            print(
                f"R24 rank {self._world.rank} failed in step {step + 1}: {headline(error)}. "
                f"Flushing the snapshot of step {self.in_flight} (already staged).",
                file=sys.stderr,
            )
        # Without its peers a save in flight rarely completes, and a new round waits.
        self.close(_PEER_SECONDS if lost_peer(error) else FLUSH_SECONDS)

    def end(self, timeout: float) -> None:
        """The run is through: let the save in flight end, and give up the right to write."""
        self.close(timeout)
        self.files.settle()
        self.lease.release()

    def close(self, timeout: float) -> bool:
        """Let the save in flight end, at most `timeout` seconds; whether it did."""
        if self.keeper is not None:
            try:
                self.keeper.settle()
            except TimeoutError as error:
                print(f"rank {self._world.rank}: {error}", file=sys.stderr)
        if self.saver is None:
            return True
        if self._beside:
            # Nobody waits for what comes after a commit: the next round is about to begin.
            self.saver.abandon()
            return True
        try:
            self.saver.close(timeout)
        except SaveError:
            return False
        return True
