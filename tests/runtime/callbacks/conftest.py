"""A run of a few milliseconds, to be stopped and resumed in this process."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Net(rk.Module):
    """Learns the sign of a sum; logs what callbacks look at."""

    def __init__(self, dropout=0.1):
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, x):
        return self.head(self.backbone(x))[:, 0]

    def loss(self, batch):
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)


class Stop(rk.Callback):
    """Gives notice of preemption while `step` runs."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def samples(n=20, seed=0):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum(1) > 0).float())


@pytest.fixture(scope="session")
def data():
    return samples(), samples(8, 1)


@pytest.fixture
def net():
    """The module's class."""
    return Net


@pytest.fixture
def fit(data, tmp_path):
    """Train for three epochs of five steps with these callbacks; gives the trainer."""

    def run(
        *callbacks,
        stop=None,
        root="run",
        model=None,
        validation=True,
        shuffle=True,
        start=None,
        **flags,
    ):
        rk.seed_everything(1)
        model = (model or Net)()
        trainer = rk.Trainer(
            root=tmp_path / root,
            callbacks=[*callbacks, *([Stop(stop)] if stop else [])],
            **{
                "max_epochs": 3,
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                **flags,
            },
        )
        train, val = data
        loaders = DataLoader(train, 4, shuffle=shuffle), DataLoader(val, 4) if validation else None
        if stop is None:
            trainer.fit(model, *loaders, ckpt_path=start)
        else:
            with pytest.raises(rk.Preempted):
                trainer.fit(model, *loaders)
        return trainer

    return run


@pytest.fixture
def weights():
    """Every tensor of a module as one list of bytes."""

    def digest(model):
        return [t.detach().clone() for t in model.state_dict().values()]

    return digest


@pytest.fixture
def same(weights):
    """Whether two trainers' models hold the same bits."""

    def compare(one, other):
        pairs = zip(weights(one.model), weights(other.model), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    return compare
