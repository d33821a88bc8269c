"""Where metrics go besides the console and Prometheus: ``Trainer(logger=...)``.

The names are resolved on first use, so that importing the package imports nothing else.
"""

from typing import TYPE_CHECKING, Any

from rekindle.lazy_import import attributes

if TYPE_CHECKING:
    from rekindle.loggers.comet import CometLogger as CometLogger
    from rekindle.loggers.files import CSVLogger as CSVLogger
    from rekindle.loggers.files import JSONLLogger as JSONLLogger
    from rekindle.loggers.logger import Attempt as Attempt
    from rekindle.loggers.logger import Logger as Logger
    from rekindle.loggers.mlflow import MLFlowLogger as MLFlowLogger
    from rekindle.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
    from rekindle.loggers.wandb import WandbLogger as WandbLogger

__all__ = [
    "Attempt",
    "CSVLogger",
    "CometLogger",
    "JSONLLogger",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
]


class NeptuneLogger:
    """Refused when it is made, with what there is instead."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise ValueError(
            "NeptuneLogger is not supported; use MLFlowLogger, WandbLogger, CometLogger, "
            "TensorBoardLogger, CSVLogger or JSONLLogger"
        )


__getattr__, __dir__ = attributes(
    __name__,
    {
        "Attempt": ".logger",
        "CSVLogger": ".files",
        "CometLogger": ".comet",
        "JSONLLogger": ".files",
        "Logger": ".logger",
        "MLFlowLogger": ".mlflow",
        "TensorBoardLogger": ".tensorboard",
        "WandbLogger": ".wandb",
    },
)
