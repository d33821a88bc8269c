"""One event is one incident with its true cost, however it comes to be seen."""

from dataclasses import replace

import pytest

from rekindle.api import Cause, RestoredFrom, Timings
from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.snapshot import JobView
from rekindle_operator.incidents import incidents, recovery

MIN3 = {"elastic": {"minReplicas": 3}}


def told(w):
    return [(i["cause"], i["victims"], i["collateral"]) for i in w.losses]


def why(w):
    return " ".join(one.text for one in explain(JobView.read({**w.body, "status": w.status})))


@pytest.mark.parametrize("seconds", [0, 3])
def test_pods_that_are_killed_at_once_and_seen_one_after_the_other_are_one_incident(world, seconds):
    w = world().start().train(3)
    w.cut("digits-0").tick()
    assert w.members == ["digits-1", "digits-2"], "a round is formed in between"
    for name in ("digits-1", "digits-2"):
        w.now += seconds
        w.cut(name).tick()
    w.until(lambda: len(w.members) == 3 and w.training())
    assert told(w) == [("PodLost", ["digits-0", "digits-1", "digits-2"], [])]
    assert w.restarts == (0, 1, 0)


@pytest.mark.parametrize("again", [False, True], ids=["it lives", "it dies again"])
def test_who_is_deleted_by_force_and_trains_on_for_a_moment_is_told_once(world, again):
    """A kubelet gives the processes time, and the next round may train in that."""
    w = world(elastic={"minReplicas": 2}).start().train(3).cut("digits-0")
    w.tick()
    assert w.members == ["digits-1", "digits-2"], "a round is formed in between"
    w.obey(w.pod("digits-2").agent)
    w.vanish_first("digits-1", 30).tick()
    assert told(w) == [("PodLost", ["digits-0", "digits-1"], [])]
    w.hold_saves, w.late = True, {0: w.now + 20, 1: w.now + 20}
    w.stop_operator().run(3)
    assert [agent.pod.name for agent in w.group()] == ["digits-1", "digits-2"]
    w.restart_operator().run(3)
    w.hold_saves = False
    if again:
        w.restart_operator()
    w.until(lambda: len(w.members) == 3 and w.training())
    assert told(w) == [("PodLost", ["digits-0", "digits-1"], [])]
    assert w.restarts == (0, 1, 0)


def test_who_was_in_the_next_round_and_is_killed_then_is_an_event_of_its_own(world):
    w = world().start().train(3).kill("digits-0").settle()
    assert w.group()
    w.kill("digits-1").settle()
    assert told(w) == [("PodLost", ["digits-0"], []), ("PodLost", ["digits-1"], [])]


def test_who_fell_with_a_pod_and_is_killed_then_is_a_victim_too(world):
    w = world(nodes=3, **MIN3).start().train(3).fall("digits-2").run(1)
    w.nodes.pop(w.pod("digits-1").node)
    w.until(lambda: w.losses)
    assert told(w) == [("NodeLost", ["digits-1"], ["digits-2"])]
    w.kill("digits-2").run(2)
    assert told(w) == [("NodeLost", ["digits-1", "digits-2"], [])]
    assert "nothing is wrong there" not in why(w)
    assert w.restarts == (0, 1, 0)


def test_a_pod_that_ends_because_of_its_peer_after_the_incident_is_collateral_of_it(world):
    w = world(nodes=3, **MIN3).start().train(3)
    w.nodes.pop(w.pod("digits-1").node)
    w.until(lambda: w.losses)
    assert told(w) == [("NodeLost", ["digits-1"], [])]
    w.fall("digits-2")
    w.exit(w.pod("digits-2"), 1, w.pod("digits-2").agent.outcome)
    w.run(1)
    assert told(w) == [("NodeLost", ["digits-1"], ["digits-2"])]
    assert w.restarts == (0, 1, 0)


def test_a_pod_that_ends_because_of_its_peer_stays_collateral(world):
    w = world(nodes=3, **MIN3).start().train(3).fall("digits-2").run(1)
    w.nodes.pop(w.pod("digits-1").node)
    w.until(lambda: w.losses)
    pod = w.pod("digits-2")
    w.exit(pod, 1, pod.agent.outcome)
    w.run(2)
    assert told(w) == [("NodeLost", ["digits-1"], ["digits-2"])]
    assert "digits-2 stopped only because of that; nothing is wrong there" in why(w)


