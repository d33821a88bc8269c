"""How ranks agree on a step without waiting for each other.

A preemption notice reaches one pod, a clock strikes on one rank; all ranks have to act on it after
the *same* step, or they hang in each other's collectives. Asking the others before every step would
put a round trip on the hot path. So now and then each rank posts a word of wish bits as an
asynchronous MAX all-reduce on the gloo group, and the next time looks at the result of the word
that it posted before, which has arrived long since. All ranks see the same results in the same
order.

Now and then means every `INTERVAL` seconds, in polls: even a collective that nobody waits for costs
its threads' share of the cores, as `tests/bench/consensus.py` shows beside a way without any. How
many polls those are follows from the time between them, and is agreed on by the same word. In the
first steps of a run, `LaneSeeds` has to hear of a step at once: there every poll has its word.

Bits would be lost under MAX if one rank said 1 and another said 2, so each wish is an element of
its own. A world of one reads the wishes directly.

What then follows a wish to stop (R17) is `obey`, for the trainer and for the bridge alike.

Polls have to be equally many on all ranks: one per optimizer step, one per round of validation. A
wish that is heard where nobody can act on it, in a validation for example, is kept for who can: a
word may come at such polls only.
"""

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from rekindle.checkpoint import SaveError
from rekindle.errors.outcome import Preempted
from rekindle.randomness import EARLY, LONGEST, LaneSeeds
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

STOP, SAVE, END, DREW, BAD, PACE = range(6)
"""Elements of the word: stop at an agreed step; save because time has passed; training is over;
`LaneSeeds.word`; gradients of a step that was done were not finite; polls until the next word."""
_WORDS = 6
INTERVAL = 0.02
"""Seconds between two words, about. A wish takes effect two words after it came up, at the latest:
half of what a re-form takes, and none of it lost."""
_MARGIN = 1.0
"""Seconds kept free before the process is killed, for the way out."""


class StopNotice:
    """Whether this process was told to stop: by its agent's page, or by SIGTERM without an agent.

    The handler sets a flag and does nothing else: it runs between two bytecodes of whatever the
    main thread is doing, where no collective and no lock is safe.
    """

    def __init__(self, page: ControlPage | None) -> None:
        self._page = page
        self._flag = False
        self._previous: Any = None
        self._installed = False
        if page is None and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
            self._installed = True

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._flag = True

    @property
    def given(self) -> bool:
        """Whether to stop."""
        if self._page is not None:
            return self._page.stop_requested
        return self._flag

    @property
    def seconds_left(self) -> float:
        """Until the process is killed; infinite when nobody said."""
        return float("inf") if self._page is None else self._page.seconds_left

    def close(self) -> None:
        """Put the script's own handler back."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False


class Consensus:
    """The wishes of all ranks, agreed on one word later."""

    def __init__(
        self,
        world: World,
        notice: StopNotice,
        save_due: Callable[[], bool],
        end_due: Callable[[], bool] = lambda: False,
        seeds: LaneSeeds | None = None,
        late: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._late = late
        self.bad: int | None = None
        """This rank's view of a step that turned out bad; see `finite`."""
        self.back = False
        """Whether some rank has one, as of the last poll."""
        self._seeds = seeds or LaneSeeds(0)
        self._notice = notice
        self._save_due = save_due
        self._end_due = end_due
        self._control = world.control
        self._sent: tuple[Any, torch.Tensor] | None = None
        self._pace = self._span = 1
        """Polls from one word to the next: as all ranks have agreed, and as it really is."""
        self._silent = 0
        """Polls until the next word."""
        self._asked_at = math.inf
        self.save = False
        """Whether to save for a reason of time, as of the last poll."""
        self._acted = True
        """Whether the last poll was one after which that, and `back`, are heeded."""
        self.stop = False
        """Whether to save and stop, as of the last poll; stays true."""
        self.end = False
        """Whether the time for training is over, as of the last poll; stays true."""

    def poll(self, step: int, *, acts: bool = True) -> bool:
        """Before a step, with `step` of them done: do all ranks know of a wish to stop?

        Equally often on all ranks, and with the same `acts`: whether the other wishes are heeded
        before the next poll.
        """
        if self.bad is None:
            # Told once, so it is kept until somebody goes back.
            self.bad = self._late()
        if self._control is None:
            self.save = self._save_due()
            self.end = self._end_due()
            self.stop = self._notice.given
            if self._seeds.wanted is not None:
                self._seeds.agree(self._seeds.word)
            self.back = self.bad is not None
            return self.stop
        if self._acted:
            self.save = self.back = False
        self._acted = acts
        if self._silent:
            self._silent -= 1
            return self.stop
        self._hear()
        self._tell()
        self._span = 1 if step < EARLY else self._pace
        self._silent = self._span - 1
        return self.stop

    def _hear(self) -> None:
        """What all ranks wished when the last word was posted."""
        if self._sent is None:
            return
        self._sent[0].wait()
        stop, save, end, drew, bad, self._pace = self._sent[1].tolist()
        self.back = self.back or bad == 1
        self._seeds.agree(drew)
        self.save = self.save or save == 1
        self.end = self.end or end == 1
        self.stop = self.stop or stop == 1

    def _tell(self) -> None:
        """Post what this rank wishes."""
        now, before = time.perf_counter(), self._asked_at
        apart = max(1e-6, (now - before) / self._span)
        self._asked_at = now
        word = torch.zeros(_WORDS, dtype=torch.int64) if self._sent is None else self._sent[1]
        word[STOP] = self._notice.given
        # What was just heard is about to be done.
        word[SAVE] = self._save_due() and not self.save
        word[END] = self._end_due()
        word[DREW] = self._seeds.word
        word[BAD] = self.bad is not None
        word[PACE] = max(1, min(LONGEST, round(INTERVAL / apart))) if now > before else 1
        work = dist.all_reduce(word, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._sent = work, word

    def settle(self) -> None:
        """Wait for the word that is still on its way; every rank has posted it."""
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None


def obey(
    consensus: Consensus,
    notice: StopNotice,
    world: World,
    say: Callable[[str], None],
    *,
    step: int,
    save: Callable[[float | None], str | None] | None,
) -> NoReturn:
    """Save at the agreed step and raise `Preempted`, which asks for a restart; collective.

    `save` takes the `time.monotonic()` value to be done by (None: no limit), returns when the state
    is safe and raises SaveError. It gives None for a commit, else words on what it is instead; it
    is None itself where checkpoints are switched off.
    """
    began = time.monotonic()
    consensus.settle()
    views = world.gather((notice.given, notice.seconds_left))
    who = ", ".join(str(rank) for rank, (given, _) in enumerate(views) if given) or "?"
    # The pod that has the least time decides for all.
    seconds = min(left for _, left in views)
    limited = seconds != float("inf")
    say(f"R17 preemption notice on rank {who}; all ranks agree to save at step {step}")
    if save is None:
        raise Preempted(step, saved=False)
    try:
        where = save(began + seconds - _MARGIN if limited else None)
    except SaveError as error:
        say(f"R17 step {step} could not be saved: {error}")
        raise Preempted(step, saved=False) from None
    if where is not None:
        say(f"R17 step {step} {where}")
        raise Preempted(step, saved=True)
    allowed = f" of {seconds:.0f} s" if limited else ""
    say(f"R17 step {step} committed in {time.monotonic() - began:.1f} s{allowed}")
    raise Preempted(step, saved=True)
