"""Ready-made callbacks, one module each; a name loads its module when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.callback import Callback as Callback
    from rekindle.callbacks.checkpoint import ModelCheckpoint as ModelCheckpoint

_HOME = {
    "Callback": "rekindle.callback",
    "ModelCheckpoint": "rekindle.callbacks.checkpoint",
}
__all__ = [
    "Callback",
    "ModelCheckpoint",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
