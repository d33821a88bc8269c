"""Cutting a module into shares, in place, with torch's ``fully_shard``.

The trainer calls `training_step` and not `forward`, so the steps themselves are made the methods
around which parameters are gathered and given back. Gradients are summed over the processes, not
averaged: each micro-batch's loss has been multiplied by its share of the step before.

With manual optimization there are backward passes and optimizer steps within `training_step`, so
there it is each network of the module that is gathered, whenever it is called.

A collective runs in every forward pass. So all processes must make equally many of them, and one
that has no micro-batch in a round repeats one with weight zero; see
`rekindle.training.step.uneven_inputs`.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rekindle.strategies.kinds import FSDP2, Mesh, Policy, chosen

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def shard(
    module: nn.Module, strategy: FSDP2, mesh: Mesh | None, world_size: int, device: torch.device
) -> None:
    """Cut the module's parameters; every process has the same values before."""
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(
            f"strategy 'fsdp2' needs a torch that sums the shares of gradients without dividing; "
            f"this is torch {torch.__version__}. Use strategy='ddp', or install a newer torch."
        )
    recompute(module, strategy.ac)
    options: dict[str, Any] = {
        "mesh": _device_mesh(module, strategy, mesh, world_size, device),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if strategy.mp == "bf16" else None,
            reduce_dtype=torch.float32 if strategy.mp == "bf16" else None,
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if strategy.offload
        else OffloadPolicy(),
    }
    automatic = _automatic(module)
    inner = [child for child in module.modules() if child is not module]
    wrapped = [child for child in inner if chosen(strategy.wrap, child)]
    if automatic:
        for child in reversed(wrapped):
            fully_shard(child, reshard_after_forward=strategy.reshard, **options)
        fully_shard(module, **options)
    else:
        # What is kept after a call would be out of date once an optimizer has stepped.
        called = networks(module)
        for child in reversed([child for child in inner if child in wrapped or child in called]):
            fully_shard(child, reshard_after_forward=True, **options)
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.set_gradient_divide_factor(1.0)
            child.set_force_sum_reduction_for_comms(True)
    for name in STEPS if automatic else ():
        user: Any = getattr(module, name)
        takes = len(inspect.signature(user).parameters)
        if name == "training_step":
            object.__setattr__(module, name, _with_loss_only(module, user))
        register_fsdp_forward_method(module, name)
        # What torch puts there hides the arguments' names.
        object.__setattr__(module, name, _with_arguments(getattr(module, name), takes))


def _automatic(module: Any) -> bool:
    return bool(module.automatic_optimization and module.automatic)


def networks(module: nn.Module) -> list[nn.Module]:
    """What a module with manual optimization calls: its submodules, one by one.

    Its `training_step` has backward passes in it, so each network is gathered by itself, when it is
    called. Raises ValueError for parameters that are in none.
    """
    found: list[nn.Module] = []
    for name, _ in module.named_parameters(recurse=False):
        raise ValueError(
            f"manual optimization of a sharded model: {type(module).__name__}.{name} is a "
            f"parameter of no submodule, so nothing gathers it. Put it into one that is called, or "
            f"use strategy='ddp'."
        )
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += networks(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def _with_arguments(step: Any, takes: int) -> Callable[[Any, int], Any]:
    def call(batch: Any, batch_idx: int) -> Any:
        return step(*(batch, batch_idx)[:takes])

    return call


def recompute(module: nn.Module, policy: Policy) -> None:
    """Compute the chosen submodules' activations again in the backward pass; keeps all names."""
    for child in module.modules():
        if child is not module and chosen(policy, child):
            child.forward = functools.partial(checkpoint, child.forward, use_reentrant=False)


def _with_loss_only(module: nn.Module, user: Any) -> Callable[..., torch.Tensor]:
    """`training_step` with a plain loss as its result, in which torch finds the graph."""

    def training_step(*arguments: Any) -> Any:
        output = user(*arguments)
        for name, value in (getattr(output, "metrics", None) or {}).items():
            log: Any = module.log
            log(name, value)
        if isinstance(output, dict) and "loss" in output:
            return output["loss"]
        return getattr(output, "loss", output)

    return training_step


def _device_mesh(
    module: nn.Module, strategy: FSDP2, mesh: Mesh | None, world_size: int, device: torch.device
) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if mesh is not None and mesh.tp > 1:
        from torch.distributed.tensor.parallel import parallelize_module

        both = init_device_mesh(device.type, (mesh.dp, mesh.tp), mesh_dim_names=("dp", "tp"))
        plan: Any = getattr(module, "tensor_parallel_plan", None)
        if plan is None:
            raise ValueError(
                f"mesh={{'dp': {mesh.dp}, 'tp': {mesh.tp}}} needs to know which layers to cut: "
                f"define tensor_parallel_plan(self) in {type(module).__name__}, returning "
                f"{{'net.0': ColwiseParallel(), 'net.2': RowwiseParallel()}}"
            )
        parallelize_module(module, both["tp"], plan())
        return both["dp"]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if strategy.hybrid and local < world_size and world_size % local == 0:
        sizes = (world_size // local, local)
        return init_device_mesh(device.type, sizes, mesh_dim_names=("copies", "shares"))
    return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shares",))


def sharded(module: nn.Module) -> bool:
    """Whether processes hold shares of the module's parameters."""
    return any(hasattr(parameter, "placements") for parameter in module.parameters())


def empty(model: Any, dtype: torch.dtype) -> Any:
    """A share without contents, cut as `model` is cut."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        torch.empty_like(model.to_local(), dtype=dtype),
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )


def like(value: Any, model: Any) -> Any:
    """A tensor cut as `model` is cut, when that is a share of a tensor of the same shape."""
    placements = getattr(model, "placements", None)
    if placements is None or not isinstance(value, torch.Tensor) or value.shape != model.shape:
        return value
    if hasattr(value, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(model.device)
    return distribute_tensor(whole, model.device_mesh, placements, src_data_rank=None)
