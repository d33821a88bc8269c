"""Where a run ends, what a trial run does, and flags that change how torch works."""

import datetime

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

DATA = TensorDataset(torch.arange(20.0)[:, None])


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].flatten().tolist())
        return self.linear(batch[0] / 20).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.linear(batch[0] / 20).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def fit(tmp_path, model=None, validation=None, **flags):
    chosen = {"max_epochs": 3, "root": tmp_path / "run", "enable_progress_bar": False}
    runner = rk.Trainer(**{**chosen, **flags})
    runner.fit(model or Net(), DataLoader(DATA, 4, shuffle=True), validation)
    return runner


class Stopping(rk.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"max_samples": 20}, 5),
        ({"max_samples": 21}, 6),
        ({"max_samples": 45, "max_epochs": -1}, 12),
        ({"max_samples": 999}, 15),
        ({"callbacks": [Stopping(2)]}, 2),
        ({"callbacks": [Stopping(2)], "min_steps": 4}, 4),
        ({"callbacks": [Stopping(2)], "min_epochs": 1}, 5),
        ({"callbacks": [Stopping(12)], "min_epochs": 1}, 12),
        ({"callbacks": [Stopping(2)], "min_steps": 99}, 15),
    ],
)
def test_a_run_ends_at_the_first_limit_and_not_before_the_least(tmp_path, flags, steps):
    runner = fit(tmp_path, **flags)
    assert runner.global_step == steps
    # At the limit a resume is a success that does nothing.
    model = Net()
    again = fit(tmp_path, model, **flags)
    assert (again.global_step, model.seen) == (steps, [])


class Sentences(TensorDataset):
    """20 samples of 1 to 5 tokens, 60 of them."""

    tokens = [1 + n % 5 for n in range(20)]


def counted(seen):
    """Tokens of each batch; sample n is the tensor [n]."""
    return [sum(Sentences.tokens[int(n)] for n in batch) for batch in seen]


@pytest.mark.parametrize("limit", [1, 25, 60, 61, 100, 500])
@pytest.mark.parametrize("more", [{}, {"limit_train_batches": 3}])
def test_a_run_ends_with_the_step_that_reads_the_last_of_its_tokens(tmp_path, limit, more):
    data, model = Sentences(torch.arange(20.0)[:, None]), Net()

    def run(model, part, **flags):
        flags = {"max_tokens": limit, "root": tmp_path / "run", **flags}
        trainer = rk.Trainer(enable_progress_bar=False, **flags, **more)
        trainer.fit(model, DataLoader(part, 4, shuffle=True))
        return trainer.global_step

    steps = run(model, data, max_epochs=7)
    read = counted(model.seen)
    whole = 7 * (more.get("limit_train_batches") or 5)
    assert steps == len(read) <= whole
    assert sum(read[:-1]) < limit <= (sum(read) if steps < whole else 500)
    # At the limit a resume is a success that does nothing; a later limit goes on.
    again = Net()
    assert (run(again, data, max_epochs=7), again.seen) == (steps, [])
    if limit == 25:
        run(again, data, max_tokens=45)
        read += counted(again.seen)
        assert sum(read) >= 45 > sum(read[:-1])


def test_tokens_are_counted_by_what_the_dataset_says(tmp_path):
    data = TensorDataset(torch.arange(20.0)[:, None])

    def steps(dataset, **flags):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        trainer = rk.Trainer(enable_progress_bar=False, root=root, **flags)
        trainer.fit(Net(), DataLoader(dataset, 4))
        return trainer.global_step

    with pytest.raises(ValueError, match="many tokens a sample of TensorDataset has: give the"):
        steps(data, max_tokens=10)
    data.tokens = 128
    assert steps(data, max_tokens=1000) == 2
    assert steps(torch.utils.data.Subset(data, range(8)), max_tokens=128 * 9) == 3
    data.tokens = np.arange(20)
    part = torch.utils.data.Subset(data, [19, 18, 0, 1, 2, 3])
    assert steps(part, max_tokens=39) == 2
    assert steps(part, max_tokens=38) == 1
    data.tokens = np.zeros(20, dtype=np.int64)
    with pytest.raises(ValueError, match="must be counts, and not all of them 0"):
        steps(data, max_tokens=10)


