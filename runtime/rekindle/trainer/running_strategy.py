"""`trainer.strategy`: the processes of a run, as scripts for Lightning talk to them.

How a model is spread is a value, `rekindle.strategies`, without any process in it. What a script
asks of `trainer.strategy` is mostly about its peers: wait for them, tell them something, bring
their tensors together. That is here; everything else is asked of the value.
"""

import os
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.nn import functional as _functional

from rekindle.errors.requirement import RequirementError
from rekindle.ranks.distributed import device_of
from rekindle.strategies import FSDP2, Strategy

if TYPE_CHECKING:
    from rekindle.ranks.distributed import World
    from rekindle.trainer.trainer import Trainer

_gathered: Any = _functional.all_gather
"""With gradients, which torch's function without types has."""
_OPERATIONS = {
    "mean": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.SUM,
    "sum": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}


class RunningStrategy:
    """A trainer's processes; what waits for peers is collective."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(self._trainer.flags.strategy, name):
            return getattr(self._trainer.flags.strategy, name)
        raise AttributeError(
            f"trainer.strategy has no attribute {name!r}: how the model is spread is "
            f"trainer.flags.strategy, and the trainer does the rest itself"
        )

    @property
    def strategy_names(self) -> set[str]:
        """Lightning's names for what this is; `isinstance` goes by them."""
        value = self._trainer.flags.strategy
        if type(value) is Strategy and self.world_size == 1:
            return {"Strategy", "SingleDeviceStrategy"}
        own: dict[type, str] = {FSDP2: "FSDPStrategy", Strategy: "DDPStrategy"}
        kinds = {own.get(kind, kind.__name__) for kind in type(value).__mro__[:-1]}
        if value.shards:
            kinds.discard("DDPStrategy")
        return {"Strategy", "ParallelStrategy", type(value).__name__, *kinds}

    @property
    def num_processes(self) -> int:
        """How many processes there are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))

    @property
    def _world(self) -> "World":
        world = self._trainer.world
        if world is None:
            raise RequirementError(
                "R10 trainer.strategy used before fit, validate, test or predict: there are no "
                "processes yet. Move this into a hook."
            )
        return world

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        if self._trainer.world is not None:
            return self._trainer.world.device
        flags, index = self._trainer.flags, self._trainer.local_rank
        if flags.device_ids is not None:
            index = flags.device_ids[index]
        return device_of(flags.accelerator, index)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self._trainer.world_size

    @property
    def global_rank(self) -> int:
        """This process's number."""
        return self._trainer.global_rank

    @property
    def local_rank(self) -> int:
        """Its number on this machine."""
        return self._trainer.local_rank

    @property
    def node_rank(self) -> int:
        """The machine's number."""
        return self._trainer.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""
        return self._trainer.is_global_zero

    @property
    def model(self) -> Any:
        """The module."""
        return self._trainer.module

    @property
    def lightning_module(self) -> Any:
        """The module."""
        return self._trainer.module

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers."""
        return self._trainer.optimizers

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes."""
        self._world.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What one process has, on all of them."""
        return self._world.share(obj) if src == 0 else self._world.gather(obj)[src]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes (or any of them) say so."""
        views = self._world.gather(bool(decision))
        return min(views) if all else max(views)

    def reduce(
        self, tensor: Any, group: Any = None, reduce_op: "Literal['mean', 'sum'] | str" = "mean"
    ) -> Any:
        """A tensor over all processes: their mean, sum, largest or smallest; others as they are."""
        operation = _OPERATIONS.get(str(reduce_op).lower().removeprefix("redoptype."))
        if operation is None:
            raise ValueError(
                f"reduce(reduce_op={reduce_op!r}): allowed are {', '.join(map(repr, _OPERATIONS))}"
            )
        if not isinstance(tensor, torch.Tensor) or self._world.size == 1:
            return tensor
        found = tensor.detach().clone()
        dist.all_reduce(found, op=operation, group=group)
        return found / dist.get_world_size(group) if reduce_op in ("mean", "avg") else found

    def all_gather(
        self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False
    ) -> torch.Tensor:
        """The tensors of all processes, stacked; as it is where there is one process."""
        if self._world.size == 1:
            return tensor
        tensor = tensor.contiguous()
        if sync_grads:
            return torch.stack(list(_gathered(tensor, group)))
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, tensor.detach(), group=group)
        return torch.stack(parts)
