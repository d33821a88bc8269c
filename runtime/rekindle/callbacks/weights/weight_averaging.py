"""`WeightAveraging`: an average of the weights by a rule of the script's own, as torch keeps it.

The average is a `torch.optim.swa_utils.AveragedModel`. For a validation it changes places with the
weights, tensor by tensor, and a state that is saved meanwhile has training's weights. When training
ends it becomes the model. Files hold the average as their weights, since that is what is used;
the state of the run holds both, so a resume is exact.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class WeightAveraging(Callback):
    """Average after each step; override `should_update` to choose steps or epochs."""

    def __init__(
        self,
        device: "torch.device | str | int | None" = None,
        use_buffers: bool = True,
        **kwargs: Any,
    ) -> None:
        """`kwargs` are those of `AveragedModel`; `device` None means the model's."""
        self._device, self._use_buffers, self._kwargs = device, use_buffers, kwargs
        self._average: Any = None
        self._saved: dict[str, Any] = {}
        self._step = 0
        """Steps done at the newest update."""
        self._swapped = False
        self._module: Any = None
        """Whose weights are elsewhere while a validation runs."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update after a step (0-based) or after an epoch; one of them is given."""
        return step_idx is not None

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin with the weights, or with what was restored."""
        if trainer.flags.strategy.shards or trainer.flags.mesh is not None:
            raise ValueError(
                f"{type(self).__name__} keeps a whole copy of the model, which a sharded one has "
                f"not; use rekindle.callbacks.EMA"
            )
        device = None if self._device is None else torch.device(self._device)
        self._average = AveragedModel(
            pl_module, device=device, use_buffers=self._use_buffers, **self._kwargs
        )
        self._restore()

    def _restore(self) -> None:
        if self._saved and self._average is not None:
            self._average.load_state_dict(self._saved)
            self._saved = {}

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after a step, once."""
        step = trainer.global_step
        if step > self._step and self.should_update(step_idx=step - 1):
            self._step = step
            self._average.update_parameters(pl_module)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Update after an epoch."""
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._average.update_parameters(pl_module)

    def on_train_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """The average becomes the model."""
        if self._average is not None and int(self._average.n_averaged):
            with torch.no_grad():
                for one, other in self._pairs(pl_module):
                    one.copy_(other)

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Measure the average."""
        if self._average is not None and not self._swapped:
            self._swap(pl_module)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Go on with the weights."""
        if self._swapped:
            self._swap(pl_module)

    def on_exception(
        self, trainer: "Trainer", pl_module: "Module", exception: BaseException
    ) -> None:
        """Leave the module with its own weights."""
        if self._swapped:
            self._swap(pl_module)

    def _pairs(self, module: torch.nn.Module) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        average = self._average.module
        pairs: list[Any] = list(zip(module.parameters(), average.parameters(), strict=True))
        pairs += zip(module.buffers(), average.buffers(), strict=True)
        return [(one.detach(), other.detach()) for one, other in pairs]

    def _swap(self, module: torch.nn.Module) -> None:
        with torch.no_grad():
            for one, other in self._pairs(module):
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
        self._swapped = not self._swapped
        self._module = module if self._swapped else None

    def on_save_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """What a file has for weights is the average."""
        if self._average is not None:
            named = self._average.module.state_dict()
            checkpoint["state_dict"] = {n: named[n] for n in checkpoint["state_dict"] if n in named}

    def state_dict(self) -> dict[str, Any]:
        """The average. In a validation that is cut short, training's weights come back first."""
        if self._swapped:
            self._swap(self._module)
        average = {} if self._average is None else dict(self._average.state_dict())
        return {"step": self._step, "average": average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._step, self._saved = state_dict["step"], dict(state_dict["average"])
        self._restore()


class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average: ``decay * average + (1 - decay) * weights``."""

    def __init__(
        self,
        device: "torch.device | str | int | None" = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        average = get_ema_avg_fn(decay=decay)  # type: ignore[no-untyped-call]
        super().__init__(device, use_buffers, **kwargs, avg_fn=average)
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Every so many steps from a first one on, and after each epoch from a first one on."""
        if step_idx is not None:
            begun = step_idx >= (self.update_starting_at_step or 0)
            every = self.update_every_n_steps
            return begun and every > 0 and step_idx % every == 0
        first = self.update_starting_at_epoch
        return epoch_idx is not None and first is not None and epoch_idx >= first
