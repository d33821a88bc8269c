"""What callbacks that unfreeze layers need: the sum of gradients and the schedulers know of it."""

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from rekindle.ranks.deterministic_reduction import LaneSum
from rekindle.ranks.gradients import GradientSum

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


def sum_more(trainer: "Trainer", module: "Module") -> None:
    """Let the sum of gradients over ranks take in exactly the parameters that train now."""
    run = trainer._run
    if run is None or run.gradients is None:
        return
    run.gradients.close()
    if isinstance(run.gradients, LaneSum):
        size = run.world.size
        run.gradients = LaneSum(module, world_size=size, lanes=lambda: run.cursor.lanes)
    else:
        run.gradients = GradientSum(p for p in module.parameters() if p.requires_grad)
    run.update.gradients = run.gradients


def include(scheduler: Any, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let a scheduler that was made before know the optimizer's new group."""
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.min_lrs.append(scheduler.min_lrs[-1])
        return
    optimizer.param_groups[-1].setdefault("initial_lr", rate)
    scheduler.base_lrs.append(rate)
    if isinstance(scheduler, LambdaLR):
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[-1])
