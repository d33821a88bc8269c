"""Which checkpoint a run begins from, so that all ranks begin from the same one.

Rank 0 lists the candidates, every rank loads and verifies what it needs of one, and only if all of
them are content is it used; otherwise it is marked as damaged and all go on to the one before,
together. What that cost is said (R16). No rank decides by itself: what one of them has found is
exchanged before anybody acts on it.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from rekindle.checkpoint import CommitRef, IntegrityError, Restored, Store, StoreError
from rekindle.checkpoint.format.manifest import TensorEntry, commit_key
from rekindle.checkpoint.objects.interface import NotFound
from rekindle.checkpoint.resolving import CheckpointTarget, choose, whole
from rekindle.checkpoint.retention import Best
from rekindle.checkpoint.saving import flush
from rekindle.checkpoint.saving.orphan_commit import adopt
from rekindle.interop import lightning_file
from rekindle.peer_memory.restore import Recalled
from rekindle.peer_memory.store import Label
from rekindle.persistence import run_identity
from rekindle.persistence.lease import SharedLease
from rekindle.ranks.distributed import World

Room = Callable[[Sequence[TensorEntry]], Mapping[str, torch.Tensor]]
"""Makes room for the shares of stored tensors, when a rank is to have no more of them."""
_T = TypeVar("_T")
_ATTEMPTS = 1 << 20
"""Added to the number of an attempt that began from memory, which is none of the store's."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run begins from."""

    restored: Restored | None = None
    """None: from scratch."""
    skipped: tuple[str, ...] = ()
    """R16 messages about newer checkpoints that are damaged."""
    foreign: bool = False
    """Whether it is a checkpoint of another run, which this run's history does not contain."""
    source: str = "scratch"
    """Where it came from, as `api.Restored` has it."""
    label: Label | None = None
    """Of the copy in memory that it is; None for a commit."""
    origin: str | None = None
    """The `ckpt_path` that was asked for, or that the copy in memory goes back to."""
    again: bool = False
    """Whether it is the end of another run, whose wish to stop does not count for this one."""

    def attempt(self, fence: int) -> int:
        """A number that no attempt before has had, or 0 for a run that begins."""
        if self.restored is None:
            return 0
        return fence if self.label is None else _ATTEMPTS + self.label.serial.generation


