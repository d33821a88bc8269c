import copy
import gc
import json
import pickle
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.ranks.control_page import ControlPage

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, (X.sum(1) > 0).long())


def accuracy_metric():
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(2, average="micro")


class Net(rk.Module):
    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(6, 2)
        self.accuracy = accuracy_metric()

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val/accuracy", self.accuracy)
        loss = nn.functional.cross_entropy(logits, batch[1])
        return rk.StepOutput(metrics={"val": {"loss": loss}})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(model, tmp_path, validation=True, **flags):
    trainer = rk.Trainer(
        **{"max_epochs": 2, "root": tmp_path / "run", "enable_progress_bar": False, **flags}
    )
    trainer.fit(
        model, DataLoader(DATA, 8, shuffle=True), DataLoader(DATA, 16) if validation else None
    )
    return trainer


def test_at_most_three_frames_lie_between_fit_and_training_step(tmp_path):
    depths = []

    class Probe(Net):
        def training_step(self, batch, batch_idx):
            frame, names = sys._getframe(1), []
            while frame.f_code.co_name != "fit":
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            depths.append(names)
            return super().training_step(batch, batch_idx)

    fit(Probe(), tmp_path)
    assert len(depths) == 10
    assert max(map(len, depths)) <= 3
    assert depths[-1] == ["take_step", "train"]


def test_nothing_is_read_from_a_device_between_two_reports(tmp_path, monkeypatch):
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__"):
        real = getattr(torch.Tensor, name)

        def read(self, *args, real=real):
            frame = sys._getframe(1)
            if frame.f_globals["__name__"].startswith("rekindle."):
                reads.append((frame.f_code.co_name, frame.f_globals["__name__"]))
            return real(self, *args)

        monkeypatch.setattr(torch.Tensor, name, read)
    fit(Net(), tmp_path, validation=False, enable_checkpointing=False, log_every_n_steps=1000)
    # What is allowed: the check of the first batch, the sums of an epoch, the report at the end.
    assert {name for name, _ in reads} <= {"check_loss", "fold", "_read", "fingerprint"}
    assert len(reads) < 10


def test_values_are_reduced_as_torchmetrics_reduces_them(tmp_path):
    model = Net()
    trainer = fit(model, tmp_path)
    model.eval()
    with torch.no_grad():
        logits = model.net(X)
    loss = nn.functional.cross_entropy(logits, DATA.tensors[1])
    accuracy = accuracy_metric()(logits, DATA.tensors[1])
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss), abs=1e-6)
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(float(accuracy))
    assert {"train/loss_step", "train/loss_epoch"} <= set(trainer.callback_metrics)


def test_validate_gives_the_metrics_of_the_last_validation(tmp_path):
    model = Net()
    trainer = fit(model, tmp_path)
    (values,) = trainer.validate(model, DataLoader(DATA, 5))
    expected = float(trainer.callback_metrics["val/loss"])
    assert values["val/loss"] == pytest.approx(expected)
    assert trainer.global_step == 10


