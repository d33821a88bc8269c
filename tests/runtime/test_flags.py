import pytest

from rekindle import Every, Trainer
from rekindle.checkpoint.interval import Pace
from rekindle.checkpoint.retention import Best, Retention
from rekindle.flags import cadence, retention


def test_an_unknown_flag_is_answered_with_the_closest_one():
    with pytest.raises(TypeError, match="no flag 'max_epoch'; did you mean 'max_epochs'"):
        Trainer(max_epoch=3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_epochs": -3}, "max_epochs=-3"),
        ({"max_steps": 1.5}, "max_steps=1.5"),
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"accumulate_grad_batches": 0}, "at least 1"),
        ({"gradient_clip_val": 0}, "gradient_clip_val=0"),
        ({"gradient_clip_algorithm": "max"}, "allowed are 'norm', 'value'"),
        ({"precision": "16-mixed"}, "precision='16-mixed'"),
        ({"precision": True}, "precision=True"),
        ({"resume": "maybe"}, "allowed are 'auto', 'must', 'never'"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"limit_train_batches": 1.5}, "limit_train_batches=1.5"),
        ({"val_check_interval": 0}, "val_check_interval=0"),
        ({"accelerator": "tpu"}, "allowed are 'auto', 'cpu'"),
        ({"devices": 0}, "devices=0"),
        ({"strategy": "horovod"}, "not supported; use 'ddp'"),
        ({"strategy": "fsdp"}, "strategy='fsdp' is unknown"),
        ({"root": "a", "default_root_dir": "b"}, "both name the same thing"),
    ],
)
def test_a_bad_flag_is_named_with_what_is_allowed(flags, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Trainer(**flags)


def test_a_cadence_needs_an_every():
    with pytest.raises(TypeError, match=r"rekindle.Every\(steps"):
        Trainer(checkpoint_every=100)


@pytest.mark.parametrize("bad", [{}, {"steps": 0}, {"steps": True}, {"seconds": 0}])
def test_an_impossible_cadence_is_refused(bad):
    with pytest.raises(ValueError, match=r"Every\("):
        Every(**bad)


def test_the_job_wins_over_the_script(monkeypatch):
    trainer = Trainer(checkpoint_every=Every(steps=5), keep_latest=2, accelerator="gpu")
    assert (cadence(trainer.flags), retention(trainer.flags)) == (
        Every(steps=5),
        Retention(latest=2),
    )
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY_SECONDS", "30")
    monkeypatch.setenv(
        "REKINDLE_CHECKPOINT_KEEP",
        '{"latest": 7, "best": [{"metric": "val/loss", "mode": "min", "count": 2}]}',
    )
    monkeypatch.setenv("REKINDLE_ACCELERATOR", "cpu")
    best = (Best(metric="val/loss", mode="min", count=2),)
    assert cadence(trainer.flags) == Every(seconds=30.0)
    assert retention(trainer.flags) == Retention(latest=7, best=best)
    assert Trainer(accelerator="gpu").flags.accelerator == "cpu"


def test_minus_one_means_no_limit():
    assert Trainer(max_epochs=-1, max_steps=9).max_epochs is None


def test_both_names_of_the_root_work():
    assert Trainer(default_root_dir="/x").flags.root == Trainer(root="/x").flags.root == "/x"


def test_the_job_can_leave_the_interval_to_us(monkeypatch):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY", "auto")
    assert cadence(Trainer(checkpoint_every=Every(steps=5)).flags) == Pace()
    monkeypatch.setenv("REKINDLE_MTBF_SECONDS", "1800")
    assert cadence(Trainer().flags) == Pace(mtbf=1800.0, told=True)
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY_STEPS", "7")
    assert cadence(Trainer(checkpoint_every="auto").flags) == Every(steps=7)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("REKINDLE_CHECKPOINT_EVERY", "often", "'often' is not known; allowed is 'auto'"),
        ("REKINDLE_MTBF_SECONDS", "soon", "'soon' must be a number of seconds above 0"),
        ("REKINDLE_MTBF_SECONDS", "-1", "must be a number of seconds above 0"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY", "auto")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        cadence(Trainer().flags)
