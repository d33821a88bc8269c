"""The thread that reads what a script without our trainer shows of its progress.

Beside the reports of the pod, because files of other people may lie on a file system that does not
answer: then the progress stands still, and nothing else. It looks often until the workers run,
which the operator waits for, and then once a second. Only the pod that holds rank 0 reads; a file
on a volume that all pods share would be told as often as there are pods.

When a round ends, what is there is read once more (``finish``): the last step is worth the most.
"""

import logging
import threading
import time
from collections import deque
from pathlib import Path

from rekindle import reporting, threads
from rekindle.api import AgentPhase
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.health.progress_readers import (
    Course,
    ProgressSource,
    Reading,
    from_json,
    reader_of,
    text,
)
from rekindle.launch.health.tailing import Tail
from rekindle.launch.health.tensorboard_events import EventFiles

logger = logging.getLogger(__name__)

OFTEN, SELDOM = 0.1, 1.0
"""Seconds between two looks, before and after the workers run."""
LINES = 2000
"""Lines that are kept between two looks; of more, the newest count."""
REPORT_FILE = "report"
"""In the round's directory."""


class Tracker:
    """Reads one round after the other."""

    def __init__(self, session: PodSession, source: ProgressSource) -> None:
        self._session = session
        self._source = source
        self._wake = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._ending = False
        self._round: _Reads | None = None

    def start(self) -> None:
        """Begin to look."""
        threads.lasting(self._run, name="tracker")

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._wake.set()

    def begin(self, directory: Path, *, leads: bool) -> Path | None:
        """Turn to the round that begins; ``leads``: rank 0 is in this pod.

        Gives the file for ``rekindle.report``, which its worker finds in its environment; None
        where nobody is going to read it. Call it before the workers start.
        """
        path = directory / REPORT_FILE if leads else None
        if path is not None:
            reporting.make(path)
        reads = _Reads(path, self._source if leads else ProgressSource())
        with self._lock:
            self._round = reads
        return path

    @property
    def taps(self) -> bool:
        """Whether lines are wanted that rank 0 prints."""
        return self._source.log

    def heard(self, line: bytes) -> None:
        """Take a line that rank 0 has printed; from any thread, and at no cost."""
        reads = self._round
        if reads is not None:
            reads.printed.append(line)

    def finish(self, seconds: float) -> None:
        """Have everything read that is there, within so many seconds."""
        self._done.clear()
        self._ending = True
        self._wake.set()
        self._done.wait(seconds)

    def _run(self) -> None:
        while not self._closed:
            running = self._session.phase is AgentPhase.RUNNING
            self._wake.wait(OFTEN if running and not self._session.runs else SELDOM)
            self._wake.clear()
            ending, self._ending = self._ending, False
            try:
                self.look(last=ending)
            finally:
                if ending:
                    self._done.set()

    def look(self, *, last: bool = False) -> None:
        """Look once; ``last``: nothing more will come in this round."""
        with self._lock:
            reads = self._round
        if reads is None:
            return
        reads.read(last=last)
        if reads is self._round:
            self._session.tracked(reads.course.progress)


class _Reads:
    """What is read in one round, and how far."""

    def __init__(self, report: Path | None, source: ProgressSource) -> None:
        self.course = Course()
        self.printed: deque[bytes] = deque(maxlen=LINES)
        self._report = report
        self._reported: bytes | None = None
        self._line = reader_of(source) if source.log else None
        self._tail = None if source.file is None else Tail(Path(source.file))
        directory = source.tensorboard
        self._events = None if directory is None else EventFiles(Path(directory))
        self._looked = 0.0

    def read(self, *, last: bool) -> None:
        if self._report is not None:
            word = reporting.read(self._report)
            if word is not None and word != self._reported:
                self._reported = word
                self._take(from_json(word))
        while self._line is not None and self.printed:
            self._take(self._line(text(self.printed.popleft())), forward=True)
        # Files may be far away: not ten times a second.
        if not last and time.monotonic() - self._looked < SELDOM / 2:
            return
        self._looked = time.monotonic()
        if self._tail is not None:
            for line in self._tail.lines(last=last):
                self._take(from_json(line))
        if self._events is not None and (step := self._events.step()) is not None:
            self._take(Reading(step=step))

    def _take(self, reading: Reading | None, *, forward: bool = False) -> None:
        if reading is not None:
            self.course = self.course.read(reading, forward=forward)
