"""The agent's side of the conversation with the coordinator.

``CoordinatorConnection`` is one HTTP call per method, with timeouts and no retries. ``Link`` is the
endless part: one thread reports (at once when poked, else every second as a heartbeat), one
long-polls for views. The coordinator may be away for any time, or have forgotten everything:
training goes on, each try is the whole truth again, and only a change of the error is logged, not
every try. Each connection is to where the coordinator is by then (see ``access``).

The two threads receive views independently, and the view that comes with the answer to a report
may be older than one that a long poll has brought meanwhile. Versions are opaque, so order cannot
be read from them; instead a report's view is dropped when a poll has answered while the report
was under way. The poll asks again with the version that it has seen itself, so the newest view
always wins.
"""

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from rekindle import threads
from rekindle.api import AgentReport, View, pod_path
from rekindle.launch.pod.access import CoordinatorAccess
from rekindle.launch.pod.settings import Settings

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


class _Kept:
    """A connection that is kept for the next call of its thread, and closed with it."""

    def __init__(self, connection: HTTPConnection, access: CoordinatorAccess) -> None:
        self.connection = connection
        self.access = access

    def __del__(self) -> None:
        self.connection.close()


class CoordinatorConnection:
    """One pod's resource at the coordinator; safe for several threads, each with a connection."""

    def __init__(self, settings: Settings) -> None:
        if settings.access is None:
            raise ValueError(
                "there is no coordinator to talk to: neither REKINDLE_ACCESS_DIR nor "
                "REKINDLE_COORDINATOR_URL is set"
            )
        self._access = settings.access
        self._path = pod_path(settings.namespace, settings.job, settings.pod)
        self._own = threading.local()
        self._place = "the coordinator"
        """The one that was spoken to last, for messages."""

    def report(self, report: AgentReport) -> View:
        """Replace what the coordinator knows of this pod; raises CoordinatorError."""
        body = json.dumps(report.to_json()).encode()
        return self._call("POST", READ_TIMEOUT, body=body)

    def watch(self, version: str, wait: float) -> View:
        """Give the view when it differs from ``version``, or after ``wait`` seconds.

        Raises CoordinatorError.
        """
        fields = {"version": version, "wait": f"{wait:g}"}
        return self._call("GET", wait + READ_TIMEOUT, fields=fields)

    def _call(
        self,
        method: str,
        read_timeout: float,
        *,
        body: bytes | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> View:
        query = "" if fields is None else f"?{urlencode(fields)}"
        try:
            status, data = self._request(method, query, body, read_timeout)
        except (OSError, HTTPException, ValueError) as error:
            raise CoordinatorError(f"cannot reach {self._place}: {_reason(error)}") from error
        if status != 200:
            said = data[:200].decode(errors="replace").strip()
            raise CoordinatorError(f"{self._place} answers {status}: {said}")
        try:
            return View.from_json(json.loads(data))
        except ValueError as error:
            raise CoordinatorError(f"{self._place} sends no view: {error}") from error

    def _request(
        self, method: str, query: str, body: bytes | None, read_timeout: float
    ) -> tuple[int, bytes]:
        """Ask over this thread's connection; a new one where the other side has closed it.

        Asking twice is harmless: a report replaces the one before. Whatever a connection that was
        kept fails with means that, silence excepted: TLS has errors of its own for it.
        """
        kept: _Kept | None = getattr(self._own, "kept", None)
        if kept is not None:
            try:
                return self._ask(kept, method, query, body, read_timeout)
            except TimeoutError:
                raise
            except (OSError, HTTPException):
                self._own.kept = None
        return self._ask(self._connect(), method, query, body, read_timeout)

    def _ask(
        self, kept: _Kept, method: str, query: str, body: bytes | None, read_timeout: float
    ) -> tuple[int, bytes]:
        connection, headers = kept.connection, {"Authorization": f"Bearer {kept.access.token}"}
        if body:
            headers["Content-Type"] = "application/json"
        path = urlsplit(kept.access.url).path + self._path + query
        try:
            connection.sock.settimeout(read_timeout)
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
        except BaseException:
            self._own.kept = None
            connection.close()
            raise
        if answer.will_close or answer.status == 401:
            # Another token counts by now: it is read with the next connection.
            self._own.kept = None
            connection.close()
        else:
            self._own.kept = kept
        return answer.status, data

    def _connect(self) -> _Kept:
        """Open a connection to where the coordinator is now; raises OSError or ValueError."""
        access = self._access.read()
        self._place = access.url + self._path
        parts = urlsplit(access.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = access.context()
            secure = HTTPSConnection(host, parts.port, timeout=CONNECT_TIMEOUT, context=context)
            connection: HTTPConnection = secure
        else:
            connection = HTTPConnection(host, parts.port, timeout=CONNECT_TIMEOUT)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Kept(connection, access)


def _reason(error: Exception) -> str:
    """Say what is wrong without the addresses of objects, so that equal errors read alike."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


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


_GOES_ON = "training goes on"
_NEVER = (
    "this pod is in no round before it is heard: see whether DNS, a NetworkPolicy or a proxy is in "
    "the way"
)


class CoordinatorLink:
    """A Link to a real coordinator; two daemon threads."""

    def __init__(self, coordinator: CoordinatorConnection, heartbeat: float = HEARTBEAT) -> None:
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
            threads.lasting(target, name=f"link{target.__name__}")

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
            logger.warning("%s; %s, trying again", trouble, _GOES_ON if self.heard_at else _NEVER)
        self._trouble = trouble
