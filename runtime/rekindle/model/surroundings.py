"""What a module can ask about where it runs, and say: ranks, devices, peers, printed lines.

All of it is the trainer's, which the module knows while one of its calls runs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


class Surroundings(nn.Module):
    """The part of `rekindle.Module` that passes questions on to the trainer."""

    if TYPE_CHECKING:

        @property
        def trainer(self) -> Trainer:
            """See `rekindle.Module`."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are in."""
        found = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(found, torch.get_default_dtype())

    @property
    def on_gpu(self) -> bool:
        """Whether the parameters are on a GPU."""
        return self.device.type == "cuda"

    @property
    def global_step(self) -> int:
        """Optimizer steps done; 0 without a trainer."""
        return self._asked("global_step")

    @property
    def current_epoch(self) -> int:
        """Epoch that is running, 0-based; 0 without a trainer."""
        return self._asked("current_epoch")

    @property
    def global_rank(self) -> int:
        """Number of this process; 0 without a trainer."""
        return self._asked("global_rank")

    @property
    def local_rank(self) -> int:
        """Its number on this machine; 0 without a trainer."""
        return self._asked("local_rank")

    def _asked(self, name: str) -> int:
        try:
            trainer = self.trainer
        except RuntimeError:
            return 0
        return 0 if trainer is None else int(getattr(trainer, name))

    @property
    def fabric(self) -> None:
        """None: a module that runs without a trainer runs by itself."""
        return None

    @property
    def device_mesh(self) -> None:
        """None: layers are cut by the plan that `tensor_parallel_plan` names."""
        return None

    def print(self, *values: object, **options: Any) -> None:
        """Print once, on rank 0; takes what Python's `print` takes."""
        self.trainer.print(*values, **options)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensors of all processes, stacked; numbers become tensors, collections stay.

        In a world of one a tensor is given back as it is. Collective.
        """
        if isinstance(data, dict):
            pairs = {key: self.all_gather(each, group, sync_grads) for key, each in data.items()}
            return type(data)(pairs)
        if isinstance(data, tuple) and hasattr(data, "_fields"):
            return type(data)(*(self.all_gather(each, group, sync_grads) for each in data))
        if isinstance(data, list | tuple):
            return type(data)(self.all_gather(each, group, sync_grads) for each in data)
        if isinstance(data, int | float):
            data = torch.tensor(data, device=self.device)
        if not isinstance(data, torch.Tensor):
            return data
        return self.trainer.strategy.all_gather(data, group, sync_grads)
