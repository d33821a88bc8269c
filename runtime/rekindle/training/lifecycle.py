"""What a trainer is doing, as a state machine (R10).

Every call of an entry point goes through `setup`, and everything that happens then happens in one
of the states below. A call in the wrong one (`fit` inside of a hook of `fit`, say) would destroy
what runs, so it is refused with what to do. Each transition is an event: `trace` holds the newest
ones, and the logger ``rekindle`` gets them at level DEBUG.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rekindle.errors.requirement import RequirementError

State = Literal[
    "idle", "setup", "training", "validating", "testing", "predicting", "done", "failed"
]

TRANSITIONS: dict[State, tuple[State, ...]] = {
    "idle": ("setup",),
    "setup": ("training", "validating", "testing", "predicting", "done", "failed"),
    "training": ("validating", "done", "failed"),
    "validating": ("setup", "training", "failed"),
    "testing": ("setup", "failed"),
    "predicting": ("setup", "failed"),
    "done": ("setup",),
    "failed": ("setup",),
}
"""From each state to those that may follow; an evaluation goes back to where it was begun."""

_AT_REST = ("idle", "done", "failed")
_log = logging.getLogger("rekindle")


class Lifecycle:
    """The state of one trainer."""

    def __init__(self) -> None:
        self.state: State = "idle"
        self.call: str | None = None
        """The entry point that runs, or ran last."""
        self.trace: deque[tuple[State, State]] = deque(maxlen=1000)
        """The newest transitions, oldest first: (from, to)."""

    def begin(self, call: str) -> None:
        """Enter `setup` for an entry point; R10 while another one runs."""
        if self.state not in _AT_REST:
            raise RequirementError(
                f"R10 Trainer.{call} called while the trainer is busy (phase={self.state.upper()})."
                f" Call it after the running call has returned, or use a trainer of its own."
            )
        self.call = call
        self.move("setup")

    def move(self, to: State) -> None:
        """Go on to a state; R10 when it may not follow this one."""
        if to not in TRANSITIONS[self.state]:
            allowed = ", ".join(TRANSITIONS[self.state])
            raise RequirementError(
                f"R10 the trainer cannot go from {self.state} to {to}; after {self.state} follow "
                f"{allowed}. Call fit, validate, test or predict from outside of hooks."
            )
        _log.debug("phase %s -> %s", self.state, to)
        self.trace.append((self.state, to))
        self.state = to

    @contextmanager
    def during(self, state: State) -> Iterator[None]:
        """Be in a state for a while, and in the present one afterwards if nothing fails."""
        before = self.state
        self.move(state)
        yield
        self.move(before)
