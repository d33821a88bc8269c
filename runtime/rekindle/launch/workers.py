"""The worker processes of one round, seen from the agent.

How a process comes into being is ``forkserver``'s business; here they are a group:

- No signal handlers are installed in the agent: those of torch's own process context raise an
  exception in the middle of anything.
- Ends are seen through files, and siblings of a failed worker are ended by the agent. torch does
  that itself within a poll, with SIGTERM and 30 s of patience for a worker that is deaf to it, as
  any worker is that waits in a collective.
- Killing means the whole process group, so that data workers go with their worker. It takes the
  kernel a while to take a large process apart: ``kill`` and ``bury`` are two calls, so that other
  things can be done meanwhile.
- A pod with one worker gives it its own standard streams: no file, no copy, no delay. With
  several, lines get a prefix with the rank on the way through a FIFO. torch's way through log
  files would grow without bounds and read them by polling.

Each round has its own directory, named after its number, with the control page, FIFOs, torch's
error files, and the Prometheus files of its workers.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rekindle.launch.forkserver import Process, Starter
from rekindle.launch.variables import ERROR_FILE
from rekindle.launch.warm import Job

logger = logging.getLogger(__name__)

LINE_LIMIT = 1 << 16
"""Bytes of a line that are held back for its end."""
BURY_SECONDS = 30.0
"""For killed workers to be gone."""


class Workers:
    """The processes."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._processes: list[Process] = []
        self._prefixer: Prefixer | None = None

    def start(
        self, environments: Sequence[Mapping[str, str]], *, directory: Path, first_rank: int
    ) -> None:
        """Start a process per environment; raises OSError when one cannot be started."""
        several = len(environments) > 1
        if several:
            self._prefixer = Prefixer()
        jobs = []
        for local_rank, environment in enumerate(environments):
            folder = directory / str(local_rank)
            folder.mkdir()
            streams: dict[str, str] = {}
            if self._prefixer is not None:
                prefix = f"[{first_rank + local_rank}] ".encode()
                for name, to in (("stdout", sys.stdout), ("stderr", sys.stderr)):
                    streams[name] = str(folder / name)
                    os.mkfifo(streams[name])
                    self._prefixer.add(streams[name], prefix, to.buffer)
            own = {**environment, ERROR_FILE: str(folder / "error.json")}
            jobs.append(Job(environment=own, **streams))
        if self._prefixer is not None:
            self._prefixer.start()
        for job in jobs:
            self._processes.append(self._starter.start(job))

    def pids(self) -> list[int]:
        """Give their numbers, by local rank."""
        return [process.pid for process in self._processes]

    def exits(self) -> tuple[int | None, ...]:
        """Give the exit code of each worker, None while it runs, negative for a signal."""
        return tuple(process.poll() for process in self._processes)

    def files(self) -> list[int] | None:
        """Give files that become readable when a worker ends; None where the system has none."""
        files = [process.file for process in self._processes if process.poll() is None]
        known = [file for file in files if file is not None]
        return known if len(known) == len(files) else None

    def send(self, number: signal.Signals) -> None:
        """Signal the workers that run; from any thread."""
        for process in self._processes:
            process.send(number)

    def kill(self) -> None:
        """Kill the workers and everything that they have started, and do not wait."""
        for process in self._processes:
            # Also when the worker itself has ended: its data workers may not have.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def bury(self) -> None:
        """Wait until all are gone."""
        deadline = time.monotonic() + BURY_SECONDS
        for process in self._processes:
            if process.wait(max(0.0, deadline - time.monotonic())) is None:
                # Only in an uninterruptible wait of the kernel (a broken disk or GPU).
                logger.warning("worker process %d does not die of SIGKILL", process.pid)
        self._starter.bury(self.pids())
        if self._prefixer is not None:
            self._prefixer.stop()
            self._prefixer = None


class Prefixer:
    """Copies lines from FIFOs to this process's streams, each with a prefix; one thread for all."""

    def __init__(self) -> None:
        self._sources: dict[int, tuple[bytes, BinaryIO]] = {}
        self._rest: dict[int, bytes] = {}
        self._poller = select.poll()
        self._stop_read, self._stop_write = os.pipe()
        self._poller.register(self._stop_read, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="prefixer", daemon=True)

    def add(self, path: str, prefix: bytes, to: Any) -> None:
        """Read this FIFO."""
        # Open for writing too: else the FIFO is at its end whenever no worker holds it.
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._sources[file] = (prefix, to)
        self._rest[file] = b""
        self._poller.register(file, select.POLLIN)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def stop(self) -> None:
        """Copy what is there and end."""
        os.write(self._stop_write, b"\0")
        if self._thread.ident is not None:
            self._thread.join(5.0)
        if self._thread.is_alive():
            return  # Nobody reads this process's streams; the files are the thread's until then.
        for file in (*self._sources, self._stop_read, self._stop_write):
            os.close(file)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            ready = [file for file, _ in self._poller.poll()]
            stopping = self._stop_read in ready
            for file in self._sources:
                while self._copy(file):
                    pass
        for file, (prefix, to) in self._sources.items():
            if self._rest[file]:
                self._put(to, prefix + self._rest[file] + b"\n")

    def _copy(self, file: int) -> bool:
        try:
            data = os.read(file, LINE_LIMIT)
        except BlockingIOError:
            return False
        prefix, to = self._sources[file]
        *lines, rest = (self._rest[file] + data).split(b"\n")
        if len(rest) >= LINE_LIMIT:
            lines, rest = [*lines, rest], b""
        self._rest[file] = rest
        self._put(to, b"".join(prefix + line + b"\n" for line in lines))
        return True

    def _put(self, to: BinaryIO, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            to.write(data)
            to.flush()