def test_the_planned_length_knows_about_samples(tmp_path):
    assert fit(tmp_path, max_samples=45, max_epochs=-1).estimated_stepping_batches == 12


@pytest.mark.parametrize(
    "limit", ["00:00:01:30", datetime.timedelta(seconds=90), {"minutes": 1, "seconds": 30}]
)
def test_time_has_many_forms(limit):
    assert rk.Trainer(max_time=limit).flags.max_time == 90.0


@pytest.mark.parametrize("limit", ["90", "00:00:00:00", {"fortnights": 1}, 90, -1])
def test_time_in_other_forms_is_refused(limit):
    with pytest.raises(ValueError, match="max_time=.* must be 'DD:HH:MM:SS', a timedelta or a map"):
        rk.Trainer(max_time=limit)


def test_time_counts_over_all_attempts(tmp_path):
    class Waiting(rk.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer._run.began -= 100

    minute = {"max_time": {"minutes": 1}, "max_epochs": -1}
    first = fit(tmp_path, callbacks=[Stopping(2)], max_time={"minutes": 9}, max_epochs=-1)
    assert first.global_step == 2
    longer = fit(tmp_path, callbacks=[Waiting()], **minute)
    assert longer.global_step == 2
    assert fit(tmp_path, **minute).global_step == 2


def test_a_trial_run_stores_nothing_and_goes_through_each_loop(tmp_path):
    model = Net()
    runner = fit(tmp_path, model, DataLoader(DATA, 5), fast_dev_run=True)
    assert (runner.global_step, len(model.seen)) == (1, 1)
    assert "loss" in runner.callback_metrics
    assert not (tmp_path / "run").exists()
    assert fit(tmp_path, fast_dev_run=3, accumulate_grad_batches=4).global_step == 1


def test_a_trial_run_restores_its_own_state_and_names_what_is_lost(tmp_path):
    class Forgetful(rk.Callback):
        count = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = 0

    message = r"R23 state 'callbacks\.\S+\.count' is another one after a save and a restore"
    with pytest.raises(rk.RequirementError, match=message):
        fit(tmp_path, fast_dev_run=True, callbacks=[Forgetful()])


@pytest.mark.parametrize("flag", ["overfit_batches", "overfit"])
def test_overfitting_sees_the_same_few_samples_again_and_again(tmp_path, flag):
    torch.manual_seed(0)
    model = Net()
    runner = fit(tmp_path, model, max_epochs=30, **{flag: 2})
    assert model.seen[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(model.seen[n] == model.seen[n % 2] for n in range(60))
    assert runner.global_step == 60
    few = DATA.tensors[0][:8] / 20
    assert float(model.linear(few).square().mean().detach()) < 1e-2


def test_a_share_of_the_batches_can_be_overfitted(tmp_path):
    assert fit(tmp_path, overfit_batches=0.4).global_step == 6


def test_barebones_leaves_out_all_that_is_not_training(tmp_path, capsys):
    runner = fit(tmp_path, barebones=True)
    assert runner.global_step == 15
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_the_models_size_is_said_in_a_line(tmp_path, capsys):
    fit(tmp_path, max_steps=1)
    assert "Net: 2 parameters, 2 of them trained, 0.0 MB\n" in capsys.readouterr().out
    fit(tmp_path, max_steps=2, enable_model_summary=False)
    assert "parameters" not in capsys.readouterr().out


def test_switches_of_torch_hold_while_the_trainer_runs(tmp_path):
    def switches():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.is_anomaly_enabled(),
        )

    class Look(rk.Callback):
        def on_train_start(self, trainer, pl_module):
            self.seen = switches()

    before, look = switches(), Look()
    flags = {"deterministic": "warn", "benchmark": True, "max_steps": 1}
    fit(tmp_path, callbacks=[look], **flags)
    assert look.seen == (True, True, True, before[3])
    fit(tmp_path, callbacks=[look], detect_anomaly=True, max_steps=2)
    assert look.seen[3]
    assert switches() == before


def test_without_preflight_data_is_not_read_twice(tmp_path):
    class Counting(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 8

        def __getitem__(self, index):
            self.reads += 1
            return (torch.full((1,), float(index)),)

    reads = []
    for preflight in (True, False):
        data = Counting()
        runner = rk.Trainer(
            max_epochs=1,
            root=tmp_path / str(preflight),
            preflight=preflight,
            enable_progress_bar=False,
        )
        runner.fit(Net(), DataLoader(data, 4))
        reads.append(data.reads)
    assert reads[0] - reads[1] == 8


def test_validation_cadence_may_be_an_every(tmp_path):
    steps = []

    class Note(rk.Callback):
        def on_validation_end(self, trainer, pl_module):
            steps.append(trainer.global_step)

    flags = {"val_every": rk.Every(steps=4), "num_sanity_val_steps": 0}
    fit(tmp_path, validation=DataLoader(DATA, 10), callbacks=[Note()], **flags)
    assert steps == [4, 8, 12]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"val_every": 4}, TypeError, r"val_every=4 must be rekindle.Every\(steps=...\)"),
        ({"val_every": rk.Every(seconds=4)}, TypeError, "so they cannot go by the clock"),
        (
            {"val_every": rk.Every(steps=4), "val_check_interval": 3},
            ValueError,
            "val_every= or val_check_interval=, not both",
        ),
        ({"plugins": [object()]}, ValueError, "plugins= is not supported: the strategy is strat"),
        ({"max_tokens": -5}, ValueError, "max_tokens=-5 must be an integer of at least 0"),
        ({"overfit_batches": -1}, ValueError, "overfit_batches=-1 must be a number of batches"),
        ({"overfit": 3, "overfit_batches": 2}, ValueError, "both name the same thing"),
        ({"log_every": 3, "log_every_n_steps": 2}, ValueError, "both name the same thing"),
        ({"device": "cpu", "accelerator": "gpu"}, ValueError, "both name the same thing"),
        ({"fast_dev_run": -1}, ValueError, "fast_dev_run=-1 must be an integer of at least 0"),
        ({"preflight": 1}, ValueError, "preflight=1 must be True or False"),
        ({"deterministic": "yes"}, ValueError, "must be True, False, 'warn' or None"),
        ({"benchmark": "yes"}, ValueError, "benchmark='yes' must be True, False or None"),
        ({"micro_batch": "auto!"}, ValueError, "micro_batch='auto!' must be an integer"),
        ({"num_nodes": 0}, ValueError, "num_nodes=0 must be an integer of at least 1"),
        ({"accelerator": "ipu"}, ValueError, "'ipu' is not supported; use 'cpu', 'gpu'"),
        ({"gpus": 2}, TypeError, "no flag 'gpus'; use devices= and accelerator='gpu'"),
        ({"resume_from_checkpoint": "x"}, TypeError, r"use fit\(model, ckpt_path=...\)"),
    ],
)
def test_what_is_not_supported_says_what_to_use(flags, error, message):
    with pytest.raises(error, match=message):
        rk.Trainer(**flags)


