"""The process that workers are forked from: ``python -m rekindle.launch.spawn.fork_server``.

It imports what workers need (``preload``), forks one worker for each local rank ahead of time, and
then does nothing but wait: for the agent to say that a worker should run, and for workers to end. A
round thus costs neither imports nor the fork itself, which takes a while in a process of this size:
what is forked waits for its environment, sets itself up as a fresh interpreter would have found
things, and runs the user's script through ``worker``.

One thread, no CUDA, nothing clever: forking is only safe in such a process. A worker leads a
session of its own and dies with this process, which dies with the agent. An ended worker is told to
the agent and left unburied until the agent is done with its process group, so that the number
cannot become another process's meanwhile.

Messages are JSON documents over a socket that keeps their bounds. From the agent: ``start`` and
``bury``. To it: ``ready``, ``started`` (with a pidfd), ``ended``.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import socket
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from rekindle.launch.spawn import preload, worker
from rekindle.launch.spawn.preload import EVERYTHING, Preloaded

MESSAGE = 1 << 18
"""Bytes of the longest message; the environment of a worker is a few thousand."""
ATTEMPTS = 4
"""How often this process begins anew without packages that are unfit, before it leaves out all."""
REST = 2.0
"""Seconds after a round's start before the next workers are forked: not while it comes up."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the process begins with."""

    socket: int
    parent: int
    """Pid of the agent."""
    count: int
    """Workers of a round."""
    command: tuple[str, ...]
    memory: tuple[int, ...] = ()
    """Descriptors that workers inherit."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Packages that are left to the workers, and why."""
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What a forked process needs to become a worker."""

    environment: Mapping[str, str]
    stdout: str | None = None
    """Path to write to; None for what this process has."""
    stderr: str | None = None


def run(start: Start) -> NoReturn:
    """Serve until the agent closes the socket; in a forked worker, run the script."""
    worker.die_with(start.parent)
    environment, folder = dict(os.environ), os.getcwd()
    top = preload.script_top(start.command)
    os.environ.update(top.variables)
    for name, value in top.defaults.items():
        os.environ.setdefault(name, value)
    worker.prepare(start.command)
    found = preload.preload(start.command, tuple(start.unfit))
    if found.unfit:
        os.chdir(folder)
        _again(start, found.unfit, environment)
    server = Server(start, found)
    job = server.serve()
    become(job, start, found.files)


def _again(start: Start, unfit: Mapping[str, str], environment: Mapping[str, str]) -> NoReturn:
    """Begin anew, without packages that a fork must not share."""
    known = {**start.unfit, **unfit}
    if start.attempt >= ATTEMPTS:
        known[EVERYTHING] = f"after {start.attempt} attempts without some of them"
    for file in (start.socket, *start.memory):
        os.set_inheritable(file, True)
    arguments = arguments_of(replace(start, unfit=known, attempt=start.attempt + 1))
    os.execve(sys.executable, arguments, dict(environment))


def arguments_of(start: Start) -> list[str]:
    """Give the command line for a process that begins with this."""
    known = {name: value for name, value in asdict(start).items() if name != "command"}
    return [
        sys.executable,
        "-u",
        "-m",
        "rekindle.launch.spawn.fork_server",
        json.dumps(known),
        *start.command,
    ]


class Server:
    """The loop."""

    def __init__(self, start: Start, preloaded: Preloaded) -> None:
        self._start = start
        self._preloaded = preloaded
        self._connection = socket.socket(fileno=start.socket)
        for file in (start.socket, *start.memory):
            # Workers have them by being forked; what workers start has no business with them.
            os.set_inheritable(file, False)
        self._standby: list[tuple[int, int, int]] = []
        """Pid, pidfd and the pipe's end of forked processes that wait for a job."""
        self._running: dict[int, int] = {}
        """Pid by pidfd, of all forked processes that have not ended."""
        self._given_up: set[int] = set()
        """Processes that the agent waits for no longer, although they have not ended."""
        self._poller = select.poll()
        self._poller.register(self._connection, select.POLLIN)

    def serve(self) -> WorkerJob:
        """Live; returns in forked processes only, when they get their job."""
        gc.collect()
        gc.freeze()
        if (job := self._fork_next()) is not None:
            return job
        self._tell({"ready": {"failed": self._preloaded.failed, "unfit": dict(self._start.unfit)}})
        fork_at: float | None = None
        while True:
            left = None if fork_at is None else max(0.0, fork_at - time.monotonic()) * 1000
            ready = [file for file, _ in self._poller.poll(left)]
            for file in ready:
                if file in self._running:
                    self._ended(file)
            if self._connection.fileno() in ready:
                message = self._hear()
                if "start" in message:
                    job = self._begin(WorkerJob(**message["start"]))
                    if job is not None:
                        return job
                    fork_at = time.monotonic() + REST
                elif "bury" in message:
                    self._bury(message["bury"])
            elif not ready and fork_at is not None:
                fork_at = None
                if (job := self._fork_next()) is not None:
                    return job

    def _hear(self) -> dict[str, Any]:
        try:
            data = self._connection.recv(MESSAGE)
        except ConnectionError:
            data = b""
        if not data:
            # The agent is through, or gone. What still runs goes with this process.
            os._exit(0)
        return dict(json.loads(data))

    def _tell(self, message: Mapping[str, object], files: Sequence[int] = ()) -> None:
        # Nobody listens any more: the next look at the socket ends this process.
        with contextlib.suppress(OSError):
            socket.send_fds(self._connection, [json.dumps(message).encode()], files)

    def _fork_next(self) -> WorkerJob | None:
        """Have a worker for each local rank on standby; a job, in one of those."""
        while len(self._standby) < self._start.count:
            if (job := self._fork()) is not None:
                return job
        return None

    def _fork(self) -> WorkerJob | None:
        """Fork one; gives its job in the forked process, when that comes, else None."""
        here, there = os.pipe()
        server = os.getpid()
        with warnings.catch_warnings():
            # Python from 3.12 on warns of threads, which native libraries have and look after.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(there)
            self._forget()
            worker.die_with(server)
            os.setsid()
            settle()
            return _await(here)
        os.close(here)
        pidfd = os.pidfd_open(pid)
        self._running[pidfd] = pid
        self._poller.register(pidfd, select.POLLIN)
        self._standby.append((pid, pidfd, there))
        return None

    def _forget(self) -> None:
        """Close, in a forked process, what is the server's."""
        self._connection.close()
        for pidfd in self._running:
            os.close(pidfd)
        for _, _, pipe in self._standby:
            os.close(pipe)

    def _begin(self, job: WorkerJob) -> WorkerJob | None:
        """Give a job to a process on standby."""
        if not self._standby and (own := self._fork()) is not None:
            return own
        pid, pidfd, pipe = self._standby.pop(0)
        try:
            with os.fdopen(pipe, "wb") as file:
                file.write(json.dumps(asdict(job)).encode())
        except OSError:
            pass  # It has just been killed, which is told like any end of a worker.
        self._tell({"started": pid}, [pidfd])
        return None

    def _ended(self, pidfd: int) -> None:
        """Tell how a worker ended."""
        pid = self._running.pop(pidfd)
        self._poller.unregister(pidfd)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        assert end is not None, "its pidfd says that it has ended"
        code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        waiting = next((each for each in self._standby if each[0] == pid), None)
        os.close(pidfd)
        if pid in self._given_up:
            self._given_up.remove(pid)
            os.waitpid(pid, os.WNOHANG)
            return
        if waiting is None:
            self._tell({"ended": pid, "code": code})
            return
        # Somebody has killed it (the kernel, for its memory); a round would fork another one.
        self._standby.remove(waiting)
        os.close(waiting[2])
        os.waitpid(pid, os.WNOHANG)

    def _bury(self, pids: Sequence[int]) -> None:
        """Let go of ended workers. One that the kernel still holds is not waited for here: whoever
        waits in this process starts no workers."""
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    self._given_up.add(pid)


