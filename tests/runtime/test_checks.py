"""Checks of what surrounds a run: workers, programs on other ranks, grace periods, launchers."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.callbacks import LambdaCallback
from rekindle.data import cpus
from rekindle.ranks import relaunch

DATA = TensorDataset(torch.randn(24, 6), torch.zeros(24, dtype=torch.int64))


class Net(rk.Module):
    example_batch = (torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64))

    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.fc1(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return {"zero": 0.0}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tmp_path, model=None, data=DATA, loader=None, validation=None, **flags):
    chosen = {"max_steps": 2, "root": tmp_path / "run", "enable_progress_bar": False}
    runner = rk.Trainer(**{**chosen, **flags})
    runner.fit(model or Net(), loader or DataLoader(data, 4), validation)
    return runner


def test_r2_compares_the_data_with_what_the_module_expects(tmp_path):
    assert fit(tmp_path).global_step == 2
    square = TensorDataset(torch.randn(8, 2, 3), torch.zeros(8))
    expected = (
        "R2 the first training batch does not fit the model: Net.example_batch is "
        "(float32[1,6], int64[1]), the loader yields (float32[1,2,3], float32[1]) (for one sample)."
    )
    with pytest.raises(rk.RequirementError, match=re.escape(expected)):
        fit(tmp_path, data=square)


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """A cgroup with a quota of two processors, on a machine that does not know how many it has."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    real = cpus.usable
    monkeypatch.setattr(cpus, "usable", lambda: real(tmp_path, tmp_path / "none"))


def test_r3_no_more_workers_than_processors(tmp_path, pod):
    message = (
        r"R3 num_workers=64 but this pod may use 2 CPUs \(cgroup quota\); using 2. Set num_workers"
    )
    loader = DataLoader(DATA, 4, num_workers=2)
    loader.num_workers = 64
    with pytest.warns(UserWarning, match=message):
        runner = fit(tmp_path, loader=loader, max_steps=0)
    assert runner._run.loader.num_workers == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (1, "all there are")),
        ({"cpu.max": "max 100000"}, (1, "all there are")),
        ({"cpu/cpu.cfs_quota_us": "-1"}, (1, "all there are")),
    ],
)
def test_processors_are_counted_where_nobody_knows(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(cpus, "_mask", lambda: None)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.usable(tmp_path, tmp_path / "none") == expected


def test_the_tightest_quota_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "_mask", lambda: 16)
    (tmp_path / "membership").write_text("0::/pods/mine\n")
    (tmp_path / "pods" / "mine").mkdir(parents=True)
    (tmp_path / "pods" / "cpu.max").write_text("350000 100000")
    (tmp_path / "pods" / "mine" / "cpu.max").write_text("800000 100000")
    assert cpus.usable(tmp_path, tmp_path / "membership") == (3, "cgroup quota")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpus.usable(tmp_path, tmp_path / "membership") == (1, "cgroup quota")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "R8 resumed at step 7; next validation at step 12 (at the end of every epoch)."),
        (
            {"check_val_every_n_epoch": 2},
            "R8 resumed at step 7; next validation at step 12 (at the end of every 2th epoch).",
        ),
        (
            {"val_check_interval": 5, "check_val_every_n_epoch": None},
            "R8 resumed at step 7; next validation at step 10 (every 5 batches).",
        ),
        (
            {"val_check_interval": 0.5},
            "R8 resumed at step 7; next validation at step 9 (every 3 batches of an epoch).",
        ),
        (
            {"val_check_interval": 4},
            "R8 resumed at step 7; next validation at step 10 (every 4 batches of an epoch).",
        ),
    ],
)
def test_r8_says_when_validation_is_due_and_keeps_its_word(tmp_path, capsys, flags, said):
    steps = []

    class Note(rk.Callback):
        def on_validation_end(self, trainer, pl_module):
            steps.append(trainer.global_step)

    validation = DataLoader(DATA, 24)
    fit(tmp_path, validation=validation, max_steps=7, **flags)
    fit(tmp_path, validation=validation, max_steps=12, callbacks=[Note()], **flags)
    assert said in capsys.readouterr().out
    assert steps[0] == int(said.split("at step ")[2].split()[0])


