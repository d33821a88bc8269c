"""``/metrics`` and ``/healthz`` of a pod, served by its agent.

The workers write their metrics into the round's Prometheus directory (the client library's
multiprocess mode), and whoever scrapes is answered from there: workers open no port, and a scrape
never waits for one. A round has a directory of its own, so counters begin anew with it, which
``rate()`` understands; values of workers long dead are not summed up for ever.

What the agent knows itself comes from the control page. A name that a worker exports too is told
once, as the agent's. A port that is taken costs the metrics, not the pod; without prometheus-client
there is what the agent knows.
"""

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rekindle import threads
from rekindle.api import AgentPhase
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.health import preemption_notices

logger = logging.getLogger(__name__)

STUCK = 180.0
"""Seconds without a turn of the main loop, after which the agent itself is taken for stuck."""
REQUEST_TIMEOUT = 5.0
MOST_AT_ONCE = 16
"""Requests that are answered at a time; each is a thread."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' own text format."""


@dataclass(frozen=True)
class Family:
    """One metric of the agent's own."""

    name: str
    help: str
    values: Mapping[str, float]
    """By labels, as they stand behind the name."""
    kind: str = "gauge"

    def lines(self) -> Iterator[str]:
        """Give it in Prometheus' text format."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        yield f"# HELP {name} {self.help}"
        yield f"# TYPE {name} {self.kind}"
        for labels, value in self.values.items():
            yield f"{name}{labels} {value}"


class MetricsPage:
    """The agent's own metrics, and those of its workers, as Prometheus reads them."""

    def __init__(self, session: PodSession, directory: Callable[[], Path | None]) -> None:
        self._session = session
        self._directory = directory

    def text(self) -> bytes:
        """Give all families, each name once."""
        own = list(self._own())
        lines = [line for family in own for line in family.lines()]
        return "".join(f"{line}\n" for line in lines).encode() + self._workers(
            {family.name for family in own}
        )

    def _own(self) -> Iterator[Family]:
        report = self._session.report()
        yield Family(
            "rekindle_pod_phase",
            "1 for the phase that the agent is in",
            {f'{{phase="{phase.value}"}}': float(report.phase is phase) for phase in AgentPhase},
        )
        yield Family(
            "rekindle_rounds_joined",
            "Rounds that this pod has joined; each after the first is a restart of its workers",
            {"": float(self._session.rounds_joined)},
            kind="counter",
        )
        if report.round is not None:
            yield Family("rekindle_round", "Number of the round", {"": float(report.round.number)})
        if report.progress is not None:
            progress = report.progress
            yield Family("rekindle_step", "Optimizer steps completed", {"": float(progress.step)})
            yield Family(
                "rekindle_productive_seconds",
                "Seconds spent on steps of the surviving timeline",
                {"": float(progress.productive_seconds)},
            )
            yield Family(
                "rekindle_checkpoint_stall_seconds",
                "Seconds that training has stood still for checkpoints",
                {"": float(progress.stall_seconds)},
            )
        if report.checkpoint is not None:
            yield Family(
                "rekindle_last_committed_step",
                "Step of the newest committed checkpoint",
                {"": float(report.checkpoint.step)},
            )

    def _workers(self, told: Collection[str]) -> bytes:
        directory = self._directory()
        if directory is None:
            return b""
        try:
            from prometheus_client import CollectorRegistry, generate_latest
            from prometheus_client.multiprocess import MultiProcessCollector
        except ImportError:
            return b""  # Then the workers write none.
        try:
            collector = MultiProcessCollector(CollectorRegistry(), str(directory / "prometheus"))  # type: ignore[no-untyped-call]
            found = [each for each in collector.collect() if each.name not in told]  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            # The round has just ended and its directory is gone, or a worker died while writing.
            logger.debug("no metrics of the workers: %s", error)
            return b""
        registry = CollectorRegistry()
        registry.register(_Found(found))
        return bytes(generate_latest(registry))


class _Found:
    """Families that have been collected already."""

    def __init__(self, families: Sequence[Any]) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        yield from self._families


class _Server(ThreadingHTTPServer):
    """Answers so many at a time, and closes the door on whoever is one too many."""

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(place, handler)
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there may be one more."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes before the answer is no news either, and a request may hold a token."""


def _token(session: PodSession) -> str:
    """The token that counts now; raises Refusal while it cannot be read."""
    access = session.settings.access
    try:
        return access.read().token if access else ""
    except (OSError, ValueError) as error:
        raise preemption_notices.Refusal(503, "the job's secret cannot be read now") from error


def start(
    session: PodSession,
    directory: Callable[[], Path | None],
    *,
    address: str,
    port: int,
    tell: Callable[[str, float | None], None] | None = None,
) -> ThreadingHTTPServer | None:
    """Serve from a daemon thread; None when the port cannot be had.

    ``tell`` is called with each notice that somebody gives (see notices).
    """
    page = MetricsPage(session, directory)
    if importlib.util.find_spec("prometheus_client") is None:
        logger.info("no prometheus-client here: /metrics has what the agent knows, and no more")

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, page.text(), CONTENT_TYPE)
            elif path == "/healthz":
                idle = time.monotonic() - session.turned_at
                status, word = (200, "ok") if idle < STUCK else (503, f"stuck for {idle:.0f} s")
                self._answer(status, f"{word} {session.phase.value}\n".encode(), "text/plain")
            else:
                self._answer(404, b"only /metrics and /healthz\n", "text/plain")

        def do_POST(self) -> None:
            if tell is None or self.path.partition("?")[0] != preemption_notices.PATH:
                self._answer(404, f"only {preemption_notices.PATH}\n".encode(), "text/plain")
                return
            try:
                preemption_notices.admit(
                    token=_token(session),
                    shown=self.headers.get("Authorization"),
                    peer=self.client_address[0],
                )
                if "Transfer-Encoding" in self.headers:
                    raise preemption_notices.Refusal(411, "a notice needs a Content-Length")
                length = self.headers.get("Content-Length", "0")
                if not length.isdecimal() or int(length) > preemption_notices.MAX_BODY:
                    raise preemption_notices.Refusal(
                        400, f"more than {preemption_notices.MAX_BODY} bytes"
                    )
                preemption_notices.take(self.rfile.read(int(length)), tell)
            except preemption_notices.Refusal as refusal:
                self._answer(refusal.status, f"{refusal}\n".encode(), "text/plain")
            else:
                self._answer(202, b"this pod saves and goes\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape is no news."""

    try:
        server = _Server((address, port), Handler)
    except OSError as error:
        logger.warning("no metrics: cannot listen on %s:%d: %s", address, port, error)
        return None
    server.daemon_threads = True
    threads.lasting(server.serve_forever, name="exporter")
    return server
