"""The step of a module that owns its update rule; see `rekindle.model.manual`.

Each rank has one batch, or none in the last step of an epoch. Optimizers step inside of
`training_step`, each step a sum over all ranks, so every rank has to make the same calls: a rank
without a batch repeats another's with weight zero, and nothing that it logs is kept.

`batch_idx` counts the calls of the epoch, so it is the same on all ranks: scripts step optimizers
by it (``if (batch_idx + 1) % 4 == 0``).

A run keeps its global batch on any number of ranks. Fewer ranks go through it in several rounds,
with an update in each, since only the script could add their gradients up.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rekindle.data.loader import Batch
from rekindle.data.sampling.order import Lane, Step
from rekindle.errors.requirement import RequirementError
from rekindle.metrics.logged_values import flattened
from rekindle.model import metrics
from rekindle.model.module import StepOutput
from rekindle.strategies.statistics import muted
from rekindle.training.run import Run
from rekindle.training.setup.preflight import explaining
from rekindle.training.step.batch_start import answers, begin_batch
from rekindle.training.step.rollback import end_epoch_here
from rekindle.training.step.step_output import outputs


class ManualStep:
    """Takes the steps of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asks = answers(run.module, run.hooks)

    def __call__(self, step: Step, batches: Iterator[Batch]) -> bool:
        """One call of `training_step` on each rank, or several where there are fewer ranks.

        Returns whether the epoch is to end without the step.
        """
        run = self._run
        began = time.perf_counter()
        run.losses = []
        run.logs.step = run.step
        if run.update.kept is not None:
            run.update.take_back(run.module)
        told: _Told | None = None
        calls = -(-run.cursor.G // (step.micro * run.world.size))
        for number, lanes in enumerate(rounds(step, run.world.size)):
            self._tell(told)
            index = run.cursor.steps * calls + number
            found = _round(run, index, lanes, batches, asks=self._asks)
            if found is None:
                if number:
                    raise RequirementError(
                        f"R1 {type(run.module).__name__}.on_train_batch_start returned -1 after "
                        f"optimizers have stepped on a part of the global batch, as fewer "
                        f"processes than usual share it. Use limit_train_batches."
                    )
                return end_epoch_here(run)
            told = found
        for hook in run.hooks.on_after_optimizer_step:
            hook(run.trainer, run.module)
        took = time.perf_counter() - began
        run.meter.durations.append(took)
        run.advance(step, took)
        self._tell(told)
        return False

    def _tell(self, told: "_Told | None") -> None:
        if told:
            for hook in self._run.hooks.on_train_batch_end:
                hook(self._run.trainer, self._run.module, *told)


_Told = tuple[dict[str, Any], Any, int] | tuple[()]
"""What hooks at the end of a batch get; nothing on a rank that had no batch."""


def rounds(step: Step, world_size: int) -> list[dict[int, Lane]]:
    """The lanes of a step, a round after the other, each by the rank that runs it."""
    found: dict[int, dict[int, Lane]] = {}
    for lane in step.lanes_of(0, 1):
        number, rank = divmod(lane.index, world_size)
        found.setdefault(number, {})[rank] = lane
    return [found[number] for number in sorted(found)]


def _round(
    run: Run, index: int, lanes: dict[int, Lane], batches: Iterator[Batch], *, asks: bool
) -> _Told | None:
    """One call on each rank: what its hooks are told afterwards; None to end the epoch here."""
    began = time.perf_counter()
    module, logs, update = run.module, run.logs, run.update
    world, own = run.world, lanes.get(run.world.rank)
    ids: Any = ()
    batch: Any = None
    if own is not None:
        ids, batch = next(batches)
    if len(lanes) < world.size:
        held = world.gather(batch if world.rank == min(lanes) else None)[min(lanes)]
        batch = held if own is None else batch
    number = world.rank if own is None else own.index
    run.seeds(run.step, number)
    if run.move is not None:
        batch = run.move(batch)
    run.meter.data += time.perf_counter() - began
    size = 0 if own is None else own.stop - own.start
    logs.batch_size, logs.lane = size, 0 if own is None else own.start
    update.begin(run, size, sum(lane.stop - lane.start for lane in lanes.values()))
    ended = own is not None and begin_batch(run, batch, index)
    if asks and world.size > 1:
        ended = any(world.gather(ended))
    if ended:
        return None
    if own is None:
        kept = metrics.states(module)
        with muted():
            _call(run, batch, index)
        metrics.restore(module, kept)
        update.end()
        return ()
    output = _call(run, batch, index)
    run.ledger.used(run.cursor.epoch, ids)
    update.end()
    run.meter.samples += size
    return _outputs(run, output, size), batch, index


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


def _outputs(run: Run, output: Any, size: int) -> dict[str, Any]:
    """What `training_step` has returned, with the loss, if there is one, only to be shown."""
    if isinstance(output, StepOutput):
        for name, value in flattened(output.metrics).items():
            run.logs.note(name, value, False, None, None, None)
        output = output.loss
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, torch.Tensor):
        loss = loss.detach()
        if loss.numel() == 1:
            run.losses.append((loss.reshape(()), size))
        return outputs(output, loss)
    if isinstance(output, Mapping):
        return dict(output)
    if output is not None:
        raise RequirementError(
            f"R1 {type(run.module).__name__}.training_step returned {type(output).__name__}; with "
            f"manual optimization it returns a loss, a dictionary or nothing."
        )
    return {}
