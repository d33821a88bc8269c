"""The thread between a training and one of its loggers.

Records wait in a queue of bounded length. When a logger does not keep up and the queue is full, new
records are dropped and counted: the alternative is a training that stands still because a web
service does. Ten thousand records are days of training at the usual interval, so that only a logger
that is truly stuck loses any.

Errors of a logger end here as well. One that cannot be opened is given up, one that fails to write
a record is tried with the next. Whoever owns the feed asks for `news` and tells people.

What waits when a checkpoint is made goes into it (`waiting`), and is written by the attempt that
resumes: a killed process loses no record of a step that its checkpoint has. That attempt goes back
to before the first step of which anything waits, so what is written of that step goes along.

The thread is a daemon: a logger that hangs cannot keep the process from ending.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rekindle import threads

if TYPE_CHECKING:
    from rekindle.loggers.logger import Attempt, Logger

CAPACITY = 10_000
"""Records that may wait."""

_SAVED = 1000
"""Waiting records that a checkpoint holds, at most."""

BATCH = "\0"
"""Stands after a name in `Known` where the step counts batches of evaluations."""

Known = Mapping[str, int] | int
"""Last step that is written already: per name, or one for all names."""


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """Something to write: scalars of a step, or hyperparameters."""

    values: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    hyperparameters: dict[str, Any] | None = None
    measured: dict[str, float] | None = None
    """Metrics that hyperparameters are shown with, for loggers that take them."""
    rewind: int | None = None
    """The step that training went back to."""
    numbers: dict[str, int] = field(default_factory=dict)
    """With it: how far step values of validations had come there."""
    now: int | None = None
    """The run's step when the record was handed over; `step` may be any number of a script's."""
    at: float = field(default_factory=time.time)
    apart: bool = False
    """Whether `step` counts batches of evaluations, not steps of training."""
    again: bool = False
    """Whether the attempt before left it over."""


class LoggerThread:
    """Writes records to one logger, in order, in a thread of its own."""

    def __init__(self, logger: "Logger", attempt: "Attempt") -> None:
        self._logger, self._attempt, self._capacity = logger, attempt, CAPACITY
        self._changed = threading.Condition()
        self._waiting: deque[MetricRecord] = deque()
        self._status: str | None = None
        self._open = threading.Event()
        self._dead = False
        self._news: deque[str] = deque(maxlen=10)
        self._told = False
        self._writing: MetricRecord | None = None
        self._done: list[MetricRecord] = []
        """What was written last, as far as it belongs to one step of the run."""
        self._known: Known = {}
        self._again: dict[str, int] = {}
        """Last step per name of what the attempt before left over."""
        self._written = -1
        self.apart = False
        """Whether what is handed over now counts batches of evaluations."""
        self.now = 0
        """The run's step at the newest record."""
        self.dropped = 0
        """Records that found the queue full."""
        self.failed = 0
        """Records that the logger could not write."""
        self._thread = threads.task(self._run, name=f"rekindle-{type(logger).__name__}")

    def put(self, record: MetricRecord) -> None:
        """Hand over a record; never waits."""
        if record.values and record.now is None:
            now = self.now = self._attempt.now()
            step = now if record.step is None else record.step
            record = replace(record, step=step, now=now, apart=self.apart)
        with self._changed:
            if self._dead or self._status is not None:
                return
            if len(self._waiting) >= self._capacity:
                if not self.dropped:
                    self._say(
                        f"does not keep up: {self._capacity} records wait, new ones are dropped"
                    )
                self.dropped += 1
                return
            self._waiting.append(record)
            self._changed.notify()

    def waiting(self) -> list[MetricRecord]:
        """What the next attempt has to write, oldest first; see the module's docstring."""
        with self._changed:
            first = [] if self._writing is None else [self._writing]
            found = [*first, *itertools.islice(self._waiting, _SAVED)]
            if found and self._done and self._done[0].now == found[0].now:
                found = [*self._done, *found]
            return found

    def opened(self, timeout: float = 60.0) -> bool:
        """Whether the logger is open; waits until that is known."""
        return self._open.wait(timeout) and not self._dead

    def drained(self, timeout: float) -> bool:
        """Whether all that was handed over is written; waits for it."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._dead or (not self._waiting and self._writing is None), timeout
            )

    def close(self, status: str) -> None:
        """Take no more records; write what is waiting and close the logger. Does not wait."""
        with self._changed:
            self._status = status
            self._changed.notify()

    def wait(self, timeout: float) -> None:
        """Wait for the end of what `close` has begun, at most `timeout` seconds."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._say(f"has not ended in time, {len(self._waiting)} records may be lost")
        elif self.dropped or self.failed > 1:
            self._say(f"lost {self.dropped + self.failed} records in all")

    def news(self) -> list[str]:
        """What people should know and have not been told."""
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found

    def _say(self, text: str) -> None:
        self._news.append(f"logger {type(self._logger).__name__} {text}")

    def _run(self) -> None:
        try:
            known = self._logger.open(self._attempt)
            # Where only the newest step is known, a `test` after training is not a repetition.
            again = self._attempt.repeats or not isinstance(known, int)
            self._known = known if again else {}
        except Exception as error:
            # Whatever it is, it comes out of a logger's own code, and no run depends on one.
            with self._changed:
                self._dead = True
                self._changed.notify_all()
            self._say(f"is not used: {_words(error)}. Training goes on without it.")
            return
        finally:
            self._open.set()
        while (record := self._next()) is not None:
            self._guarded(self._write, record)
            if not self._waiting:
                self._guarded(self._logger.flush)
        self._guarded(self._logger.close, self._status)

    def _next(self) -> MetricRecord | None:
        with self._changed:
            if self._writing is not None and self._writing.values:
                same = bool(self._done) and self._done[0].now == self._writing.now
                self._done = [*(self._done if same else ()), self._writing][-_SAVED:]
            self._writing = None
            self._changed.notify_all()
            while not self._waiting and self._status is None:
                self._changed.wait()
            self._writing = self._waiting.popleft() if self._waiting else None
            return self._writing

    def _write(self, record: MetricRecord) -> None:
        if record.hyperparameters is not None:
            measured = () if record.measured is None else (record.measured,)
            self._logger.write_hyperparameters(record.hyperparameters, *measured)
            return
        if record.rewind is not None:
            there = replace(self._attempt, step=record.rewind, apart=record.numbers)
            attempt = replace(there, resumed=True, repeats=True)
            known = self._logger.rewind(attempt)
            self._known = self._written if known is None else known
            return
        step = record.step or 0
        if record.apart:
            self._write_apart(record, step)
            return
        values = {n: v for n, v in record.values.items() if step > self._reached(n)}
        if record.again:
            self._again.update(dict.fromkeys(values, step))
        if values:
            self._logger.write(values, step, record.at)
            self._written = max(self._written, step)

    def _write_apart(self, record: MetricRecord, step: int) -> None:
        """The same for the batches of evaluations; those outside of a fit begin anew each time."""
        known = {} if isinstance(self._known, int) or not self._attempt.repeats else self._known
        values = {n: v for n, v in record.values.items() if step > known.get(n + BATCH, -1)}
        if values:
            self._logger.write_batch(values, step, record.at)

    def _reached(self, name: str) -> int:
        """The last step that is written already."""
        known = self._known
        before = known if isinstance(known, int) else known.get(name, -1)
        return before if not self._again else max(before, self._again.get(name, -1))

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:
            # As above; and the thread has to live on for the records that can be written.
            self.failed += 1
            if not self._told:
                self._told = True
                self._say(f"failed: {_words(error)}. Training goes on; later failures are counted.")


def _words(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(". ")
