"""Everything that one call of `fit` consists of, in one place, for the loop to work on.

`assembly` makes it, `loop` moves it forward, `state` saves and restores it. It decides little
itself: when training is done, when validation is due, how positions advance.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from rekindle.console import Console, TrainingProgress
from rekindle.data import worker_shutdown
from rekindle.data.ledger import Ledger
from rekindle.data.loader import Batch, LaneSampler, LoaderSource
from rekindle.data.sampling.order import Cursor, Step
from rekindle.data.script_data import Evaluation
from rekindle.data.streams import Streaming
from rekindle.flags import Flags
from rekindle.loggers.journal import Journal
from rekindle.metrics.logged_values import BatchValues, Logs, newest, reported
from rekindle.metrics.prometheus import Meter
from rekindle.model.module import Module
from rekindle.model.optimizers import Optimization
from rekindle.persistence.run_identity import Identity
from rekindle.persistence.session import CheckpointSession
from rekindle.randomness import LaneSeeds
from rekindle.ranks.consensus import Consensus, StopNotice
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.deterministic_reduction import LaneSum
from rekindle.ranks.distributed import World
from rekindle.ranks.finite import Finite, Window
from rekindle.ranks.gradients import GradientSum
from rekindle.ranks.heartbeat import Heartbeat
from rekindle.training.hook_profiling import HookTimes
from rekindle.training.hooks import Hooks
from rekindle.training.setup.batch_sharing import Sharing
from rekindle.training.setup.preflight import StepFunction
from rekindle.training.update import Update

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class EvaluationPart:
    """One loader to evaluate, dealt out: batch b belongs to rank b mod W."""

    loader: Iterable[Batch]
    """This rank's batches; all of them where nobody knows how many there are."""
    batches: int | None
    """Over all ranks; None: nobody knows."""
    most: int | None = None
    """The limit where nobody knows."""
    whole: bool = False
    """Whether a batch itself has to be asked how many samples it has."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The data to evaluate: one loader after the other."""

    parts: tuple[EvaluationPart, ...]
    several: bool = False
    """Whether steps and hooks are told which loader a batch is from."""

    @property
    def batches(self) -> int:
        """Over all ranks and loaders; a loader that does not say how many it has counts as one."""
        return sum(1 if part.batches is None else part.batches for part in self.parts)

    def close(self) -> None:
        """End the workers that loaders keep."""
        for part in self.parts:
            worker_shutdown.close(part.loader)

    def counts(self, world_size: int) -> list[int | float]:
        """Batches of each loader for one rank."""
        return [
            math.inf if part.batches is None else -(-part.batches // world_size)
            for part in self.parts
        ]


@dataclass(frozen=True, kw_only=True)
class Back:
    """A wish to go back to a checkpoint and to leave a window out."""

    reason: str
    window: Window


@dataclass(kw_only=True)
class BatchFeed:
    """How the training data gets to the loop, and what has changed in that; see `feeding`."""

    stream: Streaming | None = None
    """Iterable data; None for a dataset with a length."""
    sources: "Callable[[], tuple[LoaderSource | None, Evaluation | None]] | None" = None
    """Asks for the loaders again; None where they were given as they are."""
    validation: "Callable[[Evaluation], tuple[Validation | None, StepFunction]] | None" = None
    """Deals out what was asked for again to validate with."""
    batch_size: object = None
    """``datamodule.hparams.batch_size`` when it was asked."""
    recorded: set[str] = field(default_factory=set)
    """Names of the orders that are written beside the checkpoints already."""
    history: list[dict[str, int]] = field(default_factory=list)
    """From which step on which global batch, micro-batch and world size were in use."""


@dataclass(kw_only=True)
class Run:
    """One call of `fit` on one rank."""

    trainer: "Trainer"
    module: Module
    flags: Flags
    world: World
    workers: int
    """How many processes the job wants, in whose numbers the script's batch is meant."""
    sharing: Sharing
    hooks: Hooks
    hook_times: HookTimes
    logs: Logs
    console: Console
    meter: Meter
    page: ControlPage | None
    heart: Heartbeat
    notice: StopNotice
    consensus: Consensus
    session: CheckpointSession | None
    optimization: Optimization
    update: Update
    seeds: LaneSeeds
    finite: Finite | None
    """Looks at gradients; None when nobody wants to know, or a loss scaler does it."""
    move: Callable[[Any], Any] | None
    """Brings a batch to the device and into the dtype; None when it is right as it comes."""
    gradients: GradientSum | LaneSum | None
    """None in a world of one, where autograd alone does everything."""
    autocast: AbstractContextManager[object] | None
    training_step: StepFunction
    validation_step: StepFunction
    cursor: Cursor
    sampler: LaneSampler
    loader: Iterable[Batch]
    validation: Validation | None
    journal: Journal
    identity: Identity | None = None
    """What this fit is known by; None for one that saves nothing."""
    datamodule: Any = None
    feed: BatchFeed = field(default_factory=BatchFeed)
    ledger: Ledger = field(default_factory=Ledger)
    step: int = 0
    """Optimizer steps in the surviving timeline."""
    productive: float = 0.0
    """Seconds spent on them."""
    stall: float = 0.0
    """Seconds that training stood still for checkpoints."""
    validating: bool = False
    """Whether a validation was begun after the newest step and has not ended."""
    stopped: bool = False
    """Whether something asked to end before the limits."""
    validated: int = -1
    """The step after which this process has validated last."""
    closed: bool = False
    """Whether the epoch that the run ended in was ended within it."""
    unchecked: bool = True
    """Whether the first batch of this process is still to come (R1, R2)."""
    elapsed: float = 0.0
    """Seconds that earlier attempts have spent in `fit`."""
    began: float = field(default_factory=time.monotonic)
    expired: bool = False
    """Whether `max_time` has passed, as all ranks have agreed."""
    looked: int = -1
    """The step whose values all ranks have shown to callbacks."""
    back: Back | None = None
    """Where to go back to before the next step."""
    skipped: list[Window] = field(default_factory=list)
    """What this run has left out."""
    recent: deque[tuple[int, int, int, int]] = field(default_factory=lambda: deque(maxlen=64))
    """Step, epoch, start and stop of the newest steps."""
    losses: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    """Loss and samples of each lane of the newest step."""
    reported: int = 0
    """Step of the last report."""
    reported_at: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> bool:
        """Whether training is complete."""
        flags = self.flags
        if (self.stopped or self.expired) and self.enough:
            return True
        return (
            (flags.max_samples is not None and self.samples >= flags.max_samples)
            or (flags.max_steps is not None and self.optimizer_steps >= flags.max_steps)
            or (flags.max_epochs is not None and self.cursor.epoch >= flags.max_epochs)
        )

    @property
    def enough(self) -> bool:
        """Whether a wish to end may be heeded: `min_steps` and `min_epochs` are reached."""
        flags = self.flags
        return not (
            (flags.min_steps is not None and self.optimizer_steps < flags.min_steps)
            or (flags.min_epochs is not None and self.cursor.epoch < flags.min_epochs)
        )

    @property
    def optimizer_steps(self) -> int:
        """What limits are compared with: in manual optimization each optimizer's steps count."""
        return self.step if self.update.automatic else sum(self.update.attempts)

    def next_validation(self) -> tuple[int, str] | None:
        """The step after which the next validation is due, and how often there is one (R8)."""
        if self.validation is None or not self.validation.batches:
            return None
        cursor, flags, step = self.cursor, self.flags, self.step
        if flags.val_every_steps is not None:
            return (step // flags.val_every_steps + 1) * flags.val_every_steps, self._cadence()
        whole, size = cursor.batches_per_epoch, cursor.accumulate
        interval = self._interval(cursor) or whole
        every = flags.check_val_every_n_epoch
        here, least, left = cursor.batches, cursor.next_batches, cursor.steps_left
        passed = cursor.batches_before if every is None else 0
        for epoch in range(cursor.epoch, cursor.epoch + (every or _FAR) + 1):
            if left and (every is None or (epoch + 1) % every == 0):
                goal = -(-(passed + least) // interval) * interval - passed
                if goal < whole:
                    return step + (goal - here) // size, self._cadence()
                if goal < whole + (1 if every is not None else min(size, whole)):
                    return step + left, self._cadence()
            passed += whole if every is None else 0
            here, least = 0, 1 if every is not None else min(size, whole)
            step, left = step + left, cursor.steps_per_epoch
        return None

    def _cadence(self) -> str:
        """How often there is a validation, for people."""
        flags = self.flags
        every, epochs = self._interval(self.cursor), flags.check_val_every_n_epoch
        if flags.val_every_steps is not None:
            return f"every {flags.val_every_steps} steps"
        if epochs is None:
            return f"every {every} batches"
        if every is None:
            return (
                "at the end of every epoch"
                if epochs == 1
                else f"at the end of every {epochs}th epoch"
            )
        return f"every {every} batches of {'an' if epochs == 1 else f'every {epochs}th'} epoch"

    @property
    def time_is_up(self) -> bool:
        """Whether `max_time` has passed on this rank's clock."""
        limit = self.flags.max_time
        return limit is not None and self.elapsed + time.monotonic() - self.began >= limit

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None when no limit tells."""
        flags = self.flags
        if len(self.update.optimizers) > 1 and flags.max_steps is not None:
            # The limit counts steps of several optimizers, of which a batch has any number.
            flags = replace(flags, max_steps=None)
        return planned_steps(self.cursor, self.step, flags)

    @property
    def samples(self) -> int:
        """Samples used in the surviving timeline."""
        return self.cursor.before + self.cursor.sample

    def progress(self) -> TrainingProgress:
        """How far this run is, as far as counters tell."""
        return TrainingProgress(
            step=self.step,
            total=self.total_steps,
            epoch=self.cursor.epoch,
            epochs=self.flags.max_epochs,
            phase=self.trainer.phase,
        )

    def look(self) -> None:
        """Show callbacks the newest step values of this epoch, of all ranks; collective."""
        if self.looked == self.step:
            return
        own = self.logs.take_steps(self.logs.begun)
        self.trainer.measures.take(newest(self.world.gather(own)), self.step)
        self.looked = self.step

    def record(self, values: dict[str, float]) -> None:
        """Give reported values to the loggers, but for those logged with ``logger=False``."""
        values = {reported(name): value for name, value in values.items()}
        kept = self.logs.private()
        if kept:
            values = {name: value for name, value in values.items() if name not in kept}
        if values:
            # Steps are numbered from 0: the newest one is the number of those before it.
            self.journal.record(values, step=max(0, self.step - 1), epoch=self.cursor.epoch)

    def record_batches(self, batches: BatchValues) -> None:
        """Give the values of a validation's batches to the loggers, counted over the run."""
        shown = self.logs.for_loggers(batches)
        self.trainer.measures.log(self.journal.record_batches(shown, counted=True))

    def window(self, step: Step) -> Window:
        """The samples of the step that comes next."""
        cursor = self.cursor
        first = self.samples - cursor.sample + step.start
        return Window(
            step=self.step, epoch=cursor.epoch, start=step.start, stop=step.stop, first=first
        )

    def window_of(self, done: int) -> Window:
        """The samples of a step that was done lately, after `done` others."""
        for step, epoch, start, stop in self.recent:
            if step == done:
                first = self.samples - self.cursor.sample + start
                first -= (self.cursor.epoch - epoch) * self.cursor.length
                return Window(step=step, epoch=epoch, start=start, stop=stop, first=first)
        raise ValueError(f"step {done + 1} is not one of the last {self.recent.maxlen}")

    def leaves_out(self, step: Step) -> bool:
        """Whether a step is not to be done."""
        return any(w.holds(self.cursor.epoch, step.start, step.stop) for w in self.skipped)

    def leave_out(self, step: Step) -> None:
        """Move past a step that was not done: its samples count as used, the step does not."""
        self.ledger.covered(self.cursor.epoch, step.start, step.stop)
        if self.feed.stream is not None:
            self.feed.stream.completed(step)
        self.update.left_out(self)
        self.cursor = self.cursor.after(step)

    def advance(self, step: Step, seconds: float) -> None:
        """Count a completed step: position, ledger and counters move together."""
        cursor, start, stop = self.cursor, step.start, step.stop
        self.recent.append((self.step, cursor.epoch, start, stop))
        self.ledger.covered(cursor.epoch, start, stop)
        if self.feed.stream is not None:
            self.feed.stream.completed(step)
        self.cursor = cursor.after(step)
        self.step += 1
        self.productive += seconds
        self.heart.step(self.step, time.monotonic())
        if self.page is not None and self.world.local_rank == 0:
            self.page.step_done(
                step=self.step,
                epoch=self.cursor.epoch,
                samples=self.samples,
                productive=self.productive,
                stall=self.stall,
            )

    @property
    def validation_due(self) -> bool:
        """Whether to validate after the newest step; a function of saved counters only (R8).

        A run that is to stop validates once more, as it would have at the end of its epoch.
        """
        if self.validation is None or not self.validation.batches:
            return False
        if (self.stopped or self.expired) and self.enough and self._in_turn(self.cursor):
            return True
        return self._validates(self.cursor, self.step)

    def _in_turn(self, cursor: Cursor) -> bool:
        every = self.flags.check_val_every_n_epoch
        return every is None or (cursor.epoch + 1) % every == 0

    def _interval(self, cursor: Cursor) -> int | None:
        """Batches between two validations; None: one at the end of the epoch."""
        interval = self.flags.val_check_interval
        if isinstance(interval, float):
            return max(1, int(cursor.batches_per_epoch * interval)) if interval < 1.0 else None
        return interval

    def _validates(self, cursor: Cursor, step: int) -> bool:
        """Whether a validation is due at a position, which so many steps have led to.

        One that falls between two optimizer steps sees the weights of the first of them, so it
        comes right after that.
        """
        if self.flags.val_every_steps is not None:
            return step % self.flags.val_every_steps == 0
        at_end = cursor.sample >= cursor.length
        interval = self._interval(cursor)
        if not self._in_turn(cursor) or interval is None:
            return at_end and self._in_turn(cursor)
        done, following = cursor.batches, cursor.next_batches
        if self.flags.check_val_every_n_epoch is None:
            done += cursor.batches_before
            following += cursor.batches_before
            if at_end:
                following = done + min(cursor.accumulate, cursor.batches_per_epoch)
        elif at_end:
            following = done + 1
        return -(-done // interval) * interval < max(following, done + 1)

    def check_cadence(self) -> None:
        """Refuse validations that could not come as often as asked; ValueError."""
        flags, cursor = self.flags, self.cursor
        given, interval = flags.val_check_interval, self._interval(cursor)
        if self.validation is None or not self.validation.batches or interval is None:
            return
        most = cursor.batches_per_epoch
        known, over = cursor.order != "stream", flags.check_val_every_n_epoch is None
        if isinstance(given, float) and not known:
            raise ValueError(
                f"val_check_interval={given} is a share of a length that a stream does not have; "
                f"give a number of batches, or 1.0 for the end of the epoch"
            )
        if known and not over and interval > most:
            raise ValueError(
                f"val_check_interval={given} is more than the {most} training batches of an "
                f"epoch, so there would be no validation. Give at most {most}, "
                f"check_val_every_n_epoch=None to count batches over all epochs, or "
                f"limit_val_batches=0 for no validation."
            )
        if interval < min(cursor.accumulate, most):
            raise ValueError(
                f"val_check_interval={given} is {interval} batches, and an optimizer step takes "
                f"{cursor.accumulate} (accumulate_grad_batches): several validations would see the "
                f"same weights. Give at least {cursor.accumulate} batches."
            )


_FAR = 10_000
"""Epochs that are looked ahead for a validation."""


def batches_of(cursor: Cursor, source: LoaderSource, world: World) -> int | float:
    """Batches of the loader's size in an epoch, for one rank; infinite for endless data."""
    if cursor.order == "stream":
        return math.inf
    return -(-cursor.length // (source.batch_size * world.size))


def planned_steps(cursor: Cursor, step: int, flags: Flags) -> int | None:
    """Optimizer steps of the whole run, given that `step` of them led to the cursor."""
    limits = [flags.max_steps] if flags.max_steps is not None else []
    if flags.max_epochs is not None and cursor.order != "stream":
        left = flags.max_epochs - cursor.epoch
        whole = max(0, left - 1) * cursor.steps_per_epoch
        limits.append(step + whole + (cursor.steps_left if left > 0 else 0))
    if flags.max_samples is not None:
        missing = max(0, flags.max_samples - cursor.before - cursor.sample)
        left = cursor.length - cursor.sample
        if missing <= left:
            limits.append(step + -(-missing // cursor.G))
        else:
            epochs, rest = divmod(missing - left, cursor.length)
            more = epochs * cursor.steps_per_epoch - (-rest // cursor.G)
            limits.append(step + cursor.steps_left + more)
    return min(limits) if limits else None
