"""Figures about all jobs that alerts look at: made from statuses when somebody looks."""

import pytest
from prometheus_client import generate_latest

from rekindle_operator import metrics
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.status import fleet

NOW = 1_750_000_000.0


def seen(*worlds):
    return fleet.look([(w.body["spec"], w.status) for w in worlds], worlds[0].now)


def test_waiting_is_counted_by_where_a_job_is(world):
    pending = world(nodes=0).run(100)
    found = seen(pending, world())
    assert found.waiting == {"Pending": 100.0, "Starting": 0.0, "Recovering": 0.0, "Suspending": 0}
    starting = world()
    starting.trains = False
    assert seen(starting.run(70)).waiting["Starting"] == 70.0
    training = world().start().train(3)
    assert not any(seen(training).waiting.values())
    training.trains = False
    training.kill("digits-1").run(50)
    assert training.phase == "Recovering"
    assert seen(training).waiting["Recovering"] == 50.0


def test_a_suspension_counts_until_its_pods_have_ended(world):
    w = world().start().train(3)
    w.hold_saves = True
    w.change(suspend=True).run(12)
    assert seen(w).waiting["Suspending"] == 12.0
    w.hold_saves = False
    w.run(60)
    assert not w.pods
    assert seen(w).waiting["Suspending"] == 0.0


def test_attention_is_counted_by_reason_and_reasons_are_few(world):
    w = world().start()
    w.skipped = ("checkpoint 10 is damaged",)
    w.kill("digits-1").until(lambda: len(w.members) == 3 and w.training()).run(30)
    found = seen(w, w)
    assert found.degraded["CheckpointDamaged"] == 2
    assert found.degraded_seconds["CheckpointDamaged"] >= 30.0
    broken = world()
    broken.broken_image = {"*"}
    broken.run(40)
    assert seen(broken).degraded["ErrImagePull"] == 1
    broken.status["conditions"][2]["reason"] = "Whatever9000"
    assert seen(broken).degraded["Other"] == 1
    assert list(found.degraded) == [*fleet.REASONS, "Other"]


def test_a_failure_is_told_for_an_hour(world):
    w = world().start().fail("digits-0", cause="Configuration").run(10)
    assert w.phase == "Failed"
    assert seen(w).failed_lately == 1
    assert not any(seen(w).degraded.values()), "it has ended"
    w.now += fleet.LATELY
    assert seen(w).failed_lately == 0
    done = world(total_steps=10).start()
    done.until(lambda: done.phase == "Succeeded")
    assert seen(done).failed_lately == 0


def test_a_commit_is_overdue_beyond_the_interval_that_the_job_asks_for(world):
    every = {"uri": "s3://bucket/run", "every": {"seconds": 60}}
    w = world(checkpoint=every, save_every=10_000).start().run(100)
    assert 35.0 <= seen(w).overdue <= 41.0
    w.save_every = 10
    assert seen(w.run(30)).overdue == 0.0


def test_a_program_that_does_not_save_by_us_is_not_overdue():
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(NOW - 9999)}
    known = {"phase": "Running", "conditions": [ready], "goodput": {"percent": "unknown"}}
    assert fleet.look([({}, known)], NOW).overdue == 0.0
    known["goodput"] = {"productiveSeconds": 5.0}
    assert fleet.look([({}, known)], NOW).overdue == 9999.0


@pytest.mark.parametrize(
    "bad",
    [
        {"phase": "Running", "conditions": 5},
        {"phase": "Pending", "accounting": {"pendingSince": "x"}},
    ],
)
def test_a_status_that_somebody_has_broken_hides_no_other(bad, world):
    good = world(nodes=0).run(20)
    found = fleet.look([({}, bad), (good.body["spec"], good.status)], good.now)
    assert found.waiting["Pending"] == 20.0


def test_the_page_has_all_of_them_without_any_job(monkeypatch):
    monkeypatch.setattr(metrics.FLEET, "jobs", tuple)
    page = generate_latest(metrics.REGISTRY).decode()
    assert 'rekindle_job_waiting_seconds_max{phase="Pending"} 0.0' in page
    assert 'rekindle_jobs_degraded{reason="Other"} 0.0' in page
    assert "rekindle_jobs_failed_lately 0.0" in page
    assert "rekindle_job_commit_overdue_seconds_max 0.0" in page
