"""When a save is due: after so many steps, by rank 0's clock, or because something asked for one.

A save is collective, so all ranks have to come to the same answer before the same step. Steps and
wishes (`wanted`) are the same everywhere; clocks are not. So rank 0's alone is looked at
(`clock_due`), and what counts is the word that the ranks have agreed on about it (`consensus`).
Nobody is asked here and nothing is stored; the loop asks before every step, which costs one call.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rekindle.checkpoint.saving.interval import Pace
from rekindle.flags import Every


@dataclass(kw_only=True)
class Cadence:
    """The saves of one attempt: when the newest was, and when the next one is due."""

    every: Every | Pace | None
    """None: only when asked, and at the end."""
    first: bool
    """Whether this is rank 0, whose clock counts."""
    saved: int = -1
    """Step of the newest save of this attempt, or of the checkpoint that it began from."""
    saved_at: float = field(default_factory=time.monotonic)
    wanted: bool = False
    """Whether something asked, on every rank, for a save before the next step."""
    after_first_step: Callable[[], None] | None = None
    """Called once by `due`, which is asked first thing after the first step."""
    _told: bool = False

    def due(self, step: int, agreed: bool) -> bool:
        """Whether to save before the next step; `agreed` is the ranks' word about the clock."""
        every = self.every
        if step == self.saved or not (self.wanted or every is not None):
            return False
        if self.after_first_step is not None:
            self.after_first_step()
            self.after_first_step = None
        if self.wanted:
            return True
        if isinstance(every, Every) and every.steps is not None and step % every.steps == 0:
            return True
        # The wish for the save of the step before may have been posted twice: see consensus.
        return agreed and step > self.saved + 1

    def clock_due(self) -> bool:
        """Whether rank 0's clock says that it is time to save."""
        return (
            self.first
            and self.every is not None
            and self.every.seconds is not None
            and time.monotonic() - self.saved_at >= self.every.seconds
        )

    @property
    def unsaved_seconds(self) -> float:
        """Since the newest save."""
        return time.monotonic() - self.saved_at

    def begin(self, step: int, *, unsaved_seconds: float = 0.0) -> None:
        """An attempt goes on from a state of a step that was `unsaved_seconds` past its save.

        Each life of the workers may be shorter than the interval between two saves.
        """
        self.saved = step
        self.saved_at = time.monotonic() - unsaved_seconds

    def note(self, step: int) -> None:
        """A save of this step begins, which is an answer to every wish so far."""
        self.begin(step)
        self.wanted = False

    def committed(self, seconds: float) -> None:
        """A save was durable so long after it was begun; called from the saver's thread."""
        if isinstance(self.every, Pace):
            self.every.committed(seconds)

    def stalled(self, seconds: float) -> str | None:
        """A save has held up the training; once, a line for people on what that means for it."""
        if not isinstance(self.every, Pace):
            return None
        self.every.stalled(seconds)
        if self._told or not self.first:
            return None
        self._told = True
        return self.every.reason()