@pytest.mark.parametrize(
    ("accelerator", "message"), [("mps", "sees no Apple GPU here"), ("gpu", "sees no GPU here")]
)
def test_hardware_that_is_not_here_is_named(tmp_path, accelerator, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, accelerator=accelerator)


def test_short_names_are_the_same_flags():
    flags = rk.Trainer(device="cpu", log_every=7, overfit=3).flags
    assert (flags.accelerator, flags.log_every_n_steps) == ("cpu", 7)
    assert (flags.overfit, flags.limit_train_batches, flags.limit_val_batches) == (True, 3, 3)


def test_several_nodes_need_a_launcher(tmp_path):
    with pytest.raises(ValueError, match="torchrun --nnodes 2"):
        fit(tmp_path, num_nodes=2)


def test_the_launchers_number_of_processes_wins_and_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    fit(tmp_path, devices=4, max_steps=1)
    assert "devices=4, num_nodes=1: the launcher has started 1 processes" in capsys.readouterr().out


def test_the_environment_chooses_devices(monkeypatch):
    monkeypatch.setenv("REKINDLE_DEVICES", "1")
    monkeypatch.setenv("REKINDLE_ACCELERATOR", "cpu")
    flags = rk.Trainer(accelerator="gpu", devices=4).flags
    assert (flags.accelerator, flags.devices) == ("cpu", 1)


