"""A run described by a file, by options and by the environment, instead of by a script.

    rekindle fit --config run.yaml net:Net --trainer.max_epochs 3      (or python -m rekindle fit)

with, in ``run.yaml``::

    model:
      class: net:Net
      hidden: 32
    data:
      class: net:Data
      batch_size: 16
    trainer:
      max_epochs: 10
      checkpoint_every: {steps: 100}
      callbacks: [{class: EarlyStopping, monitor: val/loss}, EMA]

There is one schema: a dataclass per block, made of the signature of what the block is for
(`Trainer`, the model, the data, a callback). So nothing is described twice, and a flag that the
trainer gets is a key, an option (``--trainer.max_epochs 3``) and a variable
(``REKINDLE_TRAINER_MAX_EPOCHS=3``) at once. What is said later wins: files in the order given, then
the environment (what a pod's spec says), then the command line. Each value remembers its place, and
what is wrong is answered with it:

    run.yaml:9: trainer has no key 'max_epoch'; did you mean 'max_epochs'?

`schema` turns signatures into dataclasses and values into what they ask for, `tree` reads the three
sources, `settings` puts them together, `command` is the command line. Own code and no library:
jsonargparse and pydantic know types as well, but neither answers with the line of the file and the
nearest key, and the runtime's image would carry them for this alone. Needs PyYAML.
"""

from typing import TYPE_CHECKING

from rekindle.lazy_import import attributes

if TYPE_CHECKING:
    from rekindle.config.settings import Config as Config
    from rekindle.config.settings import read as read
    from rekindle.config.tree import ConfigError as ConfigError

__all__ = ["Config", "ConfigError", "read"]

__getattr__, __dir__ = attributes(
    __name__, {"Config": ".settings", "ConfigError": ".tree", "read": ".settings"}
)
