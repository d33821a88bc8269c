"""The largest batch that fits the device: try sizes until one does not.

Each size is tried for a few training steps of a copy of the module
(`rekindle.callbacks.search.trial`), so nothing of it is left behind. A size fits when it does on
every rank.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from rekindle.callback import Callback
from rekindle.callbacks.search.trial import begun, trial, write
from rekindle.data.loader import LoaderSource
from rekindle.training.setup.batch_sharing import workers_of_the_job

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to look: ``power`` doubles until a size no longer fits, ``binsearch`` then closes in.

    Raises ValueError for what is no search.
    """

    mode: Literal["power", "binsearch"] = "power"
    steps_per_trial: int = 3
    init_val: int = 2
    max_trials: int = 25
    margin: float = 0.0
    """Share that ``binsearch`` takes off what it finds."""
    max_val: int | None = None
    """No size above it is tried."""

    def __post_init__(self) -> None:
        if self.mode not in ("power", "binsearch"):
            raise ValueError(
                f"batch size search: mode={self.mode!r}, allowed are 'power' and 'binsearch'"
            )
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"batch size search: margin={self.margin!r}, need a share below 1")
        for name in ("steps_per_trial", "init_val", "max_trials"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"batch size search: {name}={getattr(self, name)!r}, need 1 or more"
                )


def largest(trainer: "Trainer", module: "Module", source: LoaderSource, search: Search) -> int:
    """The largest batch that fits every rank's device, and is no larger than the data; collective.

    Raises ValueError when not even `init_val` fits, and for data that has no length.
    """
    if source.streamed or source.whole:
        what = "a stream" if source.streamed else "whole batches"
        raise ValueError(
            f"batch size search needs a dataset with a length and single samples; "
            f"{type(source.dataset).__name__} is {what}. Give the batch size."
        )
    most = source.samples if search.max_val is None else min(source.samples, search.max_val)
    fits, limit, size = 0, most + 1, min(search.init_val, most)
    for _ in range(search.max_trials):
        if _fits(trainer, module, replace(source, batch_size=size), search.steps_per_trial):
            fits = size
        else:
            limit = size
        if limit > most:
            size = min(2 * fits, most)
        elif search.mode == "binsearch":
            size = (fits + limit) // 2
        if size <= fits or size >= limit:
            break
    if not fits:
        raise ValueError(
            f"batch size search: not even a batch of {search.init_val} fits the device; use a "
            f"smaller model, activation checkpointing or strategy='fsdp'"
        )
    reduced = max(1, int(fits * (1 - search.margin)))
    return reduced if search.mode == "binsearch" else fits


def _fits(trainer: "Trainer", module: "Module", source: LoaderSource, steps: int) -> bool:
    assert trainer.world is not None
    fits, error = True, None
    try:
        for _ in trial(trainer, module, source, steps):
            pass
    except torch.OutOfMemoryError:
        fits = False
    except Exception as failure:
        error = failure
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trainer.world.agree(error)
    return all(trainer.world.gather(fits))


class BatchSizeFinder(Callback):
    """Look for the largest batch that fits before a run begins, and train with it.

    The size takes the place of the loader's batch size: of the micro-batch. With
    `global_batch_size` given, it is the largest size that fits and divides it with a micro-batch
    for each process that the job wants. It is written to the attribute or hyperparameter
    `batch_arg_name` of data module and module, where there is one. A run that resumes keeps the
    size of its first attempt. A class derived from it with an `on_fit_start` of its own is asked
    for nothing then, and may call `scale_batch_size`.
    """

    SUPPORTED_MODES = ("power", "binsearch")

    def __init__(
        self,
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        """`margin` is the share that ``binsearch`` takes off; no size above `max_val` is tried."""
        self._search = Search(
            mode=mode,
            steps_per_trial=steps_per_trial,
            init_val=init_val,
            max_trials=max_trials,
            margin=margin,
            max_val=max_val,
        )
        self._name = batch_arg_name
        self.optimal_batch_size: int | None = None
        """The size, once it is known."""

    def data_found(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Look, before the position in the data is made; collective."""
        own = type(self).on_fit_start is not BatchSizeFinder.on_fit_start
        if own or trainer.train_source is None or begun(trainer):
            return
        self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Look, and note the size for what comes; before training, on every rank alike.

        Raises RuntimeError once training goes on: its batches are dealt out already.
        """
        source, world = trainer.train_source, trainer.world
        if source is None or world is None or trainer._run is not None:
            raise RuntimeError(
                "BatchSizeFinder.scale_batch_size: a size can be looked for before training only. "
                "Use the callback as it is, or Tuner.scale_batch_size before fit"
            )
        found = largest(trainer, pl_module, source, self._search)
        if (whole := trainer.flags.global_batch_size) is not None:
            most = min(found, max(1, whole // workers_of_the_job(world.size)))
            found = next(size for size in range(most, 0, -1) if whole % size == 0)
        trainer.train_source = replace(source, batch_size=found)
        self.optimal_batch_size = found
        self._write(trainer, pl_module)
        trainer.print(f"BatchSizeFinder: batch size {found}")

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Show the script what the run was restored with."""
        run = trainer._run
        assert run is not None
        self._write(trainer, pl_module)
        if run.feed.batch_size is not None:
            # The size in the data cursor is this one already, so it is not a change by the script.
            run.feed.batch_size = run.datamodule.hparams["batch_size"]

    def _write(self, trainer: "Trainer", pl_module: "Module") -> None:
        if self.optimal_batch_size is not None:
            for owner in (trainer.datamodule, pl_module):
                write(owner, self._name, self.optimal_batch_size)

    def state_dict(self) -> dict[str, int | None]:
        """What was found."""
        return {"optimal_batch_size": self.optimal_batch_size}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """Keep it."""
        self.optimal_batch_size = state_dict["optimal_batch_size"]
