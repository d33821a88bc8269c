"""Who holds a run: what a lease says of its owner, and whether that one is still there.

A process that has died says nothing, so a lease cannot be believed for what it says alone; nor can
a clock, since there are two of them. What can be told is told by looking: on one machine, whether
the process is there; from elsewhere, whether the holder still renews its lease, which changes the
object every `RENEW_SECONDS`. Whoever sees no change for `WATCH_SECONDS` of its own clock, or finds
the lease given up, goes on.

Attempts of one job take over from each other at once: they know that the one before was ended, or
has to be.
"""

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self

RENEW_SECONDS = 20.0
"""Between two signs of life in a lease."""
WATCH_SECONDS = 3 * RENEW_SECONDS
"""Without one of them, after which a holder that cannot be asked is taken for gone."""

UNNAMED = {"", "none", "local"}
"""What is no name of a job: the defaults of torchrun, and of our launcher without an operator."""

Verdict = Literal["free", "held", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One process that writes, or wrote, a run."""

    job: str
    """What several attempts have in common; empty where each is for itself."""
    who: str
    """For people."""
    machine: str
    """Where the numbers of processes mean something: a boot of a machine and a PID namespace."""
    pid: int
    started: int
    """By the machine's own count: a number of a process is used again."""

    @classmethod
    def here(cls, environment: Mapping[str, str], job: str = "") -> Self:
        """This process. A torchrun that has a name of its own is a job, too."""
        torchrun = environment.get("TORCHELASTIC_RUN_ID", "")
        if not job and torchrun not in UNNAMED:
            job = f"torchrun {torchrun}"
        return cls(
            job=job,
            who=f"{job or _user()} on {socket.gethostname()} (pid {os.getpid()})",
            machine=_machine(),
            pid=os.getpid(),
            started=started(os.getpid()) or 0,
        )

    @classmethod
    def of(cls, document: Mapping[str, object]) -> Self | None:
        """Read it from a lease; None for one that does not say, as older ones do not."""
        found = {name: document.get(name) for name in ("job", "who", "machine", "pid", "started")}
        texts = [found[name] for name in ("job", "who", "machine")]
        numbers = [found[name] for name in ("pid", "started")]
        if not all(isinstance(t, str) and len(t) < 1000 and t.isprintable() for t in texts):
            return None
        if not all(type(n) is int and n >= 0 for n in numbers):
            return None
        return cls(**found)  # type: ignore[arg-type]

    def fields(self) -> dict[str, str | int | float]:
        """For a lease."""
        return asdict(self)

    def sees(self, other: "Holder") -> Verdict:
        """Whether the other one holds the run against this one."""
        if self.job and self.job == other.job:
            return "free"
        if self.machine != other.machine or not self.machine:
            return "unknown"
        if (self.pid, self.started) == (other.pid, other.started):
            return "free"
        return "held" if started(other.pid) == other.started else "free"


def started(pid: int) -> int | None:
    """When a process of this machine began, in ticks since the boot; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # Then nobody is asked: the lease is watched.


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"user {os.getuid()}"  # containers know no names
