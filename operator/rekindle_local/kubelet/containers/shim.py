"""The parent of one container: PID 1's reaper, log writer and end.

Run by path (`python -I -S shim.py`), standard library only, so it is up in about 20 ms. What a PID
namespace and a container runtime's monitor give is made from four pieces of Linux that need no
root:

- it is a *child subreaper*: whatever the container starts, however it daemonises or changes its
  session, stays in the shim's tree, so when PID 1 ends everything else can be found and killed,
  and reaped, before the end is told;
- PID 1 carries PR_SET_PDEATHSIG, so that a killed shim takes it along;
- PID 1 gets a mount namespace of its own (and as an ordinary user a user namespace that maps this
  user only) with the pod's hosts file over /etc/hosts, and the pod's host name; where the machine
  allows none of this, the container starts without and the answer says why;
- the shim's standard input is a pipe from the kubelet: its end of file means the kubelet is gone,
  and the container goes too. Nothing outlives a kubelet that was killed.

Protocol: the first input line is the JSON of the command, later lines are `signal N` (to PID 1
only) and `kill` (everything). Output lines are JSON: `started`, `failed`, `exited`. The signal
goes through the shim rather than through os.kill in the kubelet, because only the parent knows
that the number still belongs to PID 1. The container's output is stamped and written here, in the
CRI log format, so a chatty container costs the kubelet's event loop nothing; the log is cut at a
size, with one older file kept.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")
_MAX_LINE = 16 * 1024
_NEW_NAMES = 0x00020000 | 0x04000000  # CLONE_NEWNS | CLONE_NEWUTS
_NEW_USER = 0x10000000  # CLONE_NEWUSER
_BIND, _SLAVES = 0x1000, 0x4000 | 0x80000  # MS_BIND, MS_REC | MS_SLAVE


class Log:
    """Lines with a time stamp; `P` marks a piece of a line, `F` its last or only piece."""

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._fd = self._open()
        self._size = 0
        self._rest = b""

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def feed(self, data: bytes) -> None:
        """Write the complete lines of what arrived, keep the rest."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._write([(b"F", line) for line in lines])
        while len(rest) > _MAX_LINE:
            self._write([(b"P", rest[:_MAX_LINE])])
            rest = rest[_MAX_LINE:]
        self._rest = rest

    def close(self) -> None:
        """Write a last line that had no newline."""
        if self._rest:
            self._write([(b"F", self._rest)])
        self._rest = b""
        os.close(self._fd)

    def _write(self, lines: list[tuple[bytes, bytes]]) -> None:
        if not lines:
            return
        stamp = time.time_ns()
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp // 10**9))
        head = f"{whole}.{stamp % 10**9:09d}Z stdout ".encode()
        block = b"".join(head + tag + b" " + line + b"\n" for tag, line in lines)
        if self._size + len(block) > self._limit and self._size:
            os.close(self._fd)
            os.replace(self._path, self._path + ".1")
            self._fd = self._open()
            self._size = 0
        with contextlib.suppress(OSError):  # a full disk must not end the training
            os.write(self._fd, block)
        self._size += len(block)


