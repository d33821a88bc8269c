"""Loggers, progress and speed as a script meets them: through the trainer."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle import console, loggers
from rekindle.callbacks import DeviceStats, RichProgressBar, ThroughputMonitor, TQDMProgressBar

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1))


class Net(rk.Module):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1])
        self.log("train/loss", loss, prog_bar=True)
        self.log("secret", 1.0, logger=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class Collecting(loggers.Logger):
    """Keeps what it is given, over attempts that share the list."""

    def __init__(self, rows):
        self.rows = rows

    def write(self, metrics, step, at):
        self.rows.append((step, metrics))

    def write_hyperparameters(self, values):
        self.rows.append(("hparams", values))


def trainer(tmp_path, **flags):
    given = {"max_epochs": 2, "root": tmp_path / "run", "log_every_n_steps": 2}
    return rk.Trainer(**{**given, "enable_progress_bar": False, **flags})


def fit(run, model=None, batch_size=4):
    model = model or Net()
    run.fit(model, DataLoader(DATA, batch_size), DataLoader(DATA, 16))
    return model


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_logger_gets_what_is_reported_at_its_step_with_the_hyperparameters(tmp_path):
    rows = []
    run = trainer(tmp_path, logger=Collecting(rows))
    fit(run, Net(lr=0.01))
    assert rows[0] == ("hparams", {"lr": 0.01})
    trained = [(step, values["epoch"]) for step, values in rows[1:] if "train/loss" in values]
    assert trained == [(1, 0), (3, 0), (5, 0), (7, 0), (9, 1), (11, 1), (13, 1), (15, 1)]
    validated = [step for step, values in rows[1:] if "val/loss" in values]
    assert validated == [7, 15]
    assert not any("secret" in values for _, values in rows)
    assert "secret" in run.callback_metrics


def test_true_writes_json_lines_under_the_root(tmp_path):
    run = trainer(tmp_path, logger=True)
    fit(run)
    assert run.log_dir == str(tmp_path / "run/logs/version_0")
    rows = lines(tmp_path / "run/logs/version_0/metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 16, 2))
    hparams = json.loads((tmp_path / "run/logs/version_0/hparams.json").read_text())
    assert hparams == {"lr": 0.1}


@pytest.mark.parametrize("flags", [{}, {"logger": False}, {"logger": True, "fast_dev_run": True}])
def test_nothing_is_logged_without_a_logger_or_in_a_trial_run(tmp_path, flags):
    run = trainer(tmp_path, **flags)
    fit(run)
    assert [type(each).__name__ for each in run.loggers] == ["DummyLogger"] * (
        "logger" in flags and bool(flags["logger"])
    )
    assert not (tmp_path / "run/logs").exists()


@pytest.mark.parametrize("kind", [loggers.JSONLLogger, loggers.CSVLogger])
def test_a_preempted_and_a_crashed_run_repeat_no_step(tmp_path, kind):
    class Stop(rk.Callback):
        def __init__(self, at, crash):
            self.at, self.crash = at, crash

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.at and self.crash:
                raise OSError("made to fail")
            if trainer.global_step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)

    def attempt(*callbacks):
        every = rk.Every(steps=3)
        flags = {"callbacks": list(callbacks), "checkpoint_every": every, "log_every_n_steps": 1}
        run = trainer(tmp_path, logger=kind(), **flags)
        fit(run)
        return run

    with pytest.raises(OSError, match="made to fail"):
        attempt(Stop(5, crash=True))
    with pytest.raises(rk.Preempted):
        attempt(Stop(10, crash=False))
    run = attempt()
    assert run.logger.version == 0
    (path,) = (tmp_path / "run").glob(f"*/version_0/{kind.FILE}")
    if kind is loggers.JSONLLogger:
        steps = [row["step"] for row in lines(path) if "train/loss" in row]
    else:
        header, *rows = [line.split(",") for line in path.read_text().splitlines()]
        column = header.index("train/loss")
        steps = [int(row[header.index("step")]) for row in rows if row[column]]
    assert steps == list(range(16))


def test_a_test_after_training_is_logged_into_the_same_run(tmp_path):
    run = trainer(tmp_path, logger=True)
    model = fit(run)
    run.validate(model, DataLoader(DATA, 16))
    rows = lines(tmp_path / "run/logs/version_0/metrics.jsonl")
    # Steps are numbered from 0; after training, by those that are done.
    assert [row["step"] for row in rows if "val/loss" in row] == [7, 15, 16]

    class Tested(Net):
        def test_step(self, batch, batch_idx):
            self.log("test/loss", 3.0)

    run.test(Tested(), DataLoader(DATA, 16))
    rows = lines(tmp_path / "run/logs/version_0/metrics.jsonl")
    assert rows[-1]["test/loss"] == 3.0
    assert rows[-1]["step"] == 16
    assert not (tmp_path / "run/logs/version_1").exists()


def test_a_callback_writes_through_the_logger(tmp_path):
    rows = []

    class Own(rk.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert pl_module.logger is trainer.logger is pl_module.loggers[0]
            trainer.logger.log_metrics({"own": torch.tensor(2.5)})
            trainer.logger.experiment.log_metrics({"own": 3.5}, step=99)

    fit(trainer(tmp_path, logger=[Collecting(rows)], callbacks=[Own()], max_epochs=1))
    assert [(step, v["own"]) for step, v in rows if "own" in v] == [(8, 2.5), (99, 3.5)]


def test_a_dead_logger_does_not_stop_training_and_is_reported_once(tmp_path, capsys):
    class Dead(loggers.Logger):
        def write(self, metrics, step, at):
            raise ConnectionError("the server is gone")

    run = trainer(tmp_path, logger=Dead())
    fit(run)
    assert run.global_step == 16
    assert capsys.readouterr().out.count("the server is gone") == 1


def test_a_wrong_flag_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"logger='tensorboard' must be a rekindle\.loggers"):
        trainer(tmp_path, logger="tensorboard")


def test_without_a_terminal_progress_is_a_line_of_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    fit(trainer(tmp_path, enable_progress_bar=True, max_epochs=1))
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in out]
    assert [row["step"] for row in found] == [2, 4, 6, 8]
    assert found[-1].keys() == {
        "time", "epoch", "step", "total_steps", "loss", "samples_per_second", "metrics"
    }  # fmt: skip
    assert found[-1]["total_steps"] == 8
    assert found[-1]["metrics"].keys() == {"train/loss"}


def test_json_progress_comes_once_per_interval(capsys):
    quiet = console.Console(first=True, progress=True)
    for now in range(0, 21):
        quiet.progress(console.TrainingProgress(step=now, loss=float("nan")), float(now))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in found] == [0, 5, 10, 15, 20]
    assert found[0]["loss"] == "nan"


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal as standard output; gives a function that reads what was written."""
    main, sub = pty.openpty()
    stream = os.fdopen(sub, "w")
    # Not sys.stdout itself, which belongs to pytest between setup and test.
    monkeypatch.setattr(console, "sys", types.SimpleNamespace(stdout=stream))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")

    def read():
        stream.flush()
        os.set_blocking(main, False)
        found = b""
        while True:
            try:
                found += os.read(main, 65536)
            except BlockingIOError:
                return found.decode()

    yield read
    stream.close()
    os.close(main)


