"""The first process of a pod: small, so that its end is seen at once; the agent is its child.

A process that has imported torch takes 30 to 100 ms to die, since the kernel gives back its memory
first and only then closes its connections, tells its parent and kills its children. What stands
for the pod, and what everything else of the pod is tied to, had better die in an instant: then all
of it ends at the same time instead of one after the other, and the survivors go on that much
earlier. So PID 1 is this interpreter as it is before anything is imported, and does what PID 1 has
to do: it hands signals on, buries orphans, and ends with the agent's exit code.

Signals stay blocked from before the fork until the agent has its handlers (see ``signals``): one
that comes in between is not lost and does not kill.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

from rekindle.contract import ENV_COORDINATOR

FORWARDED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
"""What a container runtime or people may send to PID 1."""
HANDLED = frozenset({signal.SIGTERM, signal.SIGINT})
"""What the agent has handlers for: the rest is its own business from the start."""
_PR_SET_PDEATHSIG = 1


def stand_before_the_agent() -> None:
    """Fork: the first process stays here and ends with the child, in which this returns.

    Only for a pod with an operator, which waits for news of it, and only where the kernel ends a
    child with its parent; else this returns in the process itself.
    """
    if not os.environ.get(ENV_COORDINATOR) or not sys.platform.startswith("linux"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    first = os.getpid()
    child = os.fork()
    if child:
        _attend(child)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != first:
        os._exit(128 + signal.SIGKILL)  # it has died before the kernel was asked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED - HANDLED | {signal.SIGCHLD})


def _attend(child: int) -> NoReturn:
    """Be PID 1 until the agent has ended."""
    while True:
        number = signal.sigwait(FORWARDED | {signal.SIGCHLD})
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # the agent is there until the line below
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                os._exit(128 - code if code < 0 else code)
            if pid == 0:
                break
