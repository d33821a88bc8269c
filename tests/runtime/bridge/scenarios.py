"""Everything that the tests of the Lightning bridge look at, done in one process.

Importing Lightning takes four seconds, so it is done once: the ranks and the victims are forks of
this process, taken before it computes anything. Prints one JSON object.
"""

import contextlib
import hashlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import scripts
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from rekindle import Every
from rekindle.bridge import RekindleCallback, RekindlePlugin, callbacks
from rekindle.persistence import run_identity
from rekindle.ranks.control_page import ControlPage

STEPS = 30


class Noisy(Dataset):
    """Augmentation: each reading of a sample draws."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        x = torch.tensor([index / 40.0, 1.0 - index / 40.0, (index % 7) / 7.0])
        return x + 0.1 * torch.randn(3), x.sum(0, keepdim=True)


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(40):
            yield torch.full((3,), index / 40.0), torch.tensor([index / 40.0])


class Net(pl.LightningModule):
    def __init__(self, notice=None, lr=0.05, every=5):
        super().__init__()
        self.save_hyperparameters(ignore="notice")
        self.notice = notice or (lambda module: None)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 1),
        )
        self.seen = MeanMetric()
        self.validated = 0

    def training_step(self, batch, batch_idx):
        x, y = batch if isinstance(batch[0], torch.Tensor) else batch[batch_idx % 2]
        loss = torch.nn.functional.mse_loss(self.layers(x), y)
        self.seen(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        self.notice(self)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.validated += 1
        self.log("val", torch.nn.functional.mse_loss(self.layers(x), y), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        plateau = {"scheduler": scheduler, "monitor": "val", "interval": "step"}
        plateau["frequency"] = self.hparams.every
        return {"optimizer": optimizer, "lr_scheduler": plateau}


class Duel(Net):
    """Manual optimization with two optimizers, as a GAN has it."""

    def __init__(self, notice=None, **more):
        super().__init__(notice, **more)
        self.automatic_optimization = False
        self.other = torch.nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.layers[:3](x)
        first, second = self.optimizers()
        for optimizer, head in ((first, self.layers[3]), (second, self.other)):
            optimizer.zero_grad()
            self.manual_backward((head(features.detach()) - y).square().mean())
            optimizer.step()
        self.notice(self)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.layers[3].parameters(), lr=0.05),
            torch.optim.SGD(self.other.parameters(), lr=0.05, momentum=0.9),
        ]


def fit(root, *, notice=None, data=None, ckpt_path=None, bridge=None, plugins=(), **flags):
    """What one `fit` has come to, in a start of the script."""
    run_identity.forget()
    pl.seed_everything(7, verbose=False)
    kind = flags.pop("kind", Net)
    # Callbacks have state: each fit gets its own.
    more = [make() for make in flags.pop("more", ())]
    module = kind(notice, every=5 if flags.get("val_check_interval", 5) == 5 else 10)
    callback = RekindleCallback(root, **(bridge or {}))
    trainer = pl.Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "val_check_interval": 5,
            "log_every_n_steps": 1,
            **flags,
            "callbacks": [callback, *more],
            "plugins": list(plugins),
        }
    )
    code = None
    before = signal.getsignal(signal.SIGTERM)
    if data is None:
        data = DataLoader(Noisy(), 4, shuffle=True)
    try:
        trainer.fit(module, data, DataLoader(Noisy(), 20), ckpt_path=ckpt_path)
    except SystemExit as end:
        code = end.code
    assert signal.getsignal(signal.SIGTERM) == before
    for thread in threading.enumerate():
        if thread.name == "rekindle-lease":
            thread.join(60)  # renewals come every 20 s
            assert not thread.is_alive(), root
    weights = hashlib.sha256()
    for tensor in module.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    return {
        "code": code,
        "step": trainer.global_step,
        "weights": weights.hexdigest()[:16],
        "rates": [group["lr"] for o in trainer.optimizers for group in o.param_groups],
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "validated": module.validated,
    }


def sigterm_at(step):
    def notice(module):
        if module.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return notice


def disturbed(folder, stop, **task):
    """An undisturbed run, and one that was preempted and went on."""
    make = task.pop("make", lambda: None)
    return {
        "whole": fit(f"{folder}/whole", data=make(), **task),
        "first": fit(f"{folder}/cut", data=make(), notice=sigterm_at(stop), **task),
        "second": fit(f"{folder}/cut", data=make(), **task),
    }


def loader(workers):
    return lambda: DataLoader(
        Noisy(), 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def everything(folder):
    results = {}
    for stop in (0, 4, 9, 13, 19, 23):
        results[f"step {stop}"] = disturbed(f"{folder}/{stop}", stop)
    results["workers"] = disturbed(f"{folder}/w", 13, make=loader(2))
    results["accumulation"] = disturbed(f"{folder}/a", 7, accumulate_grad_batches=3)
    results["stream"] = disturbed(
        f"{folder}/i", 13, make=lambda: DataLoader(Stream(), 4), val_check_interval=1.0
    )
    results["own generator"] = disturbed(
        f"{folder}/g",
        9,
        make=lambda: DataLoader(
            Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
    )
    results["two loaders"] = disturbed(
        f"{folder}/t", 13, make=lambda: CombinedLoader([loader(0)(), loader(0)()], "min_size")
    )
    results["reloading"] = disturbed(f"{folder}/r", 13, reload_dataloaders_every_n_epochs=1)
    results["averaging"] = disturbed(
        f"{folder}/m", 13, more=[lambda: WeightAveraging(avg_fn=get_ema_avg_fn(0.9))]
    )
    results["changing accumulation"] = disturbed(
        f"{folder}/c", 12, more=[lambda: GradientAccumulationScheduler({0: 1, 1: 2})]
    )
    results["manual"] = disturbed(f"{folder}/d", 26, kind=Duel)
    fit(f"{folder}/longer", max_epochs=2)
    results["longer"] = fit(f"{folder}/longer")
    results["again"] = fit(f"{folder}/13/cut")
    stopper = {"max_epochs": 50}
    stopper["more"] = [lambda: EarlyStopping("val", patience=2, check_on_train_epoch_end=False)]
    results["early"] = [fit(f"{folder}/e", **stopper) for _ in range(2)]
    results["page"] = page(f"{folder}/page")
    results["kill"] = fit(f"{folder}/kill")
    results["warm"] = fit(f"{folder}/x", ckpt_path=f"{folder}/13/cut", plugins=[RekindlePlugin()])
    results["tested"] = tested(f"{folder}/13/cut")
    fit(f"{folder}/interrupted", notice=sigterm_at(9))
    results["refused"] = refused(folder)
    results["damaged"] = damaged(f"{folder}/kill")
    os.environ["REKINDLE_CHECKPOINT_URI"] = f"file://{folder}/job"
    results["automatic"] = [type(callback).__name__ for callback in callbacks()]
    results["job"] = fit(f"{folder}/script", max_epochs=1)
    results["job went to"] = Path(folder, "job", "commit").is_dir()
    del os.environ["REKINDLE_CHECKPOINT_URI"]
    results["example"] = example()
    return results


def example():
    """What the plain script among the examples prints last."""
    script = Path(__file__).parents[3] / "runtime" / "examples" / "lightning_script" / "train.py"
    before, sys.argv = sys.argv, [str(script), "--epochs", "4"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(script), run_name="__main__")
    sys.argv = before
    return out.getvalue().strip().splitlines()[-1]


def scripts_main(folder):
    """Sweep, folds, stages, tuner: killed and started again; it computes nothing by itself."""
    Path(folder).mkdir()
    Path(folder, "loops.json").write_text(json.dumps(scripts.loops(folder)))


def page(folder):
    """As under an agent: told by the page, reporting to it."""
    directory = Path(folder)
    directory.mkdir()
    agents = ControlPage(directory, create=True)
    os.environ["REKINDLE_RUN_DIR"] = folder

    def notice(module):
        if module.global_step == 13:
            agents.request_stop(time.monotonic() + 60)

    first = fit(f"{folder}/run", notice=notice)
    del os.environ["REKINDLE_RUN_DIR"]
    return {
        "first": first,
        "attached": agents.attached,
        "progress": agents.progress().to_json(),
        "committed": agents.checkpoint("").step,
        "restored": agents.restored().to_json(),
        "worlds": agents.worlds,
    }


def tested(uri):
    """Another entry point, with the run as `ckpt_path`."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, plugins=[RekindlePlugin()]
    )
    module = Net()
    found = trainer.validate(module, DataLoader(Noisy(), 20), ckpt_path=uri, verbose=False)
    return {"weights": float(module.layers[0].weight.detach().sum()), "found": list(found[0])}


