"""Processes that must all make the same number of forward passes.

With a sharded model every forward pass is a collective operation. Micro-batches do not always
divide evenly by the processes (the last step of an epoch, the last round of a validation), so a
process without one repeats a batch: its own last one, or rank 0's when it has had none. The result
gets weight zero and leaves no trace in metrics.
"""

from collections.abc import Iterator
from typing import Any

import torch

from rekindle.data.loader import Batch
from rekindle.data.sampling.order import Step
from rekindle.model import metrics
from rekindle.strategies.statistics import muted
from rekindle.training.run import Run
from rekindle.training.setup.preflight import loss_of


class Lockstep:
    """Keeps a batch at hand for the round in which this rank has none."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._batch: Any = None

    def even(
        self, run: Run, steps: Iterator[tuple[Step, Iterator[Batch]]]
    ) -> Iterator[tuple[Step, Iterator[Batch]]]:
        """The same steps; ranks that have no batch at all in one get to know rank 0's.

        The exchange comes before any forward pass: nobody may wait here for one that waits there.
        """
        world = run.world
        for step, batches in steps:
            self._step = step
            if step.lanes >= world.size:
                yield step, self._remembering(batches)
                continue
            own = [next(batches)] if world.rank < step.lanes else []
            self._batch = world.share(own[0][1] if world.first else None)
            yield step, iter(own)

    def _remembering(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._batch = batch[1]
            yield batch

    def complete(self, run: Run) -> None:
        """The forward and backward pass of a rank that has no lane in the step's last round."""
        step, world = self._step, run.world
        assert step is not None
        over = step.lanes % world.size
        if not over or world.rank < over:
            return
        batch = self._batch if run.move is None else run.move(self._batch)
        kept = metrics.states(run.module)
        run.module.attach(run.trainer, None)
        run.seeds(run.step, step.lanes - over + world.rank)
        with muted():
            if run.autocast is None:
                output = run.training_step(batch, 0)
            else:
                with run.autocast:
                    output = run.training_step(batch, 0)
            loss = loss_of(output, run.module)
            torch.autograd.backward(run.update.share(loss, 0, step.stop - step.start))
        run.module.attach(run.trainer, run.logs)
        metrics.restore(run.module, kept)
