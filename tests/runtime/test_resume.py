"""A run that was stopped or has failed ends with the weights of one that was not, bit for bit."""

import random

import pytest
import torch

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.errors.outcome import Damaged
from rekindle.persistence.session import CheckpointSession


def newest(path):
    store = Store.open(str(path))
    return store.read(store.commits()[0])


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """Results of uninterrupted runs, by task."""
    known = {}

    def run(**task):
        key = repr(task)
        if key not in known:
            root = tmp_path_factory.mktemp("whole")
            known[key] = program["main"]({"root": str(root / "run"), **task})
        return known[key]

    return run


# 103 samples, 26 micro-batches of 4: accumulation of 3 gives 9 steps an epoch, 27 in all.
ACCUMULATING = {"flags": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}}


@pytest.mark.parametrize("stop", random.Random(4).sample(range(1, 27), 4))
def test_a_preempted_run_resumes_bit_equal(fit, whole, tmp_path, stop):
    expected = whole(**ACCUMULATING)
    first = fit(**ACCUMULATING, stop_at=stop)
    assert (first["exit"], first["step"]) == (75, stop)
    second = fit(**ACCUMULATING)
    assert (second["exit"], second["step"]) == (0, 27)
    assert second["weights"] == expected["weights"]
    assert first["used"] + second["used"] == expected["used"]
    assert second["metrics"] == expected["metrics"]
    assert audit(newest(tmp_path / "run").meta).exact


def test_a_run_whose_checkpoints_are_all_marked_as_damaged_does_not_begin_again(fit, tmp_path):
    fit(**ACCUMULATING, stop_at=5)
    store = Store.open(str(tmp_path / "run"))
    for ref in store.commits():
        store.quarantine(ref, "its bytes have changed")
    with pytest.raises(Damaged) as ended:
        fit(**ACCUMULATING)
    assert "R16 no good checkpoint is left" in str(ended.value.__cause__)
    assert not store.commits(), "nothing was trained from the beginning"


@pytest.mark.processes
def test_dropout_alone_resumes_bit_equal(fit, whole):
    expected = whole(tensors=True)
    fit(tensors=True, stop_at=31)
    assert fit(tensors=True)["weights"] == expected["weights"]


@pytest.mark.processes
@pytest.mark.parametrize("fail", random.Random(5).sample(range(6, 27), 3))
def test_a_crashed_run_resumes_from_its_last_checkpoint_bit_equal(fit, whole, tmp_path, fail):
    expected = whole(**ACCUMULATING)
    first = fit(**ACCUMULATING, steps=5, fail_at=fail)
    assert first["error"] == f"ValueError: made to fail at step {fail}"
    second = fit(**ACCUMULATING, steps=5)
    assert second["weights"] == expected["weights"]
    assert second["used"][0][1] == (fail - 1) // 5 * 5
    assert audit(newest(tmp_path / "run").meta).exact


@pytest.mark.processes
@pytest.mark.parametrize(
    ("schedule", "norm"),
    [("plateau", True), ("multistep", False), ("onecycle", True), ("lambda", False)],
)
def test_schedulers_and_running_statistics_resume_bit_equal(fit, whole, schedule, norm):
    task = {
        "net": {"schedule": schedule, "norm": norm},
        "flags": {"accumulate_grad_batches": 5, "precision": "bf16-mixed"},
    }
    expected = whole(**task)
    stopped = fit(**task, stop_at=random.Random(schedule).randrange(2, 17))
    assert stopped["exit"] == 75
    assert fit(**task)["weights"] == expected["weights"]


@pytest.mark.processes
def test_five_preemptions_are_one_run(fit, whole):
    expected = whole(**ACCUMULATING)
    used = []
    for stop in range(2, 22, 4):
        part = fit(**ACCUMULATING, stop_at=stop)
        assert part["step"] == stop
        used += part["used"]
    last = fit(**ACCUMULATING)
    assert last["weights"] == expected["weights"]
    assert used + last["used"] == expected["used"]


def test_a_run_stopped_in_validation_validates_again(fit, whole):
    expected = whole(**ACCUMULATING)
    first = fit(**ACCUMULATING, stop_in_validation=9)
    assert (first["exit"], first["step"], first["validations"]) == (75, 9, [0])
    second = fit(**ACCUMULATING)
    assert second["validations"] == [9, 18, 27]
    assert second["accuracies"] == expected["accuracies"][1:]
    assert second["weights"] == expected["weights"]
    assert second["metrics"] == expected["metrics"]


def test_validations_fall_on_the_same_steps_after_a_resume(fit):
    task = {"flags": {"val_check_interval": 9, "check_val_every_n_epoch": None, "max_epochs": 2}}
    first = fit(**task, stop_at=30)
    second = fit(**task)
    assert first["validations"][1:] + second["validations"] == [9, 18, 27, 36, 45]


