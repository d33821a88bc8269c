"""Ready-made callbacks, one module each; a name loads its module when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.callbacks.averaging import EMA as EMA
    from rekindle.callbacks.averaging import SWA as SWA
    from rekindle.callbacks.averaging import StochasticWeightAveraging as StochasticWeightAveraging
    from rekindle.callbacks.batch_finder import BatchSizeFinder as BatchSizeFinder
    from rekindle.callbacks.batchsize import BatchSizeSchedule as BatchSizeSchedule
    from rekindle.callbacks.batchsize import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from rekindle.callbacks.checkpoint import ModelCheckpoint as ModelCheckpoint
    from rekindle.callbacks.device_stats import DeviceStats as DeviceStats
    from rekindle.callbacks.device_stats import DeviceStatsMonitor as DeviceStatsMonitor
    from rekindle.callbacks.finetuning import BackboneFinetuning as BackboneFinetuning
    from rekindle.callbacks.functions import LambdaCallback as LambdaCallback
    from rekindle.callbacks.gradients import GradNorms as GradNorms
    from rekindle.callbacks.prediction import PredictionWriter as PredictionWriter
    from rekindle.callbacks.progress import ProgressBar as ProgressBar
    from rekindle.callbacks.progress import RichProgressBar as RichProgressBar
    from rekindle.callbacks.progress import TQDMProgressBar as TQDMProgressBar
    from rekindle.callbacks.pruning import OptunaPruning as OptunaPruning
    from rekindle.callbacks.pruning import OptunaReporter as OptunaReporter
    from rekindle.callbacks.pruning import PruneCallback as PruneCallback
    from rekindle.callbacks.pruning import RayPruning as RayPruning
    from rekindle.callbacks.pruning import RayReporter as RayReporter
    from rekindle.callbacks.rate_finder import LearningRateFinder as LearningRateFinder
    from rekindle.callbacks.rates import LearningRateMonitor as LearningRateMonitor
    from rekindle.callbacks.spike import SpikeGuard as SpikeGuard
    from rekindle.callbacks.stopping import EarlyStopping as EarlyStopping
    from rekindle.callbacks.throughput import ThroughputMonitor as ThroughputMonitor
    from rekindle.callbacks.timer import Timer as Timer

_HOME = {
    "BackboneFinetuning": "rekindle.callbacks.finetuning",
    "BatchSizeFinder": "rekindle.callbacks.batch_finder",
    "BatchSizeSchedule": "rekindle.callbacks.batchsize",
    "Callback": "rekindle.callback",
    "DeviceStats": "rekindle.callbacks.device_stats",
    "DeviceStatsMonitor": "rekindle.callbacks.device_stats",
    "EMA": "rekindle.callbacks.averaging",
    "EarlyStopping": "rekindle.callbacks.stopping",
    "GradNorms": "rekindle.callbacks.gradients",
    "GradientAccumulationScheduler": "rekindle.callbacks.batchsize",
    "LambdaCallback": "rekindle.callbacks.functions",
    "LearningRateFinder": "rekindle.callbacks.rate_finder",
    "LearningRateMonitor": "rekindle.callbacks.rates",
    "ModelCheckpoint": "rekindle.callbacks.checkpoint",
    "OptunaPruning": "rekindle.callbacks.pruning",
    "OptunaReporter": "rekindle.callbacks.pruning",
    "PredictionWriter": "rekindle.callbacks.prediction",
    "ProgressBar": "rekindle.callbacks.progress",
    "PruneCallback": "rekindle.callbacks.pruning",
    "RayPruning": "rekindle.callbacks.pruning",
    "RayReporter": "rekindle.callbacks.pruning",
    "RichProgressBar": "rekindle.callbacks.progress",
    "SWA": "rekindle.callbacks.averaging",
    "SpikeGuard": "rekindle.callbacks.spike",
    "StochasticWeightAveraging": "rekindle.callbacks.averaging",
    "TQDMProgressBar": "rekindle.callbacks.progress",
    "ThroughputMonitor": "rekindle.callbacks.throughput",
    "Timer": "rekindle.callbacks.timer",
}
__all__ = [
    "BackboneFinetuning",
    "BatchSizeFinder",
    "BatchSizeSchedule",
    "Callback",
    "DeviceStats",
    "DeviceStatsMonitor",
    "EMA",
    "EarlyStopping",
    "GradNorms",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "OptunaPruning",
    "OptunaReporter",
    "PredictionWriter",
    "ProgressBar",
    "PruneCallback",
    "RayPruning",
    "RayReporter",
    "RichProgressBar",
    "SWA",
    "SpikeGuard",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
