"""A plain script of PyTorch Lightning. Nothing in it knows of Rekindle, and nothing has to.

    python lightning_script/train.py

is Lightning as always. In a TrainingJob that names a checkpoint URI, with an image that has
Lightning in it, the same file survives preemptions: Lightning finds Rekindle's callback by its
entry point. On a machine of your own, add it by hand, and start the script again after a SIGTERM
(exit code 75) or a crash:

    from rekindle.bridge import RekindleCallback
    trainer = pl.Trainer(callbacks=[RekindleCallback("./checkpoints")], ...)

On several pods keep their number fixed (`minReplicas` equal to `maxReplicas`): Lightning fixes the
batch per process, so another number of them would be another training.
"""

import argparse
import os

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(pl.LightningModule):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        right = (self.layers(images).argmax(1) == labels).float().mean()
        self.log("val/accuracy", right, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def data() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    samples = TensorDataset(
        torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)
    )
    train, validation = random_split(
        samples, [0.8, 0.2], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(train, 32, shuffle=True), DataLoader(validation, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="auto",
        # What Lightning wants to be told under torchrun and its like.
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    model = Digits()
    trainer.fit(model, *data())
    print(f"validation accuracy {float(trainer.callback_metrics['val/accuracy']):.3f}")


if __name__ == "__main__":
    main()
