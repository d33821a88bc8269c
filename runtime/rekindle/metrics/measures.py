"""`Measures`: logged values as callbacks, loggers and progress bars see them.

A value that is logged per step and per epoch has three names: callbacks find the newest one under
the name itself, and either kind under ``name_step`` and ``name_epoch``; loggers and bars know the
two latter only.

What has been reduced over all ranks comes in by `take`. What was noted since is read when somebody
looks (`read`), which is the one thing that waits for the device, and only then: in a hook of
training the newest step values, at the end of an epoch its values so far. Such a look is no
collective operation, for a hook may look on one rank alone: with several ranks it finds this rank's
own step values until the next report. Whoever decides for all ranks gets reduced ones (see
`training.loop`).
"""

from collections.abc import Mapping

import torch

from rekindle.metrics.logged_values import Logs, plain, reported


class Measures:
    """The newest value of every logged name."""

    def __init__(self) -> None:
        self.callback: dict[str, torch.Tensor] = {}
        self.logged: dict[str, torch.Tensor] = {}
        self.bar: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        """The step at which each value in `callback` was taken."""
        self._logs: Logs | None = None

    def follow(self, logs: Logs | None) -> None:
        """Look there for what is newer; None: nothing is noted any more."""
        self._logs = logs

    def clear(self) -> None:
        """Forget all values."""
        for values in (self.callback, self.logged, self.bar, self.steps):
            values.clear()

    def take(self, values: Mapping[str, float], step: int) -> None:
        """Show values by the names that `Logs` gives them, taken after so many steps."""
        for key, value in values.items():
            base, name = plain(key), reported(key)
            shown, logger = (False, True) if self._logs is None else self._logs.about(base)
            self.callback[base] = self.callback[name] = tensor = torch.tensor(value)
            self.steps[base] = self.steps[name] = step
            if logger:
                self.logged[name] = tensor
            if shown:
                self.bar[name] = value

    def log(self, values: Mapping[str, float]) -> None:
        """Show values that are for loggers only, by their reported names."""
        self.logged.update({name: torch.tensor(value) for name, value in values.items()})

    def read(self) -> "Measures":
        """Take what was noted since."""
        if self._logs is not None:
            self.take(self._logs.now(), self._logs.step + 1)
            if self._logs.by_batch:
                self.log(self._logs.batch_now())
        return self