def from_memory(
    recalled: Recalled, world: World, *, start_from: str | None, shared: Collection[str]
) -> Found:
    """What a copy in the members' memory holds; `shared`: see `Copy.state`."""
    copy, label = recalled.copy, recalled.copy.label
    same = label.world_size == world.size
    return Found(
        restored=Restored(
            ref=CommitRef(step=label.step, fence=label.line.fence),
            state=copy.state(shared=shared),
            rank_state=copy.rank_state(world.rank) if same else None,
            meta=copy.meta,
            world_size=label.world_size,
        ),
        source="memory" if recalled.giver is None else f"memory of {recalled.giver}",
        label=label,
        origin=start_from or label.origin,
    )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The commits that a run may begin from; every method is collective."""

    world: World
    lease: SharedLease
    into: Room | None = None

    def newest_meta(self) -> Mapping[str, Any] | None:
        """The meta of the run's newest commit that can be read; on rank 0."""
        adopt(self.lease.store, fence=self.lease.fence)
        return self.newest_of(self.lease.store)

    @staticmethod
    def newest_of(store: Store) -> Mapping[str, Any] | None:
        """The same of any store, as it is."""
        for ref in store.commits():
            with contextlib.suppress(IntegrityError, NotFound):
                return store.read(ref).meta
        return None

    def newest(self, resume: str) -> Found:
        """Load the newest checkpoint that is good on every rank."""
        if resume == "never":
            return Found()
        self.settle()
        damaged: list[tuple[CommitRef, str]] = []
        for ref in self._listed():
            restored, reason = self._load(ref, self.lease.store)
            if restored is not None:
                source = _named(self.lease.uri, ref)
                return Found(restored=restored, skipped=_skipped(damaged, ref), source=source)
            if reason is not None:
                damaged.append((ref, reason))
        if damaged:
            raise IntegrityError(
                f"R16 no good checkpoint is left in {self.lease.uri}: "
                f"{' '.join(text for _, text in damaged)} Restore the objects from a backup, or "
                f"choose a new checkpoint URI to begin again."
            )
        if resume == "must":
            raise ValueError(f"resume='must', but there is no checkpoint in {self.lease.uri}")
        return Found()

    def named(
        self,
        resume: str,
        target: CheckpointTarget,
        rule: Best | None,
        own_run: run_identity.Identity | None = None,
    ) -> Found:
        """Load what a `ckpt_path` means.

        A run that has begun so before goes on from its own newest checkpoint instead: the same
        command is run again after every preemption, and must not throw away what was done since.
        Once such a run has ended, a new start of the script means the `ckpt_path` again.
        """
        own = target.kind != "file" and whole(target.uri) == whole(self.lease.uri)
        self.settle()
        error: Exception | None = None
        goes_on, refs, again = False, [], not own
        if self.world.first:
            try:
                goes_on, again = self._begun_from(target, own_run, own=own)
                if not goes_on and target.kind != "file":
                    store = self.lease.store if own else self._other(target)
                    refs = choose(store, target, rule)
                    if not refs:
                        raise FileNotFoundError(f"there is no checkpoint in {target.uri}")
            except Exception as failure:
                error = failure
        self.world.agree(error)
        goes_on, refs, again = self.world.share((goes_on, refs, again))
        if goes_on:
            found = self.newest("must" if resume == "must" else "auto")
            return replace(found, origin=target.text, again=again)
        if target.kind == "file":
            return self._file(target)
        store = self.lease.store if own else self._other(target)
        damaged: list[tuple[CommitRef, str]] = []
        for ref in refs:
            restored, reason = self._load(ref, store)
            if restored is not None:
                return Found(
                    restored=restored,
                    skipped=_skipped(damaged, ref),
                    foreign=not own,
                    source=_named(self.lease.uri if own else store.uri, ref),
                    origin=target.text,
                    again=again,
                )
            if reason is not None:
                damaged.append((ref, reason))
        bad = damaged[0][1] if damaged else "it was deleted."
        raise IntegrityError(
            f"R16 what ckpt_path={target.text!r} means is damaged or gone: {bad} Choose another "
            f"checkpoint, or ckpt_path='last'."
        )

    def _file(self, target: CheckpointTarget) -> Found:
        """What a file of ours holds; ValueError for one that does not say where training was."""
        error: Exception | None = None
        restored: Restored | None = None
        try:
            restored = lightning_file.state_of(lightning_file.read(target.name))
            if restored is None:
                raise ValueError(
                    f"ckpt_path={target.text!r} is a file of weights that does not say which "
                    f"samples were used, so training cannot go on from it exactly. Begin with its "
                    f"weights: "
                    f"Model.load_from_checkpoint({target.text!r}), then fit without ckpt_path."
                )
        except Exception as failure:
            error = failure
        self.world.agree(error)
        return Found(
            restored=restored, foreign=True, source=target.name, origin=target.text, again=True
        )

    def before(self, step: int) -> Found:
        """Load the newest good checkpoint of `step` or before; nothing when there is none."""
        self.settle()
        damaged: list[tuple[CommitRef, str]] = []
        for ref in self._listed():
            if ref.step > step:
                continue
            restored, reason = self._load(ref, self.lease.store)
            if restored is not None:
                source = _named(self.lease.uri, ref)
                return Found(restored=restored, skipped=_skipped(damaged, ref), source=source)
            if reason is not None:
                damaged.append((ref, reason))
        return Found()

    def settle(self) -> None:
        """Let what a worker that was here before has left in memory become the newest."""
        flush.wait(self.lease.store.uri)
        self.world.barrier()

    def _other(self, target: CheckpointTarget) -> Store:
        return Store.open(whole(target.uri), **self.lease.options)

    def _begun_from(
        self, target: CheckpointTarget, run: run_identity.Identity | None, *, own: bool
    ) -> tuple[bool, bool]:
        """Whether to go on from the newest commit, and whether that is the end of another run."""
        meta = self.newest_meta()
        if meta is None:
            goes_on = own and target.kind == "last"
            return goes_on, not goes_on
        saved = meta.get("run")
        same = run is None or not isinstance(saved, Mapping) or saved["script"] == run.script
        ended = bool(meta.get("finished")) and not same
        if own and target.kind == "last":
            return True, ended
        goes_on = meta.get("started_from") == target.text and not ended
        return goes_on, not goes_on

    def _listed(self) -> list[CommitRef]:
        """The run's own commits, newest first."""
        refs: list[CommitRef] = []
        error: Exception | None = None
        if self.world.first:
            store = self.lease.store
            try:
                adopt(store, fence=self.lease.fence)
                refs = store.commits()
                if not refs and store.line():
                    raise IntegrityError(
                        f"R16 no good checkpoint is left in {self.lease.uri}: all are marked in "
                        f"bad/. Restore the objects from a backup, or choose a new checkpoint URI "
                        f"to begin again."
                    )
            except Exception as failure:
                error = failure
        self.world.agree(error)
        return self.world.share(refs)

    def _load(self, ref: CommitRef, store: Store) -> tuple[Restored | None, str | None]:
        """One candidate: the checkpoint, or why it is damaged, or neither when it is gone."""
        commit, reason = self._tried(ref, store, lambda: store.read(ref))
        if commit is None:
            return None, reason
        into = None if self.into is None else self.into(commit.tensors)
        rank, group = self.world.rank, self.world.control
        return self._tried(
            ref, store, lambda: store.load(commit, into=into, rank=rank, group=group)
        )

    def _tried(
        self, ref: CommitRef, store: Store, read: Callable[[], _T]
    ) -> tuple[_T | None, str | None]:
        """What every rank reads of a candidate, if it is good on all; else as `_load`.

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
        reason = next((text for _, text in views if text is not None), None)
        # Marks are made in the run's own store only.
        if reason is not None and self.world.first and store is self.lease.store:
            # Without the right to mark it, the next attempt finds out again by itself.
            with contextlib.suppress(StoreError):
                store.quarantine(ref, reason)
        return None, reason


def _skipped(damaged: Sequence[tuple[CommitRef, str]], ref: CommitRef) -> tuple[str, ...]:
    """R16: what it costs that the run begins from `ref` and from none of the newer ones."""
    return tuple(
        f"{text} Falling back to step {ref.step} ({bad.step - ref.step} steps lost)."
        for bad, text in damaged
    )


def _named(uri: str, ref: CommitRef) -> str:
    return f"{uri.rstrip('/')}/{commit_key(ref)}"
