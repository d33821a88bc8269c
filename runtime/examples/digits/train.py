"""Classify handwritten digits: 1,797 images of 8x8 that come with scikit-learn.

    python train.py                                     # one process
    torchrun --nproc-per-node 2 train.py                # two, same result
    kubectl apply -f job.yaml                           # pods, and any of them may go away

Run it again after an interruption and it goes on where it was; `--root` says where that is kept.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

import rekindle as rk

LANES = 4
"""Micro-batches per step: the step can be shared out over up to so many processes."""


class Digits(Dataset):
    """Images of one split; training images are shifted and get a little noise."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, augment: bool):
        self.images = torch.from_numpy(images).float().div(16).unsqueeze(1)
        self.labels = torch.from_numpy(labels).long()
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = self.images[index]
        if self.augment:
            shift = torch.randint(-1, 2, (2,)).tolist()
            image = torch.roll(image, shift, dims=(1, 2)) + 0.05 * torch.randn_like(image)
        return image, self.labels[index]


class DigitsData(rk.DataModule):
    def __init__(self, batch_size: int, seed: int):
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        digits = load_digits()
        order = np.random.default_rng(self.seed).permutation(len(digits.target))
        train, val = order[:1437], order[1437:]
        self.train = Digits(digits.images[train], digits.target[train], augment=True)
        self.val = Digits(digits.images[val], digits.target[val], augment=False)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=120)


class DigitsNet(rk.Module):
    def __init__(self, lr: float, width: int = 48):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * 4, 128),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )
        self.train_accuracy = MulticlassAccuracy(10, average="micro")
        self.val_accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train/loss", loss)
        self.log("train/accuracy", self.train_accuracy)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        self.val_accuracy(logits, labels)
        self.log("val/loss", nn.functional.cross_entropy(logits, labels))
        self.log("val/accuracy", self.val_accuracy)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=64, help="over all processes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default="./checkpoints/digits")
    parser.add_argument("--max-steps", type=int, default=None)
    args = parser.parse_args()

    rk.seed_everything(args.seed)
    trainer = rk.Trainer(
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        global_batch_size=args.batch_size,
        root=args.root,
        seed=args.seed,
        checkpoint_every=rk.Every(steps=100),
        check_val_every_n_epoch=2,
        log_every_n_steps=10,
    )
    trainer.fit(DigitsNet(args.lr), DigitsData(args.batch_size // LANES, args.seed))
    if "val/accuracy" in trainer.callback_metrics:
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        trainer.print(f"validation accuracy {accuracy:.4f} after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
