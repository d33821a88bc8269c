"""`DummyLogger`: stands in for a script's loggers in a trial run, and writes nothing."""

from collections.abc import Mapping
from typing import Any

from rekindle.loggers.logger import Logger, Mute


class DummyLogger(Logger):
    """Writes nothing; takes any call."""

    @property
    def name(self) -> str:
        """None to speak of."""
        return ""

    @property
    def version(self) -> str:
        """None to speak of."""
        return ""

    @property
    def experiment(self) -> Any:
        """Takes any call."""
        return Mute()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Nothing."""

    def log_hyperparams(self, params: Any = None, *arguments: Any, **options: Any) -> None:
        """Nothing."""

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Nothing."""

    def __getitem__(self, index: int) -> "DummyLogger":
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Mute()
