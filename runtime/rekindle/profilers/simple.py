"""The phases of the steps, as a table at the end.

The loop measures its phases always (they are exported to Prometheus), so this costs nothing more.
Data, forward, backward and optimizer are measured end to end: together they are the time of the
steps. On a GPU the host only hands work over, so a phase is the time until it was handed over, and
the wait for the device shows where the host first needs a result.

When the table is not enough, SIGUSR2 has the next three steps traced: see `PyTorchProfiler`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rekindle.profilers.profiler import Profiler
from rekindle.profilers.traces import PyTorchProfiler

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class SimpleProfiler(Profiler):
    """Reports where the time went, phase by phase, and in the sections of one's own."""

    def __init__(self, dirpath: "str | None" = None, filename: str | None = None) -> None:
        super().__init__(dirpath, filename)
        self.seconds: dict[str, float] = {}
        """Phase or section -> seconds, of the last call."""
        self.counts: dict[str, int] = {}
        self._traces = PyTorchProfiler(dirpath, filename, active=0)

    @contextmanager
    def around(self, trainer: "Trainer", stage: str) -> Iterator[None]:
        """Report at the end, also of a call that fails."""
        self.seconds, self.counts = {}, {}
        began = time.perf_counter()
        try:
            with self._traces.around(trainer, stage):
                yield
        finally:
            total = time.perf_counter() - began
            measured = trainer.phases() if stage == "fit" else {}
            self.seconds = {**{n: s for n, (s, _) in measured.items()}, **self.seconds}
            self.counts = {**{n: c for n, (_, c) in measured.items()}, **self.counts}
            self._report(trainer, stage, self.table(stage, total))

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Move on with a trace, if one was asked for."""
        self._traces.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self.counts[name] = self.counts.get(name, 0) + 1

    def table(self, stage: str, total: float) -> str:
        """The report as text; `total` in seconds."""
        width = max([len(name) for name in self.seconds] + [len("everything")])
        lines = [
            f"{stage}: {'phase':<{width}} {'count':>8} {'seconds':>10} {'each ms':>10} {'%':>6}"
        ]
        pad = " " * (len(stage) + 2)
        rows = [*self.seconds.items(), ("everything", total)]
        for name, seconds in rows:
            count = self.counts.get(name, 1)
            each = 1000 * seconds / max(1, count)
            share = 100 * seconds / max(total, 1e-9)
            lines.append(
                f"{pad}{name:<{width}} {count:>8} {seconds:>10.3f} {each:>10.3f} {share:>6.1f}"
            )
        return "\n".join(lines)