class TooLarge(Net):
    def training_step(self, batch, batch_idx):
        if len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 41 GiB")
        return super().training_step(batch, batch_idx)


def test_r7_a_micro_batch_of_auto_is_halved_until_it_fits(tmp_path, capsys):
    model = TooLarge()
    runner = rk.Trainer(
        max_epochs=1, root=tmp_path, micro_batch="auto", global_batch_size=16, log_every=1
    )
    runner.fit(model, DataLoader(DATA, 8))
    assert runner.global_step == 2
    assert runner._run.cursor.G == 16
    # One pass on trial, then 20 samples in batches of 2.
    assert [len(batch) for batch in model.seen] == [2] * 11
    said = "micro_batch='auto': 8 does not fit, 2 does; global batch stays 16, in 8 micro-batches"
    assert said in capsys.readouterr().out


def test_r7_a_trial_pass_changes_nothing(tmp_path):
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    for model, micro in zip(models, ("auto", None), strict=True):
        fit(tmp_path / str(micro), model, micro_batch=micro)
    assert torch.equal(models[0].linear.weight, models[1].linear.weight)


def test_r7_an_error_at_run_time_says_what_to_set(tmp_path):
    message = "R7 micro_batch=4 does not fit the device in this step; try micro_batch=2, or set "
    with pytest.raises(rk.RequirementError, match=message + "micro_batch='auto' to keep global_ba"):
        fit(tmp_path, TooLarge())


def test_r7_the_check_before_training_names_a_size_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("rekindle.training.assembly._must_fit", lambda *_: True)
    message = "R7 micro_batch=4 needs more memory than the device has; micro_batch=2 fits; set "
    with pytest.raises(rk.RequirementError, match=message + "micro_batch='auto' to keep global_ba"):
        fit(tmp_path, TooLarge())


def test_a_micro_batch_of_ones_own_replaces_the_loaders(tmp_path):
    model = Net()
    fit(tmp_path, model, micro_batch=2, global_batch_size=4, max_epochs=1)
    assert [len(batch) for batch in model.seen] == [2] * 10


def test_r7_what_cannot_be_tried_beforehand_is_refused(tmp_path):
    class Manual(Net):
        automatic_optimization = False

    message = "micro_batch='auto' is not supported with manual optimization.*give a number"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Manual(), micro_batch="auto")
    with pytest.raises(ValueError, match="not supported with a sharded model"):
        fit(tmp_path, micro_batch="auto", strategy="fsdp")


def test_r7_a_trial_pass_has_the_dtype_of_training(tmp_path):
    dtypes = set()

    class Double(Net):
        def training_step(self, batch, batch_idx):
            dtypes.add(batch[0].dtype)
            return super().training_step(batch, batch_idx)

    fit(tmp_path, Double(), micro_batch="auto", precision="64-true", max_steps=1)
    assert dtypes == {torch.float64}
