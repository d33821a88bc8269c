"""The learning-rate range test: raise the rate from step to step and look at the loss.

The test trains a copy of the module (`rekindle.callbacks.search.trial`), so nothing of it is left
behind. The suggestion is where the smoothed loss falls fastest by the rate.

Every rank makes the same test by itself; the first one's suggestion counts.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback
from rekindle.callbacks.search.trial import begun, trial, write
from rekindle.data.loader import LoaderSource

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

_SMOOTHING = 0.98
_NAMES = ("lr", "learning_rate")


@dataclass(kw_only=True)
class LRFinder:
    """The curve of a range test."""

    results: dict[str, list[float]] = field(default_factory=lambda: {"lr": [], "loss": []})
    """The rates, and the smoothed loss of each."""

    mode: str = "exponential"
    lr_min: float = 1e-8
    lr_max: float = 1.0
    num_training: int = 100
    _place: int | None = None

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Where the loss falls fastest; None when the curve is too short to tell."""
        stop = len(self.results["loss"]) - skip_end
        loss = torch.tensor(self.results["loss"][skip_begin:stop])
        rates = torch.tensor(self.results["lr"][skip_begin:stop])
        places = torch.arange(skip_begin, skip_begin + len(loss))[torch.isfinite(loss)]
        good = torch.isfinite(loss)
        loss, rates = loss[good], rates[good]
        if len(loss) < 2:
            self._place = None
            return None
        steepest = int(torch.argmin(torch.gradient(loss, spacing=[rates])[0]))
        self._place = int(places[steepest])
        return self.results["lr"][self._place]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw the curve with matplotlib, and the suggestion; the figure."""
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "plotting the curve needs matplotlib, which is not installed: pip install "
                "matplotlib",
                name=error.name,
            ) from error
        figure = None
        if ax is None:
            figure, ax = plt.subplots()
        rates, losses = self.results["lr"], self.results["loss"]
        ax.plot(rates, losses)
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        if suggest and self.suggestion() is not None and self._place is not None:
            at = self._place
            ax.plot(rates[at], losses[at], markersize=10, marker="o", color="red")
        if show:
            plt.show()
        return ax.figure if figure is None else figure


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
        """The rate of a step, counted from 0; the first has the lowest one."""
        part = (number + 1) / self.num_training if number else 0.0
        if self.mode == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * part
        return float(self.min_lr * (self.max_lr / self.min_lr) ** part)


def suggest(
    trainer: "Trainer", module: "Module", source: LoaderSource, sweep: Sweep, *, name: str | None
) -> tuple[LRFinder, float | None]:
    """Make the test; this rank's curve, and what all ranks take as the rate; collective.

    With a `name` the rate is also written to that attribute or hyperparameter of the module (an
    empty one means ``lr`` or ``learning_rate``). Raises AttributeError when there is none.
    """
    assert trainer.world is not None
    if name is not None:
        _check_place(module, name)
    finder = _range_test(trainer, module, source, sweep)
    suggested = trainer.world.share(finder.suggestion())
    if suggested is not None and name is not None:
        set_rate(module, suggested, name)
    return finder, suggested


def _range_test(
    trainer: "Trainer", module: "Module", source: LoaderSource, sweep: Sweep
) -> LRFinder:
    finder, best, mean = LRFinder(), math.inf, 0.0
    finder.mode, finder.num_training = sweep.mode, sweep.num_training
    finder.lr_min, finder.lr_max = sweep.min_lr, sweep.max_lr
    steps, epochs = sweep.num_training, trainer.max_epochs
    if epochs >= 0 and not source.streamed and source.samples:
        # It is training of this trainer's, which has its ends.
        steps = min(steps, epochs * source.batches)
    for number, loss, optimizer in trial(trainer, module, source, steps):
        if number:
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smooth = mean / (1 - _SMOOTHING ** (number + 1))
            finder.results["loss"].append(smooth)
            threshold = sweep.early_stop_threshold
            if threshold is not None and number > 1 and smooth > threshold * best:
                break
            best = smooth if number == 1 else min(best, smooth)
            if not math.isfinite(loss) or number == steps:
                break
        rate = sweep.rate(number)
        finder.results["lr"].append(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
    return finder


def set_rate(module: "Module", rate: float, name: str = "") -> None:
    """Write a rate where `configure_optimizers` reads it; AttributeError when there is no place."""
    _check_place(module, name)
    for wanted in [name] if name else _NAMES:
        if write(module, wanted, rate):
            return


def _check_place(module: "Module", name: str) -> None:
    names = [name] if name else _NAMES
    kept = getattr(module, "hparams", ())
    if not any(n in kept or isinstance(getattr(module, n, None), int | float) for n in names):
        raise AttributeError(
            f"{type(module).__name__} has no {' or '.join(names)} (attribute or hparams) to write "
            f"the suggested learning rate to; set update_attr=False, or name it by attr_name="
        )


class LearningRateFinder(Callback):
    """Make the range test before a run begins, and train with what it suggests.

    A run that resumes keeps the rate of its first attempt: the test is not made again. A class
    derived from it with an `on_fit_start` of its own is asked for nothing then, and may call
    `lr_find` in its hooks.
    """

    SUPPORTED_MODES = ("exponential", "linear")

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
        own = type(self).on_fit_start is not LearningRateFinder.on_fit_start
        if not own and trainer.train_source is not None and not begun(trainer):
            self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the test, and have module and optimizers train with what it suggests; collective."""
        source = trainer.train_source
        assert source is not None
        self.optimal_lr, self.suggested = suggest(
            trainer, pl_module, source, self._sweep, name=self._name
        )
        if self.suggested is None:
            trainer.print("LearningRateFinder: the curve is too short to suggest a learning rate")
        elif self._name is not None:
            trainer.print(f"LearningRateFinder: learning rate {self.suggested:.3g}")
            for optimizer in trainer.optimizers if trainer._run is not None else ():
                for group in optimizer.param_groups:
                    group["lr"] = self.suggested

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
