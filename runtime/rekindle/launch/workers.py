"""The worker processes of one round, seen from the agent.

torch's own context for subprocesses is used for starting them; the rest is different:

- No signal handlers are installed in the agent: torch's raise an exception in the middle of
  anything.
- Ends are seen through a pidfd per worker, and siblings of a failed worker are ended by the
  agent. torch does that itself within a poll, with SIGTERM and 30 s of patience for a worker that
  is deaf to it, as any worker is that waits in a collective.
- Killing means the whole process group, so that data workers go with their worker.
- A pod with one worker gives it its own standard streams: no file, no copy, no delay. With
  several, lines get a prefix with the rank on the way through a FIFO. torch's way through log
  files would grow without bounds and read them by polling.

Each round has its own directory, named after its number, with the control page, FIFOs, torch's
error files, and the Prometheus files of its workers.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SubprocessContext

ENV_AGENT_PID = "REKINDLE_AGENT_PID"
"""Pid of the agent, for workers that want to die with it."""
LINE_LIMIT = 1 << 16
"""Bytes of a line that are held back for its end."""


class RoundLogs(LogsSpecs):
    """Where the streams of the workers of a round go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(log_dir=str(directory))
        self._directory = directory

    @property
    def root_log_dir(self) -> str:
        """Give the round's directory."""
        return str(self._directory)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Lay out the files; with several workers, streams are FIFOs that ``Prefixer`` reads."""
        streams: dict[str, dict[int, str]] = {"stdout": {}, "stderr": {}}
        errors = {}
        for local_rank, environment in envs.items():
            folder = self._directory / str(local_rank)
            folder.mkdir()
            errors[local_rank] = str(folder / "error.json")
            environment["TORCHELASTIC_ERROR_FILE"] = errors[local_rank]
            for name, paths in streams.items():
                paths[local_rank] = ""
                if len(envs) > 1:
                    paths[local_rank] = str(folder / name)
                    os.mkfifo(paths[local_rank])
        return LogsDest(stdouts=streams["stdout"], stderrs=streams["stderr"], error_files=errors)


class Workers(SubprocessContext):
    """The processes."""

    def __init__(
        self,
        *,
        entrypoint: str,
        args: Mapping[int, tuple[str, ...]],
        envs: Mapping[int, dict[str, str]],
        directory: Path,
        first_rank: int,
    ) -> None:
        super().__init__(
            name="worker",
            entrypoint=entrypoint,
            args=dict(args),
            envs=dict(envs),
            logs_specs=RoundLogs(directory),
        )
        self._prefixer: Prefixer | None = None
        self._first_rank = first_rank
        self._pidfds: dict[int, int] = {}

    def start(self) -> None:
        """Start the processes; raises OSError when one cannot be started."""
        if self.nprocs > 1:
            self._prefixer = Prefixer()
            for paths, to in ((self.stdouts, sys.stdout), (self.stderrs, sys.stderr)):
                for local_rank, path in paths.items():
                    prefix = f"[{self._first_rank + local_rank}] ".encode()
                    self._prefixer.add(path, prefix, to.buffer)
            self._prefixer.start()
        self._start()  # type: ignore[no-untyped-call]
        if hasattr(os, "pidfd_open"):
            for local_rank, pid in self.pids().items():
                # A kernel without pidfds costs speed, no more: the main loop then polls.
                with contextlib.suppress(OSError):
                    self._pidfds[local_rank] = os.pidfd_open(pid)

    def exits(self) -> tuple[int | None, ...]:
        """Give the exit code of each worker, None while it runs, negative for a signal."""
        handlers = self.subprocess_handlers
        codes = tuple(handlers[local_rank].proc.poll() for local_rank in range(self.nprocs))
        for local_rank, code in enumerate(codes):
            if code is not None and local_rank in self._pidfds:
                os.close(self._pidfds.pop(local_rank))
        return codes

    def files(self) -> list[int] | None:
        """Give files that become readable when a worker ends; None where the system has none."""
        running = sum(
            handler.proc.returncode is None for handler in self.subprocess_handlers.values()
        )
        return list(self._pidfds.values()) if len(self._pidfds) == running else None

    def send(self, number: signal.Signals) -> None:
        """Signal the workers, and with SIGKILL everything that they have started."""
        for handler in self.subprocess_handlers.values():
            pid = handler.proc.pid
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL:
                    # Also when the worker itself has ended: its data workers may not have.
                    os.killpg(pid, number)
                elif handler.proc.poll() is None:
                    os.kill(pid, number)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        """Kill whatever is left, without asking; called by torch's base class on every way out."""
        self.send(signal.SIGKILL)
        for handler in self.subprocess_handlers.values():
            # Only a process in an uninterruptible wait of the kernel (a broken disk or GPU) stays.
            with contextlib.suppress(Exception):
                handler.proc.wait(timeout)
            for stream in (handler._stdout, handler._stderr):
                if stream is not None:
                    stream.close()
        self.exits()
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
        self._thread.join(5.0)
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
