"""Make before break: who has to go trains until somebody can take its place."""

import pytest

from rekindle_operator.rounds import rounds

KARPENTER = "karpenter.sh/disrupted"
NOTICES = {
    "deletion": lambda w: w.delete("digits-1"),
    "eviction": lambda w: w.evict("digits-1"),
    "taint": lambda w: w.taint("digits-1", KARPENTER),
    "condition": lambda w: w.condition_of_node("digits-1", "TerminateScheduled"),
    "agent": lambda w: w.tell("digits-1", "file: spot"),
}


def warming(world, **more):
    w = world(**more)
    w.warms_for = 5.0
    return w.start().train(3)


@pytest.mark.parametrize("notice", NOTICES)
def test_a_member_trains_on_until_its_replacement_is_warm(world, notice):
    w = warming(world)
    NOTICES[notice](w)
    w.settle()
    assert w.created[3:] == ["digits-1r1"]
    w.run(4)
    assert w.training()
    assert len(w.rounds) == 1
    assert w.phase == "Running"
    assert "until another pod takes over: digits-1:" in w.condition("Ready")["message"]
    w.until(lambda: len(w.rounds) == 2 and w.training(), 4)
    assert w.members == ["digits-0", "digits-1r1", "digits-2"]
    assert w.restarts == (0, 0, 1)
    assert w.last["stepsLost"] == 0
    assert w.last["secondsLost"] < 4, "only the stop has cost anything, the notice has not"


def test_a_replacement_is_on_another_node_even_if_pods_tolerate_everything(world):
    w = warming(world)
    w.tolerant = True
    going = w.pod("digits-1").node
    w.nodes = {going: w.nodes.pop(going), **w.nodes}
    w.taint("digits-1", KARPENTER).until(lambda: "digits-1r1" in w.members)
    assert w.pod("digits-1r1").node != going


def test_a_rank_goes_to_the_replacement_and_the_others_keep_theirs(world):
    w = warming(world).delete("digits-0")
    w.until(lambda: len(w.rounds) == 2)
    assert w.members == ["digits-0r1", "digits-1", "digits-2"]


def test_two_that_have_to_go_are_one_stop_and_one_incident(world):
    w = warming(world).taint("digits-0", KARPENTER).taint("digits-2", KARPENTER)
    w.until(lambda: w.members == ["digits-0r1", "digits-1", "digits-2r1"] and w.training())
    assert len(w.rounds) == 2
    assert w.restarts == (0, 0, 1)


def test_one_replacement_of_two_does_not_stop_training_before_the_deadline_nears(world):
    w = world(nodes=4).start().train(3)
    w.taint("digits-0", KARPENTER).taint("digits-2", KARPENTER).run(14)
    assert len(w.rounds) == 1
    w.run(3)
    assert w.members in (["digits-0r1", "digits-1"], ["digits-1", "digits-2r1"])
    assert len(w.rounds) == 2


