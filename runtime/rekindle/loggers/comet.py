"""Comet: one experiment, under the same key in every attempt.

Comet takes nothing back and is slow to ask. The last step that was written is kept at the
experiment itself, as its parameter ``rekindle/last_step``; what is not beyond it is not written
again after a resume.
"""

import secrets
from typing import Any

from rekindle.loggers.feed import Known
from rekindle.loggers.logger import Attempt, Logger, Mute, flat, required

_LAST = "rekindle/last_step"


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
        last = self._experiment.get_parameter(_LAST) if again else None
        return -1 if last is None else int(last)

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log metrics."""
        epoch = metrics.get("epoch")
        self._experiment.log_metrics(
            metrics, step=step, epoch=None if epoch is None else int(epoch)
        )
        self._experiment.log_parameter(_LAST, step)

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
