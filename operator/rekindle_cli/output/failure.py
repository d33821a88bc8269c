"""How the command ends when it cannot do what it was asked: one message, one reason, one exit code.

Everything that a user can cause becomes a `CommandFailure` where it is understood; `__main__`
prints it and exits. What is left is a bug of ours: one line that says what to report, and the
traceback for those who ask for it. People get the lines on standard error. Who asked for ``--json``
gets in addition, where the answer would have been, one object: ``{"error": {"message": ...,
"reason": ..., "hint": ...}}``, its `hint` null when there is none.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

DEBUG = "REKINDLE_DEBUG"
"""Environment variable: anything but nothing and 0 shows tracebacks, as the flag --debug does."""
JOB_FAILED = 1
"""The job ran and did not succeed, or what was checked is damaged, lost or not proven."""
BUG = 1
"""The command itself has failed."""
USAGE = 2
"""The manifest, an argument or the surroundings have to be changed first."""
INTERRUPTED = 130
"""Ended by Ctrl-C, after a clean stop."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 the job failed, or what was checked is damaged or not proven; "
    "2 something has to be corrected first, a name, an argument, a file or the cluster; 130 Ctrl-C."
)
"""For --help."""

REASONS = (
    "Conflict",  # the object is not in a state for this
    "Forbidden",  # known, and not allowed
    "Internal",  # a bug of ours
    "Interrupted",  # Ctrl-C or SIGTERM
    "Invalid",  # an argument, a file or an object cannot be used as it is
    "JobFailed",  # the job or the cluster went wrong after it had begun
    "NotFound",  # something was named that is not there
    "Unauthorized",  # unknown or expired credentials
    "Unreachable",  # no answer from a server
    "Usage",  # the command line itself
)
"""What `CommandFailure.reason` may be: for programs, so they never change their meaning."""


class CommandFailure(Exception):
    """What went wrong, then what is allowed and what to do next, one line each.

    `facts` are lines that belong to the first one: the fields of a refused manifest, the end of a
    log.
    """

    def __init__(
        self,
        message: str,
        *hint: str,
        facts: Sequence[str] = (),
        reason: str = "Invalid",
        code: int = USAGE,
    ) -> None:
        self.lines: Sequence[str] = (message, *facts, *hint)
        super().__init__("\n".join(self.lines))
        assert reason in REASONS, reason
        self.message = "\n".join((message, *facts))
        self.hint = " ".join(hint)
        self.reason = reason
        self.code = code

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        error = {"message": self.message, "reason": self.reason, "hint": self.hint or None}
        return {"error": error}


def unexpected(error: BaseException) -> CommandFailure:
    """The one line for what nobody has foreseen."""
    words = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return CommandFailure(
        f"rekindle has failed ({what}, {_place(error.__traceback__)}); this is a bug: report what "
        "'rekindle --debug' with the same arguments prints",
        reason="Internal",
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
