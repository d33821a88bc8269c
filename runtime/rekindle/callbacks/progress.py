"""How progress is drawn on a terminal. Without one it is a line of JSON, whatever is chosen here.

A progress bar costs the loop nothing: see `rekindle.console`.
"""

import time
from typing import TYPE_CHECKING, Any, TextIO

from rekindle.callback import Callback
from rekindle.console import DRAW_SECONDS, Bar, Progress, Renderer

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer


class ProgressBar(Callback):
    """Base class of progress bars; define `renderer`."""

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Have the console draw with this bar."""
        trainer.console.use(self.renderer)

    def renderer(self, stream: TextIO) -> Renderer:
        """What draws on a terminal."""
        raise NotImplementedError(f"{type(self).__name__} has no renderer(self, stream)")


class PassProgress(Callback):
    """Shows how far a `validate`, `test` or `predict` is; the trainer adds it by itself."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw now and then."""
        now = time.perf_counter()
        if now - self._last >= DRAW_SECONDS:
            self._last = now
            seen = Progress(step=batch_idx + 1, unit="batch", phase=trainer.phase)
            trainer.console.progress(seen, now)

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end


class TQDMProgressBar(ProgressBar):
    """The built-in bar, a line in the manner of tqdm; without a callback it is used as well."""

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        """Draw every `refresh_rate` steps (five times a second at most).

        With `leave`, the line of each epoch stays.
        """
        if type(refresh_rate) is not int or refresh_rate < 1:
            raise ValueError(
                f"refresh_rate={refresh_rate!r} must be an integer of at least 1; for no bar use "
                f"Trainer(enable_progress_bar=False)"
            )
        self._rate, self._leave = refresh_rate, leave

    def renderer(self, stream: TextIO) -> Renderer:
        """The line."""
        return Bar(stream, every=self._rate, leave=self._leave)


class RichProgressBar(ProgressBar):
    """A bar drawn by rich; without the package the built-in one, and a line that says so."""

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Have the console draw with rich, if it is installed."""
        try:
            import rich.progress  # noqa: F401
        except ModuleNotFoundError:
            trainer.print("RichProgressBar draws the built-in bar: pip install rich for its own")
        else:
            super().setup(trainer, pl_module, stage)

    def renderer(self, stream: TextIO) -> Renderer:
        """Rich's bar."""
        return _Rich(stream)


class _Rich:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=Console(file=stream, highlight=False),
        )
        self._task: Any = None

    def draw(self, progress: Progress, now: float) -> None:
        texts = {
            "samples/s": None if progress.rate is None else f"{progress.rate:.0f}",
            "loss": None if progress.loss is None else f"{progress.loss:.4f}",
            **{name: f"{value:.4g}" for name, value in progress.values.items()},
        }
        shown = {
            "completed": progress.step,
            "total": progress.total,
            "description": (f"epoch {progress.epoch} " if progress.unit == "step" else "")
            + ("" if progress.phase == "training" else progress.phase),
            "values": "  ".join(f"{name} {text}" for name, text in texts.items() if text),
        }
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(**shown)
        else:
            self._bar.update(self._task, **shown)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def close(self) -> None:
        self._bar.stop()