def test_the_cost_is_from_the_last_step_before_to_the_first_one_after(world):
    w = world().start().train(12)
    w.timings = Timings(
        age=0.0, stood=53.0, stopped=0.01, started=0.1, grouped=0.2, restored=0.3, stepped=0.5
    )
    w.kill("digits-1").until(lambda: w.losses and "recovery" in w.last)
    assert w.last["recovery"]["total"] == pytest.approx(53.5, abs=0.1)
    assert w.last["recovery"]["detect"] > 50
    assert w.last["secondsLost"] == pytest.approx(53.5 + w.last["stepsLost"], abs=1.5)


def test_only_the_first_of_several_incidents_has_stood_still_since_the_last_step(world):
    w = world().start().train(12)
    w.timings = Timings(age=0.0, stood=30.0, grouped=0.2, restored=0.3, stepped=0.5)
    w.trains = False
    w.kill("digits-1").run(20)
    w.kill("digits-2").run(5)
    w.trains = True
    w.until(w.training)
    first, second = w.losses
    assert first["secondsLost"] >= 30
    assert second["secondsLost"] < 15


def test_no_incident_was_before_the_step_from_which_training_went_on(world):
    w = world(save_every=1).start().train(5)
    before = w.group()[0].step
    incident = incidents.Incident(
        at=1.0, round=1, cause=Cause.POD_LOST, evidence="", victims=("digits-1",), step=before - 3
    )
    found = incidents.resolve(incident, resumed_from=before, step_seconds=1.0, current=2, now=3.0)
    assert (found.step, found.resumed_from, found.steps_lost) == (before, before, 0)


def test_rounds_after_a_pause_are_no_first_rounds(world):
    w = world().start().train(3)
    assert w.rounds[0].reason == "first round"
    w.change(suspend=True).run(40)
    w.change(suspend=False).until(lambda: len(w.rounds) == 2)
    assert w.rounds[1].reason == "training goes on"


def test_a_pod_that_is_back_before_anybody_has_stopped_has_cost_nothing(world):
    w = world(**MIN3).start().train(5)
    w.cut_off[w.pod("digits-1").uid] = w.now
    w.tick()
    assert (w.phase, w.restarts) == ("Recovering", (0, 1, 0))
    w.cut_off.clear()
    w.run(5)
    assert w.phase == "Running"
    assert len(w.rounds) == 1
    assert (w.last["stepsLost"], w.last["secondsLost"]) == (0, 0.0)
    assert "before anybody had stopped" in w.last["action"]
    assert w.status["accounting"]["spent"]["infrastructure"] == []
    w.kill("digits-1").until(lambda: len(w.rounds) == 2 and w.training())
    assert [i["round"] for i in w.losses] == [0, 1], "what is lost then ends the round after all"


def test_a_job_that_trains_on_without_its_first_members_word_has_recovered(world):
    w = world().start().train(3).kill("digits-1").settle()
    assert w.phase == "Recovering"
    first = w.pod(w.members[0])
    first.agent.quiet = True
    del w.reports[first.uid]
    w.run(10)
    assert w.phase == "Running"


def test_what_workers_did_not_tell_is_not_made_up(world):
    w = world().start().train(3)
    assert recovery.stood_still(replace(w.observed(), round=None)) is None
    assert recovery.stood_still(w.observed()) is None
    assert RestoredFrom(step=3, source="memory").step == 3


def test_a_pod_that_is_deleted_by_force_before_its_first_round_is_told(world):
    w = world()
    w.warms_for = 30.0
    w.run(2).vanish("digits-1").settle()
    assert told(w) == [("PodLost", ["digits-1"], [])]
    assert "digits-1 is gone without notice" in why(w)
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.members == ["digits-0", "digits-1r1", "digits-2"]
    assert len(w.losses) == 1
    assert w.phase == "Running"


def test_what_the_operator_itself_deletes_or_nobody_wants_is_no_loss(world):
    w = world(replicas=3).start()
    w.change(replicas=2).until(lambda: len(w.members) == 2 and w.training())
    w.vanish("digits-2") if any(p.name == "digits-2" for p in w.alive) else None
    w.run(5)
    assert w.losses == []
