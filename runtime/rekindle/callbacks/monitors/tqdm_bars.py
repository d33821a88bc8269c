"""`TQDMProgressBar`: the built-in line, or bars of the package tqdm that a script changes.

As it is, the console draws a line and no hook runs. In a class derived from it that defines an
``init_..._tqdm`` or one of the hooks below, these are called, with bars of tqdm, as the script
expects them.
"""

import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from rekindle.callbacks.monitors.progress_bar import ProgressBar
from rekindle.console import Bar, Renderer

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class TQDMProgressBar(ProgressBar):
    """The built-in bar, a line in the manner of tqdm; without a callback it is used as well."""

    BAR_FORMAT = (
        "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    )

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False
    ) -> None:
        """Draw every `refresh_rate` steps (five times a second at most); 0 draws nothing.

        With `leave`, the line of each epoch stays. `process_position` is the line of tqdm's bars.
        """
        if type(refresh_rate) is not int or refresh_rate < 0:
            raise ValueError(
                f"refresh_rate={refresh_rate!r} must be an integer of at least 0; for no bar use "
                f"Trainer(enable_progress_bar=False)"
            )
        self._rate = max(int(os.environ.get("TQDM_MINITERS", "0")), refresh_rate)
        self._position, self._leave, self._off = process_position, leave, refresh_rate == 0
        self._bars: dict[str, Any] = {}
        self._draws_in_hooks = any(getattr(type(self), n) is not own for n, own in _OWN.items())
        if not self._draws_in_hooks:
            self.idle = tuple(own for name, own in _OWN.items() if name.startswith("on_"))

    @property
    def refresh_rate(self) -> int:
        """As it was given, or TQDM_MINITERS where that is more."""
        return self._rate

    @property
    def process_position(self) -> int:
        """As it was given."""
        return self._position

    @property
    def is_enabled(self) -> bool:
        """Whether it draws."""
        return not self._off

    @property
    def is_disabled(self) -> bool:
        """Whether it draws nothing."""
        return self._off

    def renderer(self, stream: TextIO) -> Renderer:
        """The line."""
        return Bar(stream, every=self._rate, leave=self._leave)

    # Bars of tqdm.

    def _bar(self, stage: str) -> Any:
        if stage not in self._bars:
            raise TypeError(
                f"{type(self).__name__} has no bar of tqdm for {stage}: the console draws one line "
                f"of its own. Define init_{stage}_tqdm(self) to have tqdm's."
            )
        return self._bars[stage]

    @property
    def train_progress_bar(self) -> Any:
        """The bar of an epoch; TypeError where there is none."""
        return self._bar("train")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: Any) -> None:
        self._bars["train"] = bar

    @property
    def val_progress_bar(self) -> Any:
        """The bar of a validation; TypeError where there is none."""
        return self._bar("validation")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: Any) -> None:
        self._bars["validation"] = bar

    @property
    def test_progress_bar(self) -> Any:
        """The bar of a test; TypeError where there is none."""
        return self._bar("test")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: Any) -> None:
        self._bars["test"] = bar

    @property
    def predict_progress_bar(self) -> Any:
        """The bar of a prediction; TypeError where there is none."""
        return self._bar("predict")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: Any) -> None:
        self._bars["predict"] = bar

    def _made(self, words: str, *, below: int = 0, leave: bool = True, **options: Any) -> Any:
        return _tqdm()(
            desc=words,
            position=2 * self._position + below,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=self.BAR_FORMAT,
            **options,
        )

    def init_sanity_tqdm(self) -> Any:
        """Make the bar of the validation before training."""
        return self._made(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Any:
        """Make the bar of training."""
        return self._made(self.train_description, smoothing=0)

    def init_predict_tqdm(self) -> Any:
        """Make the bar of prediction."""
        return self._made(self.predict_description, smoothing=0)

    def init_validation_tqdm(self) -> Any:
        """Make the bar of a validation, below that of training in `fit`."""
        within = self.trainer.state.fn != "validate"
        return self._made(self.validation_description, below=int(within), leave=not within)

    def init_test_tqdm(self) -> Any:
        """Make the bar of a test."""
        return self._made(self.test_description)

    def _begin(self, stage: str, total: int | float, words: str) -> None:
        bar = self._bar(stage)
        bar.reset()
        bar.total, bar.initial = convert_inf(total), 0
        bar.set_description(words)

    def _move(self, stage: str, done: int) -> bool:
        bar = self._bars.get(stage)
        if bar is None or self.is_disabled:
            return False
        if done % max(1, self._rate) and done != bar.total:
            return False
        if not bar.disable:
            bar.n = done
            bar.refresh()
        return True

    def on_sanity_check_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the bar."""
        self._bars["validation"] = self.init_sanity_tqdm()
        self._bars["train"] = _tqdm()(disable=True)

    def on_sanity_check_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Close the bar."""
        self.val_progress_bar.close()
        self.train_progress_bar.close()

    def on_train_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the bar."""
        self._bars["train"] = self.init_train_tqdm()

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin at 0."""
        if self._leave:
            self._bars["train"] = self.init_train_tqdm()
        self._begin("train", self.total_train_batches, f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on, and show the metrics."""
        if self._move("train", batch_idx + 1):
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Show the metrics of the epoch."""
        bar = self.train_progress_bar
        if not bar.disable:
            bar.set_postfix(self.get_metrics(trainer, pl_module))
        if self._leave:
            bar.close()

    def on_train_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Close the bar."""
        self.train_progress_bar.close()

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the bar."""
        if not trainer.sanity_checking:
            self._bars["validation"] = self.init_validation_tqdm()

    def on_validation_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin at 0 with each loader."""
        if self.has_dataloader_changed(dataloader_idx):
            words = self.validation_description
            if trainer.sanity_checking:
                words = self.sanity_check_description
            total = self.total_val_batches_current_dataloader
            self._begin("validation", total, f"{words} DataLoader {dataloader_idx}")

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on."""
        self._move("validation", batch_idx + 1)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Close the bar, and show what was measured beside training's."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if "train" in self._bars and trainer.state.fn == "fit":
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_test_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the bar."""
        self._bars["test"] = self.init_test_tqdm()

    def on_test_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin at 0 with each loader."""
        if self.has_dataloader_changed(dataloader_idx):
            words = f"{self.test_description} DataLoader {dataloader_idx}"
            self._begin("test", self.total_test_batches_current_dataloader, words)

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on."""
        self._move("test", batch_idx + 1)

    def on_test_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Close the bar."""
        self.test_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_predict_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Make the bar."""
        self._bars["predict"] = self.init_predict_tqdm()

    def on_predict_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin at 0 with each loader."""
        if self.has_dataloader_changed(dataloader_idx):
            words = f"{self.predict_description} DataLoader {dataloader_idx}"
            self._begin("predict", self.total_predict_batches_current_dataloader, words)

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on."""
        self._move("predict", batch_idx + 1)

    def on_predict_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Close the bar."""
        self.predict_progress_bar.close()
        self.reset_dataloader_idx_tracker()


_OWN = {
    name: getattr(TQDMProgressBar, name)
    for name in dir(TQDMProgressBar)
    if name in vars(TQDMProgressBar)
    and name.startswith(("on_", "init_"))
    or name.endswith("_description")
    or name == "BAR_FORMAT"
}
"""What a script's class may have of its own for tqdm's bars."""


def _tqdm() -> Callable[..., Any]:
    """The class of the package's bars; raises ModuleNotFoundError naming what to install."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a TQDMProgressBar with bars of its own needs the package tqdm: pip install tqdm",
            name="tqdm",
        ) from error
    kind: Callable[..., Any] = tqdm
    return kind


def convert_inf(x: int | float | None) -> int | float | None:
    """A count as tqdm takes it: None where there is no end."""
    return None if x is None or math.isinf(x) or math.isnan(x) else x
