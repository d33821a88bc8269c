"""How progress is drawn on a terminal. Without one it is a line of JSON, whatever is chosen here.

The bars here cost the loop nothing: the console's thread looks at the run's counters, see
`rekindle.console`. What a class derived from them changes is heeded: `get_metrics` says what is
shown, and is asked in the main thread, with each report. A `ProgressBar` without a `renderer` draws
in its own hooks; a `TQDMProgressBar` with an ``init_..._tqdm`` or a hook of the script's own is
driven by hooks, with bars of the package tqdm (`rekindle.callbacks.monitors.tqdm_bars`).
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rekindle.callback import Callback
from rekindle.console import DRAW_SECONDS, Renderer, Silent, TrainingProgress, shown

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class ProgressBar(Callback):
    """Base class of progress bars; define `renderer`, or draw in hooks."""

    switch = "enable_progress_bar"
    # It holds nothing, so there is nothing to find in a checkpoint.
    optional = True
    _trainer: "Trainer | None" = None
    _current_eval_dataloader_idx: int | None = None
    _off = False
    _draws_in_hooks = False

    @property
    def trainer(self) -> "Trainer":
        """The trainer; TypeError before its `setup`."""
        if self._trainer is None:
            raise TypeError(
                f"{type(self).__name__}.trainer is known from setup on; call super().setup(...)"
            )
        return self._trainer

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Have the console draw with this bar, on rank 0."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()
        own = type(self).renderer is not ProgressBar.renderer and not self._draws_in_hooks
        asked = type(self).get_metrics is not ProgressBar.get_metrics
        trainer.console.use(
            self._rendered if own else Silent,
            (lambda: self.get_metrics(trainer, pl_module)) if asked else None,
        )

    def renderer(self, stream: TextIO) -> Renderer:
        """What draws on a terminal."""
        raise NotImplementedError(f"{type(self).__name__} has no renderer(self, stream)")

    def _rendered(self, stream: TextIO) -> Renderer:
        return Silent(stream) if self._off else self.renderer(stream)

    def disable(self) -> None:
        """Draw nothing."""
        self._off = True

    def enable(self) -> None:
        """Draw."""
        self._off = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print beside the bar; takes what Python's `print` takes."""
        self.trainer.print(*args, **kwargs)

    def get_metrics(self, trainer: "Trainer", pl_module: "Module") -> dict[str, Any]:
        """What is shown: the logger's version and what was logged with ``prog_bar=True``."""
        return {**get_standard_metrics(trainer), **trainer.progress_bar_metrics}

    # What hooks of a bar ask for.

    @property
    def sanity_check_description(self) -> str:
        """What the validation before training is called."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """What training is called."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """What validation is called."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """What testing is called."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """What prediction is called."""
        return "Predicting"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of an epoch; those up to `max_steps` where only steps are bounded."""
        trainer = self.trainer
        if trainer.max_epochs == -1 and trainer.max_steps > 0:
            return min(trainer.num_training_batches, trainer.max_steps - trainer.global_step)
        return trainer.num_training_batches

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is validated with."""
        trainer = self.trainer
        counts = trainer.num_val_batches
        return self._of_loader(
            trainer.num_sanity_val_batches if trainer.sanity_checking else counts
        )

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is tested with."""
        return self._of_loader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is predicted for."""
        return self._of_loader(self.trainer.num_predict_batches)

    @property
    def total_val_batches(self) -> int | float:
        """Batches of all loaders of a validation; 0 in an epoch that has none."""
        trainer = self.trainer
        every = trainer.flags.check_val_every_n_epoch
        if not trainer.enable_validation or (every and (trainer.current_epoch + 1) % every):
            return 0
        return sum(trainer.num_val_batches)

    def _of_loader(self, counts: list[int | float]) -> int | float:
        return counts[self._current_eval_dataloader_idx or 0]

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether another loader's batches come than when this was asked before."""
        before, self._current_eval_dataloader_idx = (
            self._current_eval_dataloader_idx,
            dataloader_idx,
        )
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget which loader it was."""
        self._current_eval_dataloader_idx = None


def get_standard_metrics(trainer: "Trainer") -> dict[str, int | str]:
    """What a bar shows by itself: ``v_num``, the first logger's version, the end of a long one."""
    version = trainer.loggers[0].version if trainer.loggers else None
    if version is None or version == "":
        return {}
    return {"v_num": version[-4:] if isinstance(version, str) else version}


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
            seen = TrainingProgress(step=batch_idx + 1, unit="batch", phase=trainer.phase)
            trainer.console.progress(seen, now)

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end


