"""Ready-made callbacks, one module each; a name loads its module when it is first used."""

from typing import TYPE_CHECKING

from rekindle.lazy_import import attributes

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.callbacks.base_writer import BasePredictionWriter as BasePredictionWriter
    from rekindle.callbacks.batch_size_schedule import BatchSizeSchedule as BatchSizeSchedule
    from rekindle.callbacks.batch_size_schedule import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from rekindle.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from rekindle.callbacks.lambda_callback import LambdaCallback as LambdaCallback
    from rekindle.callbacks.model_checkpoint import Checkpoint as Checkpoint
    from rekindle.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from rekindle.callbacks.monitors.device_stats import DeviceStats as DeviceStats
    from rekindle.callbacks.monitors.device_stats import DeviceStatsMonitor as DeviceStatsMonitor
    from rekindle.callbacks.monitors.gradient_norms import GradNorms as GradNorms
    from rekindle.callbacks.monitors.learning_rate import LearningRateMonitor as LearningRateMonitor
    from rekindle.callbacks.monitors.model_summary import ModelSummary as ModelSummary
    from rekindle.callbacks.monitors.model_summary import RichModelSummary as RichModelSummary
    from rekindle.callbacks.monitors.progress_bar import ProgressBar as ProgressBar
    from rekindle.callbacks.monitors.progress_bar import RichProgressBar as RichProgressBar
    from rekindle.callbacks.monitors.throughput import ThroughputMonitor as ThroughputMonitor
    from rekindle.callbacks.monitors.tqdm_bars import TQDMProgressBar as TQDMProgressBar
    from rekindle.callbacks.on_exception_checkpoint import (
        OnExceptionCheckpoint as OnExceptionCheckpoint,
    )
    from rekindle.callbacks.prediction_writer import PredictionWriter as PredictionWriter
    from rekindle.callbacks.search.batch_size_finder import BatchSizeFinder as BatchSizeFinder
    from rekindle.callbacks.search.learning_rate_finder import (
        LearningRateFinder as LearningRateFinder,
    )
    from rekindle.callbacks.search.trial_pruning import OptunaPruning as OptunaPruning
    from rekindle.callbacks.search.trial_pruning import OptunaReporter as OptunaReporter
    from rekindle.callbacks.search.trial_pruning import PruneCallback as PruneCallback
    from rekindle.callbacks.search.trial_pruning import RayPruning as RayPruning
    from rekindle.callbacks.search.trial_pruning import RayReporter as RayReporter
    from rekindle.callbacks.spike_detection import SpikeDetection as SpikeDetection
    from rekindle.callbacks.spike_guard import SpikeGuard as SpikeGuard
    from rekindle.callbacks.timer import Timer as Timer
    from rekindle.callbacks.weights.averaging import EMA as EMA
    from rekindle.callbacks.weights.averaging import SWA as SWA
    from rekindle.callbacks.weights.averaging import (
        StochasticWeightAveraging as StochasticWeightAveraging,
    )
    from rekindle.callbacks.weights.backbone import BackboneFinetuning as BackboneFinetuning
    from rekindle.callbacks.weights.base_finetuning import BaseFinetuning as BaseFinetuning
    from rekindle.callbacks.weights.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from rekindle.callbacks.weights.weight_averaging import WeightAveraging as WeightAveraging

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
        "BackboneFinetuning": ".weights.backbone",
        "BaseFinetuning": ".weights.base_finetuning",
        "BasePredictionWriter": ".base_writer",
        "Checkpoint": ".model_checkpoint",
        "OnExceptionCheckpoint": ".on_exception_checkpoint",
        "EMAWeightAveraging": ".weights.weight_averaging",
        "WeightAveraging": ".weights.weight_averaging",
        "BatchSizeFinder": ".search.batch_size_finder",
        "BatchSizeSchedule": ".batch_size_schedule",
        "Callback": "rekindle.callback",
        "DeviceStats": ".monitors.device_stats",
        "DeviceStatsMonitor": ".monitors.device_stats",
        "EMA": ".weights.averaging",
        "EarlyStopping": ".early_stopping",
        "GradNorms": ".monitors.gradient_norms",
        "GradientAccumulationScheduler": ".batch_size_schedule",
        "LambdaCallback": ".lambda_callback",
        "LearningRateFinder": ".search.learning_rate_finder",
        "LearningRateMonitor": ".monitors.learning_rate",
        "ModelCheckpoint": ".model_checkpoint",
        "ModelSummary": ".monitors.model_summary",
        "OptunaPruning": ".search.trial_pruning",
        "OptunaReporter": ".search.trial_pruning",
        "PredictionWriter": ".prediction_writer",
        "ProgressBar": ".monitors.progress_bar",
        "PruneCallback": ".search.trial_pruning",
        "RayPruning": ".search.trial_pruning",
        "RayReporter": ".search.trial_pruning",
        "RichModelSummary": ".monitors.model_summary",
        "RichProgressBar": ".monitors.progress_bar",
        "SWA": ".weights.averaging",
        "SpikeDetection": ".spike_detection",
        "SpikeGuard": ".spike_guard",
        "StochasticWeightAveraging": ".weights.averaging",
        "TQDMProgressBar": ".monitors.tqdm_bars",
        "ThroughputMonitor": ".monitors.throughput",
        "Timer": ".timer",
    },
)
