"""Weights & Biases: one run, under the same id in every attempt.

Metrics are logged without W&B's own step, because that one must never go back and also counts what
a script logs itself; ``trainer/global_step`` is a metric beside them and the x-axis of all. After a
resume the run's summary says how far the attempt before had come, and nothing up to there is
written again.
"""

import os
import secrets
from collections.abc import Callable
from typing import Any, Literal

from rekindle.loggers.feed import Known, LoggerThread
from rekindle.loggers.logger import Attempt
from rekindle.loggers.service import ServiceLogger

_STEP = "trainer/global_step"
_BATCH = "trainer/evaluation_batch"


class WandbLogger(ServiceLogger):
    """Logs to Weights & Biases, `experiment` being the `wandb.Run`; needs the package wandb."""

    ID = "id"
    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        name: str | None = None,
        save_dir: "str | os.PathLike[str] | None" = None,
        version: str | None = None,
        offline: bool = False,
        dir: "str | os.PathLike[str] | None" = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal[False] = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **options: Any,
    ) -> None:
        """`options` go to `wandb.init`; `version` and `id` both name the run's id.

        `experiment` is a run that the script has begun itself; `dir` means `save_dir`. Models are
        not logged, which `checkpoint_name` and `add_file_policy` would be about: they are in the
        run's checkpoints, once.
        Raises ModuleNotFoundError when wandb is not installed.
        """
        own = getattr(experiment, "id", None)
        super().__init__("wandb", given=id or version or own, prefix=prefix, log_model=log_model)
        self._name, self._project, self._begun = name, project, experiment
        place = dir if save_dir is None else save_dir
        self._directory = None if place is None else os.fspath(place)
        self._options = {**({"mode": "offline"} if offline else {}), **options}
        if anonymous is not None:
            self._options["anonymous"] = {True: "allow", False: None}.get(anonymous, anonymous)
        self._watched: list[dict[str, Any]] = []

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return self._project

    @property
    def save_dir(self) -> str | None:
        """Where W&B keeps its files before they are sent."""
        return self._directory

    def watch(
        self,
        model: Any,
        log: str | None = "gradients",
        log_freq: int = 100,
        log_graph: bool = True,
    ) -> None:
        """Have W&B follow a model's gradients or parameters, from the begin of the run on."""
        options = {"models": model, "log": log, "log_freq": log_freq, "log_graph": log_graph}
        if self._running:
            self.experiment.watch(**options)
        else:
            self._watched.append(options)

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table: columns and rows, or a data frame."""
        self._show(
            "Table", key, lambda kind: kind(columns=columns, data=data, dataframe=dataframe), step
        )

    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log texts, as a table."""
        self.log_table(key, columns, data, dataframe, step)

    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: list[Any]
    ) -> None:
        """Log images: tensors, arrays, PIL images or paths; `kwargs` hold a value for each."""
        self._several("Image", key, images, step, kwargs)

    def log_audio(
        self, key: str, audios: list[Any], step: int | None = None, **kwargs: list[Any]
    ) -> None:
        """Log sounds: arrays or paths; `kwargs` hold a value for each."""
        self._several("Audio", key, audios, step, kwargs)

    def log_video(
        self, key: str, videos: list[Any], step: int | None = None, **kwargs: list[Any]
    ) -> None:
        """Log videos: tensors, arrays or paths; `kwargs` hold a value for each."""
        self._several("Video", key, videos, step, kwargs)

    def _several(
        self, kind: str, key: str, items: list[Any], step: int | None, each: dict[str, list[Any]]
    ) -> None:
        if not isinstance(items, list):
            raise TypeError(f"{key!r}: give a list, not a {type(items).__name__}")
        for name, values in each.items():
            if len(values) != len(items):
                raise ValueError(f"{key!r}: {len(items)} items, and {len(values)} of {name!r}")
        options = [{name: values[i] for name, values in each.items()} for i in range(len(items))]
        pairs = list(zip(items, options, strict=True))
        self._show(kind, key, lambda made: [made(item, **rest) for item, rest in pairs], step)

    def _show(self, kind: str, key: str, make: Callable[[Any], Any], step: int | None) -> None:
        if self.ready():
            at = {} if step is None else {_STEP: step}
            made = make(getattr(self._module, kind))
            self._record.log({f"{self.prefix}{key}": made, **at})

    def begin(self, feed: LoggerThread | None) -> None:
        """A run begins (called by the trainer); waits for W&B if there is a model to watch."""
        super().begin(feed)
        watched, self._watched = self._watched, []
        # Here and not in the feed's thread: it puts hooks into a model that is not running yet.
        for options in watched:
            self.experiment.watch(**options)

    def new_id(self) -> str:
        """An id as W&B makes them."""
        return secrets.token_hex(4)

    def open(self, attempt: Attempt) -> Known:
        """Begin the run, or go on with it."""
        given = {"name": self._name, "project": self._project, "dir": self._directory}
        self._record = self._begun or self._module.init(
            id=self._id,
            resume="allow",
            **{key: value for key, value in given.items() if value is not None},
            **self._options,
        )
        self._record.define_metric(_STEP)
        self._record.define_metric("*", step_metric=_STEP, step_sync=True)
        last = self._record.summary.get(_STEP) if self.goes_on(attempt) else None
        return -1 if last is None else int(last)

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log metrics together with their step."""
        self._record.log({**metrics, _STEP: step})

    def write_batch(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log step values of a batch of an evaluation with an axis of their own.

        The newest training step is what a resumed run goes by, so it is left as it is.
        """
        for name in metrics:
            self._record.define_metric(name, step_metric=_BATCH)
        self._record.log({**metrics, _BATCH: step})

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Set the run's configuration."""
        self._record.config.update(values, allow_val_change=True)

    def close(self, status: str) -> None:
        """Finish the run, which waits until all is sent."""
        self._record.finish(exit_code=0 if status == "finished" else 1)