def test_validations_of_a_share_of_an_epoch_count_within_the_epoch(fit):
    task = {"flags": {"val_check_interval": 0.5, "max_epochs": 2}}
    first = fit(**task, stop_at=20)
    second = fit(**task)
    assert first["validations"][1:] + second["validations"] == [13, 26, 39, 52]


def test_a_staged_snapshot_is_flushed_when_training_fails(fit, monkeypatch, capsys):
    monkeypatch.setattr(CheckpointSession, "last_commit", None)
    assert fit(steps=5, fail_at=8)["error"]
    expected = "R24 rank 0 failed in step 8: ValueError: made to fail at step 8. Flushing the "
    assert expected + "snapshot of step 5 (already staged)." in capsys.readouterr().err
    monkeypatch.undo()
    assert fit()["used"][0][1] == 5


def test_what_was_restored_is_not_saved_again(fit, tmp_path):
    fit(steps=5, stop_at=10)
    fit(steps=5, stop_at=14)
    saved = sorted(path.name for path in (tmp_path / "run" / "commit").iterdir())
    assert [int(name[:12]) for name in saved] == [5, 10, 14]


def test_a_complete_run_is_left_alone(fit):
    first = fit(**ACCUMULATING)
    again = fit(**ACCUMULATING)
    assert (again["step"], again["used"]) == (27, [])
    assert (again["weights"], again["metrics"]) == (first["weights"], first["metrics"])


@pytest.mark.processes
def test_a_complete_run_goes_on_when_the_script_asks_for_more(fit, whole):
    fit(flags={"max_steps": 40, "max_epochs": None})
    more = fit(flags={"max_steps": 70, "max_epochs": None})
    expected = whole(flags={"max_steps": 70, "max_epochs": None})
    assert more["weights"] == expected["weights"]


def test_the_script_can_refuse_to_resume(fit):
    fit(stop_at=10)
    fresh = fit(flags={"resume": "never", "max_epochs": 1})
    assert fresh["used"][0][:2] == [0, 0]
    assert fit(flags={"max_epochs": 1})["used"] == []


def test_a_missing_checkpoint_can_be_an_error(fit):
    assert "resume='must', but there is no checkpoint" in fit(flags={"resume": "must"})["error"]


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(fit, tmp_path, capsys):
    fit(**ACCUMULATING, steps=5, stop_at=13)
    shard = sorted((tmp_path / "run" / "data").glob("000000000013-*/*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    second = fit(**ACCUMULATING, steps=5)
    assert second["used"][0][1] == 10
    said = capsys.readouterr().out
    assert "R16 checkpoint step 13" in said
    assert "Falling back to step 10 (3 steps lost)." in said


def test_the_commit_says_where_the_run_is(fit, tmp_path):
    fit(**ACCUMULATING, stop_at=13)
    meta = newest(tmp_path / "run").meta
    assert (meta["step"], meta["epoch"], meta["finished"]) == (13, 1, False)
    assert (meta["cursor"]["epoch"], meta["cursor"]["sample"], meta["cursor"]["G"]) == (1, 48, 12)
    assert (meta["total_steps"], meta["world_size"]) == (27, 1)
    assert meta["ledger"]["samples"] == 103 + 48
    fit(**ACCUMULATING)
    assert newest(tmp_path / "run").meta["finished"]


def test_an_interval_left_to_us_saves_and_says_why(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY", "auto")
    monkeypatch.setenv("REKINDLE_MTBF_SECONDS", "7200")
    monkeypatch.setattr("rekindle.checkpoint.saving.interval.FIRST_SECONDS", 0.001)
    fit(flags={"max_epochs": 1})
    steps = sorted(ref.step for ref in Store.open(str(tmp_path / "run")).commits())
    assert len(steps) == 2, "one to measure, and the last one: the next would come a second later"
    said = [line for line in capsys.readouterr().out.splitlines() if "checkpoint every" in line]
    assert len(said) == 1
    assert "a failure comes every 2 h (as counted)" in said[0]


def test_a_frozen_backbone_is_stored_once(tmp_path):
    class Tuned(rk.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Linear(8, 500)
            self.backbone.requires_grad_(False)
            self.head = torch.nn.Linear(500, 1)

        def training_step(self, batch, batch_idx):
            return self.head(self.backbone(batch[0])).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.01)

    data = torch.utils.data.TensorDataset(torch.randn(20, 8))
    model = Tuned()
    for epochs in (1, 2):
        trainer = rk.Trainer(
            max_epochs=epochs,
            root=tmp_path / "run",
            checkpoint_every=rk.Every(steps=2),
            enable_progress_bar=False,
        )
        trainer.fit(model, torch.utils.data.DataLoader(data, 4))
    commit = newest(tmp_path / "run")
    steps = {entry.key.split("/")[1]: entry.size for entry in commit.objects}
    assert sorted(steps) == ["000000000002-00000001", "000000000010-00000002"]
    assert steps["000000000002-00000001"] > steps["000000000010-00000002"] + 18_000
    restored = Store.open(str(tmp_path / "run")).load(commit)
    assert torch.equal(restored.state["model"]["backbone.weight"], model.backbone.weight)
