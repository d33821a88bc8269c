"""The parts of a step that a module may take over from the trainer, by overriding them.

Each method here says what the trainer does by itself, so a module that overrides one can call
``super()`` for the rest. The trainer calls none of them that is not overridden: it does the same
inline, which costs less (see `training.update` and, for the others, `training.step.owned_step`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rekindle.callback import Callback


class StepHooks:
    """The part of `rekindle.Module` that stands for the trainer's own work."""

    def configure_callbacks(self) -> "Sequence[Callback] | Callback":
        """Callbacks that this module wants; one replaces the trainer's callbacks of its class."""
        return []

    def configure_sharded_model(self) -> None:
        """An older name of `configure_model`."""

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Do the backward pass of a loss, which is scaled and weighted already."""
        loss.backward(*arguments, **options)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the optimizer; the closure runs `training_step` and the backward pass.

        It must be called, by `optimizer.step` or directly. The step is for automatic optimization,
        and every process has to make the same calls. `batch_idx` counts the batches of one process
        as the script sees them, so it is the same on all of them.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Clear the gradients of the step before, between `training_step` and backward pass."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, which are those of all processes; see `clip_gradients`."""
        self.clip_gradients(  # type: ignore[attr-defined]
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler that is due; `metric` is what it monitors, or None."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation within training: gradients take no memory while it runs."""
        self.zero_grad()  # type: ignore[attr-defined]

    def on_validation_model_eval(self) -> None:
        """Set the module to evaluation mode for a validation."""
        self.eval()  # type: ignore[attr-defined]

    def on_validation_model_train(self) -> None:
        """After a validation; without it every submodule gets its own mode back."""
        self.train()  # type: ignore[attr-defined]

    def on_test_model_eval(self) -> None:
        """Set the module to evaluation mode for a test."""
        self.eval()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        """After a test; without it every submodule gets its own mode back."""
        self.train()  # type: ignore[attr-defined]

    def on_predict_model_eval(self) -> None:
        """Set the module to evaluation mode for a prediction."""
        self.eval()  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What a module overrides of `StepHooks`, bound; None: the trainer does it."""

    backward: Callable[..., Any] | None = None
    optimizer_step: Callable[..., Any] | None = None
    optimizer_zero_grad: Callable[..., Any] | None = None
    configure_gradient_clipping: Callable[..., Any] | None = None
    lr_scheduler_step: Callable[..., Any] | None = None


def owned(module: object) -> Owned:
    """The parts of the step that a module has taken over."""
    return Owned(**{name: overridden(module, name) for name in Owned.__dataclass_fields__})


def overridden(module: object, name: str) -> Callable[..., Any] | None:
    """The module's own method of a name of `StepHooks`, bound; None when it has none."""
    own = getattr(type(module), name, None)
    if own is None or (own is getattr(StepHooks, name) and name not in vars(module)):
        return None
    return getattr(module, name)  # type: ignore[no-any-return]
