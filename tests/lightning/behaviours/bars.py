"""Progress bars: what classes derived from them may change, and what they are told."""

import contextlib
import io

from small import QUIET, loader, regression


def _shown(pl):
    """A class that logs for the bar."""

    class Shown(regression(pl)):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("shown", loss, prog_bar=True)
            return loss

    return Shown


def _fit(pl, folder, bar, *calls, **flags):
    """What is printed while a bar is there."""
    flags = {**QUIET, "enable_progress_bar": True, "max_epochs": 2, "callbacks": [bar], **flags}
    trainer, model = pl.Trainer(default_root_dir=folder, **flags), _shown(pl)()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(model, loader(), loader(6))
        for call in calls:
            getattr(trainer, call)(model, loader(4))
    return out.getvalue()


def a_bar_of_ones_own_draws_in_hooks(pl, folder):
    """A class derived from `ProgressBar` draws in its hooks, and knows how many batches come."""
    seen = []

    class Own(pl.callbacks.ProgressBar):
        def __init__(self):
            super().__init__()
            self.enable = True

        def disable(self):
            self.enable = False

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            seen.append(100 * (batch_idx + 1) / self.total_train_batches)

        def on_validation_batch_start(self, trainer, module, batch, index, dataloader_idx=0):
            if self.has_dataloader_changed(dataloader_idx):
                seen.append(("val", self.total_val_batches_current_dataloader))

        def on_validation_end(self, trainer, pl_module):
            self.reset_dataloader_idx_tracker()
            seen.append((self.total_val_batches, self.trainer is trainer))

        def on_test_batch_end(self, trainer, module, outputs, batch, index, dataloader_idx=0):
            self.has_dataloader_changed(dataloader_idx)
            seen.append(("test", self.total_test_batches_current_dataloader))

        def on_predict_batch_end(self, trainer, module, outputs, batch, index, dataloader_idx=0):
            self.has_dataloader_changed(dataloader_idx)
            seen.append(("predict", self.total_predict_batches_current_dataloader))

    bar = Own()
    _fit(pl, folder, bar, "test", "predict", max_epochs=1)
    words = [
        getattr(bar, f"{stage}_description")
        for stage in ("sanity_check", "train", "validation", "test", "predict")
    ]
    return seen, words, bar.enable


def a_bar_knows_its_trainer_from_setup_on(pl, folder):
    """Before `setup` a bar's `trainer` is an error."""
    try:
        _ = pl.callbacks.TQDMProgressBar().trainer
    except TypeError:
        return "TypeError"


def metrics_of_a_bar(pl, folder):
    """`get_metrics` has the logger's version and what was logged with `prog_bar=True`."""
    seen = []

    class Own(pl.callbacks.TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            items = super().get_metrics(trainer, pl_module)
            seen.append(sorted(items))
            items.pop("v_num", None)
            return items

    logger = pl.loggers.CSVLogger(folder / "logs")
    _fit(pl, folder, Own(), logger=logger, log_every_n_steps=1)
    return seen[-1], len(seen) >= 2


def bars_of_tqdm_are_made_by_the_class(pl, folder):
    """`init_train_tqdm` and its kin make the bars, which are moved and described."""
    made = []

    def derived(name):
        def init(self):
            bar = getattr(super(Own, self), name)()
            made.append((name, bar.desc, bar.disable, bar.leave))
            return bar

        return init

    class Own(pl.callbacks.TQDMProgressBar):
        def on_train_epoch_end(self, trainer, module):
            bar = self.train_progress_bar
            made.append((bar.n, bar.total, bar.desc))
            super().on_train_epoch_end(trainer, module)

    for stage in ("sanity", "train", "validation", "test", "predict"):
        setattr(Own, f"init_{stage}_tqdm", derived(f"init_{stage}_tqdm"))
    printed = _fit(pl, folder, Own(), "validate", "test", "predict", num_sanity_val_steps=1)
    return made, ["Epoch 1: 100%" in printed, "shown=" in printed, "Testing" in printed]


def words_of_a_bar_are_the_classes(pl, folder):
    """A description that a class defines is what is printed."""

    class Own(pl.callbacks.TQDMProgressBar):
        @property
        def test_description(self):
            return "Proving"

    return "Proving DataLoader 0" in _fit(pl, folder, Own(), "test")


def a_bar_can_be_switched_off(pl, folder):
    """`disable` and `enable`; a refresh rate of 0 is none."""
    found = []
    for kind in (pl.callbacks.TQDMProgressBar, pl.callbacks.RichProgressBar):
        bar = kind(refresh_rate=3)
        found += [bar.refresh_rate, bar.is_enabled, bar.is_disabled]
        bar.disable()
        found += [bar.is_enabled, bar.is_disabled]
        bar.enable()
        found += [bar.is_enabled, kind(refresh_rate=0).is_disabled]
    return found, pl.callbacks.TQDMProgressBar(2, 1, True).process_position


def columns_of_rich_may_be_chosen(pl, folder):
    """`RichProgressBar` takes a theme and options of rich's console."""
    from importlib import import_module

    rich = import_module(pl.__name__ + ".callbacks.progress.rich_progress")
    theme = rich.RichProgressBarTheme(description="green", metrics_format=".2e")
    bar = pl.callbacks.RichProgressBar(leave=True, theme=theme, console_kwargs={"width": 90})
    _fit(pl, folder, bar)
    return bar.theme.metrics_format, bar.theme.description, bar.theme.time


def the_trainer_knows_its_bar(pl, folder):
    """`trainer.progress_bar_callback` is the bar that was given."""
    bar = pl.callbacks.TQDMProgressBar()
    trainer = pl.Trainer(**{**QUIET, "enable_progress_bar": True, "callbacks": [bar]})
    return trainer.progress_bar_callback is bar
