"""Who trains with whom, and when."""

import time

import pytest

from rekindle_operator.rounds import rounds


def test_a_first_round_waits_for_all_wanted_pods(world):
    w = world()
    w.settle()
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert len(w.rounds) == 1


def test_a_first_round_goes_on_with_fewer_when_no_node_can_take_the_others(world):
    w = world(nodes=2, elastic={"minReplicas": 2})
    w.settle()
    assert not w.rounds
    assert w.alarm - w.now <= rounds.UNSCHEDULABLE_PATIENCE + 1, "nobody else wakes it up"
    w.run(rounds.UNSCHEDULABLE_PATIENCE + 1)
    assert w.members == ["digits-0", "digits-1"]


def test_a_first_round_does_not_form_below_min_replicas(world):
    w = world(nodes=1, elastic={"minReplicas": 2}).run(600)
    assert not w.rounds
    assert w.phase == "Pending"
    assert w.condition("Degraded")["reason"] == "Unschedulable"


def test_a_pod_whose_image_cannot_be_pulled_is_not_waited_for(world):
    w = world(nodes=3)
    w.settle_with_broken_image("digits-2")
    w.run(5)
    assert w.members == ["digits-0", "digits-1"]
    assert w.condition("Degraded")["reason"] == "ErrImagePull"


def test_a_loss_forms_the_next_round_at_once_without_it(world):
    w = world().start()
    w.kill("digits-1").settle()
    assert w.rounds[1].number == 2
    assert [m.pod for m in w.rounds[1].members] == ["digits-0", "digits-2"]
    assert w.rounds[1].formed_at == w.now


def test_a_lost_pod_is_replaced_by_the_next_generation(world):
    w = world().start().kill("digits-1")
    w.until(lambda: w.members == ["digits-0", "digits-1r1", "digits-2"])
    assert w.created[3:] == ["digits-1r1"]


def test_a_replacement_joins_by_a_save_at_an_agreed_step(world):
    w = world().start().train(7)
    w.kill("digits-1").until(lambda: len(w.rounds) == 3 and w.training())
    before, after = w.rounds[1:]
    assert "digits-1r1" not in [m.pod for m in before.members]
    assert "with digits-1r1" in after.reason
    assert w.group()[0].restored.step == w.committed.step >= 7 - 7 % 10


def test_a_newcomer_waits_for_the_first_step_of_the_round_it_interrupts(world):
    w = world().start()
    w.trains = False
    w.kill("digits-1").run(30)
    assert len(w.rounds) == 2, "a round that has made no step must not be stopped for a newcomer"
    w.trains = True
    w.until(lambda: len(w.rounds) == 3)


