"""Before a run's lease is taken: whether somebody else writes there, and what to do then.

A script that finds another one at work is refused, and told by whom, since when, and how to take
over on purpose: two of them would take the lease from each other for ever. An attempt of a job has
nobody to read that, and waits: for ever where an operator shows the job's owner for what, else for
a while. `holder` says who counts as gone.

While a lease is held a thread renews it (`Presence`), so that others can tell.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from rekindle import threads
from rekindle.api import ENV_JOB, ENV_JOB_UID, ENV_NAMESPACE
from rekindle.checkpoint import Lease, Store, StoreError
from rekindle.checkpoint.holder import RENEW_SECONDS, WATCH_SECONDS, Holder
from rekindle.errors.requirement import RequirementError

log = logging.getLogger(__name__)

ENV_TAKE_OVER = "REKINDLE_TAKE_OVER"
"""Set to 1 by a person who wants to write where another process does; that one stops then."""
PATIENCE = 300.0
"""Seconds for which an attempt of a job waits when no operator shows that it does."""
LOOK_SECONDS = 2.0
"""Between two looks at somebody else's lease."""


def who() -> Holder:
    """This process, by what its environment says of it.

    People know a job by its name; that another cluster's has the same makes it no attempt of this.
    """
    here, uid = Holder.here(os.environ, job()), os.environ.get(ENV_JOB_UID)
    return replace(here, job=f"{here.job} {uid}") if job() and uid else here


def patience(*, shown: bool) -> float:
    """How many seconds this process waits for somebody else; ``shown``: its agent can tell that."""
    return math.inf if shown and job() else PATIENCE


def job() -> str:
    """The name of the operator's job that this process works for; empty when it is for none."""
    name, namespace = os.environ.get(ENV_JOB, ""), os.environ.get(ENV_NAMESPACE, "")
    return f"TrainingJob {namespace}/{name}" if name and namespace else ""


class RunAdmission:
    """Whether somebody else holds the run: asked before its lease is taken, again and again."""

    def __init__(
        self,
        store: Store,
        own: Holder,
        *,
        forced: bool,
        patience: float = PATIENCE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``forced``: a person wants it taken over; ``patience``: for how long a job waits."""
        self._store, self._own, self._forced = store, own, forced
        self._patience, self._now = patience, now
        self._began = now()
        self._seen: tuple[str, float] | None = None
        """The lease as it was last seen to change, and when."""
        self._changes = 0
        self._told = False

    def look(self) -> str | None:
        """Say who holds the run; None when it can be taken.

        Raises R15 when its holder goes on for longer than this process waits, a script not at all.
        """
        held = None if self._forced else self._store.held()
        if held is None or held.ended:
            return None
        verdict, now = self._own.sees(held.holder), self._now()
        if verdict == "unknown":
            if self._seen is None or self._seen[0] != held.etag:
                self._changes += self._seen is not None
                self._seen = (held.etag, now)
            if now - self._seen[1] >= WATCH_SECONDS:
                log.warning(
                    "%s: %s has held it and has not been heard of for %.0f s; it is taken over",
                    self._store.uri,
                    held.holder.who,
                    WATCH_SECONDS,
                )
                return None
        if verdict == "free":
            return None
        if not self._told:
            self._told = True
            log.warning(
                "%s: %s holds it; waiting to see whether that goes on",
                self._store.uri,
                held.holder.who,
            )
        since = datetime.fromtimestamp(held.since, UTC).isoformat(timespec="seconds")
        words = f"{self._store.uri} is in use by {held.holder.who} since {since}"
        certain = verdict == "held" or self._changes > 0
        if certain and (not self._own.job or now - self._began > self._patience):
            raise RequirementError(
                f"R15 {words}. Wait until that has ended, use another root, or set "
                f"{ENV_TAKE_OVER}=1 to take it over, which stops the other one at its next save. "
                f"Training was not started."
            )
        return words


class Presence:
    """Renews a lease for as long as this process holds it."""

    def __init__(self, store: Store, lease: Lease, seconds: float = RENEW_SECONDS) -> None:
        """Begin to."""
        # Nobody waits long for a store that is away: whoever looks finds the process gone.
        self._store = Store(objects=store.objects.impatient())
        self._lease, self._seconds = lease, seconds
        self._ended = threading.Event()
        self._writing = threading.Lock()
        threads.lasting(self._renew, name="rekindle-lease", pause=self._ended.wait)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds):
            with self._writing:
                if self._ended.is_set() or not self._renewed():
                    return

    def _renewed(self) -> bool:
        """Renew it once; False when it is not ours any more, which the next save finds out, too."""
        try:
            self._lease = self._store.renew(self._lease)
        except StoreError as error:
            log.debug("the lease was not renewed: %s", error)
            # An answer may have been lost: then it is ours, and has another etag.
            with contextlib.suppress(StoreError):
                held, own = self._store.held(), Holder.of(self._lease.fields)
                if held is None or (held.fence, held.holder) != (self._lease.fence, own):
                    return False
                self._lease = replace(self._lease, etag=held.etag)
        return True

    def stop(self) -> None:
        """Renew it no more."""
        self._ended.set()

    def end(self) -> None:
        """Give the lease up, if the store answers."""
        self.stop()
        # A write under way ends within the store's own limits.
        if self._writing.acquire(timeout=RENEW_SECONDS):
            try:
                self._lease = self._store.renew(self._lease, ended=True)
            except StoreError as error:
                log.debug("the lease was not given up: %s", error)
            finally:
                self._writing.release()
