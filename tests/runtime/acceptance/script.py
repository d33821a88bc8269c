"""A script as it was written for Lightning, with nothing changed but its import lines."""

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, random_split
from torchmetrics import Accuracy, F1Score

import rekindle as L
from rekindle.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint


class Images(Dataset):
    """Synthetic stand-in for an image folder: 3 separable classes."""

    def __init__(self, n=128):
        self.transform = None
        g = torch.Generator().manual_seed(0)
        self.y = torch.randint(0, 3, (n,), generator=g)
        self.x = torch.randn(n, 3, 16, 16, generator=g) + self.y.view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x = self.x[i]
        return (self.transform(x) if self.transform else x), self.y[i]


def augment(t):
    return t + 0.1 * torch.randn_like(t)


def plain(t):
    return t


class Net(L.LightningModule):
    def __init__(self, num_classes: int, lr: float = 1e-3, weight_decay: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, num_classes))
        self.train_acc = Accuracy(task="multiclass", num_classes=num_classes)
        self.val_acc = Accuracy(task="multiclass", num_classes=num_classes)
        self.val_f1 = F1Score(task="multiclass", num_classes=num_classes, average="macro")
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.classifier(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        self.train_acc(logits.argmax(dim=1), y)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_acc(logits.argmax(dim=1), y)
        self.val_f1(logits.argmax(dim=1), y)
        self.log("val/loss", self.criterion(logits, y), prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)
        self.log("val/f1", self.val_f1, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(
            self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay
        )
        sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=self.trainer.max_epochs)
        return {"optimizer": opt, "lr_scheduler": sched}


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 8, num_workers: int = 1):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        full = Images()
        n = int(0.8 * len(full))
        self.train_ds, self.val_ds = random_split(
            full, [n, len(full) - n], generator=torch.Generator().manual_seed(42)
        )
        self.train_ds.dataset.transform = augment  # the shared-dataset bug, on purpose
        self.val_ds.dataset.transform = plain

    def _loader(self, ds, **kw):
        return DataLoader(
            ds,
            batch_size=self.hparams.batch_size,
            num_workers=self.hparams.num_workers,
            pin_memory=True,
            persistent_workers=True,
            **kw,
        )

    def train_dataloader(self):
        return self._loader(self.train_ds, shuffle=True)

    def val_dataloader(self):
        return self._loader(self.val_ds)


class GradientMonitor(L.Callback):
    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step % 4:
            return
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                norm = p.grad.norm(2).item()
                pl_module.log(f"gradients/{name}_norm", norm)
                if norm > 100:
                    trainer.print(f"large gradient in {name}: {norm:.2f}")


class DynamicBatchSize(L.Callback):
    def __init__(self, initial=8, max_size=32, increase_every=1):
        self.initial, self.max_size, self.increase_every = initial, max_size, increase_every
        self.seen = set()

    def on_train_epoch_start(self, trainer, pl_module):
        size = self.initial * 2 ** (trainer.current_epoch // self.increase_every)
        trainer.datamodule.hparams.batch_size = min(size, self.max_size)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.add((trainer.current_epoch, len(batch[1])))


if __name__ == "__main__":
    dynamic = DynamicBatchSize()
    trainer = L.Trainer(
        accelerator="gpu",
        devices=4,
        strategy="ddp",
        precision="16-mixed",
        max_epochs=2,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        default_root_dir="./checkpoints",
        callbacks=[
            ModelCheckpoint(
                monitor="val/f1", mode="max", save_top_k=3, filename="{epoch}-{val/f1:.3f}"
            ),
            EarlyStopping(monitor="val/loss", patience=10, mode="min"),
            LearningRateMonitor(logging_interval="step"),
            GradientMonitor(),
            dynamic,
        ],
    )
    model, data = Net(3), Data()
    trainer.fit(model, data)
    trainer.test(model, data, ckpt_path="best")
    predictions = trainer.predict(model, data)
