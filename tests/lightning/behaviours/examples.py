"""What public example scripts do beside training."""

import importlib
import os

import torch
from small import QUIET, loader, regression
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


def variables_give_the_flags_that_the_script_does_not(pl, folder):
    """``PL_TRAINER_MAX_EPOCHS`` is the default of `max_epochs`, and so for each flag."""
    os.environ["PL_TRAINER_MAX_EPOCHS"] = "2"
    os.environ["PL_TRAINER_LIMIT_TRAIN_BATCHES"] = "0.5"
    os.environ["PL_TRAINER_GRADIENT_CLIP_ALGORITHM"] = "value"
    os.environ["PL_TRAINER_MIN_EPOCHS"] = ""
    os.environ["PL_TRAINER_NOTHING"] = "1"
    trainer = pl.Trainer(default_root_dir=folder, **QUIET)
    trainer.fit(regression(pl)(), loader(8))
    explicit = pl.Trainer(default_root_dir=folder, max_epochs=3, limit_train_batches=1, **QUIET)
    explicit.fit(regression(pl)(), loader(8))
    return [
        (one.current_epoch, one.global_step, one.gradient_clip_algorithm == "value")
        for one in (trainer, explicit)
    ]


def a_subclass_has_variables_of_its_own_name(pl, folder):
    """They begin with the name of the trainer's class, and are its constructor's arguments."""

    class Short(pl.Trainer):
        def __init__(self, max_epochs=5, **options):
            super().__init__(max_epochs=max_epochs, **options)

    os.environ["PL_TRAINER_MAX_EPOCHS"] = "2"
    os.environ["PL_SHORT_MAX_STEPS"] = "3"
    first = Short(**QUIET).max_epochs
    os.environ["PL_SHORT_MAX_EPOCHS"] = "4"
    return first, Short(**QUIET).max_epochs


def steps_may_be_assigned_to_the_object(pl, folder):
    """`self.training_step = ...` in `__init__` chooses a step; so do other hooks."""
    seen = []

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.training_step = self.chosen
            self.configure_optimizers = self.sgd
            self.on_train_epoch_end = lambda: seen.append("epoch")
            self.validation_step = lambda batch, batch_idx: seen.append(f"val {batch_idx}")

        def chosen(self, batch, batch_idx):
            seen.append(batch_idx)
            return self.layer(batch[0]).mean()

        def sgd(self):
            seen.append("optimizers")
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.ones(4, 1)), 2)
    pl.Trainer(max_epochs=1, **QUIET).fit(Net(), data, data)
    return seen


def the_strategy_can_be_asked_what_it_is(pl, folder):
    """`isinstance(trainer.strategy, ParallelStrategy)` and the like say how it runs."""
    strategies = importlib.import_module(f"{pl.__name__}.strategies")
    names = (
        "Strategy", "ParallelStrategy", "SingleDeviceStrategy", "DDPStrategy", "FSDPStrategy",
        "DeepSpeedStrategy", "ModelParallelStrategy",
    )  # fmt: skip
    one = pl.Trainer(max_epochs=1, **QUIET)
    parallel = pl.Trainer(max_epochs=1, **{**QUIET, "strategy": "ddp"})
    seen = [
        [isinstance(t.strategy, getattr(strategies, n)) for n in names] for t in (one, parallel)
    ]
    return seen, parallel.strategy.num_processes, isinstance(3, strategies.FSDPStrategy)


def a_default_of_the_command_may_be_an_object(pl, folder):
    """`trainer_defaults` may hold a profiler; the command line still wins."""
    cli = importlib.import_module(f"{pl.__name__}.cli")
    profilers = importlib.import_module(f"{pl.__name__}.profilers")
    profiler = profilers.SimpleProfiler()
    if pl.__name__ == "lightning.pytorch":
        # With newer releases of jsonargparse Lightning takes no objects.
        profiler = {"class_path": "lightning.pytorch.profilers.SimpleProfiler"}
    found = []
    for args in ([], ["--trainer.profiler=advanced"]):
        made = cli.LightningCLI(
            regression(pl), args=args, run=False, save_config_callback=None,
            trainer_defaults={"profiler": profiler, **QUIET},
        )  # fmt: skip
        found.append(type(made.trainer.profiler).__name__)
    return found