@dataclass
class RichProgressBarTheme:
    """The styles of `RichProgressBar`'s parts, as rich names them."""

    description: str = ""
    progress_bar: str = "#6206E0"
    progress_bar_finished: str = "#6206E0"
    progress_bar_pulse: str = "#6206E0"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim underline"
    metrics: str = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(ProgressBar):
    """A bar drawn by rich; without the package the built-in one, and a line that says so."""

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """The console draws five times a second at most; a `refresh_rate` of 0 draws nothing."""
        self._rate, self._leave, self.theme = refresh_rate, leave, theme or RichProgressBarTheme()
        self._console_options, self._off = dict(console_kwargs or {}), refresh_rate < 1

    @property
    def refresh_rate(self) -> int:
        """As it was given."""
        return self._rate

    @property
    def is_enabled(self) -> bool:
        """Whether it draws."""
        return not self._off

    @property
    def is_disabled(self) -> bool:
        """Whether it draws nothing."""
        return self._off

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Have the console draw with rich, if it is installed."""
        try:
            import rich.progress  # noqa: F401
        except ModuleNotFoundError:
            trainer.print("RichProgressBar draws the built-in bar: pip install rich for its own")
        else:
            super().setup(trainer, pl_module, stage)

    def configure_columns(self, trainer: "Trainer") -> list[Any]:
        """The columns of rich's bar; ``{task.fields[values]}`` are the metrics."""
        from rich import progress
        from rich.style import Style

        theme = self.theme
        return [
            progress.TextColumn("{task.description}", style=theme.description or "none"),
            progress.BarColumn(
                complete_style=Style.parse(theme.progress_bar),
                finished_style=Style.parse(theme.progress_bar_finished),
                pulse_style=Style.parse(theme.progress_bar_pulse),
            ),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[values]}", style=theme.metrics or "none"),
        ]

    def renderer(self, stream: TextIO) -> Renderer:
        """Rich's bar."""
        columns = self.configure_columns(self.trainer)
        return _Rich(stream, columns, self.theme, self._console_options)


class _Rich:
    def __init__(
        self,
        stream: TextIO,
        columns: list[Any],
        theme: RichProgressBarTheme,
        options: dict[str, Any],
    ) -> None:
        from rich.console import Console
        from rich.progress import Progress

        options = {"file": stream, "highlight": False, **options}
        self._bar: Any = Progress(*columns, console=Console(**options))
        self._task: Any = None
        self._theme = theme

    def draw(self, progress: TrainingProgress, now: float) -> None:
        texts = {
            "samples/s": None if progress.rate is None else f"{progress.rate:.0f}",
            "loss": None if progress.loss is None else f"{progress.loss:.4f}",
            **{name: self._text(value) for name, value in progress.values.items()},
        }
        parts = [f"{name} {text}" for name, text in texts.items() if text]
        seen = {
            "completed": progress.step,
            "total": progress.total,
            "description": (f"epoch {progress.epoch} " if progress.unit == "step" else "")
            + ("" if progress.phase == "training" else progress.phase),
            "values": f" {self._theme.metrics_text_delimiter}".join(parts),
        }
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(**seen)
        else:
            self._bar.update(self._task, **seen)

    def _text(self, value: Any) -> str:
        return f"{value:{self._theme.metrics_format}}" if isinstance(value, float) else shown(value)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def close(self) -> None:
        self._bar.stop()
