import inspect
from pathlib import Path

import pytest

from rekindle import Every, Store, Trainer
from rekindle.checkpoint.retention import Best, Retention
from rekindle.checkpoint.saving.interval import Pace
from rekindle.flags import STORE
from rekindle.persistence.policy import interval, retention, store_options


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
        ({"gradient_clip_algorithm": "max"}, "allowed are 'norm', 'value'"),
        ({"precision": "8-mixed"}, "precision='8-mixed'"),
        ({"precision": "int8"}, "precision='int8' is not supported: int8 holds no gradients"),
        ({"precision": "16-true"}, "use 'bf16-true', or '16-mixed'"),
        ({"precision": True}, "precision=True"),
        ({"resume": "maybe"}, "allowed are 'auto', 'must', 'never'"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"limit_train_batches": 1.5}, "limit_train_batches=1.5"),
        ({"val_check_interval": 0}, "val_check_interval=0"),
        ({"val_check_interval": "00:01:00:00"}, "cannot go by the clock; give a number of batches"),
        (
            {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
            "counts batches over all epochs; give an integer",
        ),
        ({"accelerator": "tpu"}, "'tpu' is not supported; use 'cpu', 'gpu'"),
        ({"accelerator": "npu"}, "allowed are 'auto', 'cpu'"),
        ({"devices": 0}, "devices=0"),
        ({"strategy": "horovod"}, "not supported; use 'ddp' or 'fsdp2'"),
        ({"strategy": "fsdp3"}, "strategy='fsdp3' is unknown; allowed are 'auto', 'ddp', 'fsdp2'"),
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
    assert (interval(trainer.flags), retention(trainer.flags)) == (
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
    assert interval(trainer.flags) == Every(seconds=30.0)
    assert retention(trainer.flags) == Retention(latest=7, best=best)
    assert Trainer(accelerator="gpu").flags.accelerator == "cpu"


def test_minus_one_means_no_limit():
    assert Trainer(max_epochs=-1, max_steps=9).flags.max_epochs is None
    assert Trainer(max_epochs=-1).flags.max_epochs is None


def test_without_a_limit_there_are_a_thousand_epochs():
    assert Trainer().flags.max_epochs == 1000
    assert Trainer(max_steps=3).flags.max_epochs is None
    assert Trainer(max_time="00:01:00:00").flags.max_epochs is None
    assert Trainer(fast_dev_run=True).flags.max_epochs == 1


@pytest.mark.parametrize(
    ("given", "count", "ids"),
    [
        (2, 2, None),
        ("2", 2, None),
        ([0], 1, (0,)),
        ([1, 3], 2, (1, 3)),
        ("0,", 1, (0,)),
        ("1, 3", 2, (1, 3)),
        (-1, "all", None),
        ("-1", "all", None),
        ("auto", "auto", None),
    ],
)
def test_devices_are_a_number_a_list_or_all(given, count, ids):
    flags = Trainer(devices=given).flags
    assert (flags.devices, flags.device_ids) == (count, ids)


@pytest.mark.parametrize("bad", [0, -2, "0", [], [0, 0], [-1], "a", 1.5, None])
def test_other_devices_are_refused(bad):
    with pytest.raises(ValueError, match=r"devices=.* must be a number of devices"):
        Trainer(devices=bad)


@pytest.mark.parametrize(
    "flag",
    [
        {"enable_checkpointing": True},
        {"logger": True},
        {"enable_progress_bar": True},
        {"enable_model_summary": True},
        {"num_sanity_val_steps": 2},
        {"log_every_n_steps": 50},
        {"fast_dev_run": True},
        {"detect_anomaly": True},
        {"profiler": "simple"},
    ],
)
def test_barebones_refuses_what_costs_time(flag):
    with pytest.raises(ValueError, match=f"barebones=True, {next(iter(flag))}="):
        Trainer(barebones=True, **flag)


def test_nothing_is_clipped_to_nothing():
    assert Trainer(gradient_clip_val=0).flags.gradient_clip_val is None
    assert Trainer(gradient_clip_val=0.5, gradient_clip_algorithm="VALUE").flags
    with pytest.raises(TypeError, match="gradient_clip_val='1'"):
        Trainer(gradient_clip_val="1")


def test_both_names_of_the_root_work():
    assert Trainer(default_root_dir="/x").flags.root == Trainer(root="/x").flags.root == "/x"


def test_the_job_can_leave_the_interval_to_us(monkeypatch):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY", "auto")
    assert interval(Trainer(checkpoint_every=Every(steps=5)).flags) == Pace()
    monkeypatch.setenv("REKINDLE_MTBF_SECONDS", "1800")
    assert interval(Trainer().flags) == Pace(mtbf=1800.0, told=True)
    monkeypatch.setenv("REKINDLE_CHECKPOINT_EVERY_STEPS", "7")
    assert interval(Trainer(checkpoint_every="auto").flags) == Every(steps=7)


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
        interval(Trainer().flags)


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        (
            {"endpoint": "http://h"},
            TypeError,
            "store has no option 'endpoint'; did you mean 'endpoi",
        ),
        ({"ca_bundel": "x"}, TypeError, "did you mean 'ca_bundle'"),
        ({"secret_key": "x"}, TypeError, "known are endpoint_url, .*Credentials are no options"),
        ({7: "x"}, TypeError, "store has no option 7"),
        ("s3://bucket/x", TypeError, "must be a mapping.*not str; where checkpoints go is root="),
        ({"endpoint_url": "me:hunter2@minio:9"}, ValueError, r"='minio:9' must begin with http://"),
        (
            {"endpoint_url": "http://me:hunter2@minio:9"},
            ValueError,
            r"^store\['endpoint_url'\] holds credentials, .* AWS_ACCESS_KEY_ID",
        ),
        ({"endpoint_url": "http:///x"}, ValueError, "must begin with http:// .*and name a host"),
        ({"region": ""}, ValueError, r"store\['region'\] must be a text that is not empty"),
        ({"profile": 3}, ValueError, r"store\['profile'\] must be a text"),
        (
            {"addressing": "dns"},
            ValueError,
            "'dns' is not known; allowed are 'auto', 'path', 'virt",
        ),
        ({"commit": "none"}, ValueError, "'none' is not known; allowed are 'conditional', 'lease'"),
    ],
)
def test_a_bad_option_of_the_store_is_named_with_what_is_allowed(store, error, message):
    with pytest.raises(error, match=message) as caught:
        Trainer(store=store)
    assert "hunter2" not in str(caught.value)


