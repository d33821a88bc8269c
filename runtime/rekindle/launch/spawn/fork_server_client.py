"""The agent's end of the process that workers are forked from (``warm``), and what to do without.

``Starter`` starts workers, one way or the other. Usually it has a fork server, which is replaced
when it dies; its workers die with it, and are seen to be dead like any others. A server that does
not survive the imports of the user's script gets another chance without them. Where even that does
not help, or the system lacks what it takes, or ``REKINDLE_WARM=0`` says so, each worker is a fresh
interpreter: slower by the time that importing torch takes, and the same otherwise.

Either way a worker is seen to end through a file, so nobody polls.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rekindle.api import ENV_RUN_DIR
from rekindle.launch.spawn import program as keeper
from rekindle.launch.spawn import worker
from rekindle.launch.spawn.command import LOCAL_RANK, PYTHON, Program, Script
from rekindle.launch.spawn.fork_server import MESSAGE, Start, WorkerJob, arguments_of, run
from rekindle.launch.spawn.preload import EVERYTHING

logger = logging.getLogger(__name__)

WARM_SECONDS = 300.0
"""For a fork server to get through its imports."""
ANSWER_SECONDS = 10.0
"""For a fork server to say that a worker is started."""
DEATHS = 5
"""Fork servers of a pod that may die before workers are started without one."""


class WorkerProcess(Protocol):
    """A worker."""

    pid: int

    def poll(self) -> int | None:
        """Give the exit code, None while it runs, negative for a signal."""

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, so long at most; as ``poll``."""

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it runs; from any thread."""

    def kill(self) -> None:
        """Kill it and what it has started, also when it has ended; do not wait."""

    @property
    def file(self) -> int | None:
        """A file that becomes readable when it ends; None where the system has none."""


class Fresh:
    """A worker that is an interpreter of its own, a child of the agent."""

    def __init__(
        self, arguments: Sequence[str], job: WorkerJob, memory: Sequence[int], *, tied: bool = True
    ) -> None:
        """Start it; raises OSError. ``tied``: it is told whom to die with."""
        parent = {worker.ENV_PARENT: str(os.getpid())} if tied else {}
        with contextlib.ExitStack() as stack:
            streams = [
                None if path is None else stack.enter_context(open(path, "wb"))
                for path in (job.stdout, job.stderr)
            ]
            self._process = subprocess.Popen(
                arguments,
                env={**os.environ, **job.environment, **parent},
                stdout=streams[0],
                stderr=streams[1],
                pass_fds=tuple(memory),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.file: int | None = None
        if hasattr(os, "pidfd_open"):
            # A kernel without pidfds costs speed, no more: the main loop then polls.
            with contextlib.suppress(OSError):
                self.file = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Give the exit code."""
        return self._closed(self._process.poll())

    def wait(self, seconds: float) -> int | None:
        """Wait for the end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._closed(self._process.wait(seconds))
        return None

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it and its process group."""
        self.send(signal.SIGKILL)
        _kill_group(self.pid)

    def _closed(self, code: int | None) -> int | None:
        if code is not None and self.file is not None:
            os.close(self.file)
            self.file = None
        return code


