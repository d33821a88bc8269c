"""Notices, and the one thing that the agent's main loop sleeps on.

A Python signal handler runs between two bytecodes of the main thread, which may hold any lock at
that moment: so the handler stores a time and does nothing else. What ends the sleep of the main
loop is the byte that the interpreter itself writes to the wake-up pipe; other threads write to
the same pipe, and the loop selects on it together with a pidfd per worker. So a notice, a new
view and the death of a worker are all seen at once, without polling.

As PID 1 a process without a handler is immune to SIGTERM, so handlers are installed before
anything slow is imported.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from types import FrameType


class Signals:
    """Flags set by signals, and a pipe that wakes the main loop."""

    def __init__(self) -> None:
        self.noticed_at: float | None = None
        """time.monotonic() of the first notice."""
        self.grace = 30.0
        """Seconds that a notice leaves which does not say."""
        self._signalled = False
        self._notices: list[tuple[str, float, float | None]] = []
        """Who, when, and how many seconds it has left; whoever appends needs no lock."""
        self.hurry = False
        """Set by a second SIGINT: somebody at a terminal does not want to wait for the save."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; only the main thread can."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self.notice)
        signal.signal(signal.SIGINT, self.notice)
        if os.getpid() == 1:
            # Orphans become children of PID 1; their end has to wake the loop that buries them.
            signal.signal(signal.SIGCHLD, lambda *_: None)
        # Whoever started this process may have held them back until now (see first).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    def uninstall(self) -> None:
        """Put back what Python begins with, in a process that was forked from this one."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self._read)
        os.close(self._write)

    def notice(self, number: int, _frame: FrameType | None = None) -> None:
        """Remember the first signal; a second SIGTERM changes nothing."""
        if not self._signalled:
            self._signalled = True
            self.tell(signal.Signals(number).name)
        elif number == signal.SIGINT:
            self.hurry = True

    def tell(self, source: str, seconds: float | None = None) -> None:
        """Take a notice; from any thread, and from a handler of signals."""
        now = time.monotonic()
        self._notices.append((source, now, seconds))
        if self.noticed_at is None:
            self.noticed_at = now
        self.wake()

    def _first_end(self) -> tuple[float, str]:
        """When the pod ends, by the earliest notice, and who says so."""
        known = [(at + (self.grace if s is None else s), who) for who, at, s in self._notices]
        return min(known, default=(float("inf"), "SIGTERM"))

    @property
    def source(self) -> str:
        """Give the notice that leaves the least time."""
        return self._first_end()[1]

    @property
    def seconds(self) -> float:
        """Give the seconds from the first notice to the pod's end; infinity without any."""
        return self._first_end()[0] - (self.noticed_at or 0.0)

    @property
    def left(self) -> float:
        """Give the seconds from now to the pod's end; infinity without a notice."""
        return max(0.0, self._first_end()[0] - time.monotonic())

    def wake(self) -> None:
        """End the current or the next wait; from any thread."""
        # A full pipe: whoever waits will wake anyway.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def wait(self, timeout: float, files: Iterable[int] = ()) -> None:
        """Sleep until woken, until one of the files is readable, or for ``timeout`` seconds."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        for file in files:
            poller.register(file, select.POLLIN)
        poller.poll(max(0.0, timeout) * 1000)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass
