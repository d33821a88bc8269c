"""The names of `lightning.pytorch`, so that only the first word of an import has to change.

``from lightning.pytorch.callbacks import ModelCheckpoint`` becomes ``from
rekindle.pytorch.callbacks import ModelCheckpoint``, and so for every module that Lightning has. A
class has one identity, however it was imported. `names` says where each name lives, `namespace`
makes the modules.
"""

from typing import TYPE_CHECKING

from rekindle.pytorch.namespace import attributes, install

if TYPE_CHECKING:
    from rekindle import Callback as Callback
    from rekindle import LightningDataModule as LightningDataModule
    from rekindle import LightningModule as LightningModule
    from rekindle import Trainer as Trainer
    from rekindle import seed_everything as seed_everything

__version__ = "2.6.6"
"""The release of Lightning whose meaning these names have."""

install()
__all__, __getattr__, __dir__ = attributes(__name__)
