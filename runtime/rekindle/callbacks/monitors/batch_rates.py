"""Batches, samples and items per second of each stage, over a window of batches.

What `ThroughputMonitor(batch_size_fn)` gives to loggers: totals since the stage began, and rates
once the window is full.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


class _Stage:
    def __init__(self, window: int) -> None:
        self.began, self.batches, self.samples, self.lengths = time.perf_counter(), 0, 0, 0
        self.seen: deque[tuple[float, int, int, int]] = deque(maxlen=window)
        self.flops: deque[float] = deque(maxlen=window)


class BatchRates:
    """Counts what a stage has done, and says how fast it is."""

    def __init__(
        self,
        size: Callable[[Any], int],
        length: Callable[[Any], int] | None,
        *,
        window: int,
        separator: str,
        peak: float | None,
    ) -> None:
        if window < 2:
            raise ValueError(f"ThroughputMonitor(window_size={window!r}): need 2 batches or more")
        self._size, self._length, self._window = size, length, window
        self._separator, self._peak = separator, peak
        self._stages: dict[str, _Stage] = {}

    def begin(self, trainer: "Trainer") -> None:
        """A stage begins; one outside of `fit` goes on where it was."""
        stage = _stage(trainer)
        if trainer.state.fn == "fit" or stage not in self._stages:
            self._stages[stage] = _Stage(self._window)
        self._stages[stage].began = time.perf_counter()

    def count(self, trainer: "Trainer", module: Any, batch: Any) -> None:
        """Take a batch into account; waits for a GPU, whose clock is another."""
        stage = self._stages[_stage(trainer)]
        if torch.cuda.is_available() and module.device.type == "cuda":
            torch.cuda.synchronize()
        with torch.inference_mode():
            stage.samples += self._size(batch)
            stage.batches += 1
            stage.lengths += 0 if self._length is None else self._length(batch)
        if stage.samples < stage.batches:
            raise ValueError(
                f"ThroughputMonitor(batch_size_fn=...) gives {stage.samples} samples in "
                f"{stage.batches} batches; it is to give how many samples a batch has"
            )
        now = time.perf_counter() - stage.began
        stage.seen.append((now, stage.batches, stage.samples, stage.lengths))
        flops = getattr(module, "flops_per_batch", None)
        if flops is not None:
            stage.flops.append(float(flops))

    def pause(self, seconds: float) -> None:
        """Time that training has not had, since a validation took it."""
        if "train" in self._stages:
            self._stages["train"].began += seconds

    def finished(self) -> float:
        """When training did its newest batch."""
        stage = self._stages["train"]
        return stage.began + (stage.seen[-1][0] if stage.seen else 0.0)

    def report(self, trainer: "Trainer", step: int) -> None:
        """Give totals and rates to the loggers."""
        name = _stage(trainer)
        stage, sep = self._stages[name], self._separator
        now, batches, samples, lengths = stage.seen[-1]
        found: dict[str, float] = {"time": now, "batches": batches, "samples": samples}
        if self._length is not None:
            found["lengths"] = lengths
        if len(stage.seen) == self._window:
            first = stage.seen[0]
            seconds = max(now - first[0], 1e-9)
            rates = {
                "batches_per_sec": (batches - first[1]) / seconds,
                "samples_per_sec": (samples - first[2]) / seconds,
            }
            if self._length is not None:
                rates["items_per_sec"] = (lengths - first[3]) / seconds
            if len(stage.flops) == self._window:
                rates["flops_per_sec"] = (sum(stage.flops) - stage.flops[0]) / seconds
            found |= {f"device{sep}{key}": value for key, value in rates.items()}
            if trainer.world_size > 1:
                found |= {key: value * trainer.world_size for key, value in rates.items()}
            if self._peak and "flops_per_sec" in rates:
                found[f"device{sep}mfu"] = rates["flops_per_sec"] / self._peak
        values = {f"{name}{sep}{key}": value for key, value in found.items()}
        if name == "train":
            values["epoch"] = trainer.current_epoch
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def _stage(trainer: "Trainer") -> str:
    stage = trainer.state.stage
    return str(getattr(stage, "value", stage))
