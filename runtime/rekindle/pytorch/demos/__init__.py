"""Small models and data sets for trying things: names of `lightning.pytorch.demos`."""

from typing import TYPE_CHECKING

from rekindle.pytorch.namespace import attributes

if TYPE_CHECKING:
    from rekindle.pytorch.demos.boring_classes import BoringDataModule as BoringDataModule
    from rekindle.pytorch.demos.boring_classes import BoringModel as BoringModel
    from rekindle.pytorch.demos.boring_classes import DemoModel as DemoModel
    from rekindle.pytorch.demos.lstm import LightningLSTM as LightningLSTM
    from rekindle.pytorch.demos.lstm import SequenceSampler as SequenceSampler
    from rekindle.pytorch.demos.lstm import SimpleLSTM as SimpleLSTM
    from rekindle.pytorch.demos.transformer import LightningTransformer as LightningTransformer
    from rekindle.pytorch.demos.transformer import Transformer as Transformer
    from rekindle.pytorch.demos.transformer import WikiText2 as WikiText2

__all__, __getattr__, __dir__ = attributes(__name__)