class Data(rk.DataModule):
    def __init__(self):
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(stage)

    def train_dataloader(self):
        return DataLoader(DATA, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(DATA, 8)

    def teardown(self, stage):
        self.calls.append("teardown")


def test_a_data_module_may_be_the_second_argument(tmp_path):
    data = Data()
    trainer = rk.Trainer(max_epochs=1, root=tmp_path / "run", enable_progress_bar=False)
    trainer.fit(Net(), data)
    assert data.calls == ["prepare_data", "fit", "teardown"]
    assert trainer.datamodule is data


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_steps": 7, "max_epochs": None}, 7),
        ({"max_steps": 7, "max_epochs": 1}, 5),
        ({"limit_train_batches": 3}, 6),
        ({"limit_train_batches": 0.5}, 4),
        ({"accumulate_grad_batches": 2}, 6),
        ({"global_batch_size": 40}, 2),
    ],
)
def test_a_run_ends_where_the_flags_say(tmp_path, flags, steps):
    assert fit(Net(), tmp_path, **flags).global_step == steps


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    fit(models[0], tmp_path / "a", limit_train_batches=4, accumulate_grad_batches=4)
    trainer = rk.Trainer(max_epochs=2, root=tmp_path / "b", enable_progress_bar=False)
    loader = DataLoader(DATA, 32, shuffle=True, drop_last=True)
    trainer.fit(models[1], loader)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_bf16_mixed_runs_steps_in_bfloat16(tmp_path):
    seen = []

    class Probe(Net):
        def training_step(self, batch, batch_idx):
            seen.append(self.net(batch[0]).dtype)
            return super().training_step(batch, batch_idx)

    model = Probe()
    fit(model, tmp_path, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert model.net.weight.dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_before_the_step(tmp_path, algorithm):
    model = Net()
    before = copy.deepcopy(model)
    fit(
        model,
        tmp_path,
        max_epochs=None,
        max_steps=1,
        gradient_clip_val=1e-3,
        gradient_clip_algorithm=algorithm,
    )
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = torch.cat([(a - b).detach().flatten() for a, b in pairs])
    assert 0 < float(moved.abs().max()) <= 1.01e-4
    if algorithm == "norm":
        assert float(moved.norm()) == pytest.approx(1e-4, rel=1e-3)


def test_a_callback_can_end_training(tmp_path):
    class Enough(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 3

    assert fit(Net(), tmp_path, callbacks=[Enough()]).global_step == 3
    # It was complete, by the callback's word, and stays so.
    assert fit(Net(), tmp_path).global_step == 3


def test_a_module_keeps_no_trainer_alive(tmp_path):
    model = Net()
    trainer = fit(model, tmp_path)
    assert model.trainer is trainer
    assert pickle.loads(pickle.dumps(model)).logger is None
    del trainer
    gc.collect()
    with pytest.raises(RuntimeError, match="not attached to a trainer"):
        _ = model.trainer
    assert pickle.loads(pickle.dumps(model)).hparams == {"width": 4}
    assert copy.deepcopy(model).net.weight is not model.net.weight


def test_hyperparameters_are_the_constructors_arguments():
    model = Net(width=9)
    assert model.hparams.width == model.hparams["width"] == 9
    model.hparams.width = 10
    assert dict(model.hparams) == {"width": 10}


def test_submodules_keep_their_own_mode_over_a_validation(tmp_path):
    modes = []

    class Frozen(Net):
        def on_train_epoch_start(self):
            self.net.eval()

        def on_train_epoch_end(self):
            modes.append((self.training, self.net.training))

    fit(Frozen(), tmp_path)
    assert modes == [(True, False)] * 2


def test_the_agent_learns_all_there_is_to_know(tmp_path, monkeypatch):
    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    fit(Net(), tmp_path, log_every_n_steps=1)
    progress = agent.progress()
    assert agent.attached
    assert (progress.step, progress.total_steps, progress.samples) == (10, 10, 80)
    assert progress.round_steps == 10
    assert progress.loss is not None
    assert progress.samples_per_second > 0
    assert progress.productive_seconds > 0
    assert "val/accuracy" in progress.metrics
    assert agent.checkpoint("x").step == 10
    assert agent.restored().source == "scratch"
    # A round that finds the run complete has no step to tell these by.
    again = ControlPage(tmp_path, create=True)
    fit(Net(), tmp_path)
    assert again.progress().productive_seconds == pytest.approx(progress.productive_seconds)
    assert (again.progress().step, again.progress().round_steps) == (10, 0)
    assert again.restored().step == 10


def test_the_agents_request_ends_in_a_commit_and_exit_code_75(tmp_path, monkeypatch, capsys):
    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))

    class Ask(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                agent.request_stop(time.monotonic() + 30)

    with pytest.raises(SystemExit) as stop:
        fit(Net(), tmp_path, callbacks=[Ask()])
    assert (stop.value.code, stop.value.step) == (75, 4)
    assert agent.checkpoint("x").step == 4
    assert agent.outcomes() == []
    said = capsys.readouterr().out
    assert "R17 preemption notice on rank 0; all ranks agree to save at step 4" in said
    assert "R17 step 4 committed in" in said


def test_without_time_to_save_the_exit_code_is_76(tmp_path, monkeypatch):
    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    agent.request_stop(time.monotonic() - 5)
    with pytest.raises(SystemExit) as stop:
        fit(Net(), tmp_path, validation=False)
    assert stop.value.code == 76


def test_an_error_leaves_an_outcome_for_the_agent(tmp_path, monkeypatch):
    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    class Failing(rk.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 2:
                raise ValueError("bad luck")

    with pytest.raises(ValueError, match="bad luck"):
        fit(Net(), tmp_path, callbacks=[Failing()])
    (outcome,) = agent.outcomes()
    assert (outcome.cause, outcome.code, outcome.step) == ("UserError", 1, 2)
    assert outcome.message == "ValueError: bad luck"
    assert "on_before_optimizer_step" in outcome.traceback


def test_only_damaged_checkpoints_end_with_exit_code_70(tmp_path, monkeypatch, capsys):
    fit(Net(), tmp_path, max_epochs=1)
    for commit in (tmp_path / "run" / "commit").iterdir():
        commit.write_bytes(b"rubbish")
    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as damaged:
        fit(Net(), tmp_path)
    assert damaged.value.code == 70
    (outcome,) = agent.outcomes()
    assert (outcome.cause, outcome.reason) == ("Integrity", "Store/R16")
    assert "R16" in capsys.readouterr().err


def test_the_jobs_root_wins_over_the_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_URI", f"file://{tmp_path}/job")
    fit(Net(), tmp_path)
    assert (tmp_path / "job" / "commit").is_dir()
    assert not (tmp_path / "run").exists()
    assert f"checkpoints go to file://{tmp_path}/job, as the job says" in capsys.readouterr().out


def test_checkpoints_come_by_the_clock_too(tmp_path):
    class Slow(rk.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                pass

    fit(Net(), tmp_path, callbacks=[Slow()], checkpoint_every=rk.Every(seconds=0.05), keep_latest=9)
    steps = {path.name[:12] for path in (tmp_path / "run" / "commit").iterdir()}
    assert 2 <= len(steps) <= 6


def test_prometheus_sees_the_run(tmp_path):
    from prometheus_client import REGISTRY

    before = REGISTRY.get_sample_value("rekindle_steps_total") or 0.0
    fit(Net(), tmp_path)
    assert REGISTRY.get_sample_value("rekindle_steps_total") == before + 10
    assert REGISTRY.get_sample_value("rekindle_checkpoint_last_step") == 10
    assert REGISTRY.get_sample_value("rekindle_metric", {"name": "val/accuracy"}) is not None
    assert REGISTRY.get_sample_value("rekindle_phase_seconds_total", {"phase": "forward"}) > 0


def test_the_commits_meta_is_plain_json(tmp_path):
    from rekindle.checkpoint import Store

    fit(Net(), tmp_path)
    store = Store.open(str(tmp_path / "run"))
    meta = store.read(store.commits()[0]).meta
    assert json.loads(json.dumps(meta)) == meta
    assert meta["metrics"]["val/accuracy"] > 0
