"""Small runs that are killed and begun again, one for each thing that has state (see test_kills).

`TASKS` says what to do, one run after the other: a case, its root, and where to end by SIGKILL.
"""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import rekindle as rk
from rekindle.callbacks import EMA, SWA, BatchSizeSchedule, LambdaCallback
from rekindle.model.precision import MixedPrecision

DEADLINE = 60.0
lr = torch.optim.lr_scheduler

SCHEDULES = {
    "step": lambda o: lr.StepLR(o, 4, 0.7),
    "multistep": lambda o: lr.MultiStepLR(o, [3, 11], 0.5),
    "lambda": lambda o: lr.LambdaLR(o, lambda step: 0.97**step),
    "multiplicative": lambda o: lr.MultiplicativeLR(o, lambda step: 0.98),
    "constant": lambda o: lr.ConstantLR(o, 0.3, 7),
    "linear": lambda o: lr.LinearLR(o, 0.1, total_iters=9),
    "exponential": lambda o: lr.ExponentialLR(o, 0.95),
    "polynomial": lambda o: lr.PolynomialLR(o, 12, 2.0),
    "cosine": lambda o: lr.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lr.CosineAnnealingWarmRestarts(o, 4, 2),
    "onecycle": lambda o: lr.OneCycleLR(o, 0.05, total_steps=60),
    "cyclic": lambda o: lr.CyclicLR(o, 0.001, 0.02, step_size_up=3, cycle_momentum=False),
    "chained": lambda o: lr.ChainedScheduler([lr.ConstantLR(o, 0.5, 5), lr.ExponentialLR(o, 0.9)]),
    "sequential": lambda o: lr.SequentialLR(
        o, [lr.LinearLR(o, 0.1, total_iters=5), lr.CosineAnnealingLR(o, 6)], [5]
    ),
    "plateau": lambda o: lr.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.05),
}
PER_EPOCH = {"multistep": lambda o: lr.MultiStepLR(o, [1, 2], 0.5), "plateau": SCHEDULES["plateau"]}


class Noisy(Dataset):
    """Every read draws."""

    def __init__(self, n):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return (self.x[index] + 0.1 * torch.randn(4),)


class Stream(rk.ShardedStream):
    """Shards of different lengths, without a state of their own; every read draws."""

    num_shards = 7

    def open(self, shard, state):
        for number in range(5 + shard):
            yield (torch.full((4,), shard + number / 10) + 0.1 * torch.randn(4),)


class Net(rk.Module):
    """Learns the sum of its inputs."""

    def __init__(self, schedule=None, interval="step", norm=False, dropout=0.0, overflows=()):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8) if norm else nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(8, 1),
        )
        self.schedule, self.interval, self.overflows = schedule, interval, overflows

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0])[:, 0] - batch[0].sum(1)).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.net(batch[0])[:, 0] - batch[0].sum(1)).square().mean())

    def on_after_backward(self):
        if self.global_step + 1 in self.overflows:
            self.net[0].weight.grad.fill_(float("inf"))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if self.schedule is None:
            return optimizer
        known = SCHEDULES if self.interval == "step" else PER_EPOCH
        spec = {"scheduler": known[self.schedule](optimizer), "interval": self.interval}
        if self.schedule == "plateau":
            spec["monitor"] = "val/loss"
        return {"optimizer": optimizer, "lr_scheduler": spec}


