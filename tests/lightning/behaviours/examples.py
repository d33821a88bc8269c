"""What public example scripts do beside training."""

import importlib

import torch
from small import QUIET
from torch.utils.data import DataLoader, TensorDataset


def the_best_without_a_metric_is_the_newest(pl, folder):
    """`ckpt_path="best"` after a `fit` without a monitored metric is what was saved last."""

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.constant_(self.layer.weight, 0.5)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).mean()

        def test_step(self, batch, batch_idx):
            self.log("out", self.layer(batch[0]).mean())

        def predict_step(self, batch, batch_idx):
            return self.layer(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(TensorDataset(torch.ones(4, 1)), 2)
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": 2}
    trainer = pl.Trainer(default_root_dir=folder, **options)
    model = Net()
    trainer.fit(model, loader)
    torch.nn.init.constant_(model.layer.weight, 9.0)
    tested = trainer.test(model, loader, ckpt_path="best", verbose=False)
    torch.nn.init.constant_(model.layer.weight, 9.0)
    return tested, torch.cat(trainer.predict(model, loader, ckpt_path="best"))


def a_logo_is_shown_at_the_start(pl, folder):
    """`cli_lightning_logo()` says something and returns nothing."""
    return [pl.cli_lightning_logo()]


def optional_packages_are_asked_for(pl, folder):
    """`utilities.imports` says whether an optional package is installed."""
    imports = importlib.import_module(f"{pl.__name__}.utilities.imports")
    return [
        bool(getattr(imports, f"_{name}_AVAILABLE"))
        for name in ("TORCHVISION", "RICH", "OMEGACONF")
    ]
