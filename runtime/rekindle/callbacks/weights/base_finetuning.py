"""`BaseFinetuning`: freeze before training, and unfreeze when an epoch begins.

What a script's `finetune_function` has made of the optimizers (more groups) and of the parameters
(which of them train) is part of the state: a run that resumes has it before its optimizers are
restored, and does not go through the epochs before once more.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rekindle.callback import Callback
from rekindle.callbacks.weights.backbone_finetuning import include, sum_more

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

Modules = nn.Module | Iterable[Any]


class BaseFinetuning(Callback):
    """Define `freeze_before_training` and `finetune_function`."""

    def __init__(self) -> None:
        self._epoch = -1
        """Newest epoch that `finetune_function` was called for."""
        self._groups: list[list[list[str]]] = []
        self._trained: list[str] = []

    def freeze_before_training(self, pl_module: "Module") -> None:
        """Freeze what is not to train from the beginning, before the optimizers are made."""
        raise NotImplementedError(f"{type(self).__name__} has no freeze_before_training()")

    def finetune_function(
        self, pl_module: "Module", epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Unfreeze what an epoch begins to train; called for each optimizer."""
        raise NotImplementedError(f"{type(self).__name__} has no finetune_function()")

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Freeze."""
        if self._epoch < 0:
            self.freeze_before_training(pl_module)

    def on_load_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """Make optimizers and parameters what they were when this was saved."""
        saved = checkpoint["callbacks"].get(self.state_key, {})
        if saved.get("epoch", -1) < 0:
            return
        named = dict(pl_module.named_parameters())
        for name, parameter in named.items():
            parameter.requires_grad = name in saved["trained"]
        for optimizer, groups in zip(trainer.optimizers, saved["groups"], strict=True):
            # A run that goes back in its own process may have more of them.
            for group in optimizer.param_groups[len(groups) :]:
                for parameter in group["params"]:
                    optimizer.state.pop(parameter, None)
            del optimizer.param_groups[len(groups) :]
            for names in groups[len(optimizer.param_groups) :]:
                rate = optimizer.param_groups[0]["lr"]
                optimizer.add_param_group({"params": [named[n] for n in names], "lr": rate})
                _tell(trainer, optimizer)
        sum_more(trainer, pl_module)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Ask the script's function, once for each epoch."""
        epoch = trainer.current_epoch
        if epoch <= self._epoch:
            return
        self._epoch = epoch
        before = [p.requires_grad for p in pl_module.parameters()]
        for optimizer in trainer.optimizers:
            count = len(optimizer.param_groups)
            self.finetune_function(pl_module, epoch, optimizer)
            if len(optimizer.param_groups) > count:
                _tell(trainer, optimizer)
        if before != [p.requires_grad for p in pl_module.parameters()]:
            sum_more(trainer, pl_module)
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self._groups = [
            [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._trained = [n for n, p in pl_module.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Groups and trained parameters, by name."""
        return {"epoch": self._epoch, "groups": self._groups, "trained": self._trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._epoch = state_dict["epoch"]
        self._groups, self._trained = state_dict["groups"], state_dict["trained"]

    # For `finetune_function`.

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """All modules below that have parameters of their own, or no children."""
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if not isinstance(modules, nn.Module) or isinstance(modules, nn.ModuleList | nn.Sequential):
            return [one for each in modules for one in BaseFinetuning.flatten_modules(each)]
        return [m for m in modules.modules() if not list(m.children()) or m._parameters]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[nn.Parameter]:
        """Parameters that train (or do not), without those of BatchNorm unless `train_bn`."""
        for module in BaseFinetuning.flatten_modules(modules):
            if not isinstance(module, _BatchNorm) or train_bn:
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad == requires_grad:
                        yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Train the parameters of these modules."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters of one module, not those of its children."""
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze these modules, but for BatchNorm layers when `train_bn`."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and train_bn:
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def filter_on_optimizer(
        optimizer: torch.optim.Optimizer, params: Iterable[nn.Parameter]
    ) -> list[nn.Parameter]:
        """Those parameters that the optimizer does not have yet."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [parameter for parameter in params if id(parameter) not in known]

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: torch.optim.Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Train these modules, as a group of the optimizer's with a rate of its own."""
        BaseFinetuning.make_trainable(modules)
        rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else float(lr)
        trained = BaseFinetuning.filter_params(modules, train_bn=train_bn)
        if new := BaseFinetuning.filter_on_optimizer(optimizer, trained):
            optimizer.add_param_group({"params": new, "lr": rate})


def _tell(trainer: "Trainer", optimizer: torch.optim.Optimizer) -> None:
    """Let schedulers know the optimizer's new group."""
    run = trainer._run
    for spec in run.optimization.schedulers if run is not None else ():
        include(spec.scheduler, optimizer, optimizer.param_groups[-1]["lr"])
