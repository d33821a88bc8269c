"""One run, one job: the second one waits, says for whom, and goes on when the first has ended."""

import asyncio
from dataclasses import replace

import pytest

from rekindle.api import spec
from rekindle_operator.controller.controller import Controller
from rekindle_operator.controller.job_state import JobState
from rekindle_operator.observed import run_claims
from rekindle_operator.observed.observations import Observed
from rekindle_operator.observed.run_claims import RunClaims, Use
from rekindle_operator.pods.manifests import PodAccess
from rekindle_operator.reconcile.reconcile import reconcile
from rekindle_operator.status import status

START = 1_750_000_000.0


def job(bodies, uri="s3://bucket/run", *, endpoint=None, volumes=None, path="/ckpt", **changes):
    given = bodies(**changes)
    given["spec"]["checkpoint"] |= {"uri": uri} | ({"endpointUrl": endpoint} if endpoint else {})
    if volumes is not None:
        pod = given["spec"]["template"]["spec"]
        pod["volumes"] = [{"name": "v", **volumes}]
        pod["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": path}]
    return spec.parse(given, START)


CLAIM = {"persistentVolumeClaim": {"claimName": "ckpt"}}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, dict(uri="s3://bucket/run/"), True),
        ({}, dict(uri="s3://bucket/run2"), False),
        ({}, dict(endpoint="http://minio:9000"), False),
        (dict(endpoint="http://minio:9000"), dict(endpoint="http://minio:9000/"), True),
        (dict(uri="gs://bucket/run"), dict(uri="gs://bucket/run"), False),
        # A path alone says nothing: each pod may have a disk of its own there.
        (dict(uri="file:///ckpt/run"), dict(uri="file:///ckpt/run"), False),
        (
            dict(uri="file:///ckpt/run", volumes=CLAIM),
            dict(uri="file:///ckpt/run", volumes=CLAIM),
            True,
        ),
        (
            dict(uri="file:///ckpt/run", volumes=CLAIM),
            dict(uri="file:///data/run", volumes=CLAIM, path="/data/"),
            True,
        ),
        (
            dict(uri="file:///ckpt/run", volumes=CLAIM),
            dict(uri="file:///ckpt/run", volumes={"emptyDir": {}}),
            False,
        ),
        (
            dict(uri="file:///ckpt/run", volumes={"nfs": {"server": "s", "path": "/x"}}),
            dict(uri="file:///ckpt/run", volumes={"nfs": {"server": "t", "path": "/x"}}),
            False,
        ),
    ],
)
def test_what_is_one_place(bodies, one, other, same):
    places = run_claims.place_of(job(bodies, **one)), run_claims.place_of(job(bodies, **other))
    assert (places[0] is not None and places[0] == places[1]) is same


def use(name, created=0.0, began=None, suspended=False, place="p"):
    return Use(
        key=("ml", name),
        place=(place,),
        uri="s3://bucket/run",
        created_at=created,
        began_at=began,
        suspended=suspended,
    )


@pytest.mark.parametrize(
    ("uses", "first"),
    [
        ([use("a", 1.0), use("b", 2.0)], "a"),
        ([use("a", 1.0), use("b", 2.0, began=3.0)], "b"),
        ([use("a", 1.0, began=5.0), use("b", 2.0, began=4.0)], "b"),
        ([use("a", 1.0, suspended=True), use("b", 2.0)], "b"),
        # What has begun keeps its place while it is suspended: it has not ended.
        ([use("a", 1.0, began=1.0, suspended=True), use("b", 2.0)], "a"),
        ([use("b", 1.0), use("a", 1.0)], "a"),
    ],
)
def test_who_is_first(uses, first):
    known = RunClaims(lambda key: None)
    for one in uses:
        known.note(one.key, one)
    for one in uses:
        holder = known.holder(one.key)
        assert (holder and holder.key[1]) == (None if one.key[1] == first else first)


def test_the_next_one_is_woken_when_its_turn_comes():
    woken = []
    known = RunClaims(woken.append)
    for one in (use("a", 1.0), use("b", 2.0), use("c", 3.0, place="q")):
        known.note(one.key, one)
    woken.clear()
    known.note(("ml", "a"), use("a", 1.0, began=9.0))
    known.note(("ml", "a"), use("a", 1.0, began=9.0))
    assert woken == [("ml", "b")], "once for a change, and nobody of another place"
    known.note(("ml", "a"), None)
    assert woken == [("ml", "b")] * 2
    assert known.holder(("ml", "b")) is None
    known.note(("ml", "b"), None)
    known.note(("ml", "b"), None)
    assert known.holder(("ml", "b")) is None


ACCESS = PodAccess(token="t", url="http://op")


def plan_of(job, current, holder, now):
    observed = Observed(holder=holder, now=now)
    return reconcile(job, current, observed, access=ACCESS, now=now)


def told(plan, kind):
    (found,) = [c for c in plan.status["conditions"] if c["type"] == kind]
    return found["status"], found["reason"]


