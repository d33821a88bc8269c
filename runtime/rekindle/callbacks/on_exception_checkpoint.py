"""`OnExceptionCheckpoint`: a file of what there is when training raises.

The run itself needs none: an error flushes the newest snapshot, and the next attempt goes on from
its newest commit. The file is for people who want to look at the state that failed.
"""

import os
from typing import TYPE_CHECKING

from rekindle.callbacks.model_checkpoint import Checkpoint

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Write ``<dirpath>/<filename>.ckpt`` when training ends with an error."""

    FILE_EXTENSION = ".ckpt"
    # It holds nothing, so there is nothing to find in a checkpoint.
    optional = True

    def __init__(self, dirpath: "str | os.PathLike[str]", filename: str = "on_exception") -> None:
        if not filename:
            raise ValueError("OnExceptionCheckpoint(filename=''): the file needs a name")
        self.dirpath, self.filename = os.fspath(dirpath), filename

    @property
    def ckpt_path(self) -> str:
        """The path of the file."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def on_exception(
        self, trainer: "Trainer", pl_module: "Module", exception: BaseException
    ) -> None:
        """Write it, on rank 0 alone: peers may be gone."""
        if trainer.is_global_zero:
            trainer.save_checkpoint(self.ckpt_path)
