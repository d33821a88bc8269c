"""`Tuner`: find a learning rate or a batch size before `fit`.

Both try a few steps of a copy of the module, so a `fit` that follows is the one that it would have
been, but for the value that was found and written where the script reads it.
"""

from typing import Any, Literal

from rekindle.callbacks.search.batch_size_finder import Search, largest
from rekindle.callbacks.search.learning_rate_finder import LRFinder, Sweep, suggest
from rekindle.callbacks.search.trial import write
from rekindle.data.loader import LoaderSource
from rekindle.datamodule import DataModule
from rekindle.model.module import Module
from rekindle.trainer.trainer import Trainer
from rekindle.training.sources import load

__all__ = ["LRFinder", "Tuner"]


class Tuner:
    """Tries things with a trainer's flags and devices."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: Module,
        train_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        *,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder:
        """Make the learning-rate range test and write its suggestion to the model.

        The suggestion goes to the attribute or hyperparameter `attr_name`, by default ``lr`` or
        ``learning_rate``; AttributeError when there is none. Collective.
        """
        sweep = Sweep(
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training,
            mode=mode,
            early_stop_threshold=early_stop_threshold,
        )
        name = attr_name if update_attr else None
        source = self._source(model, train_dataloaders, datamodule)
        try:
            finder, _ = suggest(self._trainer, model, source, sweep, name=name)
        finally:
            self._done(model)
        return finder

    def scale_batch_size(
        self,
        model: Module,
        train_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        *,
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int:
        """The largest batch that fits the memory of every process's device; collective.

        ``power`` doubles from `init_val` until it no longer fits, ``binsearch`` then closes in, and
        takes the share `margin` off. No batch is larger than the data, or than `max_val`. The size
        is written to the attribute or hyperparameter `batch_arg_name` of the data module or of the
        model, where there is one. Raises ValueError when not even `init_val` fits.
        """
        search = Search(
            mode=mode,
            steps_per_trial=steps_per_trial,
            init_val=init_val,
            max_trials=max_trials,
            margin=margin,
            max_val=max_val,
        )
        source = self._source(model, train_dataloaders, datamodule)
        try:
            found = largest(self._trainer, model, source, search)
            for owner in (self._trainer.datamodule, model):
                write(owner, batch_arg_name, found)
        finally:
            self._done(model)
        return found

    def _source(self, model: Module, loaders: Any, datamodule: DataModule | None) -> LoaderSource:
        trainer = self._trainer
        if isinstance(loaders, DataModule):
            loaders, datamodule = None, loaders
        trainer.lifecycle.begin("tune")
        world = trainer._begin(model, datamodule)
        try:
            given = {"train": loaders, "evaluation": None}
            source, _ = load(model, datamodule, given, world, trainer.flags, "fit")
            if source is None:
                raise ValueError("the tuner got no training data: give a loader or a DataModule")
        except BaseException:
            self._done(model)
            raise
        return source

    def _done(self, model: Module) -> None:
        model.attach(None, None)
        self._trainer.lifecycle.move("done")
