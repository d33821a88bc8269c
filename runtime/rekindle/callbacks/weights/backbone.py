"""`BackboneFinetuning`: train the head first, and the backbone from some epoch on.

Until then the backbone's parameters ask for no gradient and are in no optimizer group, so they cost
neither memory nor time. At that epoch they become a group of their own. `BaseFinetuning` keeps what
was made of the optimizer over a resume.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rekindle.callbacks.weights.base_finetuning import BaseFinetuning
from rekindle.errors.misconfiguration import MisconfigurationException

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


def multiplicative(epoch: int) -> float:
    """A rate that doubles with each epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Freeze one submodule until an epoch; then train it, at first more slowly than the rest."""

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
        backbone: str = "backbone",
    ) -> None:
        """Check the arguments.

        The backbone, the module's attribute of that name, begins with `backbone_initial_lr`, or
        with the rate of the first group times `backbone_initial_ratio_lr`. In each later epoch its
        rate is the one before times `lambda_func(epoch + 1)`; with `should_align` it is at most the
        first group's. `train_bn` trains BatchNorm layers of the backbone too once it is unfrozen.
        `verbose` prints the rates, with `rounding` digits.
        """
        if type(unfreeze_backbone_at_epoch) is not int or unfreeze_backbone_at_epoch < 0:
            raise ValueError(
                f"BackboneFinetuning(unfreeze_backbone_at_epoch={unfreeze_backbone_at_epoch!r}): "
                f"need an epoch from 0 on"
            )
        super().__init__()
        self.unfreeze_backbone_at_epoch, self.lambda_func = unfreeze_backbone_at_epoch, lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr, self.should_align = backbone_initial_lr, should_align
        self.initial_denom_lr, self.train_bn = initial_denom_lr, train_bn
        self.verbose, self.rounding, self.backbone = verbose, rounding, backbone
        self.previous_backbone_lr: float | None = None
        """The newest rate of the backbone."""
        self._say: Callable[[str], None] = print

    def _part(self, module: "Module") -> nn.Module:
        part = getattr(module, self.backbone, None)
        if not isinstance(part, nn.Module):
            raise MisconfigurationException(
                f"BackboneFinetuning: {type(module).__name__} has no submodule {self.backbone!r}; "
                f"name it by backbone="
            )
        return part

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Freeze, before the optimizer is made; MisconfigurationException without a backbone."""
        self._say = trainer.print
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: "Module") -> None:
        """Freeze the backbone, but for its BatchNorm layers."""
        self.freeze(self._part(pl_module))

    def finetune_function(
        self, pl_module: "Module", epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Unfreeze, or set the rate of this epoch."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        head = float(optimizer.param_groups[0]["lr"])
        before = self.previous_backbone_lr
        if epoch == self.unfreeze_backbone_at_epoch or before is None:
            rate = self.backbone_initial_lr
            if rate is None:
                rate = head * self.backbone_initial_ratio_lr
            self.unfreeze_and_add_param_group(
                self._part(pl_module),
                optimizer,
                rate,
                train_bn=self.train_bn,
                initial_denom_lr=self.initial_denom_lr,
            )
        else:
            rate = self.lambda_func(epoch + 1) * before
            if self.should_align and rate > head:
                rate = head
            optimizer.param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            self._say(
                f"epoch {epoch}: {self.backbone} trains with lr {round(rate, self.rounding)}, the "
                f"head with {round(head, self.rounding)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Groups, trained parameters and the newest rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
