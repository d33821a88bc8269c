"""Every way in which a process of a pod can end, what that means, and with it who pays.

`ROWS` is one table. The first row that fits an end gives its cause, and the cause says which budget
pays (`api.PAID_BY`) and whether it is certain that the same would follow again
(`api.CERTAIN`). Three things are kept apart that look alike from outside:

- what the script has done: it raised, or exited. Trying that again before anything else has
  changed gives the same;
- what has happened to it from within: it broke its memory or called abort. Its program pays, and
  is tried again, since drivers and memory chips do that, too;
- what somebody else has done to it: a signal that no program sends itself. No user pays for it.

A pod is a family: PID 1 (`first`), the agent below it, the fork server, workers, what these start,
and the uploaders. The agent judges by this table what it sees end; for its own end and that of
PID 1, of which only the kubelet can tell, the operator's table of pods' ends says the same.
"""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum, auto

from rekindle.api import Cause, ExitCode, Outcome

OWN_SIGNALS = frozenset(
    getattr(signal, name)
    for name in (
        *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT", "SIGPIPE"),
        *("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGXFSZ"),
    )
    if hasattr(signal, name)
)
"""Signals that a process gets for what it does itself: the kernel's answer, or its own timer."""
_BY_SHELL = 128
"""A shell's exit code less this is the signal that its command has ended by."""
_IN_WORDS = (
    # torch.utils.data, and multiprocessing below it
    re.compile(r"is killed by signal: (?P<says>[A-Z][A-Za-z ]*[a-z])"),
    re.compile(r"terminated with signal (?P<name>SIG[A-Z0-9]+)"),
    # launchers of launchers, pools, subprocess
    re.compile(r"Signal \d+ \((?P<name>SIG[A-Z0-9]+)\) received by PID"),
    re.compile(r"died with <Signals\.(?P<name>SIG[A-Z0-9]+)"),
    re.compile(r"exit codes of the workers are \{(?P<name>SIG[A-Z0-9]+)"),
    re.compile(r"the process that uploads checkpoints was ended by (?P<name>SIG[A-Z0-9]+)"),
    re.compile(r"the process that uploads checkpoints was (?P<says>killed)"),
)
"""How errors tell that a process which the script relied on was ended by a signal."""


class ProcessRole(StrEnum):
    """A process of a pod."""

    FIRST = auto()
    """PID 1, which is the pod to Kubernetes."""
    AGENT = auto()
    """Its child, which starts and watches all others."""
    FORK_SERVER = auto()
    WORKER = auto()
    CHILD = auto()
    """What a worker has started and relies on: a loader's worker, a pool's, an uploader in the last
    save. It is known by the worker's error."""
    UPLOADER = auto()
    """While its trainer goes on."""


@dataclass(frozen=True, kw_only=True)
class ProcessExit:
    """One process that has ended."""

    process: ProcessRole
    code: int
    """Exit code, negative for a signal."""
    words: Outcome | None = None
    """What it has left behind: an exception."""
    oom: bool = False
    """Whether the kernel has killed something in this container for its memory meanwhile."""
    orphaned: bool = False
    """Whether its fork server had ended before, which takes all workers along."""

    @property
    def signal(self) -> int | None:
        """The signal that it has ended by, a shell's word for it included; None: by itself."""
        if self.code < 0:
            return -self.code
        number = self.code - _BY_SHELL
        return number if number in set(signal.Signals) else None

    @property
    def told(self) -> int | None:
        """The signal that has ended what it relied on, by its own words."""
        words = self.words
        return signal_in(f"{words.message}\n{words.traceback or ''}") if words else None


@dataclass(frozen=True, kw_only=True)
class ProcessEnding:
    """One way in which a process ends."""

    name: str
    process: ProcessRole
    fits: Callable[[ProcessExit], bool]
    cause: Cause | None
    """None: nothing ends with it, so nobody pays."""
    says: str = ""
    """Message, with ``worker`` (its rank), ``signal`` and ``code``; empty: its own words."""


def _raised(end: ProcessExit) -> bool:
    return end.words is not None


def _out_of_memory(end: ProcessExit) -> bool:
    return end.oom and end.signal == signal.SIGKILL


