"""MLflow: a run of an experiment, on whatever tracking server `MLFLOW_TRACKING_URI` names.

MLflow never takes a value back. An attempt that resumes goes on in the run that its checkpoint
names and asks the server, once, how far each metric has come; what is not beyond that was written
by the attempt before and is not written again.
"""

import os
import re
import time
from typing import Any, Literal

from rekindle.loggers.feed import Known
from rekindle.loggers.logger import Attempt, flat
from rekindle.loggers.service import ServiceLogger

_FORBIDDEN = re.compile(r"[^\w\-./: ]")
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
_FILES = "file:"
_BATCH = 100
"""Parameters that the server takes at once."""


class MLFlowLogger(ServiceLogger):
    """Logs to MLflow; needs the package mlflow or mlflow-skinny.

    `experiment` is the `MlflowClient`, to be used together with `run_id`.
    """

    ID = "run_id"
    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: "str | os.PathLike[str] | None" = "./mlruns",
        log_model: Literal[False] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        """`run_id` goes on with a run of MLflow; `save_dir` is for MLflow's file store.

        Without `tracking_uri` the server is what MLFLOW_TRACKING_URI names, else the file store.
        Records are written by a thread, whatever `synchronous` says of its own requests. Models are
        not logged: they are in the run's checkpoints, once. Raises ModuleNotFoundError when mlflow
        is not installed.
        """
        super().__init__("mlflow", given=run_id, prefix=prefix, log_model=log_model)
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not self._uri and save_dir is not None:
            self._uri = f"{_FILES}{os.path.abspath(os.fspath(save_dir))}"
        self._experiment_name, self._experiment_id = experiment_name, ""
        self._run_name, self.tags = run_name, dict(tags or {})
        self._artifacts = artifact_location
        self._sending = {} if synchronous is None else {"synchronous": synchronous}

    @property
    def save_dir(self) -> str | None:
        """The folder of a file store; None for a server."""
        uri = self._uri or ""
        return uri.removeprefix(_FILES) if uri.startswith(_FILES) else None

    @property
    def name(self) -> str | None:
        """The experiment's id."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id, for which MLflow is asked if need be; None on other ranks."""
        if not self._experiment_id:
            self.ready()
        return self._experiment_id or None

    @property
    def run_id(self) -> str | None:
        """The run's id, for which MLflow is asked if need be; None on other ranks."""
        if self._id is None:
            self.ready()
        return self._id

    def open(self, attempt: Attempt) -> Known:
        """Find or make experiment and run."""
        client = self._record = self._module.MlflowClient(tracking_uri=self._uri)
        if self._id is not None:
            client.update_run(self._id, status="RUNNING")
            self._experiment_id = client.get_run(self._id).info.experiment_id
            return self._written() if attempt.repeats else {}
        experiment = client.get_experiment_by_name(self._experiment_name)
        if experiment is not None and experiment.lifecycle_stage != "deleted":
            self._experiment_id = experiment.experiment_id
        else:
            self._experiment_id = client.create_experiment(self._experiment_name, self._artifacts)
        run = client.create_run(
            self._experiment_id,
            run_name=self._run_name,
            tags={**self.tags, "rekindle.root": attempt.root},
        )
        self._id = run.info.run_id
        return {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log a batch of metrics."""
        metric = self._module.entities.Metric
        entries = [metric(_key(n), v, int(at * 1000), step) for n, v in metrics.items()]
        self._record.log_batch(self._id, metrics=entries, **self._sending)

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log parameters; MLflow keeps their first 6000 characters at most."""
        param = self._module.entities.Param
        entries = [param(_key(n), str(v)[:6000]) for n, v in flat(values).items()]
        for first in range(0, len(entries), _BATCH):
            batch = entries[first : first + _BATCH]
            self._record.log_batch(self._id, params=batch, **self._sending)

    def close(self, status: str) -> None:
        """Set the run's status."""
        self._record.set_terminated(self._id, _STATUS[status], int(time.time() * 1000))

    def _written(self) -> dict[str, int]:
        client, run_id = self._record, self._id
        return _Written(
            {
                name: max(entry.step for entry in client.get_metric_history(run_id, name))
                for name in client.get_run(run_id).data.metrics
            }
        )


class _Written(dict[str, int]):
    """Last step per name as MLflow spells it."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_key(key), default)


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return _FORBIDDEN.sub("_", name)
