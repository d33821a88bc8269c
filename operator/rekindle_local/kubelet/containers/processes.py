"""Containers as processes: start, signal, kill, wait, measure.

Each container hangs below a shim process of its own (see `shim`), which does what needs a parent:
reaping, the log, killing everything when PID 1 ends. This module is the kubelet's end of it.
Every process carries two variables, the node's state directory and the container's id, by which a
later kubelet on the same directory finds what an earlier one left behind (it should find nothing:
a shim ends with its kubelet).
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT_VARIABLE = "KUBELET_ROOT"
"""In every container: the state directory of its node."""
ID_VARIABLE = "CONTAINER_ID"
"""In every container: its id, new with each restart."""

_SHIM = str(Path(__file__).with_name("shim.py"))
_START_SECONDS = 30.0


class StartError(Exception):
    """The command cannot be run; the message is a container runtime's."""


@dataclass(frozen=True, kw_only=True)
class ContainerCommand:
    """All that is needed to start a container."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    log_limit: int = 16 << 20
    """Bytes after which the log is cut; twice this stays on disk."""
    hosts: Path | None = None
    """What /etc/hosts is inside; None leaves it and the host name as they are."""
    hostname: str = ""


@dataclass(frozen=True, kw_only=True)
class ContainerExit:
    """How PID 1 ended; `code` is 128 + signal after a signal."""

    code: int
    signal: int


class ContainerProcess:
    """A running container."""

    def __init__(
        self, shim: asyncio.subprocess.Process, pid: int, container_id: str, names: str
    ) -> None:
        self._shim = shim
        self._container_id = container_id
        self._exit: asyncio.Future[ContainerExit] = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch())
        self.pid = pid
        """PID 1 of the container, as this machine numbers it."""
        self.names_problem = names
        """Why it has no /etc/hosts of its own although it should; empty when it has."""

    @classmethod
    async def start(cls, command: ContainerCommand) -> "ContainerProcess":
        """Start a container; raises StartError when its command cannot be run."""
        shim = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            _SHIM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={ROOT_VARIABLE: command.env.get(ROOT_VARIABLE, "")},
            start_new_session=True,
        )
        assert shim.stdin is not None
        assert shim.stdout is not None
        request = {
            "argv": command.argv,
            "env": dict(command.env),
            "cwd": str(command.cwd),
            "log": str(command.log),
            "logLimit": command.log_limit,
            "hosts": str(command.hosts) if command.hosts else "",
            "hostname": command.hostname,
        }
        shim.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            line = await asyncio.wait_for(shim.stdout.readline(), _START_SECONDS)
        except BaseException:
            _close(shim)
            with contextlib.suppress(ProcessLookupError):
                shim.kill()
            await shim.wait()  # nobody else will: a kubelet that stops takes its loop along
            raise
        answer = json.loads(line) if line else {"event": "failed", "text": "the shim died"}
        if answer["event"] != "started":
            _close(shim)
            await shim.wait()
            raise StartError(_explain(command, answer))
        identity = command.env.get(ID_VARIABLE, "")
        return cls(shim, int(answer["pid"]), identity, str(answer.get("names") or ""))

    def signal(self, number: int) -> None:
        """Send a signal to PID 1 only, as a runtime does."""
        self._write(f"signal {int(number)}\n")

    def kill(self) -> None:
        """SIGKILL everything in the container at once."""
        self._write("kill\n")

    def freeze(self) -> None:
        """SIGSTOP everything in the container: for others it is there and says nothing any more.

        The shim comes first, which would tell of what ends, then all below until no more appear.
        """
        stopped: set[int] = set()
        fresh = {self._shim.pid} if self.running else set()
        while fresh:
            _send(fresh, signal.SIGSTOP)
            stopped |= fresh
            fresh = set(self.tree()) - stopped

    def thaw(self, *, all_of_it: bool) -> None:
        """SIGCONT everything, or only the shim, so that it can be told to kill the rest."""
        if self.running:
            _send([*(self.tree() if all_of_it else ()), self._shim.pid], signal.SIGCONT)

    async def ended(self) -> ContainerExit:
        """Wait for the end of the last process of the container."""
        return await asyncio.shield(self._exit)

    async def wait(self) -> ContainerExit:
        """Wait until the shim has gone, too, a moment after its container."""
        await asyncio.shield(self._watching)
        return self._exit.result()

    @property
    def running(self) -> bool:
        """Whether something of the container may still run."""
        return not self._exit.done()

    def tree(self) -> list[int]:
        """The numbers of all processes of the container, PID 1 first."""
        try:
            below = psutil.Process(self._shim.pid).children(recursive=True)
        except psutil.Error:
            return []
        return sorted((process.pid for process in below), key=lambda pid: (pid != self.pid, pid))

    def _write(self, text: str) -> None:
        assert self._shim.stdin is not None
        if self.running and not self._shim.stdin.is_closing():
            self._shim.stdin.write(text.encode())

    async def _watch(self) -> None:
        assert self._shim.stdout is not None
        ended = ContainerExit(code=137, signal=int(signal.SIGKILL))  # the shim itself was killed
        try:
            async for line in self._shim.stdout:
                answer = json.loads(line)
                if answer["event"] == "exited":
                    ended = ContainerExit(code=answer["code"], signal=answer["signal"])
                    if sys.platform.startswith("linux"):
                        self._exit.set_result(ended)  # the shim has seen to the rest, and may go
            await self._shim.wait()
            if not self._exit.done():
                await asyncio.to_thread(kill_marked, ID_VARIABLE, self._container_id)
                self._exit.set_result(ended)
        finally:
            _close(self._shim)
            self._exit.cancel()  # of no effect on a result


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    """A signal to processes that may have ended meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _close(shim: asyncio.subprocess.Process) -> None:
    if shim.stdin is not None and not shim.stdin.is_closing():
        shim.stdin.close()


