"""A sweep: a fit for each learning rate, one after the other, as slowly as asked."""

import argparse
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Net(rk.Module):
    def __init__(self, lr: float):
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2))

    def training_step(self, batch, batch_idx):
        time.sleep(args.delay)
        return (self.layers(batch[0]) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=30, help="of each fit")
parser.add_argument("--delay", type=float, default=0.0, help="seconds per batch")
args = parser.parse_args()

rk.seed_everything(7)
data = TensorDataset(torch.randn(240, 8, generator=torch.Generator().manual_seed(0)))
for lr in (0.1, 0.03, 0.01):
    trainer = rk.Trainer(max_steps=args.steps, seed=7, enable_progress_bar=False)
    trainer.fit(Net(lr), DataLoader(data, batch_size=4, shuffle=True))
