"""Weights & Biases: one run, under the same id in every attempt.

Metrics are logged without W&B's own step, because that one must never go back and also counts what
a script logs itself; ``trainer/global_step`` is a metric beside them and the x-axis of all. After a
resume the run's summary says how far the attempt before had come, and nothing up to there is
written again.
"""

import os
import secrets
from typing import Any, Literal

from rekindle.loggers.feed import Feed, Known
from rekindle.loggers.logger import Attempt
from rekindle.loggers.service import ServiceLogger

_STEP = "trainer/global_step"
_BATCH = "trainer/evaluation_batch"


class WandbLogger(ServiceLogger):
    """Logs to Weights & Biases, `experiment` being the `wandb.Run`; needs the package wandb."""

    ID = "id"

    def __init__(
        self,
        name: str | None = None,
        save_dir: "str | os.PathLike[str] | None" = None,
        version: str | None = None,
        offline: bool = False,
        id: str | None = None,
        project: str | None = None,
        prefix: str = "",
        log_model: Literal[False] = False,
        **options: Any,
    ) -> None:
        """`options` go to `wandb.init`; `version` and `id` both name the run's id.

        Models are not logged: they are in the run's checkpoints, once.
        Raises ModuleNotFoundError when wandb is not installed.
        """
        super().__init__("wandb", given=id or version, prefix=prefix, log_model=log_model)
        self._name, self._project = name, project
        self._directory = None if save_dir is None else os.fspath(save_dir)
        self._options = {**({"mode": "offline"} if offline else {}), **options}
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

    def begin(self, feed: Feed | None) -> None:
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
        self._record = self._module.init(
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
