"""Ready-made callbacks on several ranks; `main` gives what the ranks have to agree on."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.callbacks import (
    EMA,
    SWA,
    BackboneFinetuning,
    BatchSizeFinder,
    BatchSizeSchedule,
    EarlyStopping,
    GradNorms,
    LearningRateMonitor,
    ModelCheckpoint,
    PredictionWriter,
    PruneCallback,
    SpikeGuard,
    Timer,
)


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.backbone(x)))[:, 0]

    def training_step(self, batch, batch_idx):
        if len(batch[1]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        return loss * 1000 if self.jumps and self.current_epoch and batch_idx == 5 else loss

    jumps, room = False, 99

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Slow:
    """A study that prunes, known to rank 0 only."""

    def report(self, step, metric):
        return step >= 10


def callbacks(task):
    first = task["rank"] == 0
    return {
        "finetuning": lambda: [BackboneFinetuning(1)],
        "averages": lambda: [EMA(0.5), SWA(0.05, swa_epoch_start=1)],
        "monitors": lambda: [GradNorms(every=1), LearningRateMonitor(), BatchSizeSchedule({1: 8})],
        "stopping": lambda: [EarlyStopping("val/loss", stopping_threshold=99.0)],
        "pruning": lambda: [PruneCallback(Slow() if first else None, "val/loss")],
        "timer": lambda: [Timer({"microseconds": 1}, interval="epoch")],
        "checkpoint": lambda: [ModelCheckpoint(monitor="val/loss", save_top_k=2)],
        "spike": lambda: [SpikeGuard(warmup=4, window=8)],
        "finder": lambda: [BatchSizeFinder(init_val=1)],
        "prediction": lambda: [PredictionWriter(task["root"] + "-out")],
    }[task["toolbox"]]()


def whole(tensor):
    """All of a tensor, which may be spread over the ranks."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).flatten().tolist()


def main(task):
    import os

    rk.seed_everything(1)
    task = {**task, "rank": int(os.environ.get("RANK", "0"))}
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x.sum(1) > 0).float())
    model, used = Net(), callbacks(task)
    model.jumps = task["toolbox"] == "spike"
    if task["toolbox"] == "finder" and task["rank"] == 1:
        model.room = 5
    trainer = rk.Trainer(
        root=task["root"],
        callbacks=used,
        enable_progress_bar=False,
        log_every_n_steps=1,
        checkpoint_every=rk.Every(steps=1) if model.jumps else None,
        **{"max_epochs": 3, "global_batch_size": 4, **task.get("flags", {})},
    )
    trainer.fit(model, DataLoader(data, 2, shuffle=True), DataLoader(data, 4))
    predicted = trainer.predict(model, DataLoader(data, 4)) if task.get("predict") else []
    return {
        "step": trainer.global_step,
        "micro": trainer._run.cursor.m,
        "weights": [value for p in model.parameters() for value in whole(p)],
        "shadow": [v for s in getattr(used[0], "shadow", {}).values() for v in whole(s)],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "predicted": [value for output in predicted for value in output.tolist()],
        "best": getattr(used[0], "best_model_path", ""),
    }
