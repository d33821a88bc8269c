"""The names of `lightning.pytorch`, so that only the first word of an import has to change.

``from lightning.pytorch.callbacks import ModelCheckpoint`` becomes ``from
rekindle.pytorch.callbacks import ModelCheckpoint``. Each package in here *is* the one of the same
name in `rekindle`, not a copy: a class has one identity, however it was imported.
"""

import sys

import rekindle
from rekindle import callbacks, loggers, profilers, strategies

__all__ = ["callbacks", "loggers", "profilers", "strategies"]

for _name, _package in (
    ("callbacks", callbacks),
    ("loggers", loggers),
    ("profilers", profilers),
    ("strategies", strategies),
):
    sys.modules[f"{__name__}.{_name}"] = _package


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(rekindle, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *rekindle.__all__})