def test_on_a_terminal_progress_is_a_bar_that_is_written_over(tmp_path, terminal):
    fit(trainer(tmp_path, enable_progress_bar=True, max_epochs=1))
    out = terminal()
    drawn = re.findall(r"\r\x1b\[K(epoch [^\r\n]*)", out)
    assert re.match(r"epoch 1/1  8/8 \|██████████\| 100%  \d\d:\d\d<00:00  ", drawn[-1])
    assert re.search(r"  loss \d\.\d{4}  train/loss [\d.]+$", drawn[-1])
    # A line of its own is not mixed up with the bar.
    assert re.search(r"\r\x1b\[Kstep 8: val/loss \d\.\d{4}\r\n", out)
    assert "{" not in out


def test_the_bar_shows_time_and_speed_since_this_attempt_began():
    bar = console.Bar(sys.stdout)
    assert bar.text(console.TrainingProgress(step=300, total=1000), 100.0, width=80) == (
        "epoch 0  300/1000 |███       |  30%  00:00<?"
    )
    seen = console.TrainingProgress(
        step=350, total=1000, epoch=1, epochs=3, rate=640.4, loss=0.5, values={"acc": 0.98},
        phase="validating",
    )  # fmt: skip
    assert bar.text(seen, 105.0, width=200) == (
        "epoch 2/3  350/1000 |███       |  35%  00:05<01:05  10 step/s  640 samples/s  "
        "validating  loss 0.5000  acc 0.98"
    )
    assert len(bar.text(seen, 106.0, width=40)) == 39


