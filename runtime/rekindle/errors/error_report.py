"""What a worker says of the error that ends it: one outcome for the pod's agent, said once.

The error that leaves `fit` goes on through the script, and may come to the interpreter's own hook
at the end; by then more is known than there. So the first word counts, and the error carries a mark
that it was said. A script may also fail after `fit` has returned: `watch` has the hook say that.
"""

import contextlib
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rekindle.api import Outcome

_MARK = "_rekindle_recorded"


class OutcomePage(Protocol):
    """Where the outcome is written for the agent: `ranks.control_page`."""

    def write_outcome(self, outcome: Outcome) -> None:
        """Write it, once."""


def leave(error: BaseException, page: OutcomePage | None, outcome: Outcome) -> None:
    """Leave word of an error, and mark it; without an agent there is nobody to tell."""
    if page is not None:
        # A full disk must not hide the error itself.
        with contextlib.suppress(OSError):
            page.write_outcome(outcome)
    error.__dict__[_MARK] = True


def left(error: BaseException) -> bool:
    """Whether word of this error was left."""
    return bool(error.__dict__.get(_MARK))


def watch(page: OutcomePage | None, outcome: Callable[[BaseException], Outcome]) -> None:
    """From now on leave word of what ends the interpreter, too; the first call counts."""
    if page is None or getattr(sys.excepthook, "_rekindle", False):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if not left(error):
            leave(error, page, outcome(error))
        previous(kind, error, where)

    hook._rekindle = True  # type: ignore[attr-defined]
    sys.excepthook = hook
