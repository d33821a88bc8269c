"""The same with Rekindle's trainer."""

import argparse
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Net(rk.Module):
    def __init__(self, delay):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.delay = delay

    def training_step(self, batch, batch_idx):
        (x,) = batch
        time.sleep(self.delay)
        return torch.nn.functional.mse_loss(self.layer(x), x.sum(1, keepdim=True))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--delay", type=float, default=0.0)
asked = parser.parse_args()
rk.seed_everything(0)
trainer = rk.Trainer(max_steps=asked.steps, seed=0)
trainer.fit(Net(asked.delay), DataLoader(TensorDataset(torch.randn(64, 8)), 8))
