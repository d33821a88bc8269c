"""`LearningRateMonitor`: learning rates as metrics.

Rates are noted where a step or an epoch begins, so they are those that are used, and only in steps
that are reported. They go to the loggers under the number of the step that begins, and are among
`callback_metrics`; what an optimizer has is the same on every rank.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback
from rekindle.errors.misconfiguration import MisconfigurationException

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class LearningRateMonitor(Callback):
    """Log each group's learning rate as ``lr-<optimizer>`` (``/pg1`` ... when there are several).

    `logging_interval` is ``step``, ``epoch``, or None for the interval of each optimizer's
    scheduler (both, without one). `log_momentum` and `log_weight_decay` add those, as
    ``lr-<optimizer>-momentum`` and so on.
    """

    # What it has is noted anew.
    optional = True

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in ("step", "epoch", None):
            raise MisconfigurationException(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): allowed are 'step', "
                f"'epoch' and None"
            )
        self.logging_interval = logging_interval
        self.log_momentum, self.log_weight_decay = log_momentum, log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        """Name -> the rates that this process has noted."""
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}
        self._step, self._epoch = -1, -1
        """The newest step and epoch that were noted."""
        if logging_interval == "epoch":
            self.idle = (LearningRateMonitor.on_train_batch_start,)

    def on_train_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin with nothing; raises MisconfigurationException with ``Trainer(logger=False)``."""
        if trainer.flags.logger is False and not trainer.loggers:
            raise MisconfigurationException(
                "LearningRateMonitor and Trainer(logger=False) exclude each other: give a logger, "
                "or remove the callback"
            )
        names = [name for _, listed, _ in self._named(trainer) for name in listed]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {f"{name}-momentum": None for name in names}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in names}

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Note the rates that the step uses."""
        run = trainer._run
        step = 0 if run is None else run.step
        if step != self._step and (step + 1) % trainer.flags.log_every_n_steps == 0:
            self._step = step
            self._note(trainer, "step")

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the rates that the epoch begins with; what is left of one has begun before."""
        if self.logging_interval != "step" and self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            self._note(trainer, "epoch")

    def _note(self, trainer: "Trainer", interval: str) -> None:
        found: dict[str, float] = {}
        for optimizer, names, its in self._named(trainer):
            if self.logging_interval is None and its not in (interval, None):
                continue
            for group, name in zip(optimizer.param_groups, names, strict=True):
                found |= self._of(optimizer, group, name)
        if not found or trainer._run is None:
            return
        step = trainer._run.step
        trainer.measures.take(found, step)
        trainer._run.meter.metrics(found)
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)

    def _of(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], name: str
    ) -> dict[str, float]:
        rate = float(group["lr"])
        self.lrs.setdefault(name, []).append(rate)
        found = {name: rate}
        if self.log_momentum:
            betas = "betas" in optimizer.defaults
            value = float(group["betas"][0] if betas else group.get("momentum", 0))
            found[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = value
        if self.log_weight_decay:
            value = float(group["weight_decay"])
            key = f"{name}-weight_decay"
            found[key] = self.last_weight_decay_values[key] = value
        return found

    def _named(
        self, trainer: "Trainer"
    ) -> list[tuple[torch.optim.Optimizer, list[str], str | None]]:
        """Each optimizer with the names of its groups and its scheduler's interval.

        Those with a scheduler come first: the n-th of a class has a number.
        """
        kinds: list[type] = []
        found: list[tuple[torch.optim.Optimizer, list[str], str | None]] = []
        pairs = [(spec.scheduler.optimizer, spec) for spec in trainer.lr_scheduler_configs]
        scheduled = {id(optimizer) for optimizer, _ in pairs}
        rest = [(one, None) for one in trainer.optimizers if id(one) not in scheduled]
        for optimizer, spec in (*pairs, *rest):
            name = None if spec is None else spec.name
            if name is None:
                kind = type(optimizer)
                number = kinds.count(kind)
                kinds.append(kind)
                name = f"lr-{kind.__name__}" + (f"-{number}" if number else "")
            groups = optimizer.param_groups
            parts = [str(g.get("name", f"pg{i}")) for i, g in enumerate(groups, 1)]
            if len(set(parts)) < len(parts):
                raise MisconfigurationException(
                    f"LearningRateMonitor: groups of {type(optimizer).__name__} share a name, of "
                    f"{', '.join(parts)}; give each its own"
                )
            listed = [f"{name}/{part}" for part in parts] if len(parts) > 1 else [name]
            if len(parts) == 1 and "name" in groups[0]:
                listed = [f"{name}/{parts[0]}"]
            found.append((optimizer, listed, None if spec is None else spec.interval))
        return found

    def state_dict(self) -> dict[str, Any]:
        """The newest step and epoch that were noted, so that none is noted twice."""
        return {"step": self._step, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._step, self._epoch = state_dict.get("step", -1), state_dict["epoch"]
