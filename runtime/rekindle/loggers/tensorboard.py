"""TensorBoard's event files.

Event files can only grow. What a resumed run does again is therefore marked as void: an event file
that begins with a start mark at step s+1 makes TensorBoard forget all events of that step and later
ones that were written before it (the `purge_step` of its writer). That hides step values of
evaluations as well, as far as they were counted beyond that step; they are in the older files.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from rekindle.loggers.feed import Known, MetricRecord
from rekindle.loggers.files import DirectoryLogger
from rekindle.loggers.logger import Attempt, Mute, flat, named, required

_OPTIONS = ("max_queue", "flush_secs", "filename_suffix")


class TensorBoardLogger(DirectoryLogger):
    """Writes scalars and hyperparameters as TensorBoard events; needs the package tensorboard."""

    LOGGER_JOIN_CHAR = "-"
    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: "str | os.PathLike[str] | None" = None,
        **options: Any,
    ) -> None:
        """`options` are ``max_queue``, ``flush_secs`` and ``filename_suffix`` of the writer.

        `log_graph` shows the operations on the module's `example_input_array`;
        `default_hp_metric` gives hyperparameters the metric ``hp_metric``, -1, where none are
        given. Files lie in `sub_dir` below the version. Raises ModuleNotFoundError when tensorboard
        is not installed.
        """
        for option in options:
            if option not in _OPTIONS:
                raise TypeError(
                    f"TensorBoardLogger has no option {option!r}; it has save_dir, name, version, "
                    f"log_graph, default_hp_metric, prefix, sub_dir, {', '.join(_OPTIONS)}"
                )
        super().__init__(save_dir, name, version, prefix)
        required("tensorboard", "tensorboard", "TensorBoardLogger")
        self._options, self._graph, self._default = options, log_graph, default_hp_metric
        self._sub = "" if sub_dir is None else os.fspath(sub_dir)
        self._writer: Any = None

    @property
    def sub_dir(self) -> str | None:
        """Directory below the version."""
        return self._sub or None

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter`, for images and the like; it may be used from any thread."""
        return self._writer if self.ready() else Mute()

    def open(self, attempt: Attempt) -> Known:
        """Begin an event file that voids what is later than the step."""
        from torch.utils.tensorboard import SummaryWriter

        again = self._writer is not None
        super().open(attempt)
        purge = attempt.step + 1 if attempt.resumed else None
        if not attempt.resumed and not again and any(self._directory.glob("events.out.*")):
            purge = 0
        self._writer = SummaryWriter(str(self._directory), purge_step=purge, **self._options)
        return {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=at)

    def log_hyperparams(
        self, params: Any = None, metrics: Any = None, step: int | None = None
    ) -> None:
        """Hand over hyperparameters, and metrics to show them with: a mapping, or one number."""
        if metrics is None:
            shown = {"hp_metric": -1.0} if self._default else {}
        elif isinstance(metrics, Mapping):
            shown = {name: float(value) for name, value in metrics.items()}
        else:
            shown = {"hp_metric": float(metrics)}
        self._put(MetricRecord(hyperparameters=named(params), measured=shown, step=step))

    def write_hyperparameters(self, values: dict[str, Any], measured: Any = None) -> None:
        """Write ``hparams.yaml``, and what the HParams view reads."""
        from torch.utils.tensorboard.summary import hparams

        super().write_hyperparameters(values)
        simple = (bool, int, float, str)
        texts = {n: v if isinstance(v, simple) else str(v) for n, v in flat(values).items()}
        for name, value in (measured or {}).items():
            self._writer.add_scalar(f"{self.prefix}{name}", value, 0)
        for summary in hparams(texts, measured or {}):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Trace the model with an input, by default its `example_input_array`; with `log_graph`."""
        if not self._graph or not self.ready():
            return
        given = getattr(model, "example_input_array", None) if input_array is None else input_array
        if given is None or not isinstance(given, torch.Tensor | tuple):
            warnings.warn(
                f"TensorBoardLogger(log_graph=True) shows nothing: the module's "
                f"example_input_array is {type(given).__name__}, and must be a tensor or a tuple",
                stacklevel=2,
            )
            return
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        inputs = given if isinstance(given, tuple) else (given,)
        self._writer.add_graph(model, tuple(each.to(device) for each in inputs))

    def flush(self) -> None:
        """Hand the events to the system."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the event file; beside one that is whole lie its hyperparameters, if only none."""
        if status == "finished" and not (self._directory / self.NAME_HPARAMS_FILE).exists():
            super().write_hyperparameters({})
        self._writer.close()
