"""Models and data of a few numbers, made for whichever package a behaviour runs with.

Everything is deterministic: the same weights to begin with, the same samples in the same order.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""Flags of a trainer that says and stores nothing."""


def samples(count=8):
    """So many pairs: x of shape [4], y of shape [1]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(count=8, batch_size=2, **options):
    """The samples in order, in batches."""
    return DataLoader(samples(count), batch_size=batch_size, **options)


def regression(pl, base=None):
    """A class: one linear layer, SGD; logs ``loss`` in training and ``val_loss``."""

    class Regression(base or pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x)

        def loss(self, batch):
            x, y = batch
            return torch.nn.functional.mse_loss(self(x), y)

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Regression


def weights(module):
    """All parameters as numbers."""
    return [parameter.detach().tolist() for parameter in module.parameters()]
