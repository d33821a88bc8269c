"""Another package's logger, callback, profiler and strategy are used by their names."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

CODE = """
from rekindle.callback import Callback
from rekindle.loggers import Logger
from rekindle.profilers import Profiler
from rekindle.strategies import DDPStrategy

LINES = []

class Mine(Logger):
    def write(self, metrics, step, *_):
        LINES.append(step)

class Watch(Callback):
    def on_train_end(self, trainer, pl_module):
        LINES.append("end")

class Clock(Profiler):
    pass

def broken():
    raise KeyError("no licence")
"""
POINTS = """
[rekindle.plugins]
logger.mine = third:Mine
callback.watch = third:Watch
callback.broken = third:broken
profiler.clock = third:Clock
strategy.plain = third:DDPStrategy
strategy.ddp = third:broken
other.mine = third:broken
"""


@pytest.fixture
def third(tmp_path, monkeypatch):
    """An installed package that nobody of us knows."""
    info = tmp_path / "packages" / "third-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    (info.parent / "third.py").write_text(CODE)
    monkeypatch.syspath_prepend(info.parent)
    import third

    yield third
    monkeypatch.delitem(__import__("sys").modules, "third")


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.fc(batch[0]).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_third_partys_plugins_are_used_by_name(third, tmp_path):
    trainer = rk.Trainer(
        root=tmp_path / "run",
        max_steps=4,
        log_every=2,
        enable_progress_bar=False,
        logger="mine",
        callbacks=["watch", rk.Callback()],
        profiler="clock",
        strategy="plain",
    )
    trainer.fit(Net(), DataLoader(TensorDataset(torch.ones(16, 2)), 4))
    assert set(third.LINES) >= {1, 3}
    assert "end" in third.LINES
    assert type(trainer.profiler) is third.Clock
    assert [type(logger) for logger in trainer.loggers] == [third.Mine]


def test_our_own_names_mean_ours(third):
    assert type(rk.Trainer(strategy="ddp", max_steps=1).flags.strategy).__module__ != "third"


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (
            {"callbacks": "wach"},
            ValueError,
            r"callback 'wach' is not known: .*there are: broken, watch",
        ),
        ({"logger": ["nobody"]}, TypeError, "logger=.nobody. must be a rekindle.loggers.Logger"),
        ({"callbacks": ["broken"]}, RuntimeError, r"'callback.broken' of third 1.2 .*no licence"),
        ({"profiler": "nobody"}, ValueError, "profiler='nobody' is not known; allowed are"),
        ({"strategy": "nobody"}, ValueError, "nobody"),
    ],
)
def test_what_is_not_there_or_fails_is_named(third, flags, kind, message):
    with pytest.raises(kind, match=message):
        rk.Trainer(max_steps=1, **flags)
