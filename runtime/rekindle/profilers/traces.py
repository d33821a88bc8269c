"""Traces of single steps by torch.profiler: kernels, operators, and what waits for what.

A trace of a few steps is some megabytes, one of an hour is useless. So a window of steps is traced:
by the schedule (after `wait` and `warmup` steps, `active` of them), and again whenever the process
gets SIGUSR2, which is how one looks into a run that has become slow:
``kubectl exec POD -- kill -USR2 PID``. By schedule rank 0 writes its trace; by signal the process
that was signalled.

The files open in https://ui.perfetto.dev and in chrome://tracing.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.profilers.profiler import Profiler

if TYPE_CHECKING:
    from types import FrameType

    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

_ROWS = 20


class PyTorchProfiler(Profiler):
    """Traces windows of steps, by schedule and on SIGUSR2."""

    def __init__(
        self,
        dirpath: "str | None" = None,
        filename: str | None = None,
        *,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        on_signal: bool = True,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
    ) -> None:
        """Traces go to `dirpath`, by default ``profiler`` under the root or the working directory.

        `wait`, `warmup` and `active` count optimizer steps; with ``active=0`` only the signal
        starts a trace, of three steps.
        """
        super().__init__(dirpath, filename)
        for name, value in (("wait", wait), ("warmup", warmup), ("active", active)):
            if type(value) is not int or value < 0:
                raise ValueError(f"PyTorchProfiler({name}={value!r}) must be an integer, 0 or more")
        self._wait, self._warmup, self._active = wait, warmup, active
        self._on_signal = on_signal
        self._options: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
        }
        self._asked = False
        self._profile: Any = None
        self._left = 0
        self._step = -1
        self.traces: list[Path] = []
        """Files that were written."""

    @contextmanager
    def around(self, trainer: "Trainer", stage: str) -> Iterator[None]:
        """Have traces made while the call lasts."""
        if stage == "fit" and self._active and trainer.is_global_zero:
            self._start(self._wait, self._warmup, self._active)
        previous: Any = None
        catching = self._on_signal and threading.current_thread() is threading.main_thread()
        if catching:
            previous = signal.signal(signal.SIGUSR2, self._ask)
        try:
            yield
        finally:
            if catching:
                signal.signal(signal.SIGUSR2, previous or signal.SIG_DFL)
            self._stop()

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Move on with the window when a new step begins."""
        step = trainer.global_step
        if step == self._step:
            return
        first, self._step = self._step < 0, step
        if self._profile is not None and not first:
            self._left -= 1
            self._where = self._place(trainer)
            self._profile.step()
            if self._left <= 0:
                self._stop()
        if self._asked and self._profile is None:
            self._asked = False
            self._start(0, 1, self._active or 3)

    def _ask(self, number: int, frame: "FrameType | None") -> None:
        self._asked = True

    def _start(self, wait: int, warmup: int, active: int) -> None:
        from torch import profiler

        self._left = wait + warmup + active
        self._profile = profiler.profile(
            schedule=profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=self._write,
            **self._options,
        )
        self._profile.start()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()

    def _write(self, profile: Any) -> None:
        path = self._where
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(path))
        table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=_ROWS)
        path.with_suffix(".txt").write_text(table)
        self.traces.append(path)

    def _place(self, trainer: "Trainer") -> Path:
        directory = self.dirpath
        if directory is None:
            root = trainer.default_root_dir
            directory = Path("profiler") if "://" in root else Path(root) / "profiler"
        name = f"{self.filename or 'trace'}-step{self._step}-rank{trainer.global_rank}.json"
        return directory / name
