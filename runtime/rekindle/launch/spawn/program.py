"""Keeps a program that is no Python of ours: ``python program.py EXECUTABLE ARGUMENTS...``.

The agent's worker is this process, and the program its child. A shell, or a launcher of launchers,
leaves processes behind when it is ended, in sessions of their own even; they would train on beside
the next round. So this process adopts whatever loses its parent (a subreaper) and ends it:

- ``END`` from the agent, or the agent's own death, kills everything below, and then this process.
- SIGTERM and the like go to the program's process group: a shell dies of it, what it runs may save.
  What is left of the group is waited for, and exit code 75 of any of them counts: it has saved.
- When the program ends by itself, what it has left behind is killed.

It ends as the program did: with its exit code, or by its signal. It runs by its path, with nothing
but the standard library, so that starting it costs 20 ms.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from typing import NoReturn

END = signal.SIGRTMIN + 5
"""Kill all that is below this process, and end."""
FORWARDED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
)
KILL_SECONDS = 10.0
"""For killed processes to be gone; the kernel may hold one for ever (a broken disk or GPU)."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SAVED = 75


def main(arguments: list[str], parent: int) -> NoReturn:
    """Run the program and end like it."""
    watched: set[int] = {END, signal.SIGCHLD, signal.SIGQUIT, *FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _ask_kernel(_PR_SET_CHILD_SUBREAPER, 1)
    _ask_kernel(_PR_SET_PDEATHSIG, END)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)  # it has died before the kernel was asked
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        _become(arguments, keeper, before)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # both do it: whoever comes first
    status, told, saved = None, False, False
    while True:
        number = signal.sigwait(watched)
        if number == END:
            kill_all()
            os.kill(keeper, signal.SIGKILL)
        if number == signal.SIGQUIT:
            # The agent asks where workers stand. Whoever has no answer to that would die of it.
            for pid in filter(_answers, _descendants()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGQUIT)
            continue
        if number != signal.SIGCHLD:
            told = True
            with contextlib.suppress(OSError):
                os.killpg(child, number)
            continue
        for pid, how in _ended():
            if pid == child:
                status = how
            elif told and os.WIFEXITED(how) and os.WEXITSTATUS(how) == _SAVED:
                saved = True
        if status is None or (told and os.WIFSIGNALED(status) and _lives(child)):
            continue
        kill_all()
        _end_like(_SAVED << 8 if saved else status)


def _become(arguments: list[str], keeper: int, mask: set[int | signal.Signals]) -> NoReturn:
    os.setpgid(0, 0)
    _ask_kernel(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        print(f"rekindle.launch: cannot run {arguments[0]!r}: {error}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _ask_kernel(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _ended() -> list[tuple[int, int]]:
    """Bury what has ended, without waiting."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            found.append((pid, status))
    return found


def _lives(group: int) -> bool:
    """Whether anybody is left of a process group."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _descendants() -> list[int]:
    """Give all processes below this one that have not ended."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                parents[int(entry)] = int(fields[1])
    found, new = [], [os.getpid()]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def _answers(pid: int) -> bool:
    """Whether a process has a handler for SIGQUIT."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGQUIT - 1) & 1)
    return False


def kill_all() -> None:
    """Kill all processes below this one, and bury them; one that does not die is left behind."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        for pid in _descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            # Who has lost a parent by this becomes a child, and is killed in the next turn.
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                signal.sigtimedwait({signal.SIGCHLD}, 0.1)
        except ChildProcessError:
            return


def _end_like(status: int) -> NoReturn:
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    main(sys.argv[2:], int(sys.argv[1]))
