"""The right to write to a run's store: rank 0 takes it, and all ranks hold it or none goes on.

A lease has a fence, a number that no lease before has had; commits carry it, and what a predecessor
that was believed dead still writes is told apart by it. Rank 0 takes the lease, after it has proven
that checkpoints can be written (R5); the others get the fence. What goes wrong on one rank is
raised on all, with the same words.

Where the state comes from the members' memory nobody waits for that: it happens beside the training
(`opening`), and is joined at the first save. Nothing is lost by that: the same run has proven
before that it can write there, and commits keep to one line because the new fence goes back to the
newest commit that the state in memory descends from. Should the store hold a later one all the
same, of an attempt whose memory is gone, it is off the line from our first commit on, like the work
of any attempt that nobody continued.
"""

import os
import time
import uuid
from collections.abc import Callable

from rekindle.checkpoint import InvalidLocation, Lease, SaveError, Store, StoreError
from rekindle.checkpoint.objects.location import check_options
from rekindle.errors.outcome import Preempted
from rekindle.errors.requirement import RequirementError, code_of
from rekindle.flags import Flags
from rekindle.peer_memory.store import Ancestry
from rekindle.persistence import admission
from rekindle.persistence.admission import ENV_TAKE_OVER, who
from rekindle.persistence.async_open import Opened, Opening, owner
from rekindle.persistence.policy import given_options, root, store_options
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

_STARTED = "Training was not started."
"""How R5 ends when the store is the first thing that is needed."""


class SharedLease:
    """The lease of one attempt, as one rank sees it; nobody is asked when it is made."""

    def __init__(self, world: World, flags: Flags, page: ControlPage | None = None) -> None:
        self._world, self._page = world, page
        self._said: str | None = None
        """Who the agent has been told to hold the run."""
        self.uri = root(flags)[0]
        """The run's root."""
        self.options = store_options(flags)
        """How the store is reached."""
        self.fence = 0
        """The number of the lease, 0 before there is one."""
        self._given = given_options(flags)
        self._store: Store | None = None
        self._line: Ancestry | None = None
        self._opening: Opening | None = None
        self._presence: admission.Presence | None = None

    @property
    def store(self) -> Store:
        """Where the checkpoints are; making it asks nothing of the store."""
        if self._store is None:
            self._store = Store.open(self.uri, **self.options)
        return self._store

    @property
    def pending(self) -> bool:
        """Whether it is being taken beside the training, and was not joined yet."""
        return self._opening is not None

    @property
    def ready(self) -> bool:
        """Whether that has ended well on this rank."""
        return self._opening is not None and self._opening.succeeded

    def take(self, pause: Callable[[float], object] = time.sleep) -> None:
        """Prove that checkpoints can be written (R5), and take the lease; collective.

        While somebody else holds the run all ranks wait together, so that none of them waits in a
        collective that has a limit, and each hears at once that it has to go.
        """
        gate: admission.RunAdmission | None = None
        while True:
            error: Exception | None = None
            fence, holder = 0, None
            try:
                if gate is None:
                    check_options(self.uri, self._given)
                    gate = self._gate(self.store)
                if self._world.first:
                    holder = gate.look()
                    fence = 0 if holder else self._hold(self.store)
            except Exception as failure:
                error = failure
                if isinstance(failure, StoreError | InvalidLocation):
                    error = self._unwritable(failure)
            self._world.agree(error)
            stop = self._page is not None and self._page.stop_requested
            answers = self._world.gather((fence, holder, stop))
            self.fence, holder, _ = answers[0]
            self._say(holder)
            if holder is None:
                return
            if any(stop for *_, stop in answers):
                raise Preempted(0, saved=True)  # nothing has been done that could be lost
            pause(admission.LOOK_SECONDS)

    def _gate(self, store: Store) -> admission.RunAdmission:
        """Where rank 0 looks; it has proven by then that the store takes checkpoints."""
        if self._world.first:
            store.probe(uuid.uuid4().hex[:12])
        forced = os.environ.get(ENV_TAKE_OVER) == "1"
        patience = admission.patience(shown=self._page is not None)
        return admission.RunAdmission(store, who(), forced=forced, patience=patience)

    def _say(self, holder: str | None) -> None:
        """Tell the agent for whom the workers of this pod wait, or that they do no more."""
        if self._page is not None and self._world.local_rank == 0 and holder != self._said:
            self._said = holder
            self._page.write_waits(holder)

    def renew(self) -> None:
        """Take another one, whose fence is higher; collective."""
        fence, error = 0, None
        if self._world.first:
            try:
                fence = self._hold(self.store)
            except Exception as failure:
                error = failure
        self._world.agree(error)
        self.fence = self._world.share(fence)

    def _hold(self, store: Store) -> int:
        """Take the next lease, and show from now on that its holder is there."""
        lease = store.acquire(owner=owner(), holder=who())
        self._show(store, lease)
        return lease.fence

    def _show(self, store: Store, lease: Lease) -> None:
        self.release()
        self._presence = admission.Presence(store, lease)

    def release(self) -> None:
        """Let the next one in without making it look; on rank 0, which may have it."""
        if self._presence is not None:
            self._presence.end()
            self._presence = None

    def leave(self) -> None:
        """Show no longer that its holder is there; for a run that has failed, on rank 0.

        The next attempt of a job takes over without a look at it, and waits for this process to
        end: nothing is written then. Anybody else has to be let in.
        """
        if self._presence is not None and who().job:
            self._presence.stop()
            self._presence = None
        self.release()

    def take_beside(self, line: Ancestry) -> None:
        """Begin to take it beside the training; `line` is what the state in memory descends from.

        `join` ends it. Until then there is no fence.
        """
        self._line = line if self._world.first else None
        self._open()

    def _open(self) -> None:
        self._opening = Opening(self.uri, self.options, line=self._line)

    def join(self, seconds: float) -> Opened | None:
        """Hold what was begun by `take_beside`; None if nothing was, or not any more; collective.

        Raises `SaveError` on all ranks when it failed or takes longer than `seconds`; it is tried
        again by the next call.
        """
        opening = self._opening
        if opening is None:
            return None
        ended = opening.wait(seconds)
        error = opening.error
        if not ended:
            error = TimeoutError(f"there was no answer within {seconds:.0f} s.")
        text = None
        if error is not None:
            error = self._unwritable(error)
            text = str(error).removesuffix(_STARTED) + "Training goes on from memory."
        views = self._world.gather((text, opening.opened))
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
        if opening.lease is not None:
            self._show(self.store, opening.lease)
        return opened

    def _unwritable(self, error: Exception) -> Exception:
        """R5, unless the error has a code of its own."""
        if code_of(str(error)) is not None:
            return error
        refused = RequirementError(f"R5 cannot write checkpoints to {self.uri}: {error} {_STARTED}")
        refused.__cause__ = error  # by which it is known whether that may pass
        return refused