class Kept(Fresh):
    """A worker that is no Python script, below a process that keeps it (``program``)."""

    def __init__(self, program: Program, job: WorkerJob) -> None:
        """Start it; raises OSError."""
        replaced = {
            LOCAL_RANK: job.environment.get("LOCAL_RANK", "0"),
            PYTHON: sys.executable,
        }
        arguments = list(program.arguments)
        for mark, value in replaced.items():
            arguments = [each.replace(mark, value) for each in arguments]
        self._directory = Path(job.environment[ENV_RUN_DIR])
        self._rank = None if program.per_pod else int(job.environment.get("RANK", "0"))
        own = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), *arguments]
        super().__init__(own, job, (), tied=False)

    def kill(self) -> None:
        """Kill it and everything below it, in whatever process group that is."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, keeper.END)

    def _closed(self, code: int | None) -> int | None:
        code = super()._closed(code)
        if not code:
            return code
        # What a worker below says of itself is worth more than the 1 of the launchers between.
        left = worker.left_code(self._directory, self._rank)
        return code if left is None else left


class Forked:
    """A worker that is a child of the fork server."""

    def __init__(self, server: "ForkServer", pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._server = server
        self._code: int | None = None
        self._lock = threading.Lock()

    @property
    def file(self) -> int | None:
        """The server's socket: it tells a moment later than the kernel, but with the code."""
        if self._code is not None:
            return None
        return self._pidfd if self._server.file is None else self._server.file

    def poll(self) -> int | None:
        """Give the exit code; -9 for a worker whose fork server has died."""
        return self.wait(0.0)

    def wait(self, seconds: float) -> int | None:
        """Wait for the end."""
        deadline = time.monotonic() + seconds
        while self._code is None:
            code = self._server.code_of(self.pid)
            if code is None and self._server.file is None and _readable(self._pidfd, 0.0):
                code = -int(signal.SIGKILL)
            if code is not None:
                with self._lock:
                    self._code = code
                    os.close(self._pidfd)
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            _readable(self._pidfd if self._server.file is None else self._server.file, left)
        return self._code

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._code is None:
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it and its process group.

        First the process: in its first moment it leads no group yet, and none would be found. From
        then on it makes no more processes, so that the group has them all.
        """
        self.send(signal.SIGKILL)
        _kill_group(self.pid)


def _kill_group(pid: int) -> None:
    # Also when the worker itself has ended: its data workers may not have.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class Child(Protocol):
    """A child process, as ``subprocess.Popen`` shows it."""

    pid: int

    def poll(self) -> int | None:
        """Give how it ended."""

    def kill(self) -> None:
        """Send it SIGKILL."""

    def wait(self, timeout: float) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""


class _Forked:
    """A child that was forked from this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else has buried it, and knows how it ended.
                self._code = -int(signal.SIGKILL)
            else:
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        if self.poll() is None:
            file = os.pidfd_open(self.pid)
            _readable(file, timeout)
            os.close(file)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("fork", timeout)
        return code


def _fork(
    start: Start, own: socket.socket, other: socket.socket, like_this: Callable[[], None]
) -> _Forked:
    # What is buffered would be written by both.
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python from 3.12 on warns of threads, which native libraries have and look after.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return _Forked(pid)
    try:
        os.setsid()
        own.close()
        like_this()
        other.detach()
        run(start)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


class ForkServer:
    """One such process."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        count: int,
        memory: Sequence[int],
        unfit: Mapping[str, str],
        like_this: Callable[[], None] | None,
    ) -> None:
        """Start it; raises OSError.

        It is forked from this process where ``like_this`` says how to undo what the agent has done
        to it, else a fresh interpreter.
        """
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        start = Start(
            socket=other.fileno(),
            parent=os.getpid(),
            count=count,
            command=tuple(command),
            memory=tuple(memory),
            unfit=dict(unfit),
        )
        self.began = time.monotonic()
        try:
            if like_this is None:
                self._process: Child = subprocess.Popen(
                    arguments_of(start),
                    pass_fds=(other.fileno(), *memory),
                    start_new_session=True,
                )
            else:
                self._process = _fork(start, own, other, like_this)
        except OSError:
            own.close()
            raise
        finally:
            other.close()
        self._connection: socket.socket | None = own
        self._codes: dict[int, int] = {}
        self._started: list[tuple[int, int]] = []
        self.ready = False
        self.failed: Sequence[str] = ()
        self.unfit: Mapping[str, str] = {}

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def file(self) -> int | None:
        """Its socket; None when it has died."""
        return None if self._connection is None else self._connection.fileno()

    def start(self, job: WorkerJob) -> Forked:
        """Start a worker; raises OSError when that cannot be had.

        A server that does not answer is killed: its answer would be taken for the next worker's.
        """
        if self._connection is None:
            raise OSError("the fork server has died")
        message = {"start": {**vars(job), "environment": dict(job.environment)}}
        self._connection.sendall(json.dumps(message).encode())
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._started:
            left = deadline - time.monotonic()
            if left <= 0 or self._connection is None:
                self.kill()
                raise OSError("the fork server does not answer")
            _readable(self._connection.fileno(), left)
            self.read()
        pid, pidfd = self._started.pop(0)
        return Forked(self, pid, pidfd)

    def code_of(self, pid: int) -> int | None:
        """Give the exit code of a worker that has ended."""
        if pid not in self._codes:
            self.read()
        return self._codes.get(pid)

    def bury(self, pids: Sequence[int]) -> None:
        """Say that ended workers, and their process groups, are not asked for any more."""
        for pid in pids:
            self._codes.pop(pid, None)
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(json.dumps({"bury": list(pids)}).encode())

    def read(self) -> None:
        """Take in what it has said, without waiting."""
        while self._connection is not None:
            try:
                data, files, _, _ = socket.recv_fds(self._connection, MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                data, files = b"", []
            if not data:
                self._connection.close()
                self._connection = None
                return
            message = json.loads(data)
            if "ready" in message:
                self.ready = True
                self.failed = message["ready"]["failed"]
                self.unfit = message["ready"]["unfit"]
            elif "started" in message:
                self._started.append((message["started"], files[0]))
            elif "ended" in message:
                self._codes[message["ended"]] = message["code"]

    def kill(self) -> int:
        """End it and all that was forked from it; gives how it ended."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._process.kill()
        try:
            return self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            return -int(signal.SIGKILL)  # In an uninterruptible wait of the kernel.

    def code(self) -> int | None:
        """Give how it ended."""
        return self._process.poll()


