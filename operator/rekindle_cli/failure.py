"""How the command ends when it cannot do what it was asked: one message, one exit code.

Everything that a user can cause becomes a `Failure` where it is understood; `__main__` prints it
and exits. What is left is a bug of ours: one line that says what to report, and the traceback for
those who ask for it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

DEBUG = "REKINDLE_DEBUG"
"""Environment variable: anything but nothing and 0 shows tracebacks, as the flag --debug does."""
JOB_FAILED = 1
"""The job ran and did not succeed, or the demo found something lost."""
BUG = 1
"""The command itself has failed."""
USAGE = 2
"""The manifest, an argument or the surroundings have to be changed first."""
INTERRUPTED = 130
"""Ended by Ctrl-C, after a clean stop."""


class Failure(Exception):
    """What went wrong, what is allowed and what to do next, one line each."""

    def __init__(self, *lines: str, code: int = USAGE) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines
        self.code = code


def unexpected(error: BaseException) -> Failure:
    """The one line for what nobody has foreseen."""
    words = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return Failure(
        f"rekindle has failed ({what}, {_place(error.__traceback__)}); this is a bug: report what "
        "'rekindle --debug' with the same arguments prints",
        code=BUG,
    )


def _place(trace: TracebackType | None) -> str:
    """The innermost line of a traceback."""
    place = "somewhere"
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def wants_tracebacks(arguments: list[str]) -> bool:
    """Whether tracebacks are wanted; takes the flag, which comes first, out of the arguments."""
    if arguments[:1] == ["--debug"]:
        del arguments[0]
        return True
    return os.environ.get(DEBUG, "0") not in {"", "0"}
