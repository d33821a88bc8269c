"""The step of a module that owns its update rule; see `rekindle.model.manual`.

Each rank has one batch, or none in the last step of an epoch. Optimizers step inside of
`training_step`, each step a sum over all ranks, so every rank has to make the same calls: a rank
without a batch repeats another's with weight zero, and nothing that it logs is kept.

A run keeps its global batch on any number of ranks. Fewer ranks go through it in several rounds,
with an update in each, since only the script could add their gradients up.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from rekindle.data.loader import Batch
from rekindle.data.order import Lane, Step
from rekindle.logs import flattened
from rekindle.model import metrics
from rekindle.model.module import StepOutput
from rekindle.strategies.statistics import muted
from rekindle.training.preflight import explaining
from rekindle.training.run import Run


def take_manual_step(run: Run, step: Step, batches: Iterator[Batch]) -> None:
    """One call of `training_step` on each rank, or several where there are fewer ranks."""
    began = time.perf_counter()
    run.losses = []
    run.logs.step = run.step
    ended = [_round(run, step, lanes, batches) for lanes in rounds(step, run.world.size)]
    took = time.perf_counter() - began
    run.meter.durations.append(took)
    run.advance(step, took)
    for loss, batch, index in filter(None, ended):
        for hook in run.hooks.on_train_batch_end:
            hook(run.trainer, run.module, loss, batch, index)


def rounds(step: Step, world_size: int) -> list[dict[int, Lane]]:
    """The lanes of a step, a round after the other, each by the rank that runs it."""
    found: dict[int, dict[int, Lane]] = {}
    for lane in step.lanes_of(0, 1):
        number, rank = divmod(lane.index, world_size)
        found.setdefault(number, {})[rank] = lane
    return [found[number] for number in sorted(found)]


def _round(
    run: Run, step: Step, lanes: dict[int, Lane], batches: Iterator[Batch]
) -> tuple[torch.Tensor | None, Any, int] | None:
    """One call on each rank: what its hooks are told afterwards, None without a lane."""
    began = time.perf_counter()
    trainer, module, hooks, logs, update = run.trainer, run.module, run.hooks, run.logs, run.update
    world, own = run.world, lanes.get(run.world.rank)
    ids: Any = ()
    batch: Any = None
    if own is not None:
        ids, batch = next(batches)
    if len(lanes) < world.size:
        held = world.gather(batch if world.rank == min(lanes) else None)[min(lanes)]
        batch = held if own is None else batch
    if run.move is not None:
        batch = run.move(batch)
    run.meter.data += time.perf_counter() - began
    size = 0 if own is None else own.stop - own.start
    number = world.rank if own is None else own.index
    index = step.start // step.micro + number
    logs.batch_size = size
    update.begin(run, size, sum(lane.stop - lane.start for lane in lanes.values()))
    run.seeds(run.step, number)
    if own is None:
        kept = metrics.states(module)
        with muted():
            _call(run, batch, index)
        metrics.restore(module, kept)
        update.end()
        return None
    for hook in hooks.on_train_batch_start:
        hook(trainer, module, batch, index)
    output = _call(run, batch, index)
    run.ledger.used(run.cursor.epoch, ids)
    update.end()
    run.meter.samples += size
    return _loss(run, output, size), batch, index


def _call(run: Run, batch: Any, index: int) -> Any:
    """`training_step` in its context; the first batch of a process is explained (R2)."""
    if run.unchecked:
        run.unchecked = False
        with explaining(run.module, batch):
            return _call(run, batch, index)
    if run.autocast is None:
        return run.training_step(batch, index)
    with run.autocast:
        return run.training_step(batch, index)


def _loss(run: Run, output: Any, size: int) -> torch.Tensor | None:
    """The loss, if `training_step` has returned one: there it is only to be shown."""
    if isinstance(output, StepOutput):
        for name, value in flattened(output.metrics).items():
            run.logs.note(name, value, False, None, None, None)
        output = output.loss
    if isinstance(output, dict):
        output = output.get("loss")
    if not isinstance(output, torch.Tensor) or output.numel() != 1:
        return None
    run.losses.append((output.detach().reshape(()), size))
    return output.detach()
