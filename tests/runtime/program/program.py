"""A small training program for the tests, run in the test's process and in ranks of its own.

It has everything that could make a resumed run differ: dropout, augmentation, BatchNorm,
accumulation, clipping, schedulers, running metrics. `TASK` (a dict of plain values) says what to
do; `main` returns what the tests compare.
"""

import hashlib
import os
import signal
import time
from unittest import mock

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rekindle as rk
from rekindle.ranks.control_page import ControlPage


class Samples(Dataset):
    """Noisy vectors with their own number; labels say whether their sum is positive."""

    def __init__(self, n: int, noise: float = 0.1, first: int = 0):
        generator = torch.Generator().manual_seed(first)
        self.x = torch.randn(n, 6, generator=generator)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return x + self.noise * torch.randn(6), (x.sum() > 0).float(), index


class Net(rk.Module):
    def __init__(self, schedule=None, norm=False, dropout=0.3):
        super().__init__()
        self.schedule = schedule
        self.net = nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 1),
        )
        self.unused = nn.Linear(2, 2)
        from torchmetrics.classification import BinaryAccuracy

        self.train_accuracy = BinaryAccuracy()
        self.val_accuracy = BinaryAccuracy()

    def _loss(self, batch, metric, name):
        x, y, _ = batch
        logits = self.net(x)[:, 0]
        metric(logits, y)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, y)
        self.log(f"{name}/accuracy", metric)
        self.log(f"{name}/loss", loss, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._loss(batch, self.train_accuracy, "train")

    def validation_step(self, batch, batch_idx):
        self._loss(batch, self.val_accuracy, "val")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        lr = torch.optim.lr_scheduler
        if self.schedule is None:
            return optimizer
        if self.schedule == "plateau":
            scheduler = lr.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.05)
            spec = {"scheduler": scheduler, "monitor": "val/loss"}
        elif self.schedule == "multistep":
            spec = {"scheduler": lr.MultiStepLR(optimizer, [1, 2], gamma=0.3)}
        elif self.schedule == "onecycle":
            total = self.trainer.estimated_stepping_batches + 1
            scheduler = lr.OneCycleLR(optimizer, 0.05, total_steps=total)
            spec = {"scheduler": scheduler, "interval": "step"}
        else:
            scheduler = lr.LambdaLR(optimizer, lambda step: 0.97**step)
            spec = {"scheduler": scheduler, "interval": "step", "frequency": 2}
        return {"optimizer": optimizer, "lr_scheduler": spec}


class Witness(rk.Callback):
    """Writes down which samples were used, and stops or fails where the task says."""

    def __init__(self, task):
        self.task = task
        self.used = []
        self.losses = []
        self.validations = []
        self.accuracies = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        epoch, step = trainer.current_epoch, trainer.global_step
        self.used += [[epoch, step, sample] for sample in batch[2].tolist()]
        if self.task.get("bad_sample") in batch[2].tolist():
            batch[0].fill_(float("nan"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        step = trainer.global_step + 1
        if "slow" in self.task:
            time.sleep(self.task["slow"])
        if step == self.task.get("stop_at") and trainer.global_rank == self.task.get("notified", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        if [trainer.global_rank, step] == self.task.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.task.get("ask_at"):
            stays = trainer.global_rank in self.task["staying"]
            ControlPage.from_environment().request_stop(time.monotonic() + 30, stays=stays)
        if step == self.task.get("fail_at") and trainer.global_rank == self.task.get("failing", 0):
            raise ValueError(f"made to fail at step {step}")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.task.get("stop_in_validation") and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(trainer.global_step)
        self.accuracies.append(float(trainer.callback_metrics["val/accuracy"]))


def weights(model):
    """A digest of every parameter and buffer, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def main(task):
    """`wanted`: how many processes the job wants, as the operator tells it to the workers."""
    told = {"REKINDLE_WORKERS": str(task["wanted"])} if "wanted" in task else {}
    with mock.patch.dict(os.environ, told):
        return train(task)


def train(task):
    rk.seed_everything(task.get("init", 1) + int(os.environ.get("RANK", "0")))
    model = Net(**task.get("net", {}))
    witness = Witness(task)
    flags = {"max_epochs": 3, "enable_progress_bar": False, "log_every_n_steps": 5}
    cadence = {k: task[k] for k in ("steps", "seconds") if k in task}
    trainer = rk.Trainer(
        root=task["root"],
        callbacks=[witness],
        checkpoint_every=rk.Every(**cadence) if cadence else None,
        **{**flags, **task.get("flags", {})},
    )
    workers = task.get("workers", 0)
    short = task.get("short", {})
    data = Samples(short.get(int(os.environ.get("RANK", "0")), task.get("n", 103)))
    if task.get("tensors"):
        # Nothing is drawn while reading these, so the model's own draws stand alone.
        data = TensorDataset(data.x, (data.x.sum(1) > 0).float(), torch.arange(len(data)))
    train = DataLoader(data, task.get("batch_size", 4), shuffle=True, num_workers=workers)
    val = DataLoader(Samples(37, noise=0.0, first=9), 8)
    result = {"exit": 0, "error": None}
    try:
        trainer.fit(model, train, val)
    except rk.Preempted as stop:
        result["exit"] = stop.code
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    return {
        **result,
        "step": trainer.global_step,
        "weights": weights(model),
        "used": witness.used,
        "losses": witness.losses,
        "validations": witness.validations,
        "accuracies": witness.accuracies,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "parameters": [p.detach().flatten().tolist() for p in model.parameters()],
    }
