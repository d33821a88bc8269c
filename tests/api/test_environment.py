"""What the operator writes into a pod's environment is what the trainer reads out of it."""

import pytest

from rekindle.api import spec
from rekindle.checkpoint.retention import Best, Retention
from rekindle.checkpoint.saving.interval import Pace
from rekindle.flags import Every
from rekindle.persistence.policy import interval, retention, store_options
from rekindle.trainer.trainer import Trainer
from rekindle_operator.pods import manifests


def environment(mtbf=None, **checkpoint):
    body = {
        "metadata": {"name": "j", "namespace": "n", "uid": "u"},
        "spec": {
            "template": {"spec": {"containers": [{"name": "trainer", "image": "i"}]}},
            "checkpoint": {"uri": "s3://b/p", **checkpoint},
        },
    }
    pod = manifests.pod(spec.parse(body, 0.0), 0, 0, mtbf)
    given = pod["spec"]["containers"][0]["env"]
    return {entry["name"]: entry["value"] for entry in given if "value" in entry}


@pytest.fixture
def read(monkeypatch):
    def reading(**checkpoint):
        for name, value in environment(**checkpoint).items():
            monkeypatch.setenv(name, value)
        flags = Trainer().flags
        return interval(flags), retention(flags)

    return reading


def test_steps_and_the_latest(read):
    assert read(every={"steps": 7}, keep={"latest": 5}) == (Every(steps=7), Retention(latest=5))


def test_seconds_and_the_best_and_what_is_kept_for_ever(read):
    keep = {
        "latest": 1,
        "best": {"metric": "val/f1", "mode": "max", "count": 4},
        "everySteps": 1000,
        "hourly": 24,
    }
    best = (Best(metric="val/f1", mode="max", count=4),)
    wanted = Retention(latest=1, best=best, every=1000, hourly=24)
    assert read(every={"seconds": 30}, keep=keep) == (Every(seconds=30.0), wanted)


def test_auto_with_the_failures_seen_so_far(read):
    pace, kept = read(every={"auto": True}, mtbf=812.4)
    assert pace == Pace(mtbf=812.0, told=True)
    assert kept == Retention()


def reached(monkeypatch, **checkpoint):
    for name, value in environment(**checkpoint).items():
        monkeypatch.setenv(name, value)
    return store_options(Trainer().flags)


def test_how_the_store_is_reached(monkeypatch):
    assert reached(
        monkeypatch,
        endpointUrl="https://minio:9000",
        region="eu-central-1",
        addressing="virtual",
        commit="lease",
    ) == {
        "endpoint_url": "https://minio:9000",
        "region": "eu-central-1",
        "addressing": "virtual",
        "commit": "lease",
    }


def test_a_job_that_says_nothing_of_its_store_gets_conditional_writes(monkeypatch):
    assert reached(monkeypatch) == {"commit": "conditional"}


def test_auto_without_a_failure_so_far(read):
    assert read(every={"auto": True})[0] == Pace()