def refused(folder):
    said = {}
    for name, task in {
        "flag": {"bridge": {"keep_latest": 0}},
        "must": {"bridge": {"resume": "must"}},
    }.items():
        try:
            fit(f"{folder}/refused", **task)
        except Exception as error:
            said[name] = str(error)
    try:
        fit(f"{folder}/ranks/cut", val_check_interval=1.0)
    except Exception as error:
        said["ranks"] = str(error)
    for name, task in {
        "other": {"val_check_interval": 1.0, "kind": Duel},
        "data": {"data": DataLoader(Noisy(), 5, shuffle=True)},
        "once": {"data": iter([1])},
    }.items():
        try:
            fit(f"{folder}/interrupted", **task)
        except Exception as error:
            said[name] = str(error)
    # With an operator the next round has as many as it takes.
    directory = Path(folder, "told")
    directory.mkdir()
    agents = ControlPage(directory, create=True)
    with mock.patch.dict(os.environ, REKINDLE_RUN_DIR=str(directory), REKINDLE_WORKERS="2"):
        code = fit(f"{folder}/ranks/cut", val_check_interval=1.0)["code"]
        said["fewer"] = [code, *agents.worlds]
    spawned = pl.Trainer(accelerator="cpu", strategy="ddp_spawn", devices=2, logger=False)
    try:
        RekindleCallback(f"{folder}/refused").setup(spawned, Net(), "fit")
    except ValueError as error:
        said["spawn"] = str(error)
    sharded = pl.Trainer(accelerator="cpu", strategy=ModelParallelStrategy(), logger=False)
    try:
        RekindleCallback(f"{folder}/refused").setup(sharded, Net(), "fit")
    except ValueError as error:
        said["sharded"] = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RekindleCallback(_automatic=True).setup(spawned, Net(), "fit")
    said["aside"] = str(caught[-1].message)
    os.environ["WORLD_SIZE"] = "2"
    try:
        fit(f"{folder}/refused")
    except ValueError as error:
        said["alone"] = str(error)
    del os.environ["WORLD_SIZE"]
    return said


