"""How far a fit is: counted between two steps, and told to Prometheus and to the pod's agent.

Lightning's own counters say how many batches and steps are done, and are looked at before each
fetch. The loss is kept by reference and read only when it is reported, every ``log_every_n_steps``
steps: reading it is the one wait for the device.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from rekindle.api import RestoredFrom as RestoredReport
from rekindle.metrics.prometheus import Meter
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

if TYPE_CHECKING:
    import lightning.pytorch as pl


class FitProgress:
    """Counters of one fit on one rank."""

    def __init__(
        self,
        trainer: "pl.Trainer",
        world: World,
        page: ControlPage | None,
        batch_size: Callable[[], int],
    ) -> None:
        first = world.local_rank == 0
        self.meter = Meter(first=first)
        self.step = 0
        """Optimizer steps, as of the last look."""
        self.samples = 0
        self.productive = self.stall = 0.0
        """Seconds in steps, and seconds that training stood still for a save."""
        self.total: int | None = None
        """Optimizer steps of the whole run, where they are known."""
        self.loss: Any = None
        """Of the newest batch, a tensor on the device."""
        self._trainer: Any = trainer
        self._page = page if first else None
        self._size, self._batch_size = world.size, batch_size
        self._before: int = self._trainer.global_step
        """Steps that this trainer has done in calls of `fit` before this one."""
        self._batches = -1
        """Batches as of the last look."""
        self._reported = 0
        self._marked = self._reported_at = 0.0

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return int(self._trainer.fit_loop.epoch_progress.current.processed)

    @property
    def own_step(self) -> int:
        """Optimizer steps of this call of `fit`."""
        return self.step - self._before

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Go on counting where the checkpoint of that meta did."""
        self.productive, self.stall = meta["productive_seconds"], meta["stall_seconds"]
        self.samples = meta["samples"]

    def begin(self) -> None:
        """Lightning has restored its counters."""
        self.step = self._reported = self._trainer.global_step
        # Asked once: it makes loaders when there are none, and refuses changing accumulation.
        with contextlib.suppress(MisconfigurationException):
            total = self._trainer.estimated_stepping_batches
            self.total = int(total) if 0 <= total < float("inf") else None

    def announce(self, source: str, skipped: tuple[str, ...]) -> None:
        """Tell the agent where this attempt begins, and with which checkpoint."""
        if self._page is not None:
            self._begin_page(None if self.total is None else self.total - self._before)
            # Lightning fixes the batch per process, so another number of them is another training.
            self._page.use(self._size, least=self._size)
            self._page.write_restored(
                RestoredReport(step=self.own_step, source=source, skipped=skipped)
            )

    def repeated(self) -> None:
        """Count what was done when this call of `fit` was made before, and had ended."""
        self.step = self._trainer.global_step
        if self._page is not None:
            self._begin_page(self.own_step)
            self._page.write_metrics(self.metrics())

    def _begin_page(self, total: int | None) -> None:
        assert self._page is not None
        self._page.begin(
            step=self.own_step,
            samples=self.samples,
            total_steps=total,
            epoch=self.epoch,
            productive=self.productive,
            stall=self.stall,
        )

    def mark(self) -> None:
        """The time of the next step begins now."""
        self._marked = time.perf_counter()

    def start_clock(self) -> None:
        """The time of the first step begins now."""
        self.mark()
        self._reported_at = self._marked

    def count(self) -> None:
        """Note the batch that has ended, if one has."""
        now, step = time.perf_counter(), self._trainer.global_step
        batches = self._trainer.fit_loop.epoch_loop.batch_progress.total.completed
        if batches == self._batches:
            return
        if self._batches >= 0:
            self.samples += self._batch_size() * self._size
            self.meter.samples += self._batch_size()
        self._batches = batches
        if step == self.step:
            return
        self.step = step
        self.productive += now - self._marked
        self.meter.durations.append(now - self._marked)
        if self._page is not None:
            self._page.step_done(
                step=self.own_step,
                epoch=self.epoch,
                samples=self.samples,
                productive=self.productive,
                stall=self.stall,
            )
        if step - self._reported >= max(1, self._trainer.log_every_n_steps):
            self.report()

    def report(self) -> None:
        """Tell Prometheus and the agent what is new; the one wait for the device."""
        if self.step == self._reported:
            return
        now = time.perf_counter()
        loss = float(self.loss) if isinstance(self.loss, torch.Tensor) else None
        rate = (self.step - self._reported) / max(1e-9, now - self._reported_at)
        per_step = self._batch_size() * self._size * self._trainer.accumulate_grad_batches
        self._reported, self._reported_at = self.step, now
        self.meter.flush(step=self.step, epoch=self.epoch, loss=loss)
        if self._page is not None:
            self._page.observe(loss=loss, samples_per_second=rate * per_step if per_step else None)
        self._tell_metrics()

    def validated(self) -> None:
        """A validation has ended; its seconds are no step's."""
        self.meter.phase("validation", time.perf_counter() - self._marked)
        self._tell_metrics()

    def saved(self, seconds: float) -> None:
        """Training stood still for a save."""
        self.stall += seconds
        self.meter.phase("checkpoint", seconds)

    def metrics(self) -> dict[str, float]:
        """What the script has logged."""
        values = self._trainer.callback_metrics
        return {name: float(value) for name, value in values.items() if value.numel() == 1}

    def _tell_metrics(self) -> None:
        values = self.metrics()
        self.meter.metrics(values)
        if self._page is not None:
            self._page.write_metrics(values)
