"""A model and its data, for the tests of configurations."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


@dataclass(frozen=True)
class Shape:
    width: int
    depth: int = 1


class Net(rk.Module):
    def __init__(self, hidden: int = 4, lr=0.01, shape: Shape | None = None, name: str = "net"):
        super().__init__()
        self.save_hyperparameters("hidden", "lr", "name")
        self.shape = shape
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, hidden), torch.nn.Linear(hidden, 1))

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layers(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Needy(rk.Module):
    def __init__(self, classes: int, **more):
        super().__init__()


def loader(batch_size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(16, 2)), batch_size)


class Witness(rk.Callback):
    """Callbacks of a script are named like its model."""

    def __init__(self, word: str):
        self.word = word


number = 3
