"""The agent's side of the conversation with the coordinator.

``Coordinator`` is one HTTP call per method, with timeouts and no retries. ``Link`` is the endless
part: one thread reports (at once when poked, else every second as a heartbeat), one long-polls
for views. The coordinator may be away for any time, or have forgotten everything: training goes
on, each try is the whole truth again, and only a change of the error is logged, not every try.

The two threads receive views independently, and the view that comes with the answer to a report
may be older than one that a long poll has brought meanwhile. Versions are opaque, so order cannot
be read from them; instead a report's view is dropped when a poll has answered while the report
was under way. The poll asks again with the version that it has seen itself, so the newest view
always wins.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

import urllib3

from rekindle.contract import AgentReport, View, pod_path
from rekindle.launch.settings import Settings

logger = logging.getLogger(__name__)

HEARTBEAT = 1.0
"""Seconds between two reports when nothing changes."""
POLL = 20.0
"""Seconds for which a long poll is held; below the idle timeouts of usual proxies."""
CONNECT_TIMEOUT = 2.0
READ_TIMEOUT = 5.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 3.0


class CoordinatorError(Exception):
    """The coordinator could not be reached, refused, or said something that is no view."""


class Coordinator:
    """One pod's resource at the coordinator; safe for several threads."""

    def __init__(self, settings: Settings) -> None:
        if settings.coordinator is None:
            raise ValueError(
                "there is no coordinator to talk to: REKINDLE_COORDINATOR_URL is unset"
            )
        path = pod_path(settings.namespace, settings.job, settings.pod)
        self._url = settings.coordinator + path
        self._pool = urllib3.PoolManager(
            maxsize=2, retries=False, headers={"Authorization": f"Bearer {settings.token}"}
        )

    def report(self, report: AgentReport) -> View:
        """Replace what the coordinator knows of this pod; raises CoordinatorError."""
        return self._call("POST", READ_TIMEOUT, json=report.to_json())

    def watch(self, version: str, wait: float) -> View:
        """Give the view when it differs from ``version``, or after ``wait`` seconds.

        Raises CoordinatorError.
        """
        fields = {"version": version, "wait": f"{wait:g}"}
        return self._call("GET", wait + READ_TIMEOUT, fields=fields)

    def _call(self, method: str, read_timeout: float, **content: object) -> View:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout)
        try:
            answer = self._pool.request(method, self._url, timeout=timeout, **content)  # type: ignore[arg-type]
        except urllib3.exceptions.HTTPError as error:
            raise CoordinatorError(f"cannot reach {self._url}: {_reason(error)}") from error
        if answer.status != 200:
            said = answer.data[:200].decode(errors="replace").strip()
            raise CoordinatorError(f"{self._url} answers {answer.status}: {said}")
        try:
            return View.from_json(json.loads(answer.data))
        except ValueError as error:
            raise CoordinatorError(f"{self._url} sends no view: {error}") from error


def _reason(error: Exception) -> str:
    """Say what is wrong without the addresses of objects, so that equal errors read alike."""
    cause = error.__cause__ or error.__context__
    return f"{type(error).__name__}" + (f" ({cause})" if cause is not None else "")


class Link(Protocol):
    """Whoever decides about this pod: a coordinator far away, or nobody (see ``solo``)."""

    @property
    def heard_at(self) -> float | None:
        """``time.monotonic()`` of the last answer, 0 before the first; None: there is nobody."""

    def start(self, snapshot: Callable[[], AgentReport], received: Callable[[View], None]) -> None:
        """Begin to report ``snapshot()`` and to hand over views."""

    def poke(self) -> None:
        """Report soon: something has changed."""

    def flush(self, timeout: float) -> bool:
        """Wait until a report made after this call has arrived; False when it has not in time."""

    def close(self) -> None:
        """Stop talking."""


class CoordinatorLink:
    """A Link to a real coordinator; two daemon threads."""

    def __init__(self, coordinator: Coordinator, heartbeat: float = HEARTBEAT) -> None:
        self._coordinator = coordinator
        self._heartbeat = heartbeat
        self._changed = threading.Condition()
        self._wanted = 0  # Reports asked for.
        self._taken = 0  # Of these, how many the reporter has begun to serve.
        self._delivered = 0  # Of these, how many have arrived.
        self._answered = False  # Whether any report has arrived.
        self._polls = 0  # Long polls answered.
        self._closed = False
        self._trouble: str | None = None
        self.heard_at: float | None = 0.0

    def start(self, snapshot: Callable[[], AgentReport], received: Callable[[View], None]) -> None:
        """Start the two threads."""
        self._snapshot = snapshot
        self._received = received
        for target in (self._report, self._watch):
            threading.Thread(target=target, name=f"link{target.__name__}", daemon=True).start()

    def poke(self) -> None:
        """Make the reporter report now."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Report now and wait for the answer."""
        with self._changed:
            self._wanted += 1
            goal = self._wanted
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._delivered >= goal, timeout)

    def close(self) -> None:
        """Let both threads end after the call that they are in."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _report(self) -> None:
        delay = FIRST_DELAY
        pause = 0.0
        while self._pause(pause, until_poked=True):
            with self._changed:
                self._taken = self._wanted
                polls = self._polls
            try:
                view = self._coordinator.report(self._snapshot())
            except CoordinatorError as error:
                self._note(str(error))
                pause = delay * random.uniform(0.5, 1.0)
                delay = min(LONGEST_DELAY, delay * 2)
                continue
            self._note(None)
            self.heard_at = time.monotonic()
            delay, pause = FIRST_DELAY, self._heartbeat
            with self._changed:
                fresh = self._polls == polls
                self._delivered = self._taken
                self._answered = True
                self._changed.notify_all()
            if fresh:
                self._received(view)

    def _watch(self) -> None:
        # Before the first report has arrived the coordinator may refuse: it knows no such pod.
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._answered)
        version = ""
        delay = FIRST_DELAY
        pause = 0.0
        while self._pause(pause):
            began = time.monotonic()
            try:
                view = self._coordinator.watch(version, POLL)
            except CoordinatorError as error:
                logger.debug("long poll: %s", error)
                pause = delay * random.uniform(0.5, 1.0)
                delay = min(LONGEST_DELAY, delay * 2)
                continue
            unchanged = view.version == version
            version = view.version
            with self._changed:
                self._polls += 1
            self._received(view)
            delay = FIRST_DELAY
            # Whoever answers at once although nothing is new must not be asked in a tight loop.
            pause = FIRST_DELAY if unchanged and time.monotonic() - began < 1 else 0.0

    def _pause(self, seconds: float, *, until_poked: bool = False) -> bool:
        """Sleep; False when it is time to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (until_poked and self._wanted > self._taken), seconds
            )
            return not self._closed

    def _note(self, trouble: str | None) -> None:
        """Log a change for the worse or the better, once."""
        if trouble == self._trouble:
            return
        if trouble is None:
            logger.info("the coordinator answers again")
        else:
            logger.warning("%s; training goes on, trying again", trouble)
        self._trouble = trouble
