"""The training runtime. Importing it is free; torch loads with the first name used.

The operator's image holds no torch, and ``import rekindle.api`` runs this file first. So the
public names are resolved on first use (PEP 562), and a missing torch is answered with the command
that installs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.checkpoint import Store as Store
    from rekindle.checkpoint.following import follow as follow
    from rekindle.data.ledger import Audit as Audit
    from rekindle.data.ledger import audit as audit
    from rekindle.data.loader_config import LoaderConfig as LoaderConfig
    from rekindle.data.sampling.order import GlobalOrder as GlobalOrder
    from rekindle.data.splitting import split as split
    from rekindle.data.streams import ShardedStream as ShardedStream
    from rekindle.datamodule import DataModule as DataModule
    from rekindle.datamodule import DataModule as LightningDataModule
    from rekindle.errors.outcome import Preempted as Preempted
    from rekindle.errors.requirement import RequirementError as RequirementError
    from rekindle.flags import Every as Every
    from rekindle.model.module import Module as LightningModule
    from rekindle.model.module import Module as Module
    from rekindle.model.module import StepOutput as StepOutput
    from rekindle.model.optimizers import OptimizerConfig as OptimizerConfig
    from rekindle.model.optimizers import SchedulerSpec as SchedulerSpec
    from rekindle.model.precision import MixedPrecision as MixedPrecision
    from rekindle.randomness import seed_everything as seed_everything
    from rekindle.reporting import report as report
    from rekindle.trainer.trainer import Trainer as Trainer

_HOME = {
    "Audit": ("rekindle.data.ledger", "Audit"),
    "Callback": ("rekindle.callback", "Callback"),
    "DataModule": ("rekindle.datamodule", "DataModule"),
    "Every": ("rekindle.flags", "Every"),
    "GlobalOrder": ("rekindle.data.sampling.order", "GlobalOrder"),
    "LightningDataModule": ("rekindle.datamodule", "DataModule"),
    "LightningModule": ("rekindle.model.module", "Module"),
    "LoaderConfig": ("rekindle.data.loader_config", "LoaderConfig"),
    "MixedPrecision": ("rekindle.model.precision", "MixedPrecision"),
    "Module": ("rekindle.model.module", "Module"),
    "OptimizerConfig": ("rekindle.model.optimizers", "OptimizerConfig"),
    "Preempted": ("rekindle.errors.outcome", "Preempted"),
    "RequirementError": ("rekindle.errors.requirement", "RequirementError"),
    "SchedulerSpec": ("rekindle.model.optimizers", "SchedulerSpec"),
    "ShardedStream": ("rekindle.data.streams", "ShardedStream"),
    "StepOutput": ("rekindle.model.module", "StepOutput"),
    "Store": ("rekindle.checkpoint", "Store"),
    "Trainer": ("rekindle.trainer.trainer", "Trainer"),
    "audit": ("rekindle.data.ledger", "audit"),
    "follow": ("rekindle.checkpoint.following", "follow"),
    "report": ("rekindle.reporting", "report"),
    "seed_everything": ("rekindle.randomness", "seed_everything"),
    "split": ("rekindle.data.splitting", "split"),
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
    "report",
    "seed_everything",
    "split",
]


_PACKAGES = ("callbacks", "loggers", "profilers", "pytorch", "strategies")
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
