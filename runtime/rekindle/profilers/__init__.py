"""Where the time of a run goes: ``Trainer(profiler=...)``. Names load when they are first used."""

from typing import TYPE_CHECKING

from rekindle.lazy_import import attributes

if TYPE_CHECKING:
    from rekindle.profilers.advanced import AdvancedProfiler as AdvancedProfiler
    from rekindle.profilers.profiler import Profiler as Profiler
    from rekindle.profilers.simple import SimpleProfiler as SimpleProfiler
    from rekindle.profilers.traces import PyTorchProfiler as PyTorchProfiler

__all__ = ["AdvancedProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "AdvancedProfiler": ".advanced",
        "Profiler": ".profiler",
        "PyTorchProfiler": ".traces",
        "SimpleProfiler": ".simple",
    },
)