def test_a_job_waits_for_another_one_without_pods_clock_or_budget(bodies):
    second = job(bodies, deadlines={"startup": "10s", "active": "20s"})
    first = Use(
        key=("ml", "first"), place=("p",), uri="s3://bucket/run", created_at=0.0, began_at=START
    )
    plan = plan_of(second, {}, first, START + 10.0)
    assert plan.create == plan.delete == ()
    assert told(plan, "Progressing") == ("True", "CheckpointInUse")
    assert told(plan, "Degraded") == ("True", "CheckpointInUse")
    message = plan.status["message"]
    assert "s3://bucket/run is in use by TrainingJob ml/first, which has had it since 20" in message
    assert "begins when that one has ended" in message
    assert [event.reason for event in plan.events] == ["CheckpointInUse"]
    later = plan_of(second, plan.status, first, START + 100_000.0)
    assert later.events == (), "told once"
    assert later.status == plan.status, "and nothing is written as time passes"
    assert later.status["phase"] == status.PENDING
    begins = plan_of(second, later.status, None, START + 200_000.0)
    pods = [made for made in begins.create if made["kind"] == "Pod"]
    assert len(pods) == 3
    assert begins.status["startTime"] > later.status.get("startTime", "")
    assert told(begins, "Degraded")[0] == "False"
    assert set(begins.status["restarts"].values()) == {0}


def test_the_controller_knows_who_uses_which_place(bodies):
    def body(name, created, **given):
        found = bodies()
        found["metadata"] |= {"name": name, "uid": name, "creationTimestamp": created}
        return found | given

    async def story():
        controller = Controller(None, coordinator_url="http://op", watch_nodes=False)
        first = body("first", "2026-01-01T00:00:00Z")
        controller.job_event(None, body("second", "2026-01-02T00:00:00Z"))
        controller.job_event(None, first)
        seen = {}
        for key, state in controller._jobs.items():
            parsed = spec.parse(state.body, START)
            seen[key[1]] = controller._observe(key, state, parsed, START).holder
        second = controller._jobs["ml", "second"]
        second.wake.clear()
        controller.job_event("DELETED", first)
        woken = second.wake.is_set()
        after = controller._observe(("ml", "second"), second, parsed, START).holder
        await controller.close()
        return seen, woken, after

    seen, woken, after = asyncio.run(story())
    assert seen["first"] is None
    assert seen["second"].key == ("ml", "first")
    assert woken
    assert after is None


@pytest.mark.parametrize(("phase", "held"), [("Running", True), ("Failed", False)])
def test_a_job_that_has_ended_leaves_its_place(bodies, phase, held):
    state = JobState(body=bodies(), status={"phase": phase, "startTime": "2026-01-01T00:00:00Z"})
    assert (state.use(job(bodies)) is not None) is held


def test_a_job_waits_for_whoever_is_no_job_as_long_as_that_lasts(world):
    """Its pods find that out; no budget pays and no start deadline runs meanwhile."""
    w = world(deadlines={"startup": "10m"})
    w.held_by = "s3://bucket/run is in use by bob on b2 (pid 8)"
    w.run(3600, pace=60.0)
    assert (w.phase, w.condition("Degraded")["reason"]) == ("Starting", "CheckpointInUse")
    assert (w.restarts, w.status["incidents"], len(w.rounds)) == ((0, 0, 0), [], 1)
    w.held_by, w.trains = None, False
    w.run(300, pace=60.0)
    assert w.phase == "Starting", "the start begins anew"
    w.trains = True
    w.until(w.training)
    assert w.condition("Degraded")["status"] == "False"


def test_who_waits_for_whoever_is_no_job_goes_when_it_is_told_to(world):
    w = world()
    w.held_by = "s3://bucket/run is in use by bob on b2 (pid 8)"
    w.run(120, pace=10.0).delete("digits-1")
    w.until(lambda: len(w.rounds) > 1 and "digits-1" not in w.members)
    w.held_by = None
    w.until(w.training)
    assert w.restarts[:2] == (0, 0)


def test_the_deadline_for_waiting_runs_while_somebody_holds_the_run(world):
    w = world(deadlines={"pending": "10m"})
    w.held_by = "s3://bucket/run is in use by bob on b2 (pid 8)"
    w.run(900, pace=60.0)
    assert (w.phase, w.condition("Failed")["reason"]) == ("Failed", "CheckpointInUse")
    assert "in use by bob" in w.condition("Failed")["message"]


def test_a_job_whose_operator_died_before_it_wrote_that_it_has_begun_holds_its_place(world):
    """An older one was suspended until then."""
    w = world().settle()
    state = JobState(body=w.body, status={})
    assert state.use(w.job).began_at is None
    state.parsed = {uid: pod.parsed() for uid, pod in w.pods.items()}
    older = replace(state.use(w.job), key=("ml", "older"), created_at=0.0, began_at=None)
    assert state.use(w.job).turn < older.turn
