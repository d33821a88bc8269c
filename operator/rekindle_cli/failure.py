"""How the command ends when it cannot do what it was asked: one message, one exit code.

Everything that a user can cause becomes a `Failure` where it is understood; `__main__` prints it
and exits. A traceback is therefore always a bug of ours.
"""

from collections.abc import Sequence

JOB_FAILED = 1
"""The job ran and did not succeed, or the demo found something lost."""
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
