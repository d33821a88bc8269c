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
_BATCH = 100
"""Parameters that the server takes at once."""


class MLFlowLogger(ServiceLogger):
    """Logs to MLflow; needs the package mlflow or mlflow-skinny.

    `experiment` is the `MlflowClient`, to be used together with `run_id`.
    """

    ID = "run_id"

    def __init__(
        self,
        experiment_name: str = "rekindle",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: "str | os.PathLike[str] | None" = None,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        log_model: Literal[False] = False,
    ) -> None:
        """`run_id` goes on with a run of MLflow; `save_dir` is for MLflow's file store.

        Without `tracking_uri` and `save_dir`, MLflow's own settings decide where the server is.
        Models are not logged: they are in the run's checkpoints, once.
        Raises ModuleNotFoundError when mlflow is not installed.
        """
        super().__init__("mlflow", given=run_id, prefix=prefix, log_model=log_model)
        if tracking_uri is None and save_dir is not None:
            tracking_uri = f"file://{os.path.abspath(os.fspath(save_dir))}"
        self._uri, self._experiment_name = tracking_uri, experiment_name
        self._run_name, self._tags = run_name, dict(tags or {})
        self._artifacts = artifact_location

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._experiment_name

    @property
    def run_id(self) -> str | None:
        """The run's id; None before the server has given one."""
        return self._id

    def open(self, attempt: Attempt) -> Known:
        """Find or make experiment and run."""
        client = self._record = self._module.MlflowClient(tracking_uri=self._uri)
        if self._id is not None:
            client.update_run(self._id, status="RUNNING")
            return self._written()
        experiment = client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            made = client.create_experiment(self._experiment_name, self._artifacts)
        run = client.create_run(
            made if experiment is None else experiment.experiment_id,
            run_name=self._run_name,
            tags={**self._tags, "rekindle.root": attempt.root},
        )
        self._id = run.info.run_id
        return {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Log a batch of metrics."""
        metric = self._module.entities.Metric
        entries = [metric(_key(n), v, int(at * 1000), step) for n, v in metrics.items()]
        self._record.log_batch(self._id, metrics=entries)

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log parameters; MLflow keeps their first 6000 characters at most."""
        param = self._module.entities.Param
        entries = [param(_key(n), str(v)[:6000]) for n, v in flat(values).items()]
        for first in range(0, len(entries), _BATCH):
            self._record.log_batch(self._id, params=entries[first : first + _BATCH])

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
