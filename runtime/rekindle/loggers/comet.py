"""Comet: one experiment, under the same key in every attempt.

Comet takes nothing back. An attempt that resumes asks the server, once, how far each metric has
come; what is not beyond that was written by the attempt before and is not written again. Offline
there is nobody to ask: the archives of two attempts may hold a step both.
"""

import secrets
from typing import Any, Literal

from rekindle.loggers.feed import Known
from rekindle.loggers.logger import Attempt, flat
from rekindle.loggers.service import ServiceLogger


class CometLogger(ServiceLogger):
    """Logs to Comet, `experiment` being the experiment; needs the package comet_ml."""

    ID = "key"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """`options` go to `comet_ml.ExperimentConfig`; `mode` is for the run's first attempt.

        Raises ModuleNotFoundError when comet_ml is not installed.
        """
        super().__init__("comet_ml", given=experiment_key, prefix=prefix)
        self._where = {
            "api_key": api_key, "workspace": workspace, "project_name": project, "online": online
        }  # fmt: skip
        self._project, self._options, self._mode = project, options, mode

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return self._project

    def new_id(self) -> str:
        """A key as Comet makes them."""
        return secrets.token_hex(16)

    def open(self, attempt: Attempt) -> Known:
        """Begin the experiment, or go on with it."""
        self._record = self._module.start(
            experiment_key=self._id,
            mode="get_or_create" if attempt.resumed else self._mode or "get_or_create",
            experiment_config=self._module.ExperimentConfig(**self._options),
            **{key: value for key, value in self._where.items() if value is not None},
        )
        again = self.goes_on(attempt)
        return self._written() if again and self._where["online"] is not False else {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log metrics."""
        epoch = metrics.get("epoch")
        self._record.log_metrics(metrics, step=step, epoch=None if epoch is None else int(epoch))

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log parameters."""
        self._record.log_parameters(flat(values))

    def close(self, status: str) -> None:
        """End the experiment, which waits until all is sent."""
        self._record.end()

    def _written(self) -> dict[str, int]:
        found = self._module.API(api_key=self._where["api_key"]).get_experiment_by_key(self._id)
        metrics = [] if found is None else found.get_metrics_summary() or []
        return {
            entry["name"]: int(entry["stepCurrent"])
            for entry in metrics
            if entry.get("stepCurrent") is not None
        }
