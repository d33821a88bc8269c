"""The learning-rate range test: raise the rate from step to step and look at the loss.

The test trains a copy of the module (`rekindle.callbacks.trial`), so nothing of it is left behind.
The suggestion is where the smoothed loss falls fastest per factor of the rate.

Every rank makes the same test by itself; the first one's suggestion counts.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rekindle.callback import Callback
from rekindle.callbacks.trial import begun, trial, write
from rekindle.data.loader import Source

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer

_SMOOTHING = 0.98
_NAMES = ("lr", "learning_rate")


@dataclass(kw_only=True)
class LRFinder:
    """The curve of a range test."""

    results: dict[str, list[float]] = field(default_factory=lambda: {"lr": [], "loss": []})
    """The rates, and the smoothed loss of each."""

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Where the loss falls fastest; None when the curve is too short to tell."""
        stop = len(self.results["loss"]) - skip_end
        loss = np.asarray(self.results["loss"][skip_begin:stop])
        rates = np.asarray(self.results["lr"][skip_begin:stop])
        good = np.isfinite(loss)
        loss, rates = loss[good], rates[good]
        if len(loss) < 2:
            return None
        return float(rates[int(np.argmin(np.gradient(loss, np.log(rates))))])


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The rates of a range test, one training step of one batch each.

    The test ends early when the loss is `early_stop_threshold` times the best one. Raises
    ValueError for what makes no range.
    """

    min_lr: float = 1e-8
    max_lr: float = 1.0
    num_training: int = 100
    mode: Literal["exponential", "linear"] = "exponential"
    early_stop_threshold: float | None = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr or self.num_training < 2:
            raise ValueError(
                f"learning-rate range test: min_lr={self.min_lr!r}, max_lr={self.max_lr!r}, "
                f"{self.num_training!r} steps: need 0 < min_lr < max_lr and at least 2 steps"
            )
        if self.mode not in ("exponential", "linear"):
            raise ValueError(
                f"learning-rate range test: mode={self.mode!r}, allowed are 'exponential' and "
                f"'linear'"
            )

    def rate(self, number: int) -> float:
        """The rate of a step, counted from 0."""
        part = number / (self.num_training - 1)
        if self.mode == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * part
        return float(self.min_lr * (self.max_lr / self.min_lr) ** part)


def suggest(
    trainer: "Trainer", module: "Module", source: Source, sweep: Sweep, *, name: str | None
) -> tuple[LRFinder, float | None]:
    """Make the test; this rank's curve, and what all ranks take as the rate; collective.

    With a `name` the rate is also written to that attribute or hyperparameter of the module (an
    empty one means ``lr`` or ``learning_rate``). Raises AttributeError when there is none.
    """
    assert trainer.world is not None
    finder = _range_test(trainer, module, source, sweep)
    suggested = trainer.world.share(finder.suggestion())
    if suggested is not None and name is not None:
        set_rate(module, suggested, name)
    return finder, suggested


def _range_test(trainer: "Trainer", module: "Module", source: Source, sweep: Sweep) -> LRFinder:
    finder, best, mean = LRFinder(), math.inf, 0.0
    for number, loss, optimizer in trial(trainer, module, source, sweep.num_training):
        if number:
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smooth = mean / (1 - _SMOOTHING**number)
            finder.results["loss"].append(smooth)
            best = min(best, smooth)
            threshold = sweep.early_stop_threshold
            if threshold is not None and smooth > threshold * best > 0:
                break
            if not math.isfinite(loss) or number == sweep.num_training:
                break
        rate = sweep.rate(number)
        finder.results["lr"].append(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
    return finder


def set_rate(module: "Module", rate: float, name: str = "") -> None:
    """Write a rate where `configure_optimizers` reads it; AttributeError when there is no place."""
    names = [name] if name else _NAMES
    if not any(write(module, wanted, rate) for wanted in names):
        raise AttributeError(
            f"{type(module).__name__} has no {' or '.join(names)} (attribute or hparams) to write "
            f"the suggested learning rate to; set update_attr=False, or name it by attr_name="
        )


class LearningRateFinder(Callback):
    """Make the range test before a run begins, and train with what it suggests.

    A run that resumes keeps the rate of its first attempt: the test is not made again.
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        self._sweep = Sweep(
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training_steps,
            mode=mode,
            early_stop_threshold=early_stop_threshold,
        )
        self._name = attr_name if update_attr else None
        self.optimal_lr: LRFinder | None = None
        """The curve, when the test was made in this process."""
        self.suggested: float | None = None

    def data_found(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the test, before `configure_optimizers`; collective."""
        source = trainer.train_source
        if source is None or begun(trainer):
            return
        self.optimal_lr, self.suggested = suggest(
            trainer, pl_module, source, self._sweep, name=self._name
        )
        if self.suggested is None:
            trainer.print("LearningRateFinder: the curve is too short to suggest a learning rate")
        elif self._name is not None:
            trainer.print(f"LearningRateFinder: learning rate {self.suggested:.3g}")

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Show the module what its optimizer was restored with."""
        if self._name is not None and self.optimal_lr is None and self.suggested is not None:
            set_rate(pl_module, self.suggested, self._name)

    def state_dict(self) -> dict[str, Any]:
        """What was suggested."""
        return {"suggested": self.suggested}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it."""
        self.suggested = state_dict["suggested"]
