"""What the scenarios train: a linear model with dropout on 1,003 samples, as slowly as asked.

What goes wrong in the program itself, or takes long in it, is asked for by arguments, too. A hang
and a loss that is no number come once: only in workers that have begun at the first step.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

LANES = 4


class Net(rk.Module):
    def __init__(self, asked: argparse.Namespace):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
        )
        self.asked = asked
        self.began: int | None = None
        self.spoilt = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        asked, step = self.asked, self.trainer.global_step
        self.began = step if self.began is None else self.began
        if asked.raise_at is not None and step >= asked.raise_at:
            raise ValueError(f"the data of step {asked.raise_at} is cursed")
        if self.began == 0 and step == asked.hang_at and self.trainer.global_rank == 1:
            self.stand_still()
        time.sleep(asked.delay * self.trainer.world_size / LANES)
        if self.trainer.global_rank == asked.slow_rank:
            time.sleep(0.03)
        loss = ((self.layers(x) - y) ** 2).mean()
        if self.began == 0 and step == asked.nan_at and not self.spoilt:
            self.spoilt = True
            return loss * math.nan
        return loss

    def stand_still(self):
        while True:
            time.sleep(0.1)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        time.sleep(self.asked.validation)
        self.log("val_loss", ((self.layers(x) - y) ** 2).mean())

    def on_validation_start(self):
        print("validation begins", flush=True)

    def on_save_checkpoint(self, checkpoint):
        if self.asked.ballast:
            checkpoint["ballast"] = torch.zeros(self.asked.ballast * 2**18)
        if self.asked.saving:
            print("saving begins", flush=True)
            time.sleep(self.asked.saving)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        asked, trainer = self.asked, self.trainer
        if trainer.global_step == asked.notice_at and trainer.global_rank == 1:
            told = Path(os.environ["REKINDLE_NOTICE_FILE"])
            told.write_text('{"seconds": 60, "reason": "rack 7 moves"}')

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--delay", type=float, default=0.0, help="seconds per step")
parser.add_argument("--raise-at", type=int)
parser.add_argument("--exit-at-once", action="store_true")
parser.add_argument("--hang-at", type=int, help="step at which rank 1 stands still")
parser.add_argument("--nan-at", type=int, help="step of which the loss is no number")
parser.add_argument("--slow-rank", type=int, help="a rank that needs 30 ms more for a batch")
parser.add_argument("--notice-at", type=int, help="step after which rank 1 finds a notice")
parser.add_argument("--validation", type=float, help="seconds per batch, of which there are 40")
parser.add_argument("--saving", type=float, default=0.0, help="seconds that a save begins with")
parser.add_argument("--batch", type=int, help="the loader's; the global batch follows from it")
parser.add_argument("--ballast", type=int, default=0, help="MB that a checkpoint is larger by")
parser.add_argument("--bitwise", action="store_true", help="equal weights on any number of ranks")
args = parser.parse_args()
if args.exit_at_once:
    sys.exit("there is nothing to train here")

generator = torch.Generator().manual_seed(0)
x = torch.randn(1003, 8, generator=generator)
data = TensorDataset(x, x.sum(1, keepdim=True))
rk.seed_everything(7)
trainer = rk.Trainer(
    max_steps=args.steps,
    global_batch_size=None if args.batch else 24,
    seed=7,
    log_every_n_steps=5,
    nonfinite="rollback",
    num_sanity_val_steps=0,
    data={"guarantee": "bitwise"} if args.bitwise else None,
    val_check_interval=20 if args.validation else None,
)
trainer.fit(
    Net(args),
    DataLoader(data, batch_size=args.batch or 24 // LANES, shuffle=True),
    DataLoader(data, batch_size=25) if args.validation else None,
)
