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
from rekindle.callbacks.trial import trial
from rekindle.checkpoint import Store
from rekindle.flags import store_options
from rekindle.loader import Source
from rekindle.persistence import root

if TYPE_CHECKING:
    from rekindle.module import Module
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


def range_test(
    trainer: "Trainer",
    module: "Module",
    source: Source,
    *,
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    num_training: int = 100,
    mode: Literal["exponential", "linear"] = "exponential",
    early_stop_threshold: float | None = 4.0,
) -> LRFinder:
    """Train a copy of `module` for `num_training` steps of one batch each, with rising rates.

    Ends early when the loss is `early_stop_threshold` times the best one. Raises ValueError for
    arguments that make no range, and for a module with manual optimization.
    """
    if not 0 < min_lr < max_lr or num_training < 2:
        raise ValueError(
            f"lr_find(min_lr={min_lr!r}, max_lr={max_lr!r}, num_training={num_training!r}): need "
            f"0 < min_lr < max_lr and at least 2 steps"
        )
    if mode not in ("exponential", "linear"):
        raise ValueError(f"lr_find(mode={mode!r}): allowed are 'exponential' and 'linear'")
    finder, best, mean = LRFinder(), math.inf, 0.0
    for number, loss, optimizer in trial(trainer, module, source, num_training):
        if number:
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smooth = mean / (1 - _SMOOTHING**number)
            finder.results["loss"].append(smooth)
            best = min(best, smooth)
            if early_stop_threshold is not None and smooth > early_stop_threshold * best > 0:
                break
            if not math.isfinite(loss) or number == num_training:
                break
        part = number / (num_training - 1)
        factor = max_lr / min_lr
        rate = min_lr * factor**part if mode == "exponential" else min_lr + (max_lr - min_lr) * part
        finder.results["lr"].append(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
    return finder


def set_rate(module: "Module", rate: float, name: str = "") -> None:
    """Write a rate where `configure_optimizers` reads it; AttributeError when there is no place."""
    for wanted in [name] if name else _NAMES:
        found = False
        if wanted in module.hparams:
            module.hparams[wanted], found = rate, True
        if isinstance(getattr(module, wanted, None), int | float):
            setattr(module, wanted, rate)
            found = True
        if found:
            return
    raise AttributeError(
        f"{type(module).__name__} has no {' or '.join([name] if name else _NAMES)} (attribute or "
        f"hparams) to write the suggested learning rate to; set update_attr=False, or name it by "
        f"attr_name="
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
        self._arguments: dict[str, Any] = {
            "min_lr": min_lr,
            "max_lr": max_lr,
            "num_training": num_training_steps,
            "mode": mode,
            "early_stop_threshold": early_stop_threshold,
        }
        self._update, self._name = update_attr, attr_name
        self.optimal_lr: LRFinder | None = None
        """The curve, when the test was made in this process."""
        self.suggested: float | None = None

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Make the test, before `configure_optimizers`; collective."""
        world, source = trainer.world, trainer.train_source
        if stage != "fit" or world is None or source is None:
            return
        begun, error = False, None
        if world.first and trainer.flags.enable_checkpointing and trainer.flags.resume != "never":
            try:
                where, _ = root(trainer.flags)
                begun = bool(Store.open(where, **store_options(trainer.flags)).commits())
            except Exception as failure:
                error = failure
        world.agree(error)
        if world.share(begun):
            return
        self.optimal_lr = range_test(trainer, pl_module, source, **self._arguments)
        self.suggested = world.share(self.optimal_lr.suggestion())
        if self.suggested is None:
            trainer.print("LearningRateFinder: the curve is too short to suggest a learning rate")
        elif self._update:
            set_rate(pl_module, self.suggested, self._name)
            trainer.print(f"LearningRateFinder: learning rate {self.suggested:.3g}")

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Show the module what its optimizer was restored with."""
        if self._update and self.optimal_lr is None and self.suggested is not None:
            set_rate(pl_module, self.suggested, self._name)

    def state_dict(self) -> dict[str, Any]:
        """What was suggested."""
        return {"suggested": self.suggested}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it."""
        self.suggested = state_dict["suggested"]
