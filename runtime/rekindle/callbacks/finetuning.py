"""`BackboneFinetuning`: train the head first, and the backbone from some epoch on.

Until then the backbone's parameters ask for no gradient and are in no optimizer group, so they cost
neither memory nor time. At that epoch they become a group of their own. A checkpoint that was saved
later holds that group, so a run that resumes makes it before the optimizer is restored.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from rekindle.callback import Callback
from rekindle.ranks.gradients import GradientSum
from rekindle.ranks.lanesum import LaneSum

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer


def multiplicative(epoch: int) -> float:
    """A rate that doubles with each epoch."""
    return 2.0


class BackboneFinetuning(Callback):
    """Freeze one submodule until an epoch; then train it, at first more slowly than the rest."""

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        train_bn: bool = True,
        verbose: bool = False,
        backbone: str = "backbone",
    ) -> None:
        """Check the arguments.

        The backbone, the module's attribute of that name, begins with `backbone_initial_lr`, or
        with the rate of the first group times `backbone_initial_ratio_lr`. In each later epoch its
        rate is multiplied by `lambda_func(epoch)`; with `should_align` it follows the first group's
        rate once it has reached it. `train_bn` keeps BatchNorm layers training all the time.
        """
        if type(unfreeze_backbone_at_epoch) is not int or unfreeze_backbone_at_epoch < 1:
            raise ValueError(
                f"BackboneFinetuning(unfreeze_backbone_at_epoch={unfreeze_backbone_at_epoch!r}): "
                f"need an epoch from 1 on"
            )
        self.epoch, self.factor = unfreeze_backbone_at_epoch, lambda_func
        self.ratio, self.initial = backbone_initial_ratio_lr, backbone_initial_lr
        self.align, self.train_bn, self.verbose = should_align, train_bn, verbose
        self.backbone = backbone
        self._group: int | None = None
        """Place of the backbone's group among the optimizer's."""
        self._last = -1
        """Epoch whose rate is set."""

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Freeze, before the optimizer is made; AttributeError without such a submodule."""
        if stage != "fit" or self._group is not None:
            return
        if not isinstance(getattr(pl_module, self.backbone, None), nn.Module):
            raise AttributeError(
                f"BackboneFinetuning: {type(pl_module).__name__} has no submodule "
                f"{self.backbone!r}; name it by backbone="
            )
        freeze(self._part(pl_module), train_bn=self.train_bn)

    def _part(self, module: nn.Module) -> nn.Module:
        part: nn.Module = getattr(module, self.backbone)
        return part

    def on_load_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """Make the optimizer what it was when this was saved."""
        group = checkpoint["callbacks"].get(self.state_key, {}).get("group")
        if group is not None and self._group is None:
            self._unfreeze(trainer, pl_module)
        elif group is None and self._group is not None:
            self._refreeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Unfreeze, or set the rate of this epoch."""
        epoch = trainer.current_epoch
        if epoch < self.epoch or epoch == self._last:
            return
        self._last = epoch
        if self._group is None:
            self._unfreeze(trainer, pl_module)
            sum_more(trainer, pl_module)
        else:
            groups = trainer.optimizers[0].param_groups
            rate, other = groups[self._group]["lr"] * self.factor(epoch), groups[0]["lr"]
            groups[self._group]["lr"] = min(rate, other) if self.align else rate
        if self.verbose:
            rate = trainer.optimizers[0].param_groups[self._group or 0]["lr"]
            trainer.print(f"epoch {epoch}: {self.backbone} trains with lr {rate:g}")

    def _unfreeze(self, trainer: "Trainer", module: nn.Module) -> None:
        part, optimizer = self._part(module), trainer.optimizers[0]
        unfreeze(part)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in part.parameters() if id(p) not in known]
        if not new:
            # The script gave all parameters to the optimizer; they have no group of their own.
            self._group = 0
            return
        rate = self.initial or optimizer.param_groups[0]["lr"] * self.ratio
        self._group = len(optimizer.param_groups)
        optimizer.add_param_group({"params": new, "lr": rate})
        run = trainer._run
        for spec in run.optimization.schedulers if run is not None else ():
            include(spec.scheduler, optimizer, rate)

    def _refreeze(self, trainer: "Trainer", module: "Module") -> None:
        """Undo `_unfreeze`, for a run that goes back in its own process."""
        freeze(self._part(module), train_bn=self.train_bn)
        optimizer, run = trainer.optimizers[0], trainer._run
        if self._group:
            for parameter in optimizer.param_groups.pop(self._group)["params"]:
                optimizer.state.pop(parameter, None)
            for spec in run.optimization.schedulers if run is not None else ():
                _exclude(spec.scheduler, optimizer)
        self._group = None
        sum_more(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """Whether the backbone trains, and which epoch's rate is set."""
        return {"group": self._group, "epoch": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._last = state_dict["epoch"]


def freeze(modules: "nn.Module | Iterable[nn.Module]", *, train_bn: bool = True) -> None:
    """Ask for no gradient of these modules' parameters; BatchNorm's stay when `train_bn`."""
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        for layer in module.modules():
            trained = train_bn and isinstance(layer, _BatchNorm)
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad = trained


def unfreeze(modules: "nn.Module | Iterable[nn.Module]") -> None:
    """Train these modules' parameters."""
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        for parameter in module.parameters():
            parameter.requires_grad = True


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


def _exclude(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Undo `_include`."""
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    lists = ("min_lrs",) if isinstance(scheduler, ReduceLROnPlateau) else ("base_lrs", "lr_lambdas")
    for name in lists:
        if hasattr(scheduler, name):
            getattr(scheduler, name).pop()
