"""The step of a module that owns its update rule; see `rekindle.model.manual`.

Each rank has one batch, or none in the last step of an epoch. Optimizers step inside of
`training_step`, each step a sum over all ranks, so every rank has to make the same calls: a rank
without a batch repeats rank 0's with weight zero, and nothing that it logs is kept.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from rekindle.data.loader import Batch
from rekindle.data.order import Step
from rekindle.logs import flattened
from rekindle.model import metrics
from rekindle.model.module import StepOutput
from rekindle.strategies.statistics import muted
from rekindle.training.preflight import explaining
from rekindle.training.run import Run


def take_manual_step(run: Run, step: Step, batches: Iterator[Batch]) -> None:
    """One call of `training_step` on each rank."""
    began = time.perf_counter()
    trainer, module, hooks, logs, update = run.trainer, run.module, run.hooks, run.logs, run.update
    world, samples = run.world, step.stop - step.start
    lanes = step.lanes_of(world.rank, world.size)
    ids: Any = ()
    batch: Any = None
    if lanes:
        ids, batch = next(batches)
    if step.lanes < world.size:
        shared = world.share(batch if world.first else None)
        batch = batch if lanes else shared
    if run.move is not None:
        batch = run.move(batch)
    run.meter.data += time.perf_counter() - began
    size = lanes[0].stop - lanes[0].start if lanes else 0
    lane = lanes[0].index if lanes else world.rank
    index = step.start // step.micro + lane
    run.losses = []
    logs.step, logs.batch_size = run.step, size
    update.begin(run, size, samples)
    run.seeds(run.step, lane)
    if not lanes:
        kept = metrics.states(module)
        with muted():
            _call(run, batch, index)
        metrics.restore(module, kept)
        output = None
    else:
        for hook in hooks.on_train_batch_start:
            hook(trainer, module, batch, index)
        output = _call(run, batch, index)
        run.ledger.used(run.cursor.epoch, ids)
    update.end()
    loss = _loss(run, output, size)
    took = time.perf_counter() - began
    run.meter.samples += size
    run.meter.durations.append(took)
    run.advance(step, took)
    if lanes:
        for hook in hooks.on_train_batch_end:
            hook(trainer, module, loss, batch, index)


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