def test_the_options_of_the_trainer_are_those_of_the_store():
    parameters = inspect.signature(Store.open).parameters
    assert set(STORE) == set(parameters) - {"uri"}


def test_every_option_of_the_store_is_taken_and_none_means_not_given():
    given = {
        "endpoint_url": "https://minio:9000/",
        "region": "eu-central-1",
        "profile": "team",
        "ca_bundle": Path("/etc/ca.pem"),
        "addressing": "auto",
        "commit": "lease",
    }
    options = store_options(Trainer(store=given).flags)
    assert options == {**given, "ca_bundle": "/etc/ca.pem"}
    assert store_options(Trainer(store=dict.fromkeys(given)).flags) == {}
    assert store_options(Trainer().flags) == {}


def test_the_script_wins_over_the_job_but_for_the_endpoint(monkeypatch):
    for name, value in {
        "ENDPOINT_URL": "http://job", "REGION": "eu-job-1", "ADDRESSING": "path", "COMMIT": "lease",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"REKINDLE_CHECKPOINT_{name}", value)
    job = {"endpoint_url": "http://job", "region": "eu-job-1"}
    job |= {"addressing": "path", "commit": "lease"}
    assert store_options(Trainer().flags) == job
    script = {"region": "us-script-1", "addressing": "virtual", "commit": "conditional"}
    trainer = Trainer(store={**script, "endpoint_url": "http://script", "profile": "p"})
    assert store_options(trainer.flags) == {**job, **script, "profile": "p"}
    monkeypatch.setenv("REKINDLE_CHECKPOINT_ENDPOINT_URL", "")
    assert store_options(trainer.flags)["endpoint_url"] == "http://script"


@pytest.mark.parametrize(
    ("name", "value"), [("COMMIT", "fast"), ("ADDRESSING", "dns"), ("ENDPOINT_URL", "minio:9000")]
)
def test_a_word_of_the_job_about_the_store_is_checked_too(monkeypatch, name, value):
    monkeypatch.setenv(f"REKINDLE_CHECKPOINT_{name}", value)
    with pytest.raises(ValueError, match=f"REKINDLE_CHECKPOINT_{name}='{value}'"):
        store_options(Trainer().flags)


def test_a_password_in_the_jobs_endpoint_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_ENDPOINT_URL", "http://me:hunter2@minio")
    with pytest.raises(ValueError, match="^REKINDLE_CHECKPOINT_ENDPOINT_URL holds cred") as caught:
        store_options(Trainer().flags)
    assert "hunter2" not in str(caught.value)
