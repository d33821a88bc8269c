"""A script of PyTorch Lightning, unchanged."""

import argparse
import os
import time

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
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
pl.seed_everything(0)
world = int(os.environ.get("WORLD_SIZE", "1"))
trainer = pl.Trainer(
    max_steps=asked.steps,
    accelerator="cpu",
    num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
    devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    strategy="ddp" if world > 1 else "auto",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Net(asked.delay), DataLoader(TensorDataset(torch.randn(64, 8)), 8))