def tell(**message: Any) -> None:
    """One line to the kubelet; that it is gone shows on standard input."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere nothing happens."""
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Every process below this one."""
    try:
        return _by_children()
    except OSError:  # a kernel without lists of children
        return _by_parents()


def _by_children() -> list[int]:
    """Ask each process for its children: the whole table of processes takes milliseconds."""
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        pid = queue.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except FileNotFoundError:
            continue  # it has ended; what it leaves behind becomes this process's child
        for thread in threads:
            try:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    below = [int(number) for number in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                if pid == os.getpid():
                    raise
                continue
            found += below
            queue += below
    return found


def _by_parents() -> list[int]:
    """Read the parent of every process of the machine."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def isolate(hosts: str, hostname: str) -> None:
    """Give this process, which must have one thread, its own /etc/hosts and host name."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    user, group = os.geteuid(), os.getegid()
    try:
        call("unshare", _NEW_NAMES)
    except OSError:
        call("unshare", _NEW_USER | _NEW_NAMES)
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
                out.write(text)
    # What is mounted later outside still appears inside, and nothing the other way round.
    call("mount", None, b"/", None, ctypes.c_ulong(_SLAVES), None)
    call("mount", hosts.encode(), b"/etc/hosts", None, ctypes.c_ulong(_BIND), None)
    name = hostname.encode()
    call("sethostname", name, ctypes.c_size_t(len(name)))


def child(spec: dict[str, Any], output: int, errors: int, parent: int) -> NoReturn:
    """Become PID 1 of the container, or say through `errors` why not."""
    stage = "setup"
    try:
        os.setsid()
        if spec.get("hosts"):
            try:
                isolate(spec["hosts"], spec["hostname"])
            except (OSError, AttributeError) as error:
                os.write(
                    errors, json.dumps({"stage": "names", "text": str(error)}).encode() + b"\n"
                )
        # After the namespaces: new credentials forget it.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(137)
        for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        stage = "chdir"
        os.chdir(spec["cwd"])
        stage = "exec"
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except BaseException as error:
        code = error.errno if isinstance(error, OSError) else 0
        os.write(errors, json.dumps({"stage": stage, "errno": code, "text": str(error)}).encode())
    os._exit(127)


class Shim:
    """One container from its start to the last process of it."""

    def __init__(self, spec: dict[str, Any], control: bytes) -> None:
        self._spec = spec
        self._control = control
        self._log = Log(spec["log"], spec["logLimit"])
        self._output = -1
        self._main = 0
        self._status: int | None = None

    def start(self) -> bool:
        """Fork and exec; False after having told why it failed."""
        self._output, write_end = os.pipe()
        errors, errors_end = os.pipe()  # close-on-exec: end of file says that exec worked
        parent = os.getpid()
        self._main = os.fork()
        if self._main == 0:
            child(self._spec, write_end, errors_end, parent)
        os.close(write_end)
        os.close(errors_end)
        problem = b""
        while piece := os.read(errors, 4096):
            problem += piece
        os.close(errors)
        told = [json.loads(line) for line in problem.splitlines()]
        if told and told[-1]["stage"] != "names":
            os.waitpid(self._main, 0)
            tell(event="failed", **told[-1])
            return False
        os.set_blocking(self._output, False)
        tell(event="started", pid=self._main, names=told[0]["text"] if told else "")
        return True

    def run(self, wakeup: int) -> None:
        """Serve until PID 1 has ended, then end the rest and tell."""
        poller = select.poll()
        for fd in (self._output, wakeup, 0):
            poller.register(fd, select.POLLIN)
        self._obey()
        self._reap()  # an end before the poller was there
        while self._status is None:
            for fd, _ in poller.poll():
                if fd == self._output:
                    if not self._read():
                        poller.unregister(fd)
                elif fd == wakeup:
                    os.read(wakeup, 4096)
                    self._reap()
                elif not self._listen():
                    poller.unregister(0)
                    self._kill_all()
        self._end(wakeup)
        with contextlib.suppress(BlockingIOError):
            while self._read():
                pass
        self._log.close()
        code = os.waitstatus_to_exitcode(self._status)
        tell(event="exited", code=128 - code if code < 0 else code, signal=max(-code, 0))

    def _read(self) -> bool:
        try:
            data = os.read(self._output, 1 << 16)
        except BlockingIOError:
            raise
        except OSError:
            return False
        self._log.feed(data)
        return bool(data)

    def _listen(self) -> bool:
        data = os.read(0, 4096)
        self._control += data
        self._obey()
        return bool(data)

    def _obey(self) -> None:
        *lines, self._control = self._control.split(b"\n")
        for line in lines:
            word, _, argument = line.partition(b" ")
            if word == b"signal" and self._status is None:
                os.kill(self._main, int(argument))
            elif word == b"kill":
                self._kill_all()

    def _reap(self) -> bool:
        """Collect what has ended; False when there is no child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._main:
                self._status = status

    def _kill_all(self) -> None:
        alone = [self._main] if self._status is None else []
        for pid in descendants() if _LINUX else alone:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _end(self, wakeup: int) -> None:
        """Kill what PID 1 has left behind, and wait until all of it has ended."""
        poller = select.poll()
        poller.register(wakeup, select.POLLIN)
        deadline = time.monotonic() + 10
        while self._reap() and time.monotonic() < deadline:
            self._kill_all()
            # Woken by every end; a child that a process on its way out had forked has none yet.
            if poller.poll(5):
                os.read(wakeup, 4096)


def trial(hosts: str) -> NoReturn:
    """Say by the exit code whether a container can have names of its own, and print why not."""
    try:
        isolate(hosts, "trial")
        with open(hosts, "rb") as wanted, open("/etc/hosts", "rb") as found:
            if wanted.read() != found.read():
                raise OSError("a file that was laid over /etc/hosts is not seen")
    except (OSError, AttributeError) as error:
        os.write(1, str(error).encode())
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Read the command, run it, end."""
    if sys.argv[1:2] == ["--names"]:
        trial(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    data = b""
    while b"\n" not in data:
        piece = os.read(0, 1 << 16)
        if not piece:
            return
        data += piece
    first, _, rest = data.partition(b"\n")
    wakeup, wakeup_end = os.pipe()
    os.set_blocking(wakeup_end, False)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    shim = Shim(json.loads(first), rest)
    if shim.start():
        shim.run(wakeup)


if __name__ == "__main__":
    main()
    os._exit(0)  # taking the interpreter apart takes longer than all of the above
