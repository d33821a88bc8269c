"""The training runtime. Importing it is free; torch loads with the first name used.

The operator's image holds no torch, and ``import rekindle.contract`` runs this file first. So the
public names are resolved on first use (PEP 562), and a missing torch is answered with the command
that installs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.checkpoint import Store as Store
    from rekindle.datamodule import DataModule as DataModule
    from rekindle.datamodule import DataModule as LightningDataModule
    from rekindle.flags import Every as Every
    from rekindle.following import follow as follow
    from rekindle.ledger import Audit as Audit
    from rekindle.ledger import audit as audit
    from rekindle.loaderconfig import LoaderConfig as LoaderConfig
    from rekindle.module import Module as LightningModule
    from rekindle.module import Module as Module
    from rekindle.module import StepOutput as StepOutput
    from rekindle.optimizers import OptimizerConfig as OptimizerConfig
    from rekindle.optimizers import SchedulerSpec as SchedulerSpec
    from rekindle.order import GlobalOrder as GlobalOrder
    from rekindle.outcome import Preempted as Preempted
    from rekindle.precision import MixedPrecision as MixedPrecision
    from rekindle.randomness import seed_everything as seed_everything
    from rekindle.requirement import RequirementError as RequirementError
    from rekindle.splitting import split as split
    from rekindle.streams import ShardedStream as ShardedStream
    from rekindle.trainer import Trainer as Trainer

_HOME = {
    "Audit": ("rekindle.ledger", "Audit"),
    "Callback": ("rekindle.callback", "Callback"),
    "DataModule": ("rekindle.datamodule", "DataModule"),
    "Every": ("rekindle.flags", "Every"),
    "GlobalOrder": ("rekindle.order", "GlobalOrder"),
    "LightningDataModule": ("rekindle.datamodule", "DataModule"),
    "LightningModule": ("rekindle.module", "Module"),
    "LoaderConfig": ("rekindle.loaderconfig", "LoaderConfig"),
    "MixedPrecision": ("rekindle.precision", "MixedPrecision"),
    "Module": ("rekindle.module", "Module"),
    "OptimizerConfig": ("rekindle.optimizers", "OptimizerConfig"),
    "Preempted": ("rekindle.outcome", "Preempted"),
    "RequirementError": ("rekindle.requirement", "RequirementError"),
    "SchedulerSpec": ("rekindle.optimizers", "SchedulerSpec"),
    "ShardedStream": ("rekindle.streams", "ShardedStream"),
    "StepOutput": ("rekindle.module", "StepOutput"),
    "Store": ("rekindle.checkpoint", "Store"),
    "Trainer": ("rekindle.trainer", "Trainer"),
    "audit": ("rekindle.ledger", "audit"),
    "follow": ("rekindle.following", "follow"),
    "seed_everything": ("rekindle.randomness", "seed_everything"),
    "split": ("rekindle.splitting", "split"),
}
__all__ = [
    "Audit",
    "Callback",
    "DataModule",
    "Every",
    "GlobalOrder",
    "LightningDataModule",
    "LightningModule",
    "LoaderConfig",
    "MixedPrecision",
    "Module",
    "OptimizerConfig",
    "Preempted",
    "RequirementError",
    "SchedulerSpec",
    "ShardedStream",
    "StepOutput",
    "Store",
    "Trainer",
    "audit",
    "follow",
    "seed_everything",
    "split",
]


_PACKAGES = ("callbacks", "loggers", "profilers", "strategies")
"""Importing these is free as well, so ``rekindle.callbacks.Timer`` works without an import."""


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"torch", "numpy"}:
            raise
        raise ModuleNotFoundError(
            f"rekindle.{name} needs {error.name}, which is not installed: "
            f"pip install 'rekindle[runtime]'",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
