"""What a trainer costs per step, beside a loop written by hand, in CPU time.

Run it alone: `python tests/bench/trainer_overhead.py [--steps 2000] [--rounds 7]`. The last line is
JSON with medians, microseconds of CPU time per step unless the name says otherwise:

- raw_us                   zero_grad, forward, backward and optimizer step, written by hand
- rekindle_extra_us        what `rekindle.Trainer` takes on top of that
- rekindle_extra_5logs_us  the same, with five `self.log` calls in every step
- lightning_extra_us       what `lightning.Trainer` takes on top of the hand-written loop
- lightning_extra_5logs_us the same, with five `self.log` calls in every step
- sampler_resume_ms        until the first batch's ids are known, at 90 % of 10 million samples

Network, optimizer and batches are the same for all: the batches lie ready in memory, so that what
is measured is the trainer and not the reading. Loggers, checkpoints and progress bars are off in
both trainers. All take turns in every round. The clock runs from `on_train_start` to
`on_train_end`; what a trainer does before and after does not count. Lightning's fields are null
without the package.
"""

import argparse
import contextlib
import gc
import importlib
import io
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))

import torch
from torch import nn
from torch.utils.data import DataLoader

import rekindle as rk
from rekindle.data.loader import LaneSampler
from rekindle.data.sampling.order import Cursor

BATCHES = 64
SAMPLES = 10_000_000
EPOCHS = itertools.count()
"""Each is measured once: what an epoch makes at its first use is part of what it takes."""


class Ready:
    """Batches that lie in memory, and how many steps a run takes with them."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.steps = steps
        self.batches = [
            (
                torch.randn(32, 32, generator=generator),
                torch.randint(0, 10, (32,), generator=generator),
            )
            for _ in range(BATCHES)
        ]


class Stored:
    """The same as an iterable of batches, the cheapest thing that Lightning can be given."""

    def __init__(self, data: Ready) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps

    def __iter__(self):
        return (self.data.batches[index % BATCHES] for index in range(self.data.steps))


def loader_of(data: Ready) -> DataLoader:
    """The batches as a loader gives them out that has nothing left to do."""
    return DataLoader(list(Stored(data)), batch_size=None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def by_hand(data: Ready) -> float:
    """Microseconds per step of the loop that everybody would write."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    began = time.process_time()
    for index in range(data.steps):
        x, y = data.batches[index % BATCHES]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    return (time.process_time() - began) / data.steps * 1e6


def model_of(base: type, logs: int):
    """The same network as a trainer's module, with so many logged values per step."""

    class Net(base):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.began = self.took = 0.0

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            for name in NAMES[:logs]:
                self.log(name, loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

        def on_train_start(self) -> None:
            self.began = time.process_time()

        def on_train_end(self) -> None:
            self.took = time.process_time() - self.began

    return Net()


NAMES = ("a", "b", "c", "d", "e")


def with_rekindle(data: Ready, logs: int) -> float:
    """Microseconds per step."""
    model = model_of(rk.Module, logs)
    with tempfile.TemporaryDirectory() as root:
        trainer = rk.Trainer(
            max_epochs=1,
            root=root,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="cpu",
        )
        trainer.fit(model, loader_of(data))
    assert trainer.global_step == data.steps
    return model.took / data.steps * 1e6


def with_lightning(data: Ready, logs: int) -> float:
    """Microseconds per step."""
    lightning = importlib.import_module("lightning")
    model = model_of(lightning.LightningModule, logs)
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
        trainer = lightning.Trainer(
            max_epochs=1,
            default_root_dir=root,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )
        trainer.fit(model, Stored(data))
    assert trainer.global_step == data.steps
    return model.took / data.steps * 1e6


def sampler_resume(samples: int = SAMPLES) -> float:
    """Milliseconds from a cursor to the ids of its first batch."""
    began = time.process_time()
    cursor = Cursor(
        epoch=next(EPOCHS), sample=samples // 10 * 9, G=512, m=64, seed=1, N=samples, length=samples
    )
    share = next(iter(LaneSampler(cursor, rank=0, world_size=1)))
    took = time.process_time() - began
    assert len(share.ids) == 64
    return took * 1e3


def parties() -> dict:
    """Who takes part, by the name of the field."""
    found = {
        "raw_us": by_hand,
        "rekindle_extra_us": lambda data: with_rekindle(data, 0),
        "rekindle_extra_5logs_us": lambda data: with_rekindle(data, 5),
    }
    try:
        importlib.import_module("lightning")
    except ImportError as error:
        print(f"without Lightning ({error}): pip install lightning", file=sys.stderr)
        return found
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return found | {
        "lightning_extra_us": lambda data: with_lightning(data, 0),
        "lightning_extra_5logs_us": lambda data: with_lightning(data, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = Ready(chosen.steps)
    taking_part = parties()
    seen: dict[str, list[float]] = {name: [] for name in taking_part}
    for number in range(chosen.rounds + 1):
        for name, measure in taking_part.items():
            gc.collect()
            took = measure(data)
            if number:  # the first round warms up
                seen[name].append(took)
    raw = statistics.median(seen.pop("raw_us"))
    result: dict[str, float | None] = {"raw_us": round(raw, 1)}
    for name in ("rekindle_extra", "lightning_extra"):
        for field in (f"{name}_us", f"{name}_5logs_us"):
            values = seen.get(field)
            result[field] = round(statistics.median(values) - raw, 1) if values else None
    result["sampler_resume_ms"] = round(
        statistics.median(sampler_resume() for _ in range(chosen.rounds * 5)), 3
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
