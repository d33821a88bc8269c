"""Ready-made callbacks, one module each; a name loads its module when it is first used."""

from typing import TYPE_CHECKING

from rekindle.lazyimport import attributes

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.callbacks.averaging import EMA as EMA
    from rekindle.callbacks.averaging import SWA as SWA
    from rekindle.callbacks.averaging import StochasticWeightAveraging as StochasticWeightAveraging
    from rekindle.callbacks.backbone import BackboneFinetuning as BackboneFinetuning
    from rekindle.callbacks.base_finetuning import BaseFinetuning as BaseFinetuning
    from rekindle.callbacks.base_writer import BasePredictionWriter as BasePredictionWriter
    from rekindle.callbacks.batch_finder import BatchSizeFinder as BatchSizeFinder
    from rekindle.callbacks.batchsize import BatchSizeSchedule as BatchSizeSchedule
    from rekindle.callbacks.batchsize import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from rekindle.callbacks.checkpoint import Checkpoint as Checkpoint
    from rekindle.callbacks.checkpoint import ModelCheckpoint as ModelCheckpoint
    from rekindle.callbacks.device_stats import DeviceStats as DeviceStats
    from rekindle.callbacks.device_stats import DeviceStatsMonitor as DeviceStatsMonitor
    from rekindle.callbacks.exception_file import OnExceptionCheckpoint as OnExceptionCheckpoint
    from rekindle.callbacks.functions import LambdaCallback as LambdaCallback
    from rekindle.callbacks.gradients import GradNorms as GradNorms
    from rekindle.callbacks.model_summary import ModelSummary as ModelSummary
    from rekindle.callbacks.model_summary import RichModelSummary as RichModelSummary
    from rekindle.callbacks.prediction import PredictionWriter as PredictionWriter
    from rekindle.callbacks.progress import ProgressBar as ProgressBar
    from rekindle.callbacks.progress import RichProgressBar as RichProgressBar
    from rekindle.callbacks.pruning import OptunaPruning as OptunaPruning
    from rekindle.callbacks.pruning import OptunaReporter as OptunaReporter
    from rekindle.callbacks.pruning import PruneCallback as PruneCallback
    from rekindle.callbacks.pruning import RayPruning as RayPruning
    from rekindle.callbacks.pruning import RayReporter as RayReporter
    from rekindle.callbacks.rate_finder import LearningRateFinder as LearningRateFinder
    from rekindle.callbacks.rates import LearningRateMonitor as LearningRateMonitor
    from rekindle.callbacks.spike import SpikeGuard as SpikeGuard
    from rekindle.callbacks.spike_detection import SpikeDetection as SpikeDetection
    from rekindle.callbacks.stopping import EarlyStopping as EarlyStopping
    from rekindle.callbacks.throughput import ThroughputMonitor as ThroughputMonitor
    from rekindle.callbacks.timer import Timer as Timer
    from rekindle.callbacks.tqdm_bars import TQDMProgressBar as TQDMProgressBar
    from rekindle.callbacks.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from rekindle.callbacks.weight_averaging import WeightAveraging as WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "Checkpoint",
    "OnExceptionCheckpoint",
    "EMAWeightAveraging",
    "WeightAveraging",
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
    "ModelSummary",
    "OptunaPruning",
    "OptunaReporter",
    "PredictionWriter",
    "ProgressBar",
    "PruneCallback",
    "RayPruning",
    "RayReporter",
    "RichModelSummary",
    "RichProgressBar",
    "SWA",
    "SpikeDetection",
    "SpikeGuard",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "BackboneFinetuning": ".backbone",
        "BaseFinetuning": ".base_finetuning",
        "BasePredictionWriter": ".base_writer",
        "Checkpoint": ".checkpoint",
        "OnExceptionCheckpoint": ".exception_file",
        "EMAWeightAveraging": ".weight_averaging",
        "WeightAveraging": ".weight_averaging",
        "BatchSizeFinder": ".batch_finder",
        "BatchSizeSchedule": ".batchsize",
        "Callback": "rekindle.callback",
        "DeviceStats": ".device_stats",
        "DeviceStatsMonitor": ".device_stats",
        "EMA": ".averaging",
        "EarlyStopping": ".stopping",
        "GradNorms": ".gradients",
        "GradientAccumulationScheduler": ".batchsize",
        "LambdaCallback": ".functions",
        "LearningRateFinder": ".rate_finder",
        "LearningRateMonitor": ".rates",
        "ModelCheckpoint": ".checkpoint",
        "ModelSummary": ".model_summary",
        "OptunaPruning": ".pruning",
        "OptunaReporter": ".pruning",
        "PredictionWriter": ".prediction",
        "ProgressBar": ".progress",
        "PruneCallback": ".pruning",
        "RayPruning": ".pruning",
        "RayReporter": ".pruning",
        "RichModelSummary": ".model_summary",
        "RichProgressBar": ".progress",
        "SWA": ".averaging",
        "SpikeDetection": ".spike_detection",
        "SpikeGuard": ".spike",
        "StochasticWeightAveraging": ".averaging",
        "TQDMProgressBar": ".tqdm_bars",
        "ThroughputMonitor": ".throughput",
        "Timer": ".timer",
    },
)