class Starter:
    """Starts the workers of a pod."""

    def __init__(
        self,
        *,
        target: Script | Program,
        count: int,
        memory: Sequence[int],
        warm: bool,
        like_this: Callable[[], None] | None = None,
    ) -> None:
        """Begin to warm up. The environment of this process is what all workers have in common.

        See ForkServer for ``like_this``; it holds for the first fork server only, because forking
        takes a process without threads.
        """
        self._target = target
        self._count = count
        self._memory = tuple(memory)
        self._unfit: dict[str, str] = {}
        self.deaths = 0
        """How many fork servers have died; the workers of each go with it."""
        self._told = False
        self._server: ForkServer | None = None
        if isinstance(target, Program):
            logger.info("workers run %s", " ".join(target.arguments)[:200])
        elif warm and not target.flags:
            self._launch(target, like_this)
        else:
            logger.info("workers start as fresh interpreters, without a fork server")

    @property
    def ready(self) -> bool:
        """Whether workers can be started without delay."""
        return self._server is None or self._server.ready

    @property
    def pid(self) -> int | None:
        """The fork server's number."""
        return None if self._server is None else self._server.pid

    @property
    def files(self) -> list[int]:
        """Files that become readable when ``tend`` has something to do."""
        file = None if self._server is None else self._server.file
        return [] if file is None else [file]

    def tend(self) -> None:
        """Hear the fork server, and see that there is one."""
        server = self._server
        if server is None:
            return
        server.read()
        late = not server.ready and time.monotonic() - server.began > WARM_SECONDS
        if server.file is None or late:
            self._replace(server, late=late)
        elif server.ready and not self._told:
            self._told = True
            for failure in server.failed:
                logger.info("not imported beforehand, %s", failure)
            for name, why in server.unfit.items():
                logger.info("workers import %s themselves: it %s", name, why)
            logger.info("warm after %.1f s", time.monotonic() - server.began)

    def start(self, job: WorkerJob) -> WorkerProcess:
        """Start a worker; raises OSError."""
        if self._server is not None:
            return self._server.start(job)
        if isinstance(self._target, Program):
            return Kept(self._target, job)
        arguments = worker.fresh_arguments(self._target.arguments, self._target.flags)
        return Fresh(arguments, job, self._memory)

    def bury(self, pids: Sequence[int]) -> None:
        """Say that these workers have been seen to end."""
        if self._server is not None:
            self._server.bury(pids)

    def close(self) -> None:
        """End the fork server."""
        if self._server is not None:
            self._server.kill()

    def _launch(self, script: Script, like_this: Callable[[], None] | None = None) -> None:
        self._told = False
        try:
            self._server = ForkServer(
                command=script.arguments,
                count=self._count,
                memory=self._memory,
                unfit=self._unfit,
                like_this=like_this,
            )
        except OSError as error:
            logger.warning("no fork server: %s; workers start as fresh interpreters", error)
            self._server = None

    def _replace(self, server: ForkServer, *, late: bool) -> None:
        code = server.kill()
        self.deaths += 1
        how = f"was not ready within {WARM_SECONDS:.0f} s" if late else f"ended with {code}"
        if self.deaths > DEATHS or (not server.ready and EVERYTHING in self._unfit):
            logger.warning("the fork server %s; workers start as fresh interpreters", how)
            self._server = None
            return
        logger.warning("the fork server %s; starting another", how)
        if not server.ready:
            self._unfit[EVERYTHING] = f"did not come through its imports: it {how}"
        assert isinstance(self._target, Script), "only scripts have a fork server"
        self._launch(self._target)


def usable() -> bool:
    """Whether this system has what a fork server needs."""
    if not (sys.platform.startswith("linux") and hasattr(os, "pidfd_open")):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return hasattr(os, "memfd_create")


def _readable(file: int, seconds: float) -> bool:
    """Wait until the file is readable; whether it is."""
    poller = select.poll()
    poller.register(file, select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))