def test_below_min_replicas_training_waits_for_the_replacement(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start()
    w.nodes.pop("node-2")
    w.run(60)
    assert len(w.rounds) == 1
    assert w.phase == "Recovering"
    w.nodes["node-9"] = {"spec": {}, "status": {}}
    w.until(w.training)
    assert len(w.rounds) == 2


def test_all_pods_lost_at_once_are_one_incident_and_one_round(world):
    w = world().start().train(5)
    for pod in list(w.alive):
        w.kill(pod.name)
    w.until(w.training)
    assert w.restarts == (0, 1, 0)
    assert len(w.rounds) == 2
    assert sorted(w.last["victims"]) == ["digits-0", "digits-1", "digits-2"]


def test_two_losses_in_a_row_within_one_reconcile_are_one_incident(world):
    w = world().start()
    w.kill("digits-0").vanish("digits-2").settle()
    assert w.members == ["digits-1"]
    assert w.restarts == (0, 1, 0)


@pytest.mark.parametrize("victim", ["digits-0", "digits-2"])
def test_rank_0_dies_like_any_other(world, victim):
    w = world().start().train(3)
    w.kill(victim).settle()
    assert len(w.members) == 2
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.restarts == (0, 1, 0)
    assert len(w.rounds) == 3


def test_rank_order_follows_the_slots(world):
    w = world().start().kill("digits-0")
    w.until(lambda: len(w.members) == 3)
    assert w.members == ["digits-0r1", "digits-1", "digits-2"]


def test_scaling_up_adds_pods_with_one_stop(world):
    w = world(replicas=2).start().train(3)
    w.change(replicas=4)
    w.until(lambda: len(w.members) == 4 and w.training())
    assert len(w.rounds) == 2
    assert w.restarts == (0, 0, 0)


def test_scaling_down_saves_first_and_is_no_incident(world):
    w = world(replicas=4).start().train(3)
    w.change(replicas=2)
    w.until(lambda: len(w.members) == 2 and w.training())
    assert w.committed.step >= 3
    assert w.restarts == (0, 0, 0)
    assert len(w.pods) == 2


def test_scaling_down_while_the_operator_restarts_is_no_incident(world):
    w = world(replicas=4).start().change(replicas=2)
    w.tick(die_after="children")
    w.until(lambda: len(w.members) == 2 and w.training())
    assert w.restarts == (0, 0, 0)


def test_scaled_down_and_up_again_no_name_is_used_twice(world):
    w = world().start().change(replicas=1)
    w.until(lambda: len(w.pods) == 1 and w.training())
    w.change(replicas=3).until(lambda: len(w.members) == 3)
    assert w.members == ["digits-0", "digits-1r1", "digits-2r1"]


def test_a_changed_template_replaces_all_pods_after_a_save(world):
    w = world().start().train(4)
    w.change(template={"spec": {"containers": [{"name": "trainer", "image": "new"}]}})
    w.until(lambda: len(w.rounds) > 1 and w.training() and len(w.pods) == 3)
    assert w.members == ["digits-0r1", "digits-1r1", "digits-2r1"]
    assert w.committed.step >= 4
    assert w.restarts == (0, 0, 0)


def test_a_template_changed_during_a_recovery_is_followed(world):
    w = world(elastic={"minReplicas": 3}).start().kill("digits-1").settle()
    w.change(template={"spec": {"containers": [{"name": "trainer", "image": "new"}]}})
    w.until(lambda: w.training() and len(w.alive) == 3)
    assert {p.body["spec"]["containers"][0]["image"] for p in w.alive} == {"new"}


def test_a_member_that_seemed_to_go_keeps_its_place(world):
    w = world().start()
    w.trains = False  # the save cannot happen while no step ends
    pod = w.pod("digits-1")
    pod.conditions["DisruptionTarget"] = {"status": "True", "reason": "r", "message": "m"}
    for agent in w.group():
        agent.quiet = True
    w.settle()
    assert "digits-1r1" in w.created
    del pod.conditions["DisruptionTarget"]
    for member in w.alive:
        member.agent.quiet = False
    w.trains = True
    w.run(60)
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert [p.name for p in w.alive] == w.members


def test_a_member_that_does_not_save_is_waited_for_only_so_long(world):
    w = world().start()
    w.taint("digits-2", "karpenter.sh/disrupted")
    stuck = w.pod("digits-1").agent
    stuck.quiet = True
    agents = w.group()
    w.settle()
    w.commit(agents)
    for agent in agents:
        if agent is not stuck:
            w.stop_saved(agent)
    w.run(rounds.PARTIAL_SAVE - 5)
    assert len(w.rounds) == 1
    w.run(10)
    assert len(w.rounds) == 2


def test_newcomers_wait_for_each_other_but_not_for_ever(world):
    w = world(replicas=4).start().train(2)
    w.kill("digits-1").kill("digits-2")
    w.settle()
    assert w.members == ["digits-0", "digits-3"]
    w.until(lambda: len(w.members) == 4 and w.training())
    assert len(w.rounds) == 3, "one stop serves both"


def test_a_pod_on_a_node_not_seen_yet_is_no_lost_pod(world):
    w = world()
    w.settle()
    w.hidden.add(w.pod("digits-1").node)
    w.start().train(3)
    assert w.restarts == (0, 0, 0)
    assert not w.deleted


def test_a_trainer_that_ends_under_a_living_sidecar_is_seen(world):
    w = world().start()
    w.end_trainer_only("digits-1", 137)
    w.until(lambda: len(w.rounds) == 2)
    assert w.last["cause"] == "PodLost"
    w.until(w.training)
    assert w.ended == ["digits-1"], "its sidecar is ended"
    assert w.pod("digits-1").over, "and the pod stays for its logs"


def test_nothing_restarts_when_nothing_happens(world):
    w = world().start().run(300)
    assert len(w.rounds) == 1
    assert w.created == ["digits-0", "digits-1", "digits-2"]
    assert not w.deleted


def test_a_pod_lost_beside_one_that_is_done_is_replaced_and_ends_the_job(world):
    w = world(replicas=2, elastic={"minReplicas": 2}).start().train(5)
    w.finish("digits-1").kill("digits-0").until(lambda: w.members == ["digits-0r1"], 5)
    w.finish("digits-0r1").settle()
    assert w.phase == "Succeeded"
    assert w.restarts == (0, 1, 0)


def test_a_thousand_pods_are_decided_about_in_a_moment(world):
    w = world(replicas=1000, nodes=0)
    w.tick()
    assert len(w.created) == 1000
    began = time.process_time()
    w.tick()
    assert time.process_time() - began < 2.0
