"""Comet: one experiment, under the same key in every attempt.

Comet takes nothing back. An attempt that resumes asks the server, once, how far each metric has
come; what is not beyond that was written by the attempt before and is not written again. Offline
there is nobody to ask: the archives of two attempts may hold a step both.
"""

import secrets
from typing import Any

from rekindle.loggers.feed import Known
from rekindle.loggers.logger import Attempt, Logger, Mute, flat, required


class CometLogger(Logger):
    """Logs to Comet; needs the package comet_ml."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """`options` go to `comet_ml.ExperimentConfig`.

        Raises ModuleNotFoundError when comet_ml is not installed.
        """
        self._module = required("comet_ml", "comet_ml", "CometLogger")
        self._where = {
            "api_key": api_key, "workspace": workspace, "project_name": project, "online": online
        }  # fmt: skip
        self._project, self._options = project, options
        self._given = self._key = experiment_key
        self._experiment: Any = None
        self.prefix = f"{prefix}/" if prefix else ""

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The experiment's key; None before the run has begun."""
        return self._key

    @property
    def experiment(self) -> Any:
        """The experiment, as `comet_ml.start` gives it."""
        return self._experiment if self.ready() else Mute()

    def prepare(self, attempt: Attempt) -> None:
        """Choose a key, so that the first checkpoint can name it."""
        if self._given is None and not (attempt.resumed and self._key):
            self._key = secrets.token_hex(16)

    def open(self, attempt: Attempt) -> Known:
        """Begin the experiment, or go on with it."""
        self._experiment = self._module.start(
            experiment_key=self._key,
            mode="get_or_create",
            experiment_config=self._module.ExperimentConfig(**self._options),
            **{key: value for key, value in self._where.items() if value is not None},
        )
        again = attempt.resumed or self._given
        return self._written() if again and self._where["online"] is not False else {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log metrics."""
        epoch = metrics.get("epoch")
        self._experiment.log_metrics(
            metrics, step=step, epoch=None if epoch is None else int(epoch)
        )

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log parameters."""
        self._experiment.log_parameters(flat(values))

    def close(self, status: str) -> None:
        """End the experiment, which waits until all is sent."""
        self._experiment.end()

    def state_dict(self) -> dict[str, Any]:
        """The experiment's key."""
        return {"key": self._key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same experiment, unless the script names one."""
        self._key = self._given or state_dict.get("key")

    def _written(self) -> dict[str, int]:
        found = self._module.API(api_key=self._where["api_key"]).get_experiment_by_key(self._key)
        metrics = [] if found is None else found.get_metrics_summary() or []
        return {
            entry["name"]: int(entry["stepCurrent"])
            for entry in metrics
            if entry.get("stepCurrent") is not None
        }
