"""A run's side of its checkpoints: where they are, which one to begin from, when to save.

All ranks have to begin from the same checkpoint. Rank 0 picks a candidate, every rank loads and
verifies what it needs of it, and only if all of them are content is it used; otherwise it is marked
as damaged and all go on to the one before, together. What that cost is said (R16).

The root that the job names (environment) wins over the one in the script, so that a script written
for a laptop runs unchanged on a cluster. How it is reached (`flags.store_options`) is part of that.

Where workers are replaced within a pod, the memory of the job's pods comes first (`recall`): what a
member holds need not be asked of a store. The store is then opened beside the training (`opening`)
and joined at the first save (`reached`). Nothing is lost by that: the same run has proven before
that it can write there (R5), and commits keep to one line because the new fence goes back to the
newest commit that the state in memory descends from. Should the store hold a later one all the
same, of an attempt whose memory is gone, it is off the line from our first commit on, like the work
of any attempt that nobody continued.
"""

import contextlib
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from rekindle import telemetry
from rekindle.checkpoint import (
    CommitRef,
    EncodingError,
    IntegrityError,
    InvalidLocation,
    Restored,
    SaveError,
    Saver,
    Store,
    StoreError,
    flush,
    hostcopy,
)
from rekindle.checkpoint.adoption import adopt
from rekindle.checkpoint.hostcopy import HostMemory, Label, Line
from rekindle.checkpoint.interval import Pace
from rekindle.checkpoint.location import check_options
from rekindle.checkpoint.manifest import TensorEntry, commit_key
from rekindle.checkpoint.objects import NotFound
from rekindle.checkpoint.retention import Best, Retention
from rekindle.contract import ENV_CHECKPOINT_URI, ENV_GRACE, ENV_JOB, ENV_NAMESPACE, ENV_POD
from rekindle.control import ControlPage
from rekindle.distributed import World
from rekindle.flags import Every, Flags, cadence, retention, store_options
from rekindle.keeping import Keeper
from rekindle.opening import Opened, Opening, owner
from rekindle.recall import Recall, pod_name
from rekindle.requirement import RequirementError, code_of
from rekindle.resolving import Target, choose, whole

_BACK_SECONDS = 120.0
"""How long going back waits for the save in flight."""
_T = TypeVar("_T")
_REACH_SECONDS = 5.0
"""How long a save waits for a store that is being opened, while training stands still."""
_BESIDE_SECONDS = 2.0
"""The same for the save of workers that leave, when a pod that stays holds the state."""
_ATTEMPTS = 1 << 20
"""Added to the number of an attempt that began from memory, which is none of the store's."""
_STARTED = "Training was not started."
"""How R5 ends when the store is the first thing that is needed."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


def root(flags: Flags) -> tuple[str, str | None]:
    """The checkpoint URI of this run, and a line of notice when it is not the script's own."""
    wanted = flags.root
    if not _SCHEME.match(wanted):
        # A relative path means the directory that the script was started in.
        wanted = os.path.abspath(wanted)
    job = os.environ.get(ENV_CHECKPOINT_URI)
    if not job or job == wanted:
        return wanted, None
    return job, f"checkpoints go to {job}, as the job says, and not to {wanted}"


def begun(flags: Flags) -> bool:
    """Whether this run has a checkpoint that can be resumed."""
    return bool(Store.open(root(flags)[0], **store_options(flags)).commits())


def grace_seconds() -> float | None:
    """Time between a notice and the end, as far as the environment tells."""
    told = os.environ.get(ENV_GRACE)
    if told:
        return float(told)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or 30)
    return None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run begins from."""

    restored: Restored | None
    skipped: tuple[str, ...]
    """R16 messages about newer checkpoints that are damaged."""
    foreign: bool = False
    """Whether it is a checkpoint of another run, which this run's history does not contain."""
    source: str = "scratch"
    """Where it came from, as `contract.Restored` has it."""
    label: Label | None = None
    """Of the copy in memory that it is; None for a commit."""