def damaged(root):
    """Fits after the newest checkpoint has lost its content, and after all have."""

    def empty(pattern):
        for path in Path(root, "data").glob(pattern):
            path.write_bytes(bytes(path.stat().st_size))

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        empty("000000000030-*/*")
        first = fit(root)
    empty("*/*")
    return {"said": said.getvalue(), "first": first, "second": fit(root)["code"]}


def killed(folder):
    """A child that dies by SIGKILL in the middle of its second epoch."""

    def notice(module):
        if module.global_step == 17:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(f"{folder}/kill", notice=notice, bridge={"checkpoint_every": Every(steps=3)})


def rank_main(folder, rank, port):
    """One of two ranks; only rank 1 is signalled."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="bridge",
    )
    flags = {"devices": 2, "strategy": "ddp", "val_check_interval": 1.0}
    notice = sigterm_at(7) if rank == 1 else None
    results = [fit(f"{folder}/whole", **flags)]
    results.append(fit(f"{folder}/cut", notice=notice, **flags))
    results.append(fit(f"{folder}/cut", **flags))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(results))


def forked(function, *arguments):
    process = os.fork()
    if process == 0:
        try:
            function(*arguments)
            status = 0
        except BaseException as error:
            print(f"{function.__name__}: {error!r}", file=sys.stderr)
            status = 1
        os._exit(status)
    return process


def main():
    # Lightning uses things that torch has deprecated.
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        Path(folder, "ranks").mkdir()
        children = [forked(rank_main, f"{folder}/ranks", rank, port) for rank in range(2)]
        children.append(forked(killed, folder))
        children.append(forked(scripts_main, f"{folder}/scripts"))
        ends = [os.waitpid(child, 0)[1] for child in children]
        results = everything(folder)
        results["ends"] = ends
        results["ranks"] = [
            json.loads(Path(folder, "ranks", f"rank-{rank}.json").read_text()) for rank in range(2)
        ]
        results["scripts"] = json.loads(Path(folder, "scripts", "loops.json").read_text())
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