def test_the_bar_moves_between_reports(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr(console, "DRAW_SECONDS", 0.005)

    class Slow(Net):
        def training_step(self, batch, batch_idx):
            time.sleep(0.01)
            return super().training_step(batch, batch_idx)

    flags = {"max_epochs": 1, "log_every_n_steps": 100, "num_sanity_val_steps": 0}
    fit(trainer(tmp_path, enable_progress_bar=True, callbacks=TQDMProgressBar(2), **flags), Slow())
    steps = {int(step) for step in re.findall(r"(\d+)/8 \|", terminal())}
    assert len(steps & set(range(1, 8))) >= 2
    assert 8 in steps


@pytest.mark.processes  # half a second of imports and live threads
def test_rich_draws_when_it_is_installed_and_else_the_built_in_bar_does(
    tmp_path, terminal, monkeypatch
):
    flags = {"enable_progress_bar": True, "max_epochs": 1, "callbacks": RichProgressBar()}
    fit(trainer(tmp_path / "a", **flags))
    assert "━" in terminal()
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    fit(trainer(tmp_path / "b", **flags))
    out = terminal()
    assert "RichProgressBar draws the built-in bar: pip install rich" in out
    assert "|██████████| 100%" in out


def test_a_bar_of_a_negative_rate_is_refused_and_one_of_none_draws_nothing(tmp_path, terminal):
    with pytest.raises(ValueError, match="refresh_rate=-1 must be an integer of at least 0"):
        TQDMProgressBar(refresh_rate=-1)
    flags = {"enable_progress_bar": True, "max_epochs": 1, "callbacks": TQDMProgressBar(0)}
    fit(trainer(tmp_path, **flags))
    assert "|██████████| 100%" not in terminal()


def test_throughput_is_what_a_known_sleep_per_step_allows(tmp_path):
    rows = []

    class Sleeping(Net):
        def training_step(self, batch, batch_idx):
            time.sleep(0.004)
            return super().training_step(batch, batch_idx)

    monitor = ThroughputMonitor(
        flops_per_sample=1000.0, tokens=lambda batch: 10 * len(batch[0]), peak_flops=1e7
    )
    fit(trainer(tmp_path, logger=Collecting(rows), callbacks=[monitor]), Sleeping())
    found = [v for _, v in rows if "throughput/mfu" in v][-1]
    rate = found["throughput/samples_per_second"]
    # Four samples in a little more than 4 ms; a busy machine only makes it slower.
    assert 4 < rate < 1000
    assert found["throughput/tokens_per_second"] == pytest.approx(10 * rate, rel=1e-3)
    assert found["throughput/mfu"] == pytest.approx(rate * 1000 / 1e7, rel=1e-3)
    assert 0 < found["throughput/goodput"] <= 1
    assert monitor.state_dict()["began"] == pytest.approx(time.time(), abs=60)


def test_an_unknown_peak_is_asked_for(tmp_path):
    run = trainer(tmp_path, callbacks=[ThroughputMonitor(flops_per_sample=1.0)])
    with pytest.raises(ValueError, match=r"does not know the peak of 'cpu': give peak_flops="):
        fit(run)


def test_device_stats_are_logged_at_the_interval(tmp_path):
    rows = []
    fit(trainer(tmp_path, logger=Collecting(rows), callbacks=[DeviceStats()]))
    found = [v for _, v in rows if "device/memory_resident_bytes" in v]
    assert len(found) == 8
    assert found[0]["device/memory_resident_bytes"] > 2**20
    assert found[-1]["device/cpu_percent"] >= 0


@pytest.mark.processes
def test_importing_the_trainer_imports_no_service_and_no_bar():
    code = (
        "import rekindle.trainer.trainer, sys; print([m for m in ('wandb', 'mlflow', 'comet_ml', "
        "'tensorboard', 'rich', 'cProfile') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_long_pass_shows_how_far_it_is(tmp_path, terminal, monkeypatch, stage):
    monkeypatch.setattr("rekindle.callbacks.monitors.progress_bar.DRAW_SECONDS", 0.0)

    class Tested(Net):
        def test_step(self, batch, batch_idx):
            self.log("x", 1.0)

        def predict_step(self, batch, batch_idx):
            return batch_idx

    run = trainer(tmp_path, enable_progress_bar=True)
    getattr(run, stage)(Tested(), DataLoader(DATA, 8))
    out = terminal()
    drawn = re.findall(r"\r\x1b\[Kbatch (\d)  00:00.*?(\w+ing)\b", out)
    phase = {"validate": "validating", "test": "testing", "predict": "predicting"}[stage]
    assert drawn == [(str(number), phase) for number in (1, 2, 3, 4)]


def test_a_rollback_cuts_off_what_was_logged_after_its_checkpoint(tmp_path, capsys):
    class Later(Net):
        bad = True

        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 5 and self.bad:
                self.bad = False
                self.trainer.roll_back("made to")

    flags = {"checkpoint_every": rk.Every(steps=2), "nonfinite": "rollback"}
    run = trainer(tmp_path, logger=True, max_epochs=1, log_every_n_steps=1, **flags)
    fit(run, Later())
    assert "rolled back to 4" in capsys.readouterr().out
    rows = lines(tmp_path / "run/logs/version_0/metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(7))


def test_a_bar_is_drawn_again_when_enough_steps_or_news_have_come():
    stream = io.StringIO()
    bar = console.Bar(stream, every=3, leave=True)
    for step in range(8):
        bar.draw(console.TrainingProgress(step=step, total=7), float(step))
    bar.draw(console.TrainingProgress(step=7, total=7, loss=1.0), 8.0)
    assert re.findall(r"(\d)/7 ", stream.getvalue()) == ["0", "3", "6", "7", "7"]
    bar.draw(console.TrainingProgress(step=7, total=7, epoch=1), 9.0)
    assert stream.getvalue().count("\n") == 1
    bar.close()
    assert stream.getvalue().endswith("\n")