class Rivals(rk.Module):
    """Two optimizers that take turns, by hand; one of them every other batch only."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 1)
        self.drop = nn.Dropout(0.3)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        goal = batch[0].sum(1, keepdim=True)
        self.step(second, (self.other(self.one(batch[0]).detach()) - goal).square().mean(), clip=1)
        if batch_idx % 2:
            out = self.drop(self.other(self.one(batch[0])))
            self.step(first, (out - goal).square().mean())
        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self):
        first = torch.optim.SGD(self.one.parameters(), lr=0.02, momentum=0.9)
        second = torch.optim.AdamW(self.other.parameters(), lr=0.01)
        return [first, second], [lr.StepLR(first, 5, 0.8), lr.StepLR(second, 7, 0.9)]


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    return {"precision": MixedPrecision("16-mixed", "cpu", scaler), "gradient_clip_val": 1.0}


CASES = {
    "dropout": lambda: {"model": Net(dropout=0.4)},
    **{
        f"augmentation, {n} workers": lambda n=n: {
            "model": Net(dropout=0.2), "data": Noisy(50), "workers": n, "max_epochs": 2
        }
        for n in range(3)
    },
    "accumulation": lambda: {"model": Net(dropout=0.2), "accumulate_grad_batches": 3},
    **{
        f"scheduler {name}": lambda name=name: {"model": Net(name), "validate": name == "plateau"}
        for name in SCHEDULES
        if name != "plateau"
    },
    **{
        f"scheduler {name} per epoch": lambda name=name: {
            "model": Net(name, "epoch"), "validate": True
        }
        for name in PER_EPOCH
    },
    "scaler": lambda: {"model": Net(overflows=(2, 7, 8, 20, 33)), **scaled()},
    "EMA": lambda: {"model": Net(dropout=0.2), "callbacks": [EMA(0.9)], "validate": True},
    "SWA": lambda: {
        "model": Net(norm=True), "callbacks": [SWA(swa_lrs=0.02, swa_epoch_start=1)]
    },
    "several optimizers": lambda: {"model": Rivals()},
    "weighted order": lambda: {
        "model": Net(dropout=0.2),
        "order": {"sampler": WeightedRandomSampler(torch.arange(50.0) + 1, 50)},
    },
    "stream": lambda: {
        "model": Net(dropout=0.2), "data": Stream(), "order": {}, "accumulate_grad_batches": 3
    },
    "bitwise": lambda: {
        "model": Net(dropout=0.2, norm=True),
        "accumulate_grad_batches": 3,
        "promise": {"guarantee": "bitwise"},
    },
    "batch sizes": lambda: {
        "model": Net(dropout=0.2), "callbacks": [BatchSizeSchedule({0: 4, 1: 8, 2: 16})]
    },
    "BatchNorm": lambda: {"model": Net(norm=True), "validate": True},
    "mid-validation": lambda: {"model": Net(dropout=0.2, norm=True), "validate": True},
}  # fmt: skip


class Kill(rk.Callback):
    """Ends the process by SIGKILL in one hook of one step, once there is a checkpoint."""

    def __init__(self, root, hook, step):
        self.root, self.step = Path(root), step
        setattr(self, hook, self._kill)

    def _kill(self, trainer, *_):
        if trainer.global_step != self.step or trainer.sanity_checking:
            return
        limit = time.monotonic() + DEADLINE
        while not any(self.root.glob("commit/*")):
            assert time.monotonic() < limit, "nothing was committed"
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)


class Wait(rk.Callback):
    """Holds training before one step, until a file exists."""

    def __init__(self, step, path):
        self.step, self.path = step, Path(path)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        limit = time.monotonic() + DEADLINE
        while trainer.global_step == self.step and not self.path.exists():
            assert time.monotonic() < limit, f"nobody made {self.path}"
            time.sleep(0.001)


def run(case, root, kill=None, every=3, slow=None, wait=None):
    rk.seed_everything(1)
    given = CASES[case]()
    model, data = given.pop("model"), given.pop("data", None) or TensorDataset(Noisy(50).x)
    validation = DataLoader(TensorDataset(Noisy(20).x), 5) if given.pop("validate", 0) else None
    workers = given.pop("workers", 0)
    how = {
        **given.pop("order", {"shuffle": True}),
        "num_workers": workers,
        "multiprocessing_context": "fork" if workers else None,
    }
    train = DataLoader(data, 4, **how)
    callbacks = given.pop("callbacks", [])
    if kill is not None:
        callbacks.append(Kill(root, *kill))
    if slow is not None:
        callbacks.append(LambdaCallback(on_train_batch_start=lambda *_: time.sleep(slow)))
    if wait is not None:
        callbacks.append(Wait(*wait))
    trainer = rk.Trainer(
        root=root,
        callbacks=callbacks,
        checkpoint_every=rk.Every(steps=every) if every else None,
        enable_progress_bar=False,
        data=given.pop("promise", None),
        **{"max_epochs": 3, **given},
    )
    trainer.fit(model, train, validation)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task in globals()["TASKS"]:
        run(**task)
