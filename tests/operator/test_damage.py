"""A damaged checkpoint that was passed over is told once, and stays told."""

import pytest

from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.snapshot import JobView

OBJECT = "data/step-10.f3-0.bin"
DAMAGE = (
    f"R16 checkpoint step 10: object {OBJECT} failed SHA-256. "
    "Falling back to step 5 (5 steps lost)."
)


def why(w):
    return " ".join(one.text for one in explain(JobView.read({**w.body, "status": w.status})))


def damages(w):
    return [i for i in w.status["incidents"] if i["cause"] == "CheckpointDamaged"]


def passed_over(world):
    w = world(save_every=5).start().train(12)
    w.skipped = (DAMAGE,)
    return w.kill("digits-1").until(lambda: len(w.members) == 3 and w.training())


def test_damage_stays_in_the_incidents_and_was_an_event(world):
    w = passed_over(world)
    w.skipped = ()
    w.kill("digits-2").until(lambda: len(w.members) == 3 and w.training())
    (told,) = damages(w)
    assert OBJECT in told["evidence"]
    assert told["resumedFrom"] == 10
    assert OBJECT in why(w)
    assert "nobody" not in why(w)
    (event,) = [event for event in w.events if event.reason == "CheckpointDamaged"]
    assert event.kind == "Warning"
    assert OBJECT in event.message
    assert sum(i.cause == "CheckpointDamaged" for i in w.incidents) == 1, "what the metric counts"
    assert w.restarts == (0, 2, 0), "it costs no budget"
    assert w.phase == "Running"


def test_damage_that_cannot_be_marked_and_is_found_again_is_told_once(world):
    w = passed_over(world)
    w.restart_operator().run(3)
    w.kill("digits-2").until(lambda: len(w.members) == 3 and w.training())
    assert len(damages(w)) == 1
    w.skipped = (DAMAGE.replace("f3-0", "f3-1"),)
    w.kill("digits-0").until(lambda: len(w.members) == 3 and w.training())
    assert len(damages(w)) == 2


@pytest.mark.parametrize(("killed", "steps"), [(False, 5), (True, 0)])
def test_its_steps_are_counted_once(world, killed, steps):
    w = world(save_every=5)
    if killed:
        w.start().train(12)
        w.kill("digits-1")
    w.skipped = (DAMAGE,)
    w.settle().until(w.training)
    assert [i["stepsLost"] for i in damages(w)] == [steps]
