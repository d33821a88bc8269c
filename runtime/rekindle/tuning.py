"""`Tuner`: find a learning rate or a batch size before `fit`.

Both try a few steps of a copy of the module, so a `fit` that follows is the one that it would have
been, but for the value that was found and written where the script reads it.
"""

from dataclasses import replace
from typing import Any, Literal

import torch

from rekindle.callbacks.rate_finder import LRFinder, range_test, set_rate
from rekindle.callbacks.trial import trial
from rekindle.datamodule import DataModule
from rekindle.loader import Source
from rekindle.module import Module
from rekindle.sources import load
from rekindle.trainer import Trainer

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
        source = self._source(model, train_dataloaders, datamodule)
        try:
            finder = range_test(
                self._trainer,
                model,
                source,
                min_lr=min_lr,
                max_lr=max_lr,
                num_training=num_training,
                mode=mode,
                early_stop_threshold=early_stop_threshold,
            )
            assert self._trainer.world is not None
            suggested = self._trainer.world.share(finder.suggestion())
            if update_attr and suggested is not None:
                set_rate(model, suggested, attr_name)
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
    ) -> int:
        """The largest batch that fits the memory of every process's device; collective.

        ``power`` doubles from `init_val` until it no longer fits, ``binsearch`` then closes in.
        No batch is larger than the data. The size is written to the attribute or hyperparameter
        `batch_arg_name` of the data module or of the model, where there is one. Raises ValueError
        when not even `init_val` fits.
        """
        if mode not in ("power", "binsearch"):
            raise ValueError(
                f"scale_batch_size(mode={mode!r}): allowed are 'power' and 'binsearch'"
            )
        source = self._source(model, train_dataloaders, datamodule)
        try:
            found = self._largest(model, source, mode, steps_per_trial, init_val, max_trials)
        finally:
            self._done(model)
        for owner in (datamodule, self._trainer.datamodule, model):
            if owner is None:
                continue
            if batch_arg_name in owner.hparams:
                owner.hparams[batch_arg_name] = found
            if isinstance(getattr(owner, batch_arg_name, None), int):
                setattr(owner, batch_arg_name, found)
        return found

    def _largest(
        self, model: Module, source: Source, mode: str, steps: int, first: int, trials: int
    ) -> int:
        fits, limit, size = 0, source.samples + 1, min(first, source.samples)
        for _ in range(trials):
            if self._fits(model, replace(source, batch_size=size), steps):
                fits = size
            else:
                limit = size
            if limit > source.samples:
                size = min(2 * fits, source.samples)
            elif mode == "binsearch":
                size = (fits + limit) // 2
            if size <= fits or size >= limit:
                break
        if not fits:
            raise ValueError(
                f"scale_batch_size: not even a batch of {first} fits the device; use a smaller "
                f"model, activation checkpointing or strategy='fsdp'"
            )
        return fits

    def _fits(self, model: Module, source: Source, steps: int) -> bool:
        assert self._trainer.world is not None
        fits, error = True, None
        try:
            for _ in trial(self._trainer, model, source, steps):
                pass
        except torch.OutOfMemoryError:
            fits = False
        except Exception as failure:
            error = failure
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._trainer.world.agree(error)
        return all(self._trainer.world.gather(fits))

    def _source(self, model: Module, loaders: Any, datamodule: DataModule | None) -> Source:
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
