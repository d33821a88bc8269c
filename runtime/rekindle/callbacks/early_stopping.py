"""`EarlyStopping`: end training when a metric no longer improves.

A value is judged once, after the validation that measured it or at the end of the epoch: a value
that merely lies there, from a step that was judged before, does not cost patience.

All ranks hold the same reduced values. The first one's verdict is shared all the same: a rank that
went on alone would wait for the others for ever. The reason is printed and becomes the message of
the job's status; Prometheus shows the patience that is used up.
"""

import math
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from rekindle.callback import Callback
from rekindle.errors.misconfiguration import MisconfigurationException

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class EarlyStoppingReason(IntEnum):
    """Why training was stopped."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Stop after `patience` values in a row of `monitor` that were no better than the best one."""

    after_module = True
    mode_dict: ClassVar[dict[str, Callable[..., torch.Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        """Check the arguments.

        A value is better when it beats the best one by more than `min_delta`. Training also stops
        as soon as a value is better than `stopping_threshold`, worse than `divergence_threshold`,
        or, with `check_finite`, no finite number. With `strict` a metric that nobody logs is an
        error; without, a warning when `verbose`, which also tells of each better value.
        `check_on_train_epoch_end` looks at the end of an epoch only (True) or after a validation
        only (False). Messages come once, from rank 0, so `log_rank_zero_only` is moot.
        """
        if mode not in ("min", "max"):
            raise MisconfigurationException(
                f"EarlyStopping(mode={mode!r}): allowed are 'min' and 'max'"
            )
        if type(patience) is not int or patience < 0:
            raise ValueError(f"EarlyStopping(patience={patience!r}): need a count")
        self.monitor, self.mode, self.patience = monitor, mode, patience
        self.min_delta, self.verbose, self.strict = min_delta, verbose, strict
        self.min_delta *= 1 if mode == "max" else -1
        self.log_rank_zero_only = log_rank_zero_only
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        """Why training was stopped."""
        self.stopping_reason_message: str | None = None
        """The same in words; None when it was not."""
        self._at_epoch_end = check_on_train_epoch_end
        self._before: Any = None
        self._judged = -1
        self._validated = False

    @property
    def monitor_op(self) -> Callable[..., torch.Tensor]:
        """What tells whether a value is better than another."""
        return self.mode_dict[self.mode]

    @property
    def state_key(self) -> str:
        """Two of these may watch two metrics."""
        return f"{type(self).__qualname__}{ {'monitor': self.monitor, 'mode': self.mode}!r}"

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """A validation that measures something replaces what is there."""
        self._before = trainer.callback_metrics.get(self.monitor)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Judge what was just measured."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = True
        measured = trainer.callback_metrics.get(self.monitor) is not self._before
        if measured and self._at_epoch_end is not True:
            self._check(trainer, trainer.measured.get(self.monitor, -1))

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Judge a metric of training; raises RuntimeError when nobody logs it (`strict`)."""
        run = trainer._run
        measures = self._validated or run is None or run.validation is None
        if trainer.fast_dev_run:
            return
        if measures and self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            text = (
                f"EarlyStopping(monitor={self.monitor!r}): no such metric was logged; known are "
                f"{known}. Log it, or set strict=False."
            )
            if self.strict:
                raise RuntimeError(text)
            if self.verbose:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        if self._at_epoch_end is not False:
            self._check(trainer, trainer.measured.get(self.monitor, -1))

    def _check(self, trainer: "Trainer", measured: int) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or measured <= self._judged or trainer.fast_dev_run:
            return
        self._judged = measured
        kind, reason, better = self._judge(float(value))
        if better is not None and self.verbose:
            trainer.print(better)
        run = trainer._run
        if run is not None:
            kind, reason = run.world.share((int(kind), reason))
            run.meter.metrics({f"early_stopping/{self.monitor}/wait": float(self.wait_count)})
        if reason is None:
            return
        self.stopping_reason = EarlyStoppingReason(kind)
        self.stopping_reason_message, self.stopped_epoch = reason, trainer.current_epoch
        trainer.stop(f"EarlyStopping: {reason}")

    def _judge(self, value: float) -> tuple[int, str | None, str | None]:
        """Take the value into account; why to stop and in which words, or how it is better."""
        name, best, kinds = self.monitor, float(self.best_score), EarlyStoppingReason
        if self.check_finite and not math.isfinite(value):
            text = f"{name} = {value} is not finite; the best was {best:.5g}"
            return kinds.NON_FINITE_METRIC, text, None
        sign = 1.0 if self.mode == "min" else -1.0
        limit = self.stopping_threshold
        if limit is not None and sign * value < sign * limit:
            text = f"{name} = {value:.5g} has reached the threshold {limit:.5g}"
            return kinds.STOPPING_THRESHOLD, text, None
        limit = self.divergence_threshold
        if limit is not None and sign * value > sign * limit:
            text = f"{name} = {value:.5g} has diverged beyond {limit:.5g}"
            return kinds.DIVERGENCE_THRESHOLD, text, None
        if sign * (value - self.min_delta) < sign * best:
            self.best_score, self.wait_count = torch.tensor(value), 0
            than = f", the best was {best:.5g}" if math.isfinite(best) else ""
            return kinds.NOT_STOPPED, None, f"EarlyStopping: {name} = {value:.5g}{than}"
        self.wait_count += 1
        if self.wait_count < self.patience:
            return kinds.NOT_STOPPED, None, None
        text = f"{name} did not improve on {best:.5g} {self.wait_count} times in a row"
        return kinds.PATIENCE_EXHAUSTED, text, None

    def state_dict(self) -> dict[str, Any]:
        """The patience that is left, and the best value."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": float(self.best_score),
            "patience": self.patience,
            "stopping_reason": int(self.stopping_reason),
            "stopping_reason_message": self.stopping_reason_message,
            "judged": self._judged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = torch.tensor(float(state_dict["best_score"]))
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        self._judged = state_dict.get("judged", -1)