def _await(pipe: int) -> WorkerJob:
    """Wait for a job; ends the process when there will be none."""
    with os.fdopen(pipe, "rb") as file:
        data = file.read()
    if not data:
        os._exit(0)
    return WorkerJob(**json.loads(data))


def settle() -> None:
    """Part with what a forked process has in common with others, as far as that can be done now."""
    importlib.invalidate_caches()
    # Python seeds `random` anew in a forked process. What numpy draws must differ as well.
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        processes.current_process().authkey = os.urandom(32)


def become(job: WorkerJob, start: Start, files: Mapping[str, tuple[int, int]]) -> NoReturn:
    """Run the script as a fresh interpreter with this environment would."""
    for path, target in ((job.stdout, 1), (job.stderr, 2)):
        if path is not None:
            file = os.open(path, os.O_WRONLY)
            os.dup2(file, target)
            os.close(file)
    os.environ.update(job.environment)
    preload.set_ranks()
    if (path := preload.changed(files)) is not None:
        _run_fresh(path, start)
    worker.end(start.command)


def _run_fresh(path: str, start: Start) -> NoReturn:
    """Run the script in a new interpreter: what is imported here is not what is on disk."""
    print(
        f"rekindle: {path} has changed since it was imported; this worker starts slowly, from a "
        "fresh interpreter",
        file=sys.stderr,
    )
    for file in start.memory:
        os.set_inheritable(file, True)
    os.environ[worker.ENV_PARENT] = str(os.getppid())
    os.execv(sys.executable, worker.fresh_arguments(start.command))


if __name__ == "__main__":
    run(Start(**{**json.loads(sys.argv[1]), "command": tuple(sys.argv[2:])}))