def test_below_min_replicas_the_save_comes_in_time_and_the_round_when_it_can(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start().train(3)
    w.taint("digits-1", KARPENTER).delete("digits-1").run(40)
    assert w.committed.step >= 15
    assert len(w.rounds) == 1
    w.nodes["fresh"] = {"spec": {}, "status": {}}
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.last["stepsLost"] == 0


def test_a_handover_waits_for_the_first_step_of_the_round_that_it_interrupts(world):
    w = world()
    w.trains = False
    w.settle()
    w.delete("digits-1").run(10)
    assert len(w.rounds) == 1
    w.trains = True
    w.until(lambda: len(w.rounds) == 2 and w.training(), 5)


def test_a_replacement_that_dies_before_it_takes_over_is_replaced_itself(world):
    w = warming(world).taint("digits-1", "aws-node-termination-handler/spot-itn").run(2)
    w.kill("digits-1r1").run(3)
    assert len(w.rounds) == 1
    w.until(lambda: "digits-1r2" in w.members and w.training(), 15)
    assert len(w.rounds) == 2
    assert w.last["stepsLost"] == 0


def test_a_member_lost_during_a_handover_is_left_at_once(world):
    w = warming(world).delete("digits-1").run(2)
    w.kill("digits-1").settle()
    assert w.members == ["digits-0", "digits-2"]
    w.until(lambda: w.members == ["digits-0", "digits-1r1", "digits-2"])
    assert w.restarts == (0, 0, 1)


@pytest.mark.parametrize("where", ["children", "status"])
@pytest.mark.parametrize("seconds", range(7))
def test_an_operator_that_dies_at_any_moment_of_a_handover_costs_nothing(world, seconds, where):
    w = warming(world).delete("digits-1").run(seconds)
    w.kubernetes()
    w.act()
    w.tick(die_after=where)
    w.until(lambda: w.members == ["digits-0", "digits-1r1", "digits-2"] and w.training())
    assert len(w.rounds) == 2
    assert w.created == ["digits-0", "digits-1", "digits-2", "digits-1r1"]
    assert w.restarts == (0, 0, 1)
    assert w.last["stepsLost"] == 0


def test_a_member_that_is_done_and_has_to_go_stops_nobody(world):
    w = warming(world)
    w.finish("digits-1").settle().taint("digits-1", KARPENTER).run(20)
    assert not w.directives
    assert len(w.rounds) == 1
    w.finish("digits-0").finish("digits-2").run(5)
    assert w.phase == "Succeeded"


def test_a_changed_template_is_a_handover_too(world):
    w = warming(world)
    w.change(template={"spec": {"containers": [{"name": "trainer", "image": "new"}]}}).run(4)
    assert w.training()
    w.until(lambda: w.members == ["digits-0r1", "digits-1r1", "digits-2r1"], 5)
    assert len(w.rounds) == 2


def test_a_pod_that_warms_up_is_on_its_way_and_no_member(world):
    w = world()
    w.warms_for = 20.0
    w.settle()
    assert not w.rounds
    w.until(lambda: w.rounds, 25)
    assert w.now - w.pod("digits-0").created_at >= 20
    assert len(w.members) == 3


def test_a_first_round_does_not_wait_for_ever_for_one_that_warms_up(world):
    w = world()
    w.settle()
    slow = world()
    slow.warms_for = 5.0
    slow.settle()
    slow.pod("digits-2").agent.warm_at += 10 * rounds.PATIENCE
    slow.run(rounds.PATIENCE)
    assert not slow.rounds
    slow.run(10)
    assert slow.members == ["digits-0", "digits-1"]


def test_a_lost_pod_is_not_waited_for_until_its_replacement_is_warm(world):
    w = warming(world).kill("digits-1").settle()
    assert w.members == ["digits-0", "digits-2"]
    w.run(4)
    assert len(w.rounds) == 2
    w.until(lambda: len(w.rounds) == 3 and w.training(), 5)
    assert w.members == ["digits-0", "digits-1r1", "digits-2"]


def test_one_newcomer_alone_waits_for_nobody(world):
    w = warming(world, replicas=2).kill("digits-1").run(1)
    w.until(lambda: w.pods and "digits-1r1" in [p.name for p in w.alive])
    warm_at = w.pod("digits-1r1").agent.warm_at
    w.until(lambda: len(w.members) == 2)
    assert w.rounds[-1].formed_at - warm_at <= 1.0


def test_newcomers_of_a_short_window_share_one_stop(world):
    w = warming(world, replicas=4).kill("digits-1").kill("digits-2").settle()
    w.until(lambda: w.pod("digits-2r1").agent is not None)
    w.pod("digits-2r1").agent.warm_at += 4
    w.until(lambda: len(w.members) == 4 and w.training(), 30)
    assert len(w.rounds) == 3


def test_a_newcomer_does_not_wait_for_one_that_comes_late(world):
    w = warming(world, replicas=4).kill("digits-1").kill("digits-2").settle()
    w.pod("digits-2r1").agent.warm_at += 100
    w.until(lambda: len(w.members) == 3, rounds.GATHER + 10)
    w.until(lambda: len(w.members) == 4, 120)
