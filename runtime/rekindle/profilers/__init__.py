"""Where the time of a run goes: ``Trainer(profiler=...)``. Names load when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.profilers.advanced import AdvancedProfiler as AdvancedProfiler
    from rekindle.profilers.profiler import Profiler as Profiler
    from rekindle.profilers.simple import SimpleProfiler as SimpleProfiler
    from rekindle.profilers.traces import PyTorchProfiler as PyTorchProfiler

_HOME = {
    "AdvancedProfiler": "advanced",
    "Profiler": "profiler",
    "PyTorchProfiler": "traces",
    "SimpleProfiler": "simple",
}
__all__ = ["AdvancedProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"rekindle.profilers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
