"""Checks before the expensive part: the module's methods, the data, the first batch.

What can be known without running anything is checked on every rank and shared, so that no rank
waits for one that has refused. What only running shows (does the first batch fit the model, is the
loss a loss) is checked on the first batch of each process, where a failure is explained with the
layer and the shapes; afterwards those checks cost nothing.
"""

import hashlib
import inspect
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from rekindle.api import ENV_POD
from rekindle.data.loader import LoaderSource, Reader, Share, describe, fingerprint
from rekindle.data.sampling.order import Cursor
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Flags
from rekindle.model.module import Module, StepOutput
from rekindle.model.optimizers import frozen
from rekindle.ranks.distributed import World

_REMOVED = {
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
}
"""Hooks that scripts may still have, and their successors."""

StepFunction = Callable[..., Any]
"""A bound `training_step` or `validation_step`, called with batch and its number."""


def step_function(module: Module, name: str, *, several: bool = False) -> StepFunction:
    """The module's step, callable with (batch, batch_idx); R1 when it takes something else.

    With `several` loaders it is called with the number of the loader too.
    """
    method = getattr(module, name)
    if "dataloader_iter" in inspect.signature(method).parameters:
        raise RequirementError(
            f"R1 {type(module).__name__}.{name}(dataloader_iter) would read the data itself, and "
            f"nobody could say which samples it has used. Take (batch, batch_idx)."
        )
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return method  # type: ignore[no-any-return]
    positional = [
        p
        for p in parameters
        if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [p for p in positional if p.default is inspect.Parameter.empty]
    keyword = [
        p.name
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    ]
    names, most = [p.name for p in positional], 3 if several else 2
    who = f"{type(module).__name__}.{name}"
    if several and len(names) < 3 and "dataloader_idx" not in names:
        raise RequirementError(
            f"R1 there are several loaders, and {who} has no dataloader_idx argument. Add "
            f"dataloader_idx=0 to its arguments."
        )
    if len(required) > most or not positional or keyword:
        listed = ", ".join(p.name for p in parameters)
        more = ", dataloader_idx" if several else ""
        fix = "Change its arguments to these."
        if not several and any(p.name == "dataloader_idx" for p in required):
            fix = "There is one loader: remove dataloader_idx, or give it a default: =0."
        raise RequirementError(
            f"R1 {who} takes ({listed}); it is called with (batch, batch_idx{more}). {fix}"
        )
    if several and "batch_idx" not in names and len(names) < 3:
        return lambda batch, _index, loader: method(batch, loader)
    if len(positional) == 1:
        return lambda batch, _index: method(batch)
    return method  # type: ignore[no-any-return]


def check_told(module: Module, stage: str, *, several: bool) -> None:
    """R1 for a hook around a step that cannot be told which of several loaders a batch is from."""
    for name in (f"on_{stage}_batch_start", f"on_{stage}_batch_end"):
        method = getattr(module, name)
        if not several or not _has_own(module, name):
            continue
        kinds = [p.kind for p in inspect.signature(method).parameters.values()]
        least = 4 if name.endswith("end") else 3
        if inspect.Parameter.VAR_POSITIONAL not in kinds and len(kinds) < least:
            raise RequirementError(
                f"R1 there are several loaders, and {type(module).__name__}.{name} has no "
                f"dataloader_idx argument. Add dataloader_idx=0 to its arguments."
            )


def _has_own(module: Module, name: str) -> bool:
    """Whether the class defines a method, or a function was assigned to the object."""
    return name in vars(module) or getattr(type(module), name) is not getattr(Module, name)


def check_removed(module: Module) -> None:
    """R1 for hooks of old versions, which nobody calls any more."""
    for old, new in _REMOVED.items():
        if callable(getattr(module, old, None)):
            raise RequirementError(
                f"R1 {type(module).__name__}.{old} is not called: Lightning 2.0 has removed it. "
                f"Use {new}, and keep what it needs of the steps' outputs in an attribute."
            )


def check_defined(module: Module, *, validation: bool, several: bool = False) -> None:
    """R1 for a missing method, before anything is loaded; `several` loaders to validate with."""
    check_removed(module)
    for name in ("training_step", "configure_optimizers"):
        if not _has_own(module, name):
            # The base class's own method says what to do.
            try:
                getattr(module, name)(*[None] * (0 if name == "configure_optimizers" else 2))
            except NotImplementedError as error:
                raise RequirementError(str(error)) from None
    step_function(module, "training_step")
    if validation:
        step_function(module, "validation_step", several=several)
        check_told(module, "validation", several=several)


def check_data(source: LoaderSource, seed: int, world: World, role: str = "training") -> str:
    """R9: samples are there, readable, the same twice and on every rank; returns the fingerprint.

    Collective.
    """
    error: Exception | None = None
    mark = ""
    samples = source.samples
    try:
        if samples:
            mark = fingerprint(source, seed)
            if mark != fingerprint(source, seed):
                raise RequirementError(
                    f"R9 the {role} dataset is not deterministic: reading the same samples twice "
                    f"with the same seeds gives different values. Draw from torch, random or "
                    f"numpy.random (their seeds are set per sample), not from the clock."
                )
        elif world.size == 1:
            raise RequirementError(f"R9 the {role} dataset is empty (path missing?).")
    except Exception as failure:
        error = failure
    world.agree(error)
    views = world.gather((samples, mark))
    for rank, (count, other) in enumerate(views):
        if count != views[0][0]:
            raise RequirementError(
                f"R9 {role} dataset differs between ranks: rank 0 has {views[0][0]} samples, rank "
                f"{rank} has {count} (path missing?)."
            )
        if other != views[0][1]:
            raise RequirementError(
                f"R9 {role} dataset differs between ranks: rank 0 and rank {rank} have {count} "
                f"samples each with different contents. Sort file lists; seed splits."
            )
    if not samples:
        raise RequirementError(f"R9 the {role} dataset is empty on every rank (path missing?).")
    return mark


def check_example(module: Module, source: LoaderSource, seed: int) -> None:
    """R2 when the module says what its batches look like (`example_batch`) and the data differ.

    The first dimension is the batch; it may have any size.
    """
    example = module.example_batch
    if example is None or not source.samples or source.streamed:
        return
    batch = Reader(source, seed)[Share(0, np.zeros(1, dtype=np.int64))].data
    if _form(batch) != _form(example):
        raise RequirementError(
            f"R2 the first training batch does not fit the model: "
            f"{type(module).__name__}.example_batch is {describe(example)}, the loader yields "
            f"{describe(batch)} (for one sample). Change the data or example_batch."
        )


def _form(value: Any) -> Any:
    """Structure, dtypes and shapes without the batch dimension."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape[1:])
    if isinstance(value, Mapping):
        return {key: _form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_form(item) for item in value]
    return type(value).__name__


def check_same_program(
    module: Module,
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[object],
    flags: Flags,
    world: World,
) -> None:
    """R14: flags, parameters, optimizers and schedulers are the same on every rank; collective."""
    if world.size == 1:
        return
    plain = {name: value for name, value in vars(flags).items() if _plain(value)}
    shapes = [(name, str(p.dtype), tuple(p.shape)) for name, p in module.named_parameters()]
    rules = [
        (
            type(optimizer).__name__,
            [
                {key: value for key, value in group.items() if _plain(value)}
                for group in optimizer.param_groups
            ],
        )
        for optimizer in optimizers
    ]
    schedules = [type(scheduler).__name__ for scheduler in schedulers]
    text = repr((sorted(plain.items()), shapes, rules, schedules))
    digest = hashlib.sha256(text.encode()).hexdigest()
    views = world.gather((digest, os.environ.get(ENV_POD) or socket.gethostname()))
    for rank, (other, pod) in enumerate(views):
        if other != views[0][0]:
            raise RequirementError(
                f"R14 rank {rank} runs a different config (sha {other[:8]} vs {views[0][0][:8]} on "
                f"rank 0: flags, parameters, optimizer or schedulers). Check image tag of pod "
                f"{pod}."
            )


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def summary(module: nn.Module) -> str:
    """One line on the size of a model."""
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    size = sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6
    return (
        f"{type(module).__name__}: {total:,} parameters, {trained:,} of them trained, {size:,.1f} "
        f"MB"
    )


def check_same_data(saved: Cursor, now: Cursor, step: int) -> None:
    """R12: the position of a checkpoint means something only in the dataset it was counted in."""
    fix = (
        "Exactly-once cannot hold. Restore the dataset, or begin the epoch anew in the new one: "
        'Trainer(data={"on_change": "restart-epoch"}).'
    )
    if saved.N != now.N:
        raise RequirementError(
            f"R12 dataset changed since step {step} ({saved.N} -> {now.N} samples). {fix}"
        )
    if saved.length != now.length and now.order != "stream":
        raise RequirementError(
            f"R12 dataset changed since step {step} ({saved.length} -> {now.length} samples used "
            f"per epoch: limit_train_batches, drop_last or batch size). {fix}"
        )
    if saved.order != now.order:
        raise RequirementError(
            f"R12 dataset changed since step {step} (order {saved.order} -> {now.order}). {fix}"
        )
    if saved.draw != now.draw:
        what = "weights" if now.order == "weighted" else "samples that the order function gives"
        raise RequirementError(f"R12 dataset changed since step {step} (other {what}). {fix}")
    if saved.fingerprint != now.fingerprint:
        raise RequirementError(
            f"R12 dataset changed since step {step} (same length, other contents: fingerprint "
            f"{saved.fingerprint} -> {now.fingerprint}). {fix}"
        )


def same_data(cursor: Cursor, meta: Mapping[str, Any]) -> bool:
    """Whether a position and that of a checkpoint are in the same order of the same data."""
    saved = Cursor.from_json(meta["cursor"])
    names = ["N", "order", "draw", "fingerprint"]
    if cursor.order != "stream":
        names.append("length")
    return all(getattr(cursor, name) == getattr(saved, name) for name in names)


def loss_of(output: Any, module: nn.Module) -> torch.Tensor:
    """The loss in what `training_step` returned; R1 for anything else."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, StepOutput) and output.loss is not None:
        return output.loss
    if isinstance(output, dict) and isinstance(output.get("loss"), torch.Tensor):
        loss: torch.Tensor = output["loss"]
        return loss
    found = type(output).__name__
    advice = "Return the loss."
    if isinstance(output, dict):
        found = f"dict with keys {[str(key) for key in output]}"
        advice = "Add 'loss' or return the tensor."
    raise RequirementError(
        f"R1 training_step must return a scalar loss Tensor (or StepOutput); "
        f"{type(module).__name__}.training_step returned {found}. {advice}"
    )


def check_loss(loss: torch.Tensor, module: Module) -> None:
    """R1 on the first batch: a scalar, floating, finite, with a gradient, on the right device."""
    who = f"{type(module).__name__}.training_step"
    problem = None
    if loss.numel() != 1 or loss.dim() > 1:
        problem = f"a tensor of shape {list(loss.shape)}. Reduce it: loss.mean()."
    elif not loss.is_floating_point():
        problem = f"a tensor of dtype {loss.dtype}. Compute the loss in floating point."
    elif not loss.requires_grad and frozen(module):
        problem = f"a tensor without a gradient: {frozen(module)}"
    elif not loss.requires_grad:
        problem = (
            "a tensor without a gradient. Do not detach it, and compute it from the parameters "
            "outside of torch.no_grad()."
        )
    elif loss.device.type != module.device.type:
        problem = f"a tensor on {loss.device}, the model is on {module.device}. Leave it there."
    elif not bool(torch.isfinite(loss.detach()).all()):
        problem = (
            f"{float(loss.detach())} on the first batch. Check the inputs for NaN, and the "
            f"learning rate if training was resumed."
        )
    if problem is not None:
        raise RequirementError(
            f"R1 training_step must return a scalar loss Tensor (or StepOutput); {who} returned "
            f"{problem}"
        )


@contextmanager
def explaining(module: nn.Module, batch: Any) -> Iterator[None]:
    """Turn a shape error in a layer, or a batch of other parts, into R2 with the batch in it.

    Follows the forward calls with global hooks, so it is for the first batch only, and not for
    compiled networks: hooks would be compiled with them.
    """
    if any(child._compiled_call_impl or hasattr(child, "_orig_mod") for child in module.modules()):
        yield
        return
    stack: list[tuple[nn.Module, Any]] = []

    def enter(child: nn.Module, args: Any) -> None:
        stack.append((child, args))

    def leave(_child: nn.Module, _args: Any, _output: Any) -> None:
        stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    except ValueError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if "values to unpack" not in str(error):
            raise
        raise RequirementError(
            f"R2 the first training batch may have other parts than {type(module).__name__} takes "
            f"it to have: {error}, in {place.name} (line {place.lineno}): {place.line}. Batch: "
            f"{describe(batch)}."
        ) from error
    except RuntimeError as error:
        own = [(child, args) for child, args in stack if child is not module]
        # Only layers of torch itself are judged: an error in the user's code speaks for itself.
        if not own or not type(own[-1][0]).__module__.startswith("torch.nn."):
            raise
        child, args = own[-1]
        name = next((n for n, m in module.named_modules() if m is child), "?")
        raise RequirementError(
            f"R2 the first training batch does not fit the model: layer {name!r} "
            f"({_layer(child)}) got input {', '.join(map(describe, args))}. Batch: "
            f"{describe(batch)}. {str(error).splitlines()[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _layer(child: nn.Module) -> str:
    for inputs, outputs in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(child, inputs) and hasattr(child, outputs):
            return f"{type(child).__name__} {getattr(child, inputs)}->{getattr(child, outputs)}"
    return type(child).__name__