@dataclass(kw_only=True)
class Session:
    """The checkpoints of one attempt, as one rank sees them."""

    world: World
    uri: str
    every: Every | Pace | None
    page: ControlPage | None
    options: Mapping[str, str] = field(default_factory=dict)
    """How the store is reached."""
    fence: int = 0
    saver: Saver | None = None
    last_saved: int = -1
    """Step of the newest save of this attempt, or of the checkpoint it began from."""
    pending: int | None = None
    """Step of the newest save of this attempt, durable or not."""
    last_time: float = field(default_factory=time.monotonic)
    wanted: bool = False
    """Whether something asked, on every rank, for a save before the next step."""
    weigh: Callable[[], int] | None = None
    """Asked once, after the first step: how large what steps have made (optimizer state) is."""
    into: Callable[[Sequence[TensorEntry]], Mapping[str, torch.Tensor]] | None = None
    """Makes room for the shares of stored tensors, when this rank is to have no more of them."""
    origin: str | None = None
    """The `ckpt_path` that this run's line of checkpoints was begun with."""
    _keep: Retention = field(default_factory=Retention)
    _told: bool = False
    _told_grace: bool = False
    _tight: str | None = None
    """A line about the grace period that nobody has seen yet."""
    save_seconds: float | None = None
    """What the newest save has taken, in this attempt or in the one before."""
    keeper: Keeper | None = None
    """Makes copies in the pods' memory; None where no pod keeps any."""
    _store: Store | None = None
    _recall: Recall | None = None
    _opening: Opening | None = None
    """The store is being opened in the background; until then there is no saver."""
    _line: Line | None = None
    """What the copy descends from that this attempt began with."""
    _base: CommitRef | None = None
    _beside: bool = False
    """Whether what is on its way is left to the process that uploads."""

    @classmethod
    def open(cls, flags: Flags, world: World, page: ControlPage | None) -> "Session":
        """Prove that checkpoints can be written (R5), and take the lease; collective."""
        session = cls.of(flags, world, page)
        session.reach(flags)
        return session

    @classmethod
    def of(cls, flags: Flags, world: World, page: ControlPage | None) -> "Session":
        """A session that has asked nobody anything yet."""
        return cls(
            world=world,
            uri=root(flags)[0],
            every=cadence(flags),
            page=page,
            options=store_options(flags),
            _keep=retention(flags),
        )

    @property
    def store(self) -> Store:
        """Where the checkpoints are; making it asks nothing of the store."""
        if self._store is None:
            self._store = Store.open(self.uri, **self.options)
        return self._store

    def reach(self, flags: Flags) -> None:
        """Prove that checkpoints can be written (R5), and take the lease; collective."""
        error: Exception | None = None
        fence = 0
        try:
            if root(flags)[1] is None:
                # Else they were meant for the script's root, and this one is the job's.
                check_options(self.uri, {option: f"store[{option!r}]" for option in flags.store})
            store = self.store
            if self.world.first:
                store.probe(uuid.uuid4().hex[:12])
                fence = store.acquire(owner=owner()).fence
        except Exception as failure:
            error = failure
            if isinstance(failure, StoreError | InvalidLocation):
                error = self._unwritable(failure, _STARTED)
        self.world.agree(error)
        self.fence = self.world.share(fence)

    def _unwritable(self, error: Exception, what: str) -> Exception:
        """R5, unless the error has a code of its own."""
        if code_of(str(error)) is not None:
            return error
        return RequirementError(f"R5 cannot write checkpoints to {self.uri}: {error} {what}")

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
        whose = hostcopy.identity(self.uri, job)
        memory = HostMemory.from_environment()
        # "last" is whatever this run has come to, as it is without a ckpt_path.
        origin = None if start_from == "last" else start_from
        recall = Recall(self.world, memory, whose, pod_name(os.environ.get(ENV_POD)), origin)
        if not recall.able:
            return None
        self.keeper = Keeper(self.world, memory, whose, recall.generation)
        recalled = recall.recall()
        if recalled is None:
            recall.release()
            return None
        self._recall = recall
        copy, label = recalled.copy, recalled.copy.label
        self.origin = start_from or label.origin
        self._line = label.line
        same = label.world_size == self.world.size
        return Found(
            restored=Restored(
                ref=CommitRef(step=label.step, fence=label.line.fence),
                state=copy.state(shared=shared),
                rank_state=copy.rank_state(self.world.rank) if same else None,
                meta=copy.meta,
                world_size=label.world_size,
            ),
            skipped=(),
            source="memory" if recalled.giver is None else f"memory of {recalled.giver}",
            label=label,
        )

    def attempt(self, found: Found) -> int:
        """A number that no attempt before has had, or 0 for a run that begins."""
        if found.restored is None:
            return 0
        return self.fence if found.label is None else _ATTEMPTS + found.label.serial.generation

    def find(self, resume: str) -> Found:
        """Load the newest checkpoint that is good on every rank; collective."""
        if resume == "never":
            return Found(restored=None, skipped=())
        # What a worker that was here before has left in memory may be about to become the newest.
        flush.wait(self.store.uri)
        self.world.barrier()
        refs = self._candidates()
        damaged: list[tuple[CommitRef, str]] = []
        for ref in refs:
            restored, reason = self._load(ref)
            if restored is not None:
                skipped = tuple(
                    f"{text} Falling back to step {ref.step} ({bad.step - ref.step} steps lost)."
                    for bad, text in damaged
                )
                return Found(restored=restored, skipped=skipped, source=_named(self.uri, ref))
            if reason is not None:
                damaged.append((ref, reason))
        if damaged:
            raise IntegrityError(
                f"R16 no good checkpoint is left in {self.uri}: "
                f"{' '.join(text for _, text in damaged)} Restore the objects from a backup, or "
                f"choose a new checkpoint URI to begin again."
            )
        if resume == "must":
            raise ValueError(f"resume='must', but there is no checkpoint in {self.uri}")
        return Found(restored=None, skipped=())

    def start(self, resume: str, target: Target, rule: Best | None) -> Found:
        """Load what a `ckpt_path` means; collective.

        A run that has begun so before goes on from its own newest checkpoint instead: the same
        command is run again after every preemption, and must not throw away what was done since.
        """
        own = whole(target.uri) == whole(self.uri)
        self.origin = target.text
        flush.wait(self.store.uri)
        self.world.barrier()
        error: Exception | None = None
        goes_on, refs = False, []
        if self.world.first:
            try:
                goes_on = (own and target.kind == "last") or self._begun_from(target.text)
                if not goes_on:
                    store = self.store if own else self._other(target)
                    refs = choose(store, target, rule)
                    if not refs:
                        raise FileNotFoundError(f"there is no checkpoint in {target.uri}")
            except Exception as failure:
                error = failure
        self.world.agree(error)
        goes_on, refs = self.world.share((goes_on, refs))
        if goes_on:
            return self.find("must" if resume == "must" else "auto")
        store = self.store if own else self._other(target)
        bad: str | None = None
        for ref in refs:
            restored, reason = self._load(ref, store)
            if restored is not None:
                return Found(
                    restored=restored,
                    skipped=(),
                    foreign=not own,
                    source=_named(self.uri if own else store.uri, ref),
                )
            bad = bad or reason
        raise IntegrityError(
            f"R16 what ckpt_path={target.text!r} means is damaged or gone: "
            f"{bad or 'it was deleted.'} Choose another checkpoint, or ckpt_path='last'."
        )

    def _other(self, target: Target) -> Store:
        return Store.open(whole(target.uri), **self.options)

    def _begun_from(self, text: str) -> bool:
        refs = self.store.commits()
        if not refs:
            return False
        with contextlib.suppress(IntegrityError, NotFound):
            return self.store.read(refs[0]).meta.get("started_from") == text
        return False

    def _candidates(self) -> list[CommitRef]:
        refs: list[CommitRef] = []
        error: Exception | None = None
        if self.world.first:
            try:
                adopt(self.store, fence=self.fence)
                refs = self.store.commits()
                if not refs and self.store.line():
                    raise IntegrityError(
                        f"R16 no good checkpoint is left in {self.uri}: all are marked in bad/. "
                        f"Restore the objects from a backup, or choose a new checkpoint URI to "
                        f"begin again."
                    )
            except Exception as failure:
                error = failure
        self.world.agree(error)
        return self.world.share(refs)

    def _load(
        self, ref: CommitRef, store: Store | None = None
    ) -> tuple[Restored | None, str | None]:
        """One candidate: the checkpoint, or why it is damaged, or neither when it is gone."""
        mine = store is None or store is self.store
        chosen = store or self.store
        commit, reason = self._tried(ref, lambda: chosen.read(ref), mark=mine)
        if commit is None:
            return None, reason
        into = None if self.into is None else self.into(commit.tensors)
        rank, group = self.world.rank, self.world.control
        return self._tried(
            ref, lambda: chosen.load(commit, into=into, rank=rank, group=group), mark=mine
        )

    def _tried(
        self, ref: CommitRef, read: Callable[[], _T], *, mark: bool
    ) -> tuple[_T | None, str | None]:
        """What every rank reads of a candidate, if it is good on all; else as `_load`. Collective.

        An error that is not about the candidate is raised by all ranks.
        """
        found: _T | None = None
        bad: str | None = None
        error: Exception | None = None
        try:
            found = read()
        except IntegrityError as failure:
            bad = str(failure)
        except NotFound:
            pass
        except Exception as failure:
            error = failure
        self.world.agree(error)
        views = self.world.gather((found is not None, bad))
        if all(good for good, _ in views):
            return found, None
        return None, self._condemn(ref, views, mark=mark)

    def _condemn(
        self, ref: CommitRef, views: list[tuple[bool, str | None]], *, mark: bool
    ) -> str | None:
        """Mark what any rank has found damaged; the reason, None if it is only gone."""
        reason = next((text for _, text in views if text is not None), None)
        if reason is not None and self.world.first and mark:
            # Without the right to mark it, the next attempt finds out again by itself.
            with contextlib.suppress(StoreError):
                self.store.quarantine(ref, reason)
        return reason

    def begin(self, found: Found) -> None:
        """Make the saver, on top of what was found, which is in place by now."""
        restored = found.restored
        if self._recall is not None:
            self._recall.release()
            self._recall = None
        if self.keeper is not None:
            step = 0 if restored is None else restored.ref.step
            done = 0.0 if restored is None else restored.state["loop"]["productive_seconds"]
            self.keeper.begin(step, done, found.label)
        if found.label is None:
            self._make(None if restored is None or found.foreign else restored.ref)
        else:
            self._open()
        self.last_saved = 0 if restored is None else restored.ref.step
        if found.foreign:
            # The end of a run has to be in its own store, even if no step is left to do.
            self.last_saved = -1
        if restored is not None and self.origin is None:
            self.origin = restored.meta.get("started_from")
        if restored is not None and not found.foreign and self.save_seconds is None:
            self.save_seconds = restored.meta.get("save_seconds")
            if self.save_seconds is not None:
                self._weigh_grace(restored.ref.step, self.save_seconds)
        self.last_time = time.monotonic()
        if restored is not None and found.label is not None:
            # Each life of the workers may be shorter than the interval between two saves.
            self.last_time -= float(restored.meta["unsaved_seconds"])

    def _open(self) -> None:
        line = self._line if self.world.first else None
        self._opening = Opening(self.uri, self.options, line=line)

    def reached(self, seconds: float) -> None:
        """Join the store that is being opened, if one is; collective.

        Raises `SaveError` on all ranks when it failed or takes longer than `seconds`; it is tried
        again by the next call.
        """
        opening = self._opening
        if opening is None:
            return
        ended = opening.wait(seconds)
        error = opening.error
        if not ended:
            error = TimeoutError(f"there was no answer within {seconds:.0f} s.")
        text = None
        if error is not None:
            error = self._unwritable(error, _STARTED)
            text = str(error).removesuffix(_STARTED) + "Training goes on from memory."
        views = self.world.gather((text, opening.opened))
        failures = [failure for failure, _ in views if failure is not None]
        if failures:
            if ended and opening.error is not None:
                # Ranks that have it keep what they have: the lease need not be taken twice.
                self._open()
            raise SaveError(failures[0])
        opened = views[0][1]
        assert isinstance(opened, Opened)
        self._opening = None
        self._store = self._store or opening.store
        self.fence = opened.fence
        self._make(opened.base)

    def _make(self, base: CommitRef | None) -> None:
        self._base = base
        self.saver = Saver(
            self.store,
            lease_fence=self.fence,
            base=base,
            rank=self.world.rank,
            world_size=self.world.size,
            retention=self._keep,
            on_commit=self._committed,
            on_error=lambda _error: telemetry.CHECKPOINT_ERRORS.inc(),
        )

    def _committed(self, ref: CommitRef, seconds: float, size: int) -> None:
        """Called from the saver's thread."""
        if self.keeper is not None:
            self.keeper.note(ref)
        if isinstance(self.every, Pace):
            self.every.committed(seconds)
        self.save_seconds = seconds
        self._weigh_grace(ref.step, seconds)
        now = time.time()
        if self.world.local_rank == 0:
            telemetry.committed(step=ref.step, seconds=seconds, size=size, now=now)
            if self.page is not None:
                self.page.committed(step=ref.step, at=now, seconds=seconds)

    def _weigh_grace(self, step: int, seconds: float) -> None:
        """R18: twice what a save has taken should fit into the time that a notice leaves."""
        grace = grace_seconds()
        if grace is None or 2 * seconds <= grace or self._told_grace:
            return
        self._told_grace = True
        advice = math.ceil(4 * seconds / 30) * 30
        self._tight = (
            f"R18 emergency save needs ~{2 * seconds:.3g} s but the grace is {grace:g} s; what is "
            f"not committed by then stays in the memory of its node only, the last durable step is "
            f"{step}. Raise terminationGracePeriodSeconds to {advice}."
        )

    def tight(self) -> str | None:
        """R18, once, when a save takes too long for the grace period; known from the start if an
        earlier attempt has measured it."""
        line, self._tight = self._tight, None
        return line if self.world.first else None

    def clock_due(self) -> bool:
        """Whether rank 0's clock says that it is time to save."""
        return (
            self.world.first
            and self.every is not None
            and self.every.seconds is not None
            and time.monotonic() - self.last_time >= self.every.seconds
        )

    def back(self, step: int) -> Found:
        """Load the newest good checkpoint of `step` or before, and go on from there; collective.

        What was saved after it is no part of the run any more: it goes on under a fence of its own.
        """
        self.reached(_BACK_SECONDS)
        if self.keeper is not None:
            self.keeper.forget()
        self.close(_BACK_SECONDS)
        flush.wait(self.store.uri)
        self.world.barrier()
        for ref in self._candidates():
            restored = self._load(ref)[0] if ref.step <= step else None
            if restored is None:
                continue
            self._refence()
            found = Found(restored=restored, skipped=())
            self.begin(found)
            self.pending = restored.ref.step
            return found
        return Found(restored=None, skipped=())

    def renew(self, step: int) -> None:
        """Make it possible to save at `step` once more, if that was done already; collective.

        The position may move while the step does not: when samples are left out. A commit is named
        by its step and its fence, so the next one needs a fence of its own.
        """
        if self.saver is None or self.last_saved != step:
            return
        self.close(_BACK_SECONDS)
        flush.wait(self.store.uri)
        base = self.saver.last_commit
        self._refence()
        self._make(self.world.share(base))
        self.last_saved = -1

    def _refence(self) -> None:
        fence, error = 0, None
        if self.world.first:
            try:
                fence = self.store.acquire(owner=owner()).fence
            except Exception as failure:
                error = failure
        self.world.agree(error)
        self.fence = self.world.share(fence)

    def due(self, step: int, agreed: bool) -> bool:
        """Whether to save before the next step; `agreed` is the ranks' word about the clock."""
        every = self.every
        if step == self.last_saved or not (self.wanted or every is not None):
            return False
        if self.weigh is not None:
            self._expect(self.weigh())
        if self.wanted:
            return True
        if isinstance(every, Every) and every.steps is not None and step % every.steps == 0:
            return True
        # The wish for the save of the step before may have been posted twice: see consensus.
        return agreed and step > self.last_saved + 1

    def prepare(self, state: Any, rank_state: Any, weigh: Callable[[], int] | None) -> None:
        """Prove that such a state can be stored, and make room for its snapshots; collective.

        Raises `EncodingError` (with its R23) on all ranks, before training instead of at the first
        save.
        """
        assert self.saver is not None
        error: Exception | None = None
        try:
            self.saver.prepare(state, rank_state=rank_state)
        except EncodingError as failure:
            error = RequirementError(f"R23 {failure} Training was not started.")
        except Exception as failure:
            error = failure
        self.world.agree(error)
        self.weigh = weigh

    def _expect(self, size: int) -> None:
        assert self.saver is not None
        self.weigh = None
        self.saver.expect(size)

    def stalled(self, seconds: float) -> str | None:
        """Take note of what a save has cost; a line for people when it decides the interval."""
        if (line := self.tight()) is not None:
            return line
        if not isinstance(self.every, Pace):
            return None
        self.every.stalled(seconds)
        if self._told or not self.world.first:
            return None
        self._told = True
        return self.every.reason()

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
        self.last_saved = self.pending = step
        self.wanted = False
        self.last_time = time.monotonic()
        left = math.inf if deadline is None else deadline - time.monotonic()
        patience = _BACK_SECONDS if wait else _REACH_SECONDS
        self.reached(max(0.0, min(_BESIDE_SECONDS if beside else patience, left)))
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
        opening = None if must else self._opening
        if opening is not None and all(self.world.gather(opening.succeeded)):
            # As soon as the store is there: the first save finds its own memory touched then.
            self.reached(0.0)
            self.prepare(state, rank_state, None)
        line = self._line
        if self.saver is not None:
            line = Line(fence=self.fence, step=step, base=self._base)
        assert line is not None
        self.keeper.take(
            step,
            state,
            rank_state,
            {**meta, "unsaved_seconds": 0.0 if must else time.monotonic() - self.last_time},
            productive=state["loop"]["productive_seconds"],
            line=line,
            origin=self.origin,
            began=began,
            must=must,
        )

    @property
    def opening(self) -> bool:
        """Whether this attempt began from memory and has not joined the store yet."""
        return self._opening is not None

    def stays(self, step: int) -> bool:
        """Whether the copy of a step lies in a pod that is there for the next round; collective."""
        if self.keeper is None:
            return False
        mine = self.keeper.holds(step) and self.page is not None and self.page.stays
        return any(self.world.gather(mine))

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

    def close(self, timeout: float) -> bool:
        """Let the save in flight end, at most `timeout` seconds; whether it did."""
        if self.keeper is not None:
            self.keeper.settle()
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


def _named(uri: str, ref: CommitRef) -> str:
    return f"{uri.rstrip('/')}/{commit_key(ref)}"
