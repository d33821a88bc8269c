"""Scripts with several fits of Lightning's, started again and again until they come to their end.

Each is a function of a `Start`, which makes trainers and notes what the script can see. A start
dies at an event that is drawn: by SIGKILL, or by a notice (SIGTERM), after which it has to save and
end with 75. What the last start has seen has to be what a run without Rekindle sees.

``REKINDLE_KILLS=20 python tests/runtime/bridge/scripts.py [NAME...]`` kills each script that often.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchmetrics import MeanMetric

from rekindle import Every
from rekindle.bridge import RekindleCallback
from rekindle.persistence import run_identity

KILLS = int(os.environ.get("REKINDLE_KILLS", "2"))


class Noisy(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        x = torch.tensor([index / 24.0, 1.0 - index / 24.0, (index % 5) / 5.0])
        return x + 0.1 * torch.randn(3), x.sum(0, keepdim=True)


class Stream(IterableDataset):
    """Knows no length and draws while it is read, as the dropout of the model does."""

    def __iter__(self):
        for index in range(24):
            yield torch.full((3,), index / 24.0) + 0.1 * torch.randn(3), torch.ones(1)


class Net(pl.LightningModule):
    def __init__(self, lr=0.05, width=6):
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(width, 1),
        )
        self.seen = MeanMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layers(x), y)
        self.seen(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val", torch.nn.functional.mse_loss(self.layers(x), y))

    def configure_optimizers(self):
        some = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(some, lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Parts(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self):
        return DataLoader(Noisy(), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Noisy(), 12)


class Events(pl.Callback):
    """Counts what happens, in all fits of a process, and ends it at one of these events."""

    def __init__(self, last=None, kind=None):
        self.count, self.last, self.kind = 0, last, kind

    def state_dict(self):
        return {}

    def happened(self, *_):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), self.kind)

    on_train_start = on_train_batch_start = on_train_epoch_end = happened
    on_validation_end = on_train_end = on_fit_end = happened

    def on_train_batch_end(self, *_):
        self.happened()


class Start:
    """One start of a script: without Rekindle, with the callback, or as in a job."""

    def __init__(self, folder, how, events):
        self.folder, self.how, self.events = folder, how, events
        self.seen = []

    def trainer(self, *callbacks, **flags):
        ours = []
        if self.how == "callback":
            ours = [RekindleCallback(f"{self.folder}/run", checkpoint_every=Every(steps=3))]
        return pl.Trainer(
            **{
                "max_epochs": 2,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "default_root_dir": str(self.folder),
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 1,
                **flags,
                "callbacks": [self.events, *callbacks, *ours],
            }
        )

    def note(self, trainer, module):
        weights = hashlib.sha256()
        for tensor in module.state_dict().values():
            weights.update(tensor.numpy().tobytes())
        states = [group["lr"] for o in trainer.optimizers for group in o.param_groups]
        self.seen.append(
            {
                "weights": weights.hexdigest()[:16],
                "metrics": {n: float(value) for n, value in trainer.callback_metrics.items()},
                "logged": {n: float(value) for n, value in trainer.logged_metrics.items()},
                "done": [trainer.global_step, trainer.current_epoch, trainer.should_stop],
                "loops": {n: repr(part) for n, part in trainer.fit_loop.state_dict().items()},
                "rates": states,
                "seen": float(module.seen.mean_value),
                "next": float(torch.rand(())) + random.random(),
            }
        )


def sweep(start):
    """One fit for each learning rate; the best goes on."""
    found = []
    for lr in (0.05, 0.01, 0.2):
        module = Net(lr=lr)
        patience = EarlyStopping("val", patience=1)
        trainer = start.trainer(patience, max_epochs=3)
        trainer.fit(module, DataLoader(Noisy(), 4, shuffle=True), DataLoader(Noisy(), 12))
        start.note(trainer, module)
        start.seen.append([float(patience.best_score), patience.stopped_epoch])
        found.append(float(trainer.callback_metrics["val"]))
    start.seen.append(found)


def folds(start):
    """Cross-validation, with a test after each fold."""
    for fold in range(3):
        held = [index for index in range(24) if index % 3 == fold]
        rest = [index for index in range(24) if index % 3 != fold]
        module, data = Net(), Noisy()
        trainer = start.trainer()
        trainer.fit(module, DataLoader(Subset(data, rest), 4, shuffle=True))
        start.note(trainer, module)
        start.seen += trainer.validate(module, DataLoader(Subset(data, held), 4), verbose=False)


def stages(start):
    """A head alone, then all of the module by another trainer, and by the same for longer."""
    module = Net()
    data = DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    validation = DataLoader(Noisy(), 12)
    module.layers[0].requires_grad_(False)
    trainer = start.trainer(max_steps=8, max_epochs=-1, val_check_interval=3)
    trainer.fit(module, data, validation)
    start.note(trainer, module)
    module.layers[0].requires_grad_(True)
    module.lr = 0.01
    trainer = start.trainer(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(module, data, validation)
    start.note(trainer, module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data, validation)
    start.note(trainer, module)


def tuned(start):
    """What the tuner finds is what is trained with."""
    module, parts = Net(), Parts()
    trainer = start.trainer()
    tuner = Tuner(trainer)
    tuner.scale_batch_size(module, datamodule=parts, init_val=2, max_trials=1, steps_per_trial=1)
    tuner.lr_find(module, datamodule=parts, num_training=15, min_lr=1e-3, max_lr=0.5)
    start.seen.append([module.lr, parts.batch_size])
    trainer.fit(module, datamodule=parts)
    start.note(trainer, module)


def finder(start):
    """A finder among the callbacks, which searches as the fit begins."""
    module = Net()
    trainer = start.trainer(LearningRateFinder(1e-3, 0.5, num_training_steps=15))
    trainer.fit(module, DataLoader(Noisy(), 4, shuffle=True), DataLoader(Noisy(), 12))
    start.note(trainer, module)
    start.seen.append(module.lr)


def streams(start):
    """Iterables without a length, then a list of batches."""
    module = Net()
    trainer = start.trainer()
    trainer.fit(module, DataLoader(Stream(), 4))
    start.note(trainer, module)
    trainer = start.trainer(max_epochs=1)
    trainer.fit(module, Batches())
    start.note(trainer, module)


class Batches:
    """Any iterable of batches."""

    def __iter__(self):
        for index in range(5):
            yield torch.full((4, 3), index / 5.0) + 0.1 * torch.randn(4, 3), torch.ones(4, 1)


SCRIPTS = {each.__name__: each for each in (sweep, folds, stages, tuned, finder, streams)}


def begin(name, folder, how, kill):
    """One start in a process of its own: its exit status, and what it has seen."""
    out = Path(folder, "seen.json")
    out.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _start(name, folder, how, kill, out)
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), json.loads(out.read_text()) if out.exists() else None


def _start(name, folder, how, kill, out):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if how == "job":
        os.environ.update(
            REKINDLE_CHECKPOINT_URI=f"file://{folder}/run",
            REKINDLE_CHECKPOINT_EVERY_STEPS="3",
            REKINDLE_JOB_NAME="job",
            REKINDLE_JOB_NAMESPACE="team",
        )
    start = Start(folder, how, Events(*(kill or ())))
    pl.seed_everything(11, verbose=False)
    try:
        SCRIPTS[name](start)
    except SystemExit as end:
        return end.code or 0
    run_identity._end(os.getpid())
    out.write_text(json.dumps([start.events.count, start.seen]))
    return 0


def loop(name, folder, kills, seed):
    """What a plain run sees, and what each that was killed has seen in the end."""
    draw = random.Random(f"{seed} {name}")
    code, (events, plain) = begin(name, folder, "plain", None)
    assert code == 0
    rounds, ends, left = [], [], kills
    while left or not rounds:
        how = ("callback", "job")[len(rounds) % 2]
        place = Path(folder, str(len(rounds)))
        place.mkdir()
        code, seen = -1, None
        while code != 0:
            kill = None
            if left:
                kill = draw.randrange(1, events + 1), draw.choice((signal.SIGKILL, signal.SIGTERM))
            code, seen = begin(name, place, how, kill)
            left -= code != 0
            ends.append(code)
            # Between two fits nobody listens, and nothing is on its way that could be lost.
            assert code in {0, 75, -signal.SIGKILL, -signal.SIGTERM}, (name, how, kill, code)
        rounds.append(seen[1])
        shutil.rmtree(place)
    return {"plain": plain, "rounds": rounds, "ends": ends}


def loops(folder, names=tuple(SCRIPTS), kills=KILLS, seed=0):
    found = {}
    for name in names:
        place = Path(folder, name)
        place.mkdir()
        found[name] = loop(name, place, kills, seed)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        results = loops(root, sys.argv[1:] or tuple(SCRIPTS), seed=random.randrange(1 << 30))
    for script, result in results.items():
        same = [each == result["plain"] for each in result["rounds"]]
        print(script, "ends", result["ends"], "equal", same)
        for each in result["rounds"]:
            if each != result["plain"]:
                for one, other in zip(result["plain"], each, strict=True):
                    if one != other:
                        print(f"  {one}\n  {other}")
