"""Schedules of the batch size: `BatchSizeSchedule` and `GradientAccumulationScheduler`.

The size is changed through `Trainer.set_batch_size`, which puts it into the data cursor: every
sample is still used exactly once per epoch, and a run that resumes goes on with the size it had,
whatever the schedule in the new script says about epochs that are past.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from rekindle.callback import Callback
from rekindle.errors.misconfiguration import MisconfigurationException

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class BatchSizeSchedule(Callback):
    """Global batch sizes by the epoch from which they hold: ``BatchSizeSchedule({0: 16, 5: 32})``.

    With ``interval="step"`` the numbers are optimizer steps: ``{1000: 32}`` means that 1000 steps
    are done before. Sizes are multiples of the micro-batch, which is the loader's `batch_size`.
    """

    # The size in force is in the data cursor.
    optional = True

    def __init__(
        self, schedule: Mapping[int, int], interval: Literal["epoch", "step"] = "epoch"
    ) -> None:
        if interval not in ("epoch", "step"):
            raise ValueError(
                f"BatchSizeSchedule(interval={interval!r}): allowed are 'epoch' and 'step'"
            )
        self.schedule, self.interval = _checked("BatchSizeSchedule", schedule), interval
        if interval == "epoch":
            self.idle = (BatchSizeSchedule.on_after_optimizer_step,)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Set the size of this epoch, or of the first step."""
        now = trainer.current_epoch if self.interval == "epoch" else trainer.global_step
        self._set(trainer, now)

    def on_after_optimizer_step(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Set the size of the next step."""
        if self.interval == "step" and trainer.global_step + 1 in self.schedule:
            self._set(trainer, trainer.global_step + 1)

    def _set(self, trainer: "Trainer", now: int) -> None:
        if (size := _in_force(self.schedule, now)) is not None:
            trainer.set_batch_size(global_batch_size=size)


class GradientAccumulationScheduler(Callback):
    """Micro-batches per process and step, by epoch: ``GradientAccumulationScheduler({4: 2})``.

    The numbers are multiplied with the micro-batch and the processes that the job wants, as
    ``Trainer(accumulate_grad_batches=...)`` is; the global batch that this gives is kept on any
    other number of processes.
    """

    # The size in force is in the data cursor.
    optional = True

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        checked = _checked("GradientAccumulationScheduler", scheduling)
        self.scheduling = checked if 0 in checked else {0: 1, **checked}

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Micro-batches of an epoch's steps."""
        return _in_force(self.scheduling, epoch) or 1

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether a step ever has more than one."""
        return any(count > 1 for count in self.scheduling.values())

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Raises ValueError beside another way to say the same."""
        flags = trainer.flags
        if flags.accumulate_grad_batches != 1 or flags.global_batch_size is not None:
            raise ValueError(
                "GradientAccumulationScheduler needs accumulate_grad_batches=1 and no "
                "global_batch_size: it decides itself"
            )

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Set the count of this epoch."""
        count = _in_force(self.scheduling, trainer.current_epoch)
        if count is not None:
            trainer.accumulate_grad_batches = count


def _checked(name: str, schedule: Mapping[int, int]) -> dict[int, int]:
    if not schedule:
        raise TypeError(f"{name}: the schedule is empty; give {{epoch: size}}")
    for key, value in schedule.items():
        if type(key) is not int or key < 0 or type(value) is not int or value < 1:
            raise MisconfigurationException(
                f"{name}: {{{key!r}: {value!r}}} is no entry; need a number from 0 on, and a size "
                f"of at least 1"
            )
    return dict(sorted(schedule.items()))


def _in_force(schedule: Mapping[int, int], now: int) -> int | None:
    return next((schedule[key] for key in reversed(schedule) if key <= now), None)
