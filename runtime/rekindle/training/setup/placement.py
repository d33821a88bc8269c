"""Putting a model where and how the flags say: shares, compiled code, synchronised statistics.

All of it happens in place. The module stays the user's object, and names in its state stay the
same, so that a checkpoint does not tell whether its writer had sharded or compiled anything.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rekindle.console import Console
from rekindle.flags import Flags
from rekindle.model import metrics
from rekindle.model.module import Module
from rekindle.ranks.distributed import World
from rekindle.ranks.gradients import broadcast
from rekindle.strategies import FSDP2, Mesh
from rekindle.strategies.sharding import recompute, shard
from rekindle.strategies.statistics import synchronise


def mesh_of(flags: Flags, world: World) -> Mesh | None:
    """The mesh with as many copies as there are processes for; ValueError where none is whole.

    The number of copies in the script is that of all pods: with fewer of them training goes on.
    """
    mesh = flags.mesh
    if mesh is None or mesh.dp * mesh.tp == world.size:
        return mesh
    if world.size % mesh.tp:
        raise ValueError(
            f"mesh={{'dp': {mesh.dp}, 'tp': {mesh.tp}}} needs a multiple of {mesh.tp} processes, "
            f"there are {world.size}. Change the mesh or the number of processes."
        )
    return Mesh(dp=world.size // mesh.tp, tp=mesh.tp)


def copies(flags: Flags, world: World) -> World:
    """This process among those that see other samples; ValueError for a mesh that does not fit.

    Processes that hold parts of the same layers see the same ones. Collective.
    """
    mesh = mesh_of(flags, world)
    return world if mesh is None else world.of_copies(mesh.tp)


def shards(flags: Flags, world: World) -> bool:
    """Whether a process is going to hold only a share of the model."""
    return world.size > 1 and _cuts(flags)


def _cuts(flags: Flags) -> bool:
    return flags.strategy.shards or (flags.mesh is not None and flags.mesh.tp > 1)


def place(module: Module, flags: Flags, world: World, console: Console) -> None:
    """Change the module as the flags say; collective.

    Raises ValueError for flags that exclude each other or the number of processes.
    """
    strategy, mesh = flags.strategy, mesh_of(flags, world)
    for line in strategy.notices:
        console.say(line)
    sharded = _cuts(flags)
    if sharded and flags.data.guarantee == "bitwise":
        raise ValueError(
            "data['guarantee']='bitwise' needs the whole gradient on each process: use "
            "strategy='ddp', or the guarantee 'order'."
        )
    automatic = module.automatic_optimization and module.automatic
    if isinstance(strategy, FSDP2) and not strategy.reshard and not automatic:
        console.say(
            "FSDP2(reshard=False) is not used with manual optimization: each network is gathered "
            "when it is called, since an optimizer may have stepped since its last call"
        )
    if flags.sync_batchnorm and world.size > 1:
        synchronise(module)
    if isinstance(strategy, FSDP2):
        recompute(module, strategy.ac)
    if flags.compile is not None:
        compile_parts(module, dict(flags.compile))
    if sharded and world.size > 1:
        broadcast(value for value in module.state_dict().values() if _sendable(value))
        cut = strategy if isinstance(strategy, FSDP2) else FSDP2()
        shard(module, cut, mesh, world.size, world.device)


def compile_parts(module: nn.Module, options: dict[str, Any]) -> None:
    """Compile each network that the module holds, in place, whichever way a step calls it.

    Not the steps themselves: logging and metrics would break their graph in pieces.
    """
    for child in module.children():
        if metrics.is_metric(child):
            continue
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            compile_parts(child, options)
        else:
            # What Module.compile() does, but that leaves torch's own containers as they are.
            child._compiled_call_impl = torch.compile(_call_of(child), **options)


def _call_of(module: nn.Module) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return module._call_impl(*arguments, **named)  # type: ignore[no-untyped-call]

    return call


def _sendable(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0
