"""Putting a model where and how the flags say: shares, compiled code, synchronised statistics.

All of it happens in place. The module stays the user's object, and names in its state stay the
same, so that a checkpoint does not tell whether its writer had sharded or compiled anything.
"""

import torch

from rekindle.console import Console
from rekindle.distributed import World
from rekindle.flags import Flags
from rekindle.gradients import broadcast
from rekindle.module import Module
from rekindle.strategies import FSDP2
from rekindle.strategies.sharding import recompute, shard


def place(module: Module, flags: Flags, world: World, console: Console) -> bool:
    """Change the module as the flags say; whether it is sharded then. Collective."""
    strategy, mesh = flags.strategy, flags.mesh
    for line in strategy.notices:
        console.say(line)
    if mesh is not None and mesh.dp * mesh.tp != world.size:
        raise ValueError(
            f"mesh={{'dp': {mesh.dp}, 'tp': {mesh.tp}}} is for {mesh.dp * mesh.tp} processes, "
            f"there are {world.size}. Change the mesh or the number of processes."
        )
    sharded = isinstance(strategy, FSDP2)
    if sharded and not (module.automatic_optimization and module.automatic):
        raise ValueError(
            "manual optimization works with strategy='ddp'; a sharded model sums its gradients in "
            "each backward pass. Use strategy='ddp'."
        )
    if isinstance(strategy, FSDP2):
        if world.size == 1:
            recompute(module, strategy.ac)
            return False
        broadcast(
            t for t in module.state_dict().values() if isinstance(t, torch.Tensor) and t.numel()
        )
        shard(module, strategy, mesh, world.size, world.device)
    return sharded
