"""Before a run's lease is taken: whether somebody else writes there, and what to do then.

A script that finds another one at work is refused, and told by whom, since when, and how to take
over on purpose: two of them would take the lease from each other for ever. An attempt of a job has
nobody to read that, and waits, for as long as the other ranks wait for it. `holder` says who counts
as gone.

While a lease is held a thread renews it (`Presence`), so that others can tell.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from rekindle import threads
from rekindle.checkpoint import Lease, Store, StoreError
from rekindle.checkpoint.holder import RENEW_SECONDS, WATCH_SECONDS, Holder
from rekindle.contract import ENV_JOB, ENV_NAMESPACE
from rekindle.requirement import RequirementError

log = logging.getLogger(__name__)

ENV_TAKE_OVER = "REKINDLE_TAKE_OVER"
"""Set to 1 by a person who wants to write where another process does; that one stops then."""
PATIENCE = 300.0
"""Seconds for which an attempt of a job waits; the collectives of the other ranks last longer."""
LOOK_SECONDS = 2.0
"""Between two looks at somebody else's lease."""


def who() -> Holder:
    """This process, by what its environment says of it."""
    job, namespace = os.environ.get(ENV_JOB, ""), os.environ.get(ENV_NAMESPACE, "")
    return Holder.here(os.environ, f"TrainingJob {namespace}/{job}" if job and namespace else "")


def enter(
    store: Store,
    own: Holder,
    *,
    forced: bool,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Return when nobody else holds the run; raises R15 when somebody does and goes on to."""
    began = now()
    seen: tuple[str, float] | None = None
    changes, told = 0, False
    while not forced:
        held = store.held()
        if held is None or held.ended:
            return
        verdict = own.sees(held.holder)
        if verdict == "unknown":
            if seen is None or seen[0] != held.etag:
                changes += seen is not None
                seen = (held.etag, now())
            if now() - seen[1] >= WATCH_SECONDS:
                log.warning(
                    "%s: %s has held it and has not been heard of for %.0f s; it is taken over",
                    store.uri,
                    held.holder.who,
                    WATCH_SECONDS,
                )
                return
        if verdict == "free":
            return
        if not told:
            told = True
            log.warning(
                "%s: %s holds it; waiting to see whether that goes on", store.uri, held.holder.who
            )
        if (verdict == "held" or changes) and (not own.job or now() - began > PATIENCE):
            since = datetime.fromtimestamp(held.since, UTC).isoformat(timespec="seconds")
            raise RequirementError(
                f"R15 {store.uri} is in use by {held.holder.who} since {since}. Wait until that "
                f"has ended, use another root, or set {ENV_TAKE_OVER}=1 to take it over, which "
                f"stops the other one at its next save. Training was not started."
            )
        pause(LOOK_SECONDS)


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
