"""A small network with blocks, trained with the strategy that the task names."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.callbacks import EMA
from rekindle.checkpoint import shards
from rekindle.checkpoint.format.tensors import named
from rekindle.strategies import FSDP2, DeepSpeedStrategy, FSDPStrategy


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(rk.Module):
    def __init__(self, drop=0.0, norm=False, width=8):
        super().__init__()
        self.normed = norm
        norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.net = nn.Sequential(
            nn.Linear(6, width), Block(width), nn.Dropout(drop), Block(width), norm
        )
        self.head = nn.Linear(width, 1)
        from torchmetrics import MeanSquaredError

        self.error = MeanSquaredError()
        self.seen = set()

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, batch_idx):
        out = self(batch[0])
        self.seen.add(str(out.dtype))
        return rk.StepOutput(
            loss=nn.functional.mse_loss(out, batch[1]), metrics={"mean": out.detach().mean()}
        )

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.error(out, batch[1])
        self.log("val/error", self.error)
        self.log("val/loss", nn.functional.mse_loss(out, batch[1]))

    def configure_optimizers(self):
        if self.normed:
            # Biases before a norm have a gradient of rounding errors, which Adam makes large.
            return torch.optim.SGD(self.parameters(), lr=0.05)
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def tensor_parallel_plan(self):
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

        plan = {}
        for block in ("net.1", "net.3"):
            plan |= {f"{block}.up": ColwiseParallel(), f"{block}.down": RowwiseParallel()}
        return plan


STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp2": lambda: FSDP2(wrap={Block}, ac={Block}),
    "plain": lambda: "fsdp",
    "bf16": lambda: FSDP2(wrap={Block}, mp="bf16"),
    "named": lambda: FSDPStrategy(
        auto_wrap_policy={Block}, activation_checkpointing_policy={Block},
        sharding_strategy="SHARD_GRAD_OP",
    ),
    "deepspeed": lambda: DeepSpeedStrategy(
        stage=3, offload_optimizer=True, offload_parameters=False,
        allgather_bucket_size=5e8, reduce_bucket_size=5e8,
    ),
}  # fmt: skip


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4)
    return rk.MixedPrecision("16-mixed", "cpu", scaler)


class Reading(rk.Callback):
    """Counts the bytes that this rank reads of a checkpoint, and those of the tensors it gets."""

    def __init__(self):
        self.read, self.got = 0, 0
        self._get = shards._get

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        found = named(checkpoint).values()
        self.got = sum(getattr(t, "to_local", lambda t=t: t)().nbytes for t in found)

    def __enter__(self):
        shards._get = self._counted
        return self

    def __exit__(self, *_):
        shards._get = self._get

    def _counted(self, objects, entry, into, start, what):
        self.read += len(into)
        return self._get(objects, entry, into, start, what)


def main(task):
    with Reading() as reading:
        return train(task, reading) | {"read": reading.read, "got": reading.got}


def train(task, reading):
    rk.seed_everything(1 + int(os.environ.get("RANK", "0")))
    model = Net(task.get("drop", 0.0), task.get("norm", False), task.get("width", 8))
    x = torch.randn(task.get("n", 37), 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    flags = {"max_epochs": 3, "enable_progress_bar": False, "gradient_clip_val": 0.5}
    flags |= {"global_batch_size": 12, "root": task["root"], "num_sanity_val_steps": 0}
    if task.get("scaled"):
        flags["precision"] = scaled()
    flags["callbacks"] = [reading, EMA()] if task.get("average") else [reading]
    trainer = rk.Trainer(**flags | task.get("flags", {}), strategy=STRATEGIES[task["strategy"]]())
    trainer.fit(
        model, DataLoader(data, task.get("batch_size", 2), shuffle=True), DataLoader(data, 5)
    )
    whole = [getattr(p.detach(), "full_tensor", p.detach)() for p in model.parameters()]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.validate(model, DataLoader(data, 5))[0] if task.get("validate") else {}
    return {
        "root": task["root"],
        "step": trainer.global_step,
        "updates": trainer.optimizer_steps,
        "own": sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters()),
        "calls": model.net[1].calls,
        "seen": sorted(model.seen),
        "buffers": [b.flatten().tolist() for b in model.buffers()],
        "metrics": metrics,
        "tested": tested,
        "parameters": [p.flatten().tolist() for p in whole],
    }
