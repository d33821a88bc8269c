"""A small network with blocks, trained with the strategy that the task names."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
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
    def __init__(self, drop=0.0, norm=False):
        super().__init__()
        self.normed = norm
        norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(6, 8), Block(8), nn.Dropout(drop), Block(8), norm)
        self.head = nn.Linear(8, 1)
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


def main(task):
    rk.seed_everything(1 + int(os.environ.get("RANK", "0")))
    model = Net(task.get("drop", 0.0), task.get("norm", False))
    x = torch.randn(task.get("n", 37), 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    flags = {"max_epochs": 3, "enable_progress_bar": False, "gradient_clip_val": 0.5}
    flags |= {"global_batch_size": 12, "root": task["root"], "num_sanity_val_steps": 0}
    if task.get("scaled"):
        flags["precision"] = scaled()
    trainer = rk.Trainer(**flags | task.get("flags", {}), strategy=STRATEGIES[task["strategy"]]())
    trainer.fit(
        model, DataLoader(data, task.get("batch_size", 2), shuffle=True), DataLoader(data, 5)
    )
    whole = [getattr(p.detach(), "full_tensor", p.detach)() for p in model.parameters()]
    tested = trainer.validate(model, DataLoader(data, 5)) if task.get("validate") else {}
    return {
        "root": task["root"],
        "step": trainer.global_step,
        "updates": trainer.optimizer_steps,
        "own": sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters()),
        "calls": model.net[1].calls,
        "seen": sorted(model.seen),
        "buffers": [b.flatten().tolist() for b in model.buffers()],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "tested": tested,
        "parameters": [p.flatten().tolist() for p in whole],
    }