def _explain(command: ContainerCommand, answer: Mapping[str, object]) -> str:
    """The runtime's words for a command that could not be run."""
    head = "failed to create containerd task: failed to create shim task: "
    name, number = command.argv[0], answer.get("errno")
    if answer.get("stage") == "chdir":
        return (
            f'{head}chdir to cwd ("{command.cwd}") failed: {answer.get("text")}: '
            "containers share this machine's file system, so the directory has to exist here"
        )
    if number in (errno.ENOENT, errno.EACCES) and "/" not in name:
        # Also when a directory of PATH may not be read: nothing was found all the same.
        return f'{head}exec: "{name}": executable file not found in $PATH: unknown'
    if number == errno.ENOENT:
        return f'{head}exec: "{name}": no such file or directory: unknown'
    if number == errno.EACCES:
        return f'{head}exec: "{name}": permission denied: unknown'
    return f'{head}exec: "{name}": {answer.get("text")}: unknown'


_LOOKS = 10
"""Between two programs the kernel shows an empty environment for a moment, which passes."""
_KERNEL = 2
"""Parent of the kernel's own threads, which have no environment."""


def kill_marked(variable: str, value: str) -> int:
    """SIGKILL every process whose environment has `variable=value`; says how many.

    Blocks while it reads the process table: not for the event loop.
    """
    if not value:
        return 0
    killed = 0
    processes = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for look in range(_LOOKS):
        blank = []
        for process in processes:
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get(variable) == value:
                    process.kill()
                    killed += 1
                elif not environment and process.ppid() != _KERNEL:
                    blank.append(process)
        processes = blank
        if not processes:
            break
        time.sleep(0.001 * look)
    return killed


def memory(pids: Iterable[int]) -> int:
    """Bytes the processes hold that could not be dropped: anonymous and shared memory.

    Shared pages are divided among those who share them, as a cgroup counts each page once;
    pages of mapped files (a library's code) are left out, as a cgroup can reclaim them.
    """
    total = 0
    for pid in pids:
        try:
            total += _rollup(pid)
        except OSError:
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(pid).memory_info().rss
    return total


def _rollup(pid: int) -> int:
    total, precise = 0, False
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
                precise = True
    if not precise:
        raise OSError("this kernel does not split Pss")
    return total


def resident(pids: Iterable[int]) -> int:
    """The sum of resident sizes: cheap, and never below `memory`."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total
