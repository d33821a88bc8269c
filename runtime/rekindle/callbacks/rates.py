"""`LearningRateMonitor`: learning rates as metrics.

The rate is noted right before the optimizer uses it, in the steps that will be reported; between
two reports nobody would see it.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer


class LearningRateMonitor(Callback):
    """Log each group's learning rate as ``lr-<optimizer>`` (``/pg1`` ... when there are several).

    `logging_interval` is ``step``, ``epoch`` (the rate of the epoch's last step) or None for both;
    `log_momentum` and `log_weight_decay` add those, as ``lr-<optimizer>-momentum`` and so on.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in ("step", "epoch", None):
            raise ValueError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): allowed are 'step', "
                f"'epoch' and None"
            )
        self.logging_interval = logging_interval
        self._momentum, self._decay = log_momentum, log_weight_decay
        self._epoch, self._began = -1, dict[str, float]()
        """The newest epoch, and the rates that it began with."""
        if logging_interval == "epoch":
            self.idle = (LearningRateMonitor.on_before_optimizer_step,)

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "Module", optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the rates that the step is about to use."""
        if self.logging_interval == "epoch":
            return
        step, every = trainer.global_step + 1, trainer.flags.log_every_n_steps
        if step % every == 0 or step == trainer.estimated_stepping_batches:
            for name, value in self._rates(trainer, optimizer).items():
                pl_module.log(name, value, on_step=True, on_epoch=False)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note the rates that the epoch begins with; what is left of one has begun before."""
        if self.logging_interval == "epoch" and self._epoch != trainer.current_epoch:
            self._epoch, self._began = trainer.current_epoch, {}
            for optimizer in trainer.optimizers:
                self._began |= self._rates(trainer, optimizer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Log them; by now schedulers have stepped for the next epoch."""
        for name, value in self._began.items():
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def state_dict(self) -> dict[str, Any]:
        """The rates of the epoch that runs."""
        return {"epoch": self._epoch, "began": dict(self._began)} if self._began else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._epoch, self._began = state_dict["epoch"], dict(state_dict["began"])

    def _rates(self, trainer: "Trainer", optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        name = _name(trainer, optimizer)
        found: dict[str, Any] = {}
        for index, group in enumerate(optimizer.param_groups, 1):
            part = f"/{group.get('name', f'pg{index}')}" if len(optimizer.param_groups) > 1 else ""
            found[f"{name}{part}"] = group["lr"]
            if self._momentum:
                found[f"{name}-momentum{part}"] = group.get("momentum", group.get("betas", (0,))[0])
            if self._decay:
                found[f"{name}-weight_decay{part}"] = group.get("weight_decay", 0.0)
        return found


def _name(trainer: "Trainer", optimizer: torch.optim.Optimizer) -> str:
    """The scheduler's name if it was given one, else the optimizer's class, numbered if need be."""
    run = trainer._run
    for spec in run.optimization.schedulers if run is not None else ():
        if spec.name is not None and spec.scheduler.optimizer is optimizer:
            return spec.name
    kind = type(optimizer).__name__
    same = [one for one in trainer.optimizers if type(one).__name__ == kind]
    place = next((i for i, one in enumerate(same) if one is optimizer), 0)
    return f"lr-{kind}-{place}" if place else f"lr-{kind}"