def test_r8_is_silent_without_validation(tmp_path, capsys):
    fit(tmp_path)
    fit(tmp_path, max_steps=4)
    assert "R8" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "environment",
    [
        {"REKINDLE_GRACE_SECONDS": "0.0001"},
        {"TORCHELASTIC_RUN_ID": "x", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "0.0001"},
    ],
)
def test_r18_says_once_that_the_grace_is_short(tmp_path, monkeypatch, capsys, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    fit(tmp_path, max_steps=20, checkpoint_every=rk.Every(steps=1))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("R18")]
    assert len(said) == 1
    assert re.match(
        r"R18 emergency save needs ~\S+ s but the grace is 0.0001 s; .* the last durable step is "
        r"\d+. Raise terminationGracePeriodSeconds to 30.",
        said[0],
    )


def test_r18_is_said_before_training_when_an_earlier_attempt_has_measured_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("REKINDLE_GRACE_SECONDS", "600")
    fit(tmp_path, max_steps=3, checkpoint_every=rk.Every(steps=1))
    assert "R18" not in capsys.readouterr().out
    monkeypatch.setenv("REKINDLE_GRACE_SECONDS", "0.0001")
    training = LambdaCallback(on_train_start=lambda *_: print("training begins"))
    fit(tmp_path, max_steps=4, callbacks=[training])
    said = capsys.readouterr().out.splitlines()
    (when,) = (number for number, line in enumerate(said) if line.startswith("R18"))
    assert "the last durable step is 3" in said[when]
    assert when < said.index("training begins")


def test_r18_is_silent_when_there_is_time_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REKINDLE_GRACE_SECONDS", "600")
    fit(tmp_path, max_steps=5, checkpoint_every=rk.Every(steps=1))
    assert "R18" not in capsys.readouterr().out


SCRIPT = """
import os, sys, torch
import rekindle as rk

class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self.w - batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = torch.utils.data.TensorDataset(torch.ones(8))
trainer = rk.Trainer(max_epochs=1, devices=2, accelerator="cpu", root=sys.argv[1], **{FLAGS})
trainer.fit(Net(), torch.utils.data.DataLoader(data, 2))
trainer.print("trained on", trainer.world_size, "for", trainer.global_step, "steps")
"""


@pytest.mark.processes
def test_an_unguarded_script_that_asks_for_two_devices_gets_them(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("{FLAGS}", "{}"))
    path = os.pathsep.join(p for p in sys.path if p.endswith("runtime"))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTEST_CURRENT_TEST": ""}
        | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained on 2 for 2 steps") == 1


def test_what_starts_a_program_again_is_its_own_command(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "/code/train.py", raising=False)
    monkeypatch.setattr(main, "__spec__", None, raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "3"])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    script = [sys.executable, *launcher, "/code/train.py", "--lr", "3"]
    assert relaunch.command(4) == script

    class Spec:
        name = "package.train.__main__"

    monkeypatch.setattr(main, "__spec__", Spec)
    assert relaunch.command(4)[-4:] == ["--module", "package.train", "--lr", "3"]
    monkeypatch.setattr(sys, "ps1", ">>>", raising=False)
    with pytest.raises(ValueError, match="and not from a script that could be started again"):
        relaunch.command(4)


def test_more_gpus_than_there_are_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices=4, but this machine has 1 GPU. Lower it"):
        relaunch.check("gpu", 4)
    relaunch.check("cpu", 4)


def test_a_process_that_was_started_by_hand_is_one_of_its_devices(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "NODE_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    relaunch.by_hand("auto")
    relaunch.by_hand(1)
    assert "WORLD_SIZE" not in os.environ
    monkeypatch.setenv("NODE_RANK", "1")
    relaunch.by_hand(2, num_nodes=2)
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(("rank", "port"), [("2", "1234"), ("0", None)])
def test_processes_that_could_not_find_each_other_are_refused(monkeypatch, rank, port):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", rank)
    if port is None:
        monkeypatch.delenv("MASTER_PORT", raising=False)
    else:
        monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ValueError, match=r"LOCAL_RANK below 2, and all the same MASTER_ADDR"):
        relaunch.by_hand(2)
