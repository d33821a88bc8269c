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
  several, or where somebody reads along, what they print goes through ``streams``.

Each round has its own directory, named after its number, with the control page, FIFOs, torch's
error files, and the Prometheus files of its workers.
"""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rekindle.launch.spawn.environment import ERROR_FILE
from rekindle.launch.spawn.fork_server import WorkerJob
from rekindle.launch.spawn.fork_server_client import Starter, WorkerProcess
from rekindle.launch.spawn.streams import Copier, Tap

logger = logging.getLogger(__name__)

BURY_SECONDS = 30.0
"""For killed workers to be gone; a large one takes the kernel a while."""
KILL_AGAIN = 0.5
"""Seconds after which a worker that is still there is killed once more."""


class WorkerProcesses:
    """The processes."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._processes: list[WorkerProcess] = []
        self._copier: Copier | None = None

    def start(
        self,
        environments: Sequence[Mapping[str, str]],
        *,
        directory: Path,
        first_rank: int,
        taps: Mapping[int, Tap] | None = None,
    ) -> None:
        """Start a process per environment; raises OSError when one cannot be started.

        ``taps``, by local rank, are called with each line that this worker prints.
        """
        several, taps = len(environments) > 1, taps or {}
        if several or taps:
            self._copier = Copier()
        jobs = []
        for local_rank, environment in enumerate(environments):
            folder = directory / str(local_rank)
            folder.mkdir()
            streams: dict[str, str] = {}
            tap = taps.get(local_rank)
            if self._copier is not None and (several or tap is not None):
                prefix = f"[{first_rank + local_rank}] ".encode() if several else b""
                streams = self._copier.streams(folder, prefix=prefix, tap=tap)
            own = {**environment, ERROR_FILE: str(folder / "error.json")}
            jobs.append(WorkerJob(environment=own, **streams))
        if self._copier is not None:
            self._copier.start()
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
            process.kill()

    def bury(self) -> None:
        """Wait until all are gone, which `kill` is repeated for; for so long and no longer."""
        deadline = time.monotonic() + BURY_SECONDS
        for process in self._processes:
            while (left := deadline - time.monotonic()) > 0:
                if process.wait(min(left, KILL_AGAIN)) is not None:
                    break
                process.kill()
            if process.poll() is None:
                # Only in an uninterruptible wait of the kernel (a broken disk or GPU).
                logger.warning("worker process %d does not die of SIGKILL", process.pid)
        self._starter.bury(self.pids())
        if self._copier is not None:
            self._copier.stop()
            self._copier = None
