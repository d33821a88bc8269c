"""After the end: edits are told, and an annotation runs the job again."""

import pytest

OTHER = {"spec": {"containers": [{"name": "trainer", "image": "i2", "args": ["t.py"]}]}}


def failed(world, **changes):
    w = world(**changes).start().train(12)
    w.fail(w.members[0], cause="Configuration").until(lambda: w.phase == "Failed")
    return w.run(60)


def uris(w):
    """Where pods are told that the checkpoints are."""
    return {
        entry["value"]
        for pod in w.pods.values()
        for entry in pod.body["spec"]["containers"][0]["env"]
        if entry["name"] == "REKINDLE_CHECKPOINT_URI"
    }


def told(w, reason):
    return [event.message for event in w.events if event.reason == reason]


def test_an_edit_after_the_end_is_told_once_with_how_to_run_again(world):
    w = failed(world)
    why = w.condition("Failed")["message"]
    assert w.condition("Progressing")["reason"] == "Failed"
    w.change(template=OTHER).run(5).restart_operator().run(100, pace=5)
    (text,) = told(w, "SpecChangedAfterEnd")
    assert "rekindle restart digits -n ml" in text
    assert "kubectl annotate tj digits -n ml rekindle.dev/restart=$(date +%s) --overwrite" in text
    progressing = w.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "SpecChangedAfterEnd")
    assert progressing["message"] == text
    assert w.status["message"].startswith(why)
    assert text in w.status["message"]
    assert (w.condition("Failed")["message"], w.phase) == (why, "Failed")
    w.change(replicas=2).run(5)
    assert len(told(w, "SpecChangedAfterEnd")) == 2, "another edit, another event"


def test_what_ended_under_an_earlier_operator_is_not_taken_for_edited(world):
    w = failed(world)
    del w.status["accounting"]["endedGeneration"]
    w.restart_operator().run(30)
    assert not told(w, "SpecChangedAfterEnd")
    w.change(replicas=2).run(5)
    assert told(w, "SpecChangedAfterEnd")


def test_an_order_runs_a_failed_job_again_from_its_checkpoint(world):
    w = failed(world, restart={"user": {"max": 1}})
    ended_at, step, round_number = w.now, w.committed.step, w.status["round"]
    w.now += 1000
    w.annotate(restart="1").change(template=OTHER)
    w.until(w.training)
    assert (w.status["run"], w.restarts) == (1, (0, 0, 0))
    assert w.group()[0].step > step
    assert w.status["round"] > round_number
    assert {pod.name for pod in w.alive} == {"digits-0r1", "digits-1r1", "digits-2r1"}
    assert not w.status["incidents"]
    assert "completionTime" not in w.status
    assert w.status["goodput"]["ratio"] <= 1
    assert told(w, "Restarted") == [f"run 2 begins from the checkpoint of step {step}"]
    assert not told(w, "SpecChangedAfterEnd")
    w.run(50)
    assert (w.phase, w.status["run"]) == ("Running", 1), "an order is obeyed once"
    productive = w.status["goodput"]["productiveSeconds"]
    assert productive <= w.now - ended_at - 1000


def test_from_scratch_the_run_has_a_place_of_its_own(world):
    w = failed(world)
    w.committed = None
    w.annotate(restart="1", restart_from="scratch").until(w.training)
    assert uris(w) == {"s3://bucket/run/restart-1"}
    assert w.rounds[-1].number > 1
    w.fail(w.members[0], cause="Configuration").until(lambda: w.phase == "Failed")
    w.restart_operator().annotate(restart="2", restart_from="latest").until(w.training)
    assert uris(w) == {"s3://bucket/run/restart-1"}, "the newest state is there"
    assert w.status["run"] == 2
    w.fail(w.members[0], cause="Configuration").until(lambda: w.phase == "Failed")
    w.annotate(restart="3", restart_from="scratch").until(w.training)
    assert uris(w) == {"s3://bucket/run/restart-3"}


def test_pods_of_a_scratch_run_are_replaced_in_the_same_place(world):
    w = failed(world).annotate(restart="1", restart_from="scratch")
    w.until(w.training)
    w.kill("digits-1r1").until(lambda: len(w.members) == 3 and w.training())
    assert uris(w) == {"s3://bucket/run/restart-1"}
    w.restart_operator().run(60)
    assert w.phase == "Running"


def test_a_job_that_has_succeeded_runs_again(world):
    w = world(total_steps=20).start()
    w.until(lambda: w.phase == "Succeeded").run(30)
    w.total_steps = 40
    w.annotate(restart="x").until(lambda: w.phase == "Running")
    w.until(lambda: w.phase == "Succeeded")
    assert w.step == 40


def test_ttl_counts_from_the_new_end(world):
    w = world(total_steps=20, ttlSecondsAfterFinished=100).start()
    w.until(lambda: w.phase == "Succeeded").run(90)
    w.total_steps = 200
    w.annotate(restart="x").run(50)
    w.until(lambda: w.phase == "Succeeded", 300).run(90)
    assert not w.removed
    w.run(20)
    assert w.removed


def test_pods_of_the_run_before_go_first(world):
    w = failed(world, cleanPods="None")
    kept = {pod.name for pod in w.pods.values()}
    assert kept
    w.annotate(restart="1").until(w.training)
    assert kept <= set(w.deleted)
    assert not kept & {pod.name for pod in w.pods.values()}


@pytest.mark.parametrize("phase", ["Running", "Suspended"])
def test_an_order_to_a_job_that_has_not_ended_is_told_and_forgotten(world, phase):
    w = world().start().train(3)
    w.change(suspend=phase == "Suspended").run(50)
    w.annotate(restart="1").run(5)
    assert w.phase == phase
    assert len(told(w, "RestartIgnored")) == 1
    w.change(suspend=False).until(w.training)
    w.fail(w.members[0], cause="Configuration").until(lambda: w.phase == "Failed").run(50)
    assert (w.phase, w.status.get("run")) == ("Failed", None)


def test_an_annotation_that_a_new_job_brings_along_is_no_order(world):
    w = world().annotate(restart="1").start()
    assert not told(w, "RestartIgnored")
    assert "run" not in w.status


def test_a_place_that_nobody_knows_is_told(world):
    w = failed(world).annotate(restart="1", restart_from="step-12").run(30)
    assert w.phase == "Failed"
    (text,) = told(w, "RestartRefused")
    assert "must be latest or scratch" in text


@pytest.mark.parametrize("die_after", ["children", "status"])
@pytest.mark.parametrize("tick", range(4))
def test_an_operator_that_dies_on_the_way_is_followed_by_one_that_goes_on(world, die_after, tick):
    w = failed(world, cleanPods="None")
    names = set(w.created)
    w.annotate(restart="1")
    for _ in range(tick):
        w.tick()
        w.kubernetes()
    w.tick(die_after=die_after)
    w.until(w.training)
    assert w.status["run"] == 1
    fresh = [name for name in w.created if name not in names]
    assert len(fresh) == len(set(fresh)) == 3
    numbers = [current.number for current in w.rounds]
    assert numbers == sorted(set(numbers))
