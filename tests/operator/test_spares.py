"""Hot spares: warm pods without a rank, which take the place of one that is lost or has to go."""

import pytest

SPARE = {"spares": 1}


def spared(world, *, spares=1, **more):
    """A job that trains, with its spares warm."""
    w = world(elastic={"spares": spares, **more.pop("elastic", {})}, **more)
    w.warms_for = 5.0
    w.start().train(3)
    return w


def test_spares_are_warm_pods_that_hold_no_rank(world):
    w = spared(world)
    assert w.created == ["digits-0", "digits-1", "digits-2", "digits-3"]
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert len(w.rounds) == 1
    assert (w.status["ready"], w.status["spares"]) == ("3/3", 1)
    assert (w.status["replicas"], w.status["readyReplicas"]) == (3, 3)


def test_a_lost_member_is_replaced_by_a_spare_in_the_very_next_round(world):
    w = spared(world).kill("digits-1").settle()
    assert len(w.rounds) == 2
    assert w.rounds[1].formed_at == w.now
    assert w.members == ["digits-0", "digits-3", "digits-2"], "the ranks of the others stay"
    assert w.status["spares"] == 0


def test_the_replacement_becomes_the_spare_without_a_stop(world):
    w = spared(world).kill("digits-1").run(30)
    assert len(w.rounds) == 2
    assert w.members == ["digits-0", "digits-3", "digits-2"]
    assert w.created[4:] == ["digits-1r1"]
    assert (w.status["ready"], w.status["spares"]) == ("3/3", 1)
    w.kill("digits-2").settle()
    assert w.members == ["digits-0", "digits-3", "digits-1r1"]
    w.run(20).kill("digits-3").settle()
    assert w.members == ["digits-0", "digits-2r1", "digits-1r1"]
    assert w.restarts == (0, 3, 0)
    assert len(w.rounds) == 4


@pytest.mark.parametrize(
    "key", ["karpenter.sh/disrupted", "aws-node-termination-handler/rebalance-recommendation"]
)
def test_a_member_that_has_to_go_hands_over_to_a_spare_at_once(world, key):
    w = spared(world).taint("digits-1", key).run(2)
    assert w.members == ["digits-0", "digits-3", "digits-2"]
    assert w.last["stepsLost"] == 0
    w.run(30)
    assert len(w.rounds) == 2
    assert w.status["spares"] == 1


def test_more_losses_than_spares_form_a_smaller_round_at_once(world):
    w = spared(world).kill("digits-0").kill("digits-2").settle()
    assert w.members == ["digits-1", "digits-3"]
    w.until(lambda: len(w.members) == 3 and w.training())
    w.run(20)
    assert (w.status["ready"], w.status["spares"]) == ("3/3", 1)
    assert len(w.rounds) == 3


def test_the_loss_of_a_spare_is_told_and_costs_no_step(world):
    w = spared(world).kill("digits-3").run(20)
    assert len(w.rounds) == 1
    assert w.restarts == (0, 1, 0)
    assert (w.last["victims"], w.last["stepsLost"], w.last["secondsLost"]) == (["digits-3"], 0, 0)
    assert w.phase == "Running"
    assert w.created[4:] == ["digits-3r1"]
    assert w.status["spares"] == 1


def test_a_spare_that_has_to_go_is_a_preemption_without_cost(world):
    w = spared(world).taint("digits-3", "karpenter.sh/disrupted").run(20)
    assert len(w.rounds) == 1
    assert w.restarts == (0, 0, 1)
    assert w.last["secondsLost"] == 0
    assert w.pod("digits-3r1").node != w.pod("digits-0").node


def test_a_spare_that_is_advised_to_go_is_better_than_none(world):
    w = spared(world).taint("digits-3", "aws-node-termination-handler/rebalance-recommendation")
    w.run(30)
    assert not w.deleted
    assert not w.losses
    w.kill("digits-1").settle()
    assert w.members == ["digits-0", "digits-3", "digits-2"]


def test_a_first_round_takes_a_spare_for_a_pod_that_is_late(world):
    w = world(nodes=3, elastic=SPARE)
    w.broken_image = {"digits-1"}
    w.nodes["fourth"] = {"spec": {}, "status": {}}
    w.settle()
    assert w.members == ["digits-0", "digits-2", "digits-3"]


def test_scaling_does_not_count_spares(world):
    w = spared(world, replicas=2).change(replicas=3)
    w.until(lambda: len(w.members) == 3 and w.training() and w.status.get("spares") == 1)
    assert w.status["ready"] == "3/3"
    assert len(w.alive) == 4
    w.change(replicas=2)
    w.until(lambda: len(w.members) == 2 and w.training() and len(w.alive) == 3)
    assert w.restarts == (0, 0, 0)
    assert w.status["ready"] == "2/2"


def test_scaled_down_the_spares_slots_go_and_members_stay_members(world):
    w = spared(world, replicas=3).kill("digits-0").run(20)
    assert w.members == ["digits-3", "digits-1", "digits-2"]
    w.change(replicas=2).until(lambda: len(w.members) == 2 and w.training())
    assert w.members == ["digits-1", "digits-2"]
    assert w.restarts == (0, 1, 0)
    w.until(lambda: w.status["spares"] == 1 and len(w.alive) == 3)


def test_spares_that_are_taken_out_of_the_spec_go_without_a_stop(world):
    w = spared(world, spares=2)
    assert w.status["spares"] == 2
    w.change(elastic={"minReplicas": 1, "spares": 0}).run(20)
    assert len(w.rounds) == 1
    assert len(w.alive) == 3
    assert "spares" not in w.status
    assert not w.losses


def test_a_job_with_spares_ends_when_its_members_are_done(world):
    w = spared(world, total_steps=30).kill("digits-1").settle()
    assert "digits-3" in w.members
    w.until(lambda: w.phase == "Succeeded")
    w.run(60)
    assert {p.terminated["exitCode"] for p in w.pods.values() if p.name in w.members} == {0}
    assert not w.alive


def test_an_operator_that_starts_anew_knows_who_is_a_spare(world):
    w = spared(world).kill("digits-1").run(20)
    before = w.members
    w.restart_operator().run(60)
    assert w.members == before
    assert len(w.rounds) == 2
    w.kill("digits-0").settle()
    assert w.members == ["digits-1r1", "digits-3", "digits-2"]


def test_an_operator_that_returns_leaves_pods_that_warm_up_alone(world):
    w = spared(world).kill("digits-1").settle()
    w.until(lambda: w.pod("digits-1r1").agent is not None)
    w.restart_operator().run(30)
    assert w.created[4:] == ["digits-1r1"]
    assert len(w.rounds) == 2
    assert w.status["spares"] == 1


def test_a_lost_node_with_a_member_and_the_spare_is_one_incident(world):
    w = spared(world).lose_node("digits-1").lose_node("digits-3").run(4)
    assert w.members == ["digits-0", "digits-2"]
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.restarts[1] in {1, 2}
    assert all(i["stepsLost"] == 0 for i in w.losses if i["victims"] == ["digits-3"])
