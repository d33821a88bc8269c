"""Validation: exact over any number of ranks.

Batch b belongs to rank b mod W; nothing is padded and nothing counted twice, since values are
summed with their true weights. All ranks go through the same number of rounds and poll for a
preemption in each, whether or not they have a batch in it: a long validation must not make a pod
miss its notice.

A validation that is cut short leaves nothing behind: it is run again from its start on resume.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rekindle import metrics
from rekindle.distributed import World
from rekindle.gradients import broadcast
from rekindle.hooks import Hooks
from rekindle.loader import to_device
from rekindle.logs import Logs, Phase, check_value, flattened, means
from rekindle.module import Module
from rekindle.preflight import StepFunction
from rekindle.randomness import seed_validation
from rekindle.requirement import RequirementError
from rekindle.run import Validation
from rekindle.telemetry import Meter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rekindle.trainer import Trainer


def evaluate(
    *,
    trainer: "Trainer",
    module: Module,
    hooks: Hooks,
    logs: Logs,
    world: World,
    meter: Meter,
    validation: Validation,
    validation_step: StepFunction,
    autocast: "AbstractContextManager[object] | None",
    seed: int,
    step: int,
    poll: Callable[[], bool],
    limit: int | None = None,
) -> dict[str, float] | None:
    """Run a validation and reduce its metrics; None when it was cut short. Collective."""
    began = time.perf_counter()
    batches = validation.batches if limit is None else min(limit, validation.batches)
    if world.size > 1:
        broadcast(buffer for buffer in module.buffers() if buffer.numel())
    with _evaluating(module, logs), torch.no_grad():
        for hook in hooks.on_validation_start:
            hook(trainer, module)
        for hook in hooks.on_validation_epoch_start:
            hook(trainer, module)
        shares = iter(validation.loader)
        for index in range(world.rank, _rounds(batches, world.size) + world.rank, world.size):
            if poll():
                # Half of a validation must not find its way into the next one.
                metrics.reset(module, set(logs.epoch_metrics("validation").values()))
                return None
            if index >= batches:
                continue
            ids, data = next(shares)
            if module.device.type != "cpu":
                data = to_device(data, module.device)
            logs.batch_size = len(ids)
            seed_validation(seed, step, index)
            for hook in hooks.on_validation_batch_start:
                hook(trainer, module, data, index)
            if autocast is None:
                output = validation_step(data, index)
            else:
                with autocast:
                    output = validation_step(data, index)
            for name, value in flattened(output).items():
                check_value(name, value)
                logs.note(name, value, False, False, True, None)
            for hook in hooks.on_validation_batch_end:
                hook(trainer, module, output, data, index)
        for hook in hooks.on_validation_epoch_end:
            hook(trainer, module)
        values = reduce(module, logs, world, "validation")
        trainer.callback_metrics.update({n: torch.tensor(v) for n, v in values.items()})
        for hook in hooks.on_validation_end:
            hook(trainer, module)
    meter.phase("validation", time.perf_counter() - began)
    return values


def _rounds(batches: int, world_size: int) -> int:
    """Positions that all ranks walk over, so that each has equally many rounds."""
    return -(-batches // world_size) * world_size


@contextmanager
def _evaluating(module: Module, logs: Logs) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode back afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    logs.enter("validation")
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode
        logs.clear("validation")
        logs.enter("train")


def reduce(module: Module, logs: Logs, world: World, phase: Phase) -> dict[str, float]:
    """The epoch values of a phase over all ranks; empties their sums. Collective."""
    own: tuple[Any, dict[str, str]] = (logs.epoch_pairs(phase), logs.epoch_metrics(phase))
    parts = world.gather(own)
    values = means([pairs for pairs, _ in parts])
    paths: dict[str, str] = {}
    for _, named in parts:
        paths |= named
    owned = metrics.owned(module) if paths else {}
    for name, path in paths.items():
        try:
            values[name] = metrics.value_of(owned[path])
        except ValueError as error:
            raise RequirementError(f"R6 metric {name!r}: {error}.") from error
    metrics.reset(module, set(paths.values()))
    logs.clear(phase)
    return values
