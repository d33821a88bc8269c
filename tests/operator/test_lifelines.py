"""A lifeline that breaks is the first word of a lost pod; what the kubelet says later says why."""

import pytest

VICTIM = "digits-1"


def gone_on(w):
    """The others train in a round without the victim."""
    return w.until(lambda: VICTIM not in w.members and w.training())


def test_a_round_without_the_pod_does_not_wait_for_the_kubelet(world):
    w = world().start().train(3).cut(VICTIM)
    w.tick()
    assert VICTIM not in w.members
    assert len(w.members) == 2
    assert (w.last["cause"], w.last["victims"]) == ("PodLost", [VICTIM])
    assert w.restarts == (0, 1, 0)


def test_its_successor_comes_at_once(world):
    w = gone_on(world().start().train(3).cut(VICTIM))
    w.until(lambda: f"{VICTIM}r1" in w.members and w.training())
    assert len(w.incidents) == 1


def test_what_the_kubelet_says_completes_the_incident_and_charges_nothing_twice(world):
    w = gone_on(world().start().train(3).cut(VICTIM))
    w.kill(VICTIM).settle()
    assert w.last["evidence"] == f"{VICTIM} was killed, exit code 137"
    assert len(w.status["incidents"]) == 1
    assert w.restarts == (0, 1, 0)


def test_a_cause_of_another_class_moves_the_charge(world):
    w = gone_on(world().start().train(3).cut(VICTIM))
    w.kill(VICTIM, reason="OOMKilled").settle()
    assert w.last["cause"] == "OutOfMemory"
    assert w.restarts == (1, 0, 0)
    told = [event.reason for event in w.events if event.kind == "Warning"]
    assert told == ["PodLost", "OutOfMemory"]


def test_a_budget_that_the_cause_finds_spent_ends_the_job(world):
    w = world(restart={"user": {"max": 0}}).start().train(3).cut(VICTIM)
    gone_on(w).kill(VICTIM, reason="OOMKilled").settle()
    assert w.phase == "Failed"
    assert w.restarts == (1, 0, 0)


def test_a_spare_that_nobody_stopped_for_costs_nothing_whatever_its_end_was(world):
    w = world(elastic={"spares": 1}, restart={"user": {"max": 0}}).start().train(3)
    w.cut("digits-3").settle().kill("digits-3", reason="OOMKilled").settle()
    assert (w.last["cause"], w.phase) == ("OutOfMemory", "Running")
    assert w.restarts == (1, 0, 0)
    assert w.status["accounting"]["spent"] == {"user": [], "infrastructure": [], "preemption": 0}
    assert len(w.rounds) == 1


def test_a_dead_node_is_named_when_it_is_known(world):
    w = gone_on(world().start().train(3).cut(VICTIM))
    w.die_unnoticed(VICTIM).taint(VICTIM, "node.kubernetes.io/unreachable").run(4)
    assert w.last["cause"] == "NodeLost"
    assert VICTIM not in [pod.name for pod in w.pods.values()], "removed by force"


def test_a_pod_that_had_been_told_to_go_is_preempted(world):
    w = world().start().train(3).delete(VICTIM)
    w.cut(VICTIM).tick()
    assert w.last["cause"] == "Preempted"


@pytest.mark.parametrize("after", [0, 5])
def test_a_pod_that_is_back_takes_part_again(world, after):
    w = gone_on(world().start().train(3).cut(VICTIM))
    w.pass_time(after)
    w.cut_off.clear()
    w.until(lambda: len(w.members) == 3 and w.training())
    assert len({name.partition("r")[0] for name in w.members}) == 3, "one pod for each index"
