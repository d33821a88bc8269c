"""The watchdog's thread: looks at the workers' signs of life, and asks where they stand.

It runs beside the main loop, since collecting stacks takes a moment in which a notice or a round
may come. Once a second, and at once when the coordinator wants the stacks of all pods, it reads the
heartbeats of the present round. What it finds is for the coordinator to judge: nothing is stopped
from here. Stacks also go to the pod's log, where they outlive the pod's memory of them.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rekindle import threads
from rekindle.api import AgentPhase, Hang, RankReport
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.health import stacks
from rekindle.launch.health.watchdog import Watchdog, observe, suspect, verdict
from rekindle.ranks import heartbeat
from rekindle.ranks.heartbeat import Beat

logger = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks."""


class Watcher:
    """Watches the workers of a pod, round after round."""

    def __init__(
        self,
        session: PodSession,
        *,
        directory: Callable[[], Path | None],
        send: Callable[[signal.Signals], None],
    ) -> None:
        """``directory`` gives that of the present round, ``send`` signals its workers."""
        self._session = session
        self._directory = directory
        self._send = send
        self._wake = threading.Event()
        self._closed = False
        self._known = Watchdog()
        self._seen: Path | None = None
        self._told: tuple[Path, int, int] | None = None
        self._stacks: dict[int, str] = {}
        session.listen(self._wake.set)

    def start(self) -> None:
        """Begin to watch."""
        threads.lasting(self._run, name="watcher")

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(LOOK)
            self._wake.clear()
            try:
                self.look(time.monotonic())
            except OSError as error:
                # A round's directory goes away in the middle of a look.
                logger.debug("cannot look at the workers: %s", error)

    def look(self, now: float) -> None:
        """Look once."""
        directory = self._directory()
        if directory != self._seen:
            self._seen, self._known, self._told = directory, self._known.next_round(), None
        if directory is None or self._session.phase is not AgentPhase.RUNNING:
            self._session.watched((), None)
            return
        beats = heartbeat.read(directory)
        self._known = observe(self._known, beats)
        given = self._session.settings.hang_timeout
        found = verdict(self._known, beats, given=given, now=now)
        if found is None and self._session.dump() is not None:
            found = suspect(self._known, beats, given=given, now=now)
        ranks = tuple(map(self._rank, beats, [now] * len(beats)))
        if found is not None:
            found = self._located(directory, found)
        self._session.watched(ranks, found)

    def _rank(self, beat: Beat, now: float) -> RankReport:
        return RankReport(
            rank=beat.rank,
            step=beat.step,
            phase=beat.phase.name.lower(),
            idle=round(max(0.0, now - beat.at), 3),
            busy=beat.busy,
        )

    def _located(self, directory: Path, found: Hang) -> Hang:
        """Add where the workers stand; asked once for each standstill."""
        mark = (directory, found.rank, found.step)
        if self._told != mark:
            self._told = mark
            logger.warning(
                "rank %d has not got on for %.0f s (%s, after step %d; limit %.0f s); stacks of "
                "all workers follow",
                found.rank,
                found.idle,
                found.phase,
                found.step,
                found.timeout,
            )
            self._stacks = stacks.collect(directory, self._send, self._session.settings.nproc)
            for rank, text in self._stacks.items():
                logger.warning("stacks of rank %d:\n%s", rank, text.rstrip())
        return stacks.located(found, self._stacks)
