"""TensorBoard's event files.

Event files can only grow. What a resumed run does again is therefore marked as void: an event file
that begins with a start mark at step s+1 makes TensorBoard forget all events of that step and later
ones that were written before it (the `purge_step` of its writer). That hides step values of
evaluations as well, as far as they were counted beyond that step; they are in the older files.
"""

import os
from typing import Any

from rekindle.loggers.feed import Known
from rekindle.loggers.files import DirectoryLogger
from rekindle.loggers.logger import Attempt, Mute, flat, required

_OPTIONS = ("max_queue", "flush_secs", "filename_suffix")


class TensorBoardLogger(DirectoryLogger):
    """Writes scalars and hyperparameters as TensorBoard events; needs the package tensorboard."""

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str = "tensorboard",
        version: int | str | None = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        """`options` are ``max_queue``, ``flush_secs`` and ``filename_suffix`` of the writer.

        Raises ModuleNotFoundError when tensorboard is not installed.
        """
        for option in options:
            if option not in _OPTIONS:
                raise TypeError(
                    f"TensorBoardLogger has no option {option!r}; it has save_dir, name, version, "
                    f"prefix, {', '.join(_OPTIONS)}"
                )
        super().__init__(save_dir, name, version, prefix)
        required("tensorboard", "tensorboard", "TensorBoardLogger")
        self._options = options
        self._writer: Any = None

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter`, for images and the like; it may be used from any thread."""
        return self._writer if self.ready() else Mute()

    def open(self, attempt: Attempt) -> Known:
        """Begin an event file that voids what is later than the step."""
        from torch.utils.tensorboard import SummaryWriter

        super().open(attempt)
        purge = attempt.step + 1 if attempt.resumed or any(self._directory.iterdir()) else None
        self._writer = SummaryWriter(str(self._directory), purge_step=purge, **self._options)
        return {}

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=at)

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Write ``hparams.json``, and what the HParams view reads."""
        from torch.utils.tensorboard.summary import hparams

        super().write_hyperparameters(values)
        simple = (bool, int, float, str)
        named = {n: v if isinstance(v, simple) else str(v) for n, v in flat(values).items()}
        for summary in hparams(named, {}):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

    def flush(self) -> None:
        """Hand the events to the system."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the event file."""
        self._writer.close()