def _other_signal(end: ProcessExit) -> bool:
    return end.signal is not None and end.signal not in OWN_SIGNALS


_MEMORY = (
    "raise resources.limits.memory of the container, or use less of it (batch size, data workers)"
)
ROWS: tuple[ProcessEnding, ...] = (
    ProcessEnding(
        name="out of memory",
        process=ProcessRole.WORKER,
        fits=_out_of_memory,
        cause=Cause.OUT_OF_MEMORY,
        says="worker {worker} was killed by the kernel: the container is out of memory; " + _MEMORY,
    ),
    ProcessEnding(
        name="with its fork server",
        process=ProcessRole.WORKER,
        fits=lambda end: end.orphaned and end.signal == signal.SIGKILL,
        cause=Cause.WORKER_KILLED,
        says="the process that worker {worker} was forked from has ended, and the worker with it",
    ),
    ProcessEnding(
        name="killed from outside",
        process=ProcessRole.WORKER,
        fits=_other_signal,
        cause=Cause.WORKER_KILLED,
        says="worker {worker} was killed by {signal}, which did not come from its program",
    ),
    ProcessEnding(
        name="a peer was lost",
        process=ProcessRole.WORKER,
        fits=lambda end: end.words is not None and end.words.cause == Cause.PEER_LOST,
        cause=Cause.PEER_LOST,
    ),
    ProcessEnding(
        name="out of memory",
        process=ProcessRole.CHILD,
        fits=lambda end: end.oom and end.told == signal.SIGKILL,
        cause=Cause.OUT_OF_MEMORY,
        says="a process of worker {worker} was killed by the kernel: the container is out of "
        "memory; " + _MEMORY,
    ),
    ProcessEnding(
        name="killed from outside",
        process=ProcessRole.CHILD,
        fits=lambda end: end.told is not None and end.told not in OWN_SIGNALS,
        cause=Cause.WORKER_KILLED,
    ),
    ProcessEnding(
        name="crashed",
        process=ProcessRole.CHILD,
        fits=lambda end: end.told is not None,
        cause=Cause.CRASHED,
    ),
    ProcessEnding(name="raised", process=ProcessRole.WORKER, fits=_raised, cause=Cause.USER_ERROR),
    ProcessEnding(
        name="crashed",
        process=ProcessRole.WORKER,
        fits=lambda end: end.signal is not None,
        cause=Cause.CRASHED,
        says="worker {worker} crashed with {signal}; its log may have the native stack",
    ),
    ProcessEnding(
        name="exited with 70",
        process=ProcessRole.WORKER,
        fits=lambda end: end.code == ExitCode.INTEGRITY,
        cause=Cause.INTEGRITY,
        says="worker {worker} exited with code {code}",
    ),
    ProcessEnding(
        name="saved",
        process=ProcessRole.WORKER,
        fits=lambda end: end.code == ExitCode.SAVED,
        cause=Cause.SAVED,
        says="worker {worker} saved and stopped",
    ),
    ProcessEnding(
        name="could not save",
        process=ProcessRole.WORKER,
        fits=lambda end: end.code == ExitCode.PREEMPTED,
        cause=Cause.PREEMPTED,
        says="worker {worker} had to stop and has not saved",
    ),
    ProcessEnding(
        name="done",
        process=ProcessRole.WORKER,
        fits=lambda end: end.code == ExitCode.DONE,
        cause=Cause.COMPLETED,
        says="worker {worker} is done",
    ),
    ProcessEnding(
        name="exited",
        process=ProcessRole.WORKER,
        fits=lambda _: True,
        cause=Cause.USER_ERROR,
        says="worker {worker} exited with code {code}",
    ),
    # Others take their place; what goes down with them is told by the rows above.
    ProcessEnding(
        name="ended while nothing ran",
        process=ProcessRole.FORK_SERVER,
        fits=lambda _: True,
        cause=None,
        says="the agent starts another one",
    ),
    ProcessEnding(
        name="ended",
        process=ProcessRole.UPLOADER,
        fits=lambda _: True,
        cause=None,
        says="the next save starts another one",
    ),
    # What the kubelet tells of; PID 1 ends as the agent does.
    ProcessEnding(
        name="out of memory",
        process=ProcessRole.FIRST,
        fits=_out_of_memory,
        cause=Cause.OUT_OF_MEMORY,
    ),
    ProcessEnding(
        name="killed",
        process=ProcessRole.FIRST,
        fits=lambda end: end.signal is not None,
        cause=Cause.POD_LOST,
    ),
    ProcessEnding(
        name="killed",
        process=ProcessRole.AGENT,
        fits=lambda end: end.signal is not None,
        cause=Cause.POD_LOST,
    ),
    ProcessEnding(
        name="raised",
        process=ProcessRole.AGENT,
        fits=_raised,
        cause=Cause.POD_LOST,
        says="the agent itself has failed",
    ),
    ProcessEnding(
        name="refused its command line",
        process=ProcessRole.AGENT,
        fits=lambda end: end.code == ExitCode.USER_ERROR,
        cause=Cause.CONFIGURATION,
    ),
)
"""In the order in which they are tried, those of a worker and of what it relies on as one."""
_CODES = {
    Cause.INTEGRITY: ExitCode.INTEGRITY,
    Cause.SAVED: ExitCode.SAVED,
    Cause.PREEMPTED: ExitCode.PREEMPTED,
    Cause.WORKER_KILLED: ExitCode.PREEMPTED,
    Cause.COMPLETED: ExitCode.DONE,
}
"""Of a pod that leaves with it; else a user's error."""
_FAMILY = {ProcessRole.WORKER: {ProcessRole.WORKER, ProcessRole.CHILD}}


