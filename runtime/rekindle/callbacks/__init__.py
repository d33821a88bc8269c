"""Ready-made callbacks, one module each; a name loads its module when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.callbacks.averaging import EMA as EMA
    from rekindle.callbacks.averaging import SWA as SWA
    from rekindle.callbacks.averaging import StochasticWeightAveraging as StochasticWeightAveraging
    from rekindle.callbacks.checkpoint import ModelCheckpoint as ModelCheckpoint
    from rekindle.callbacks.functions import LambdaCallback as LambdaCallback
    from rekindle.callbacks.gradients import GradNorms as GradNorms
    from rekindle.callbacks.rates import LearningRateMonitor as LearningRateMonitor
    from rekindle.callbacks.stopping import EarlyStopping as EarlyStopping

_HOME = {
    "Callback": "rekindle.callback",
    "EMA": "rekindle.callbacks.averaging",
    "EarlyStopping": "rekindle.callbacks.stopping",
    "GradNorms": "rekindle.callbacks.gradients",
    "LambdaCallback": "rekindle.callbacks.functions",
    "LearningRateMonitor": "rekindle.callbacks.rates",
    "ModelCheckpoint": "rekindle.callbacks.checkpoint",
    "SWA": "rekindle.callbacks.averaging",
    "StochasticWeightAveraging": "rekindle.callbacks.averaging",
}
__all__ = [
    "Callback",
    "EMA",
    "EarlyStopping",
    "GradNorms",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "SWA",
    "StochasticWeightAveraging",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
