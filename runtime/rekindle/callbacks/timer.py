"""`Timer`: a limit on the time that a run may train.

Ranks' clocks differ, so no rank may stop by its own. With ``interval="step"`` the limit becomes the
trainer's `max_time`, whose end all ranks agree on as they agree on a preemption; with ``"epoch"``
rank 0's word counts at the end of each epoch. The time of all attempts counts, and the time in
between does not.
"""

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from rekindle.callback import Callback
from rekindle.errors.misconfiguration import MisconfigurationException
from rekindle.flags import seconds_of
from rekindle.stages import RunningStage

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class Timer(Callback):
    """Stop after `duration` of training: ``"DD:HH:MM:SS"``, a timedelta, or a mapping for one."""

    def __init__(
        self,
        duration: "str | timedelta | dict[str, float] | None" = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        interval = getattr(interval, "value", interval)
        if interval not in ("step", "epoch"):
            raise MisconfigurationException(
                f"Timer(interval={interval!r}): allowed are 'step' and 'epoch'"
            )
        self.duration, self.interval, self.verbose = (
            seconds_of(duration, "Timer(duration=)"),
            interval,
            verbose,
        )
        self.max_seconds = self.duration if interval == "step" else None
        self._before = 0.0
        self._began: float | None = None
        self._offsets: dict[str, float] = {}
        """Stage -> seconds of other attempts."""
        self._spans: dict[str, tuple[float, float | None]] = {}
        """Stage -> when it began last in this process, and when it ended."""

    def start_time(self, stage: str = "train") -> float | None:
        """When ``train``, ``validate``, ``test`` ... began, on the monotonic clock."""
        return self._spans.get(_stage(stage), (None, None))[0]

    def end_time(self, stage: str = "train") -> float | None:
        """When it ended."""
        return self._spans.get(_stage(stage), (None, None))[1]

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds so far: of training over all attempts, of the newest validation or test."""
        name = _stage(stage)
        if name != "train":
            start, end = self.start_time(name), self.end_time(name)
            offset = self._offsets.get(name, 0.0)
            return offset + (0.0 if start is None else (end or time.monotonic()) - start)
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self.duration is None else self.duration - self.time_elapsed(stage)

    def _start(self, stage: str) -> None:
        self._spans[stage] = time.monotonic(), None

    def _end(self, stage: str) -> None:
        self._spans[stage] = self._spans[stage][0], time.monotonic()

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the time."""
        self._start("validate")

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the time."""
        self._end("validate")

    def on_test_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the time."""
        self._start("test")

    def on_test_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the time."""
        self._end("test")

    def on_train_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._start("train")

    def on_train_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Stop the clock."""
        self._before, self._began = self.time_elapsed(), None
        self._end("train")
        if self.verbose and self.interval == "step" and (self.time_remaining() or 0.0) <= 0.0:
            trainer.print(f"Timer: {self.duration:g} s of training are over")

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """End here when the time is over (``interval="epoch"``)."""
        if self.interval != "epoch" or self.duration is None or trainer.world is None:
            return
        if trainer.world.share(self.time_elapsed() >= self.duration):
            trainer.stop(f"Timer: {self.duration:g} s of training are over")

    def state_dict(self) -> dict[str, Any]:
        """The time so far, by stage."""
        return {
            "time_elapsed": {stage.value: self.time_elapsed(stage.value) for stage in RunningStage}
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a run that goes back in its own process keeps its own count."""
        if self._began is None:
            elapsed = state_dict.get("time_elapsed") or {"train": state_dict["elapsed"]}
            self._offsets = {str(stage): float(value) for stage, value in elapsed.items()}
            self._before = self._offsets.pop("train", 0.0)


def _stage(stage: str) -> str:
    """A stage's name; ValueError for what is none."""
    name = str(getattr(stage, "value", stage))
    known = [each.value for each in RunningStage]
    if name not in known:
        raise ValueError(f"Timer: there is no stage {name!r}; there are {', '.join(known)}")
    return name