def row_of(end: ProcessExit) -> ProcessEnding:
    """The first row that fits."""
    own = _FAMILY.get(end.process, {end.process})
    return next(row for row in ROWS if row.process in own and row.fits(end))


def outcome_of(
    end: ProcessExit, *, worker: int, base: Outcome, printed: str | None = None
) -> Outcome:
    """Put the failure of a worker into words.

    ``base`` is what is known of it otherwise, ``printed`` the last line of one that can leave
    nothing.
    """
    row, words = row_of(end), end.words
    cause = row.cause or Cause.COMPLETED
    if words is not None:
        base = replace(
            words,
            code=words.code or int(ExitCode.USER_ERROR),
            step=words.step if words.step is not None else base.step,
            checkpoint=words.checkpoint if words.checkpoint is not None else base.checkpoint,
        )
        if row.name == "raised" or row.cause == words.cause:
            return base
        base = replace(base, reason=None)
    code = _CODES.get(cause, ExitCode.USER_ERROR)
    if not row.says:
        return replace(base, cause=cause, code=int(code))
    message = row.says.format(worker=worker, signal=name_of(end.signal or 0), code=end.code)
    if row.name == "exited":
        message += f": {printed}" if printed else "; its log has the reason"
    return replace(base, cause=cause, code=int(code), message=message, rank=worker)


def blame(end: ProcessExit, outcome: Outcome) -> tuple[int, float]:
    """Sorts failures of one moment, the root first.

    What came from outside explains what programs then do, and a lost peer explains nothing. Who has
    raised knows more than the signal by which another went; a crash takes others down by an
    ordinary exit, hardly the other way round.
    """
    causes = (Cause.OUT_OF_MEMORY, Cause.WORKER_KILLED)
    if outcome.cause in causes:
        return causes.index(Cause(outcome.cause)), outcome.at
    if outcome.cause == Cause.PEER_LOST:
        return 5, outcome.at
    if end.words is not None:
        return 2, outcome.at
    return (3 if end.signal is not None else 4), outcome.at


def signal_in(text: str) -> int | None:
    """The signal that has ended a process on which a script relied, by the words of its error."""
    for pattern in _IN_WORDS:
        if (found := pattern.search(text)) is None:
            continue
        groups = found.groupdict()
        if name := groups.get("name"):
            return getattr(signal, name, None)
        says = (groups.get("says") or "").strip().lower()
        for number in signal.Signals:
            if (signal.strsignal(number) or "").lower() == says:
                return int(number)
    return None


def name_of(number: int) -> str:
    """A signal's name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
