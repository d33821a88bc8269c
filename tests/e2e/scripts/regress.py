"""What the scenarios train: a linear model with dropout on 1,003 samples, as slowly as asked."""

import argparse
import sys
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

LANES = 4


class Net(rk.Module):
    def __init__(self, delay: float, raise_at: int | None):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
        )
        self.delay, self.raise_at = delay, raise_at

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.raise_at is not None and self.trainer.global_step >= self.raise_at:
            raise ValueError(f"the data of step {self.raise_at} is cursed")
        time.sleep(self.delay * self.trainer.world_size / LANES)
        return ((self.layers(x) - y) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--delay", type=float, default=0.0, help="seconds per step")
parser.add_argument("--raise-at", type=int)
parser.add_argument("--exit-at-once", action="store_true")
args = parser.parse_args()
if args.exit_at_once:
    sys.exit("there is nothing to train here")

generator = torch.Generator().manual_seed(0)
x = torch.randn(1003, 8, generator=generator)
data = TensorDataset(x, x.sum(1, keepdim=True))
rk.seed_everything(7)
trainer = rk.Trainer(max_steps=args.steps, global_batch_size=24, seed=7, log_every_n_steps=5)
trainer.fit(Net(args.delay, args.raise_at), DataLoader(data, batch_size=24 // LANES, shuffle=True))
