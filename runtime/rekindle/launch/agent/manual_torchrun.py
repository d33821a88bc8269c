"""A torchrun that somebody has started by hand tells 75 when its workers have saved.

Workers that agree on a step, save and leave end with 75, and whoever starts jobs (Slurm, systemd, a
shell loop) is to start again what ends so. But torchrun tells 1 for every failure of its workers.
It loads this package, where that is installed, through the entry point ``torchrun.handlers``; an
exception that ends the torchrun is then looked at, and where all that failed is workers that have
saved, the process ends with their code and a line in the place of a traceback.

That holds when a worker had the notice, and when torchrun itself got SIGTERM, which it passes on.
It does not where workers are restarted by torchrun itself (``--max-restarts``), since they go on
from the checkpoint then; and other launchers have rules of their own.
"""

import signal
import sys
from collections.abc import Collection
from types import TracebackType
from typing import Any

from rekindle.api import ExitCode

_LEFT = {int(ExitCode.SAVED), int(ExitCode.PREEMPTED)}


def watch() -> None:
    """Look at whatever exception ends this process."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        code = code_of(ends(error, trace))
        if code is None:
            previous(kind, error, trace)
            return
        words = "saved" if code == ExitCode.SAVED else "had no time to save"
        print(f"rekindle: the workers {words} and left; start this again", file=sys.stderr)
        raise SystemExit(code)

    sys.excepthook = hook


def code_of(codes: Collection[int]) -> int | None:
    """What these ends of workers come to; None where some have failed otherwise; pure.

    A worker that torchrun ended by SIGTERM once another had left has saved with it.
    """
    left = _LEFT.intersection(codes)
    others = set(codes) - _LEFT - {0, -signal.SIGTERM}
    return max(left) if left and not others else None


def ends(error: BaseException, trace: TracebackType | None) -> list[int]:
    """Exit codes of the workers that an exception of torchrun's is about."""
    name = type(error).__name__
    if name == "ChildFailedError":
        failures: Any = getattr(error, "failures", {})
        return [failure.exitcode for failure in failures.values()]
    if name == "SignalException":
        while trace is not None:
            context = getattr(trace.tb_frame.f_locals.get("agent"), "_pcontext", None)
            handlers = getattr(context, "subprocess_handlers", None)
            if handlers:
                codes = [each.proc.returncode for each in handlers.values()]
                return [code for code in codes if code is not None]
            trace = trace.tb_next
    return []
