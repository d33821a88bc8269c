"""Profilers as a script meets them: through the trainer's flag."""

import json
import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rekindle as rk
from rekindle.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler


class Slow(Dataset):
    """Takes a millisecond per sample."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.full((4,), float(index))


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        with self.trainer.profiler.profile("nap"):
            time.sleep(0.003)
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


def fit(tmp_path, **flags):
    given = {"max_epochs": 1, "root": tmp_path / "run", "enable_progress_bar": False}
    run = rk.Trainer(**{**given, "log_every_n_steps": 2, "preflight": False, **flags})
    run.fit(Net(), DataLoader(Slow(), 4))
    return run


class Watch(rk.Callback):
    """Measures steps from outside: from the end of one update to the end of the next."""

    def __init__(self):
        self.ends = []

    def on_after_optimizer_step(self, trainer, pl_module):
        self.ends.append(time.perf_counter())


def test_phases_of_the_simple_profiler_sum_to_the_time_of_the_steps(tmp_path):
    watch, profiler = Watch(), SimpleProfiler(dirpath=str(tmp_path), filename="perf")
    fit(tmp_path, profiler=profiler, callbacks=[watch], log_every_n_steps=100)
    found = profiler.seconds
    parts = sum(found[phase] for phase in ("data", "forward", "backward", "optimizer"))
    assert parts == pytest.approx(found["steps"], rel=0.05)
    # The first step is not measured from outside, but is no longer than the rest of five.
    outside = watch.ends[-1] - watch.ends[0]
    # Between steps a busy machine may do something else.
    assert outside <= found["steps"] * 1.05 + 0.25
    assert found["data"] >= 24 * 0.001
    assert found["forward"] >= found["nap"] >= 6 * 0.003
    assert profiler.counts["nap"] == profiler.counts["forward"] == 6
    table = (tmp_path / "fit-perf.txt").read_text()
    assert [line.split()[0] for line in table.splitlines()[1:]][-1] == "everything"
    assert "forward" in table


def test_by_name_the_table_goes_to_the_console(tmp_path, capsys):
    fit(tmp_path, profiler="simple")
    out = capsys.readouterr().out
    assert "fit: phase" in out
    assert " nap " in out


def test_a_section_costs_nothing_without_a_profiler(tmp_path):
    assert type(fit(tmp_path).profiler) is Profiler


def test_the_report_comes_for_a_preempted_run_too(tmp_path, capsys):
    class Stop(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(rk.Preempted):
        fit(tmp_path, profiler="simple", callbacks=[Stop()])
    assert "fit: phase" in capsys.readouterr().out


@pytest.mark.processes  # profiles every function of a fit
def test_the_advanced_profiler_names_functions_and_leaves_its_statistics(tmp_path, capsys):
    profiler = AdvancedProfiler(dirpath=str(tmp_path / "p"), filename="perf", dump_stats=True)
    fit(tmp_path, profiler=profiler)
    text = (tmp_path / "p/fit-perf.txt").read_text()
    assert "training_step" in text
    assert "cumulative" in text
    assert (tmp_path / "p/fit-perf.prof").stat().st_size > 1000
    fit(tmp_path / "again", profiler="advanced")
    assert "due to restriction <30>" in capsys.readouterr().out


@pytest.mark.processes  # torch.profiler takes a second to load
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_traces_are_written_by_schedule_and_on_a_signal(tmp_path):
    class Ask(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.getsignal(signal.SIGUSR2)
    profiler = PyTorchProfiler(str(tmp_path / "t"), "look", wait=0, warmup=1, active=1)
    fit(tmp_path, profiler=profiler, callbacks=[Ask()], max_epochs=2)
    names = [path.name for path in profiler.traces]
    assert names == ["look-step2-rank0.json", "look-step6-rank0.json"]
    events = json.loads((tmp_path / "t" / names[0]).read_text())["traceEvents"]
    assert any("aten::linear" in str(event.get("name")) for event in events)
    assert "aten::" in (tmp_path / "t/look-step2-rank0.txt").read_text()
    assert signal.getsignal(signal.SIGUSR2) == before
    fit(tmp_path / "simple", profiler="simple", callbacks=[Ask()], max_epochs=3)
    assert (tmp_path / "simple/run/profiler/trace-step8-rank0.json").exists()
    default = PyTorchProfiler(wait=0, warmup=0, active=1, on_signal=False)
    fit(tmp_path / "root", profiler=default)
    assert (tmp_path / "root/run/profiler/trace-step1-rank0.json").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [("fast", ValueError, "profiler='fast' is not known; allowed are 'simple', 'advanced', "),
     (3, TypeError, "profiler=3 must be 'simple', ")],
)  # fmt: skip
def test_a_wrong_flag_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        rk.Trainer(max_epochs=1, profiler=given)


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match=r"PyTorchProfiler\(active=-1\) must be an integer"):
        PyTorchProfiler(active=-1)
