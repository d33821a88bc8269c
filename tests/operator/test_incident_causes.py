"""What an incident is called, what it costs, and what is charged for it."""

import pytest

from rekindle.api import Cause
from rekindle_operator.incidents import detection, incidents, retries


def preempted(w):
    victim = w.rounds[0].members[1].pod
    return w.until(lambda: len(w.members) == 3 and victim not in w.members and w.training())


def test_a_preemption_costs_no_step_and_is_charged_as_one(world):
    w = preempted(world().start().train(7).delete("digits-1"))
    assert w.restarts == (0, 0, 1)
    assert w.last["cause"] == "Preempted"
    assert w.last["stepsLost"] == 0
    assert w.last["resumedFrom"] == w.last["step"] == 8


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ToBeDeletedByClusterAutoscaler", "cluster autoscaler"),
        ("karpenter.sh/disrupted", "Karpenter"),
        ("cloud.google.com/impending-node-termination", "GKE"),
        ("aws-node-termination-handler/spot-itn", "spot instance"),
    ],
)
def test_a_taint_of_a_provider_is_a_notice(world, key, words):
    w = preempted(world().start().train(3).taint("digits-1", key))
    assert w.restarts == (0, 0, 1)
    assert words in w.last["evidence"]
    assert w.last["stepsLost"] == 0
    assert "digits-1" not in [p.name for p in w.alive], "a pod on a node that goes is not kept"


def test_an_eviction_says_who_evicted(world):
    w = preempted(world().start().evict("digits-1", "PreemptionByScheduler"))
    assert w.restarts == (0, 0, 1)
    assert "PreemptionByScheduler" in w.last["evidence"]


def test_a_dead_node_is_named_and_its_pod_removed_by_force(world):
    w = world().start().train(3).taint("digits-1", "node.kubernetes.io/unreachable")
    w.die_unnoticed("digits-1").run(4)
    assert w.last["cause"] == "NodeLost"
    assert w.restarts == (0, 1, 0)
    assert "digits-1" not in [p.name for p in w.pods.values()]
    assert len(w.members) == 2


def test_a_node_that_is_gone_is_a_lost_node(world):
    w = world().start().lose_node("digits-2").run(4)
    assert w.last["cause"] == "NodeLost"
    assert "node is gone" in w.last["evidence"]


def test_a_pod_that_is_gone_without_a_word_is_a_lost_pod(world):
    w = world().start().vanish("digits-2").settle()
    assert (w.last["cause"], w.last["victims"]) == ("PodLost", ["digits-2"])


def test_a_kill_costs_the_steps_since_the_checkpoint(world):
    w = world(save_every=10).start().train(13)
    step = w.group()[0].step
    w.kill("digits-1").until(w.training)
    assert w.last["cause"] == "PodLost"
    assert w.last["stepsLost"] == step - 10
    assert w.last["resumedFrom"] == 10
    assert w.last["secondsLost"] >= step - 10


def test_errors_of_peers_are_collateral_of_the_lost_pod(world):
    w = world().start().train(3)
    w.fall("digits-0", "digits-2").run(1)
    w.kill("digits-1").settle()
    assert w.restarts == (0, 1, 0)
    assert w.last["victims"] == ["digits-1"]
    assert sorted(w.last["collateral"]) == ["digits-0", "digits-2"]


def test_peers_that_misname_their_error_are_collateral_too(world):
    w = world().start().train(3)
    w.die_unnoticed("digits-1").run(2)
    w.fail("digits-0", "RuntimeError: Broken pipe").run(detection.SETTLE_ERROR - 2)
    assert not w.status["incidents"], "the verdict must wait for a loss that is not seen yet"
    w.taint("digits-1", "node.kubernetes.io/unreachable").run(1)
    assert w.restarts == (0, 1, 0)
    assert w.last["cause"] == "NodeLost"
    assert w.phase == "Recovering"


def test_only_lost_peers_and_no_lost_pod_is_infrastructure_after_a_while(world):
    w = world().start().train(3).fall("digits-0", "digits-1", "digits-2")
    w.run(detection.SETTLE_COLLATERAL - 1)
    assert not w.status["incidents"]
    w.until(w.training)
    assert w.restarts == (0, 1, 0)
    assert w.last["cause"] == "PeerLost"
    assert w.members == ["digits-0", "digits-1", "digits-2"]


def test_the_earliest_of_several_user_errors_is_blamed(world):
    w = world().start().train(3)
    w.fail("digits-2", "ValueError: first", at=w.now - 0.5).fail("digits-0", "second", at=w.now)
    w.fall("digits-1").until(w.training)
    assert w.restarts == (1, 0, 0)
    assert w.last["victims"] == ["digits-2"]
    assert "first" in w.last["evidence"]
    assert sorted(w.last["collateral"]) == ["digits-0", "digits-1"]


def test_an_error_before_the_first_step_fails_at_once(world):
    w = world()
    w.trains = False
    w.settle()
    w.fail("digits-0", "ModuleNotFoundError: no torch").run(10)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "UserError"
    assert "ModuleNotFoundError" in w.condition("Failed")["message"]
    assert "before the first step" in w.condition("Failed")["message"]


def test_an_error_twice_at_one_step_fails(world):
    w = world(save_every=5).start().train(7)
    step = w.group()[0].step
    w.fail("digits-0").until(w.training)
    w.until(lambda: w.group() and w.group()[0].step == step)
    w.fail("digits-1").run(10)
    assert w.phase == "Failed"
    assert f"twice at step {step}" in w.condition("Failed")["message"]
    assert w.restarts == (2, 0, 0)


def test_an_error_that_no_step_has_been_made_since_fails_too(world):
    w = world(save_every=5).start().train(7).fail("digits-0")
    w.trains = False
    w.until(lambda: len(w.rounds) == 2)
    w.fail("digits-0").run(10)
    assert w.phase == "Failed"


def test_errors_at_different_steps_are_retried_within_the_budget(world):
    w = world(save_every=1000, restart={"user": {"max": 2, "window": "1h"}}).start()
    for _ in range(2):
        w.train(7).fail("digits-0").until(lambda: w.restarts[0] and w.training())
        w.train(2)
    w.train(20).fail("digits-0").run(10)
    assert w.phase == "Failed"
    assert "spec.restart.user.max is 2" in w.condition("Failed")["message"]


def test_a_checkpoint_beyond_the_last_error_starts_the_count_anew(world):
    w = world(save_every=10, restart={"user": {"max": 1, "window": "10h"}}).start()
    for number in range(4):
        w.train(17 + number).fail("digits-0", f"E{number}")
        w.until(lambda number=number: w.restarts[0] == number + 1 and w.training())
        w.train(25)
    assert w.phase == "Running"


def test_user_errors_leave_the_window(world):
    w = world(save_every=10_000_000, restart={"user": {"max": 1, "window": "2m"}}).start()
    for number in range(3):
        w.train(10 + 40 * number).fail("digits-0")
        w.until(lambda number=number: w.restarts[0] == number + 1 and w.training())
        w.run(130, pace=10)
    assert w.phase == "Running"


def test_the_infrastructure_budget_ends(world):
    w = world(restart={"infrastructure": {"max": 2, "window": "1h"}}).start()
    for number in range(3):
        w.until(lambda: len(w.members) == 3 and w.training())
        w.kill(w.members[1])
        w.until(lambda number=number: w.restarts[1] == number + 1)
    assert w.phase == "Failed"
    assert "spec.restart.infrastructure.max is 2" in w.condition("Failed")["message"]


def test_preemptions_have_no_limit_by_default(world):
    w = world().start()
    for _ in range(22):
        victim = w.members[0]
        w.delete(victim)
        w.until(lambda victim=victim: victim not in w.members and w.training())
    assert w.restarts == (0, 0, 22)
    assert len(w.status["incidents"]) == incidents.KEEP
    assert len(w.pods) < 10


@pytest.mark.parametrize(
    ("cause", "code", "reason", "shown"),
    [
        ("Configuration", 1, "Topology/R13", "Topology:R13"),
        ("Integrity", 70, None, "Integrity"),
    ],
)
def test_what_no_retry_can_change_is_not_retried(world, cause, code, reason, shown):
    w = world().start().train(20)
    w.fail("digits-0", "the bucket says no", cause=cause, code=code, reason=reason).run(10)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == shown
    assert "the bucket says no" in w.condition("Failed")["message"]
    assert w.restarts == (1, 0, 0)
    ended = {p.terminated["exitCode"] for p in w.pods.values() if p.name != "digits-0"}
    assert ended == {code}


def test_out_of_memory_is_named_and_charged_to_the_user(world):
    w = world().start().train(3).kill("digits-1", 137, "OOMKilled").settle()
    assert w.last["cause"] == "OutOfMemory"
    assert w.restarts == (1, 0, 0)


def test_a_pod_that_cannot_start_fails_a_job_that_never_has(world):
    w = world()
    w.broken_image = {"digits-1"}
    w.settle()
    w.kill("digits-1", 128, "StartError", 'exec: "trian": executable file not found').settle()
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "StartFailed"


def test_a_replacement_that_cannot_start_does_not_stop_the_others(world):
    w = world(save_every=1).start().train(3)
    w.broken_image = {"digits-1r1", "digits-1r2", "digits-1r3", "digits-1r4", "digits-1r5"}
    w.kill("digits-1").settle()
    for number in range(1, 6):
        name = f"digits-1r{number}"
        w.until(lambda name=name: name in w.created)
        w.kill(name, 128, "StartError")
    w.until(lambda: len(w.members) == 3)
    assert w.phase == "Running"
    assert w.restarts == (5, 1, 0)
    assert [i["secondsLost"] for i in w.status["incidents"][1:]] == [0] * 5
    assert {i["action"] for i in w.status["incidents"][1:]} == {
        "training goes on without it; another pod follows"
    }


def test_an_error_in_a_round_is_judged_after_a_pod_failed_beside_it(world):
    w = world(replicas=3).start().train(3)
    w.broken_image = {"digits-2r1"}
    w.kill("digits-2").until(lambda: len(w.members) == 2 and w.training())
    w.kill("digits-2r1", 137).settle()
    w.train(2).fail("digits-0", "KeyError: x").until(lambda: w.restarts[0] == 1)
    assert w.last["cause"] == "UserError"


def test_pods_that_die_before_they_join_are_created_ever_more_rarely(world):
    w = world().start()
    w.broken_image = {f"digits-1r{n}" for n in range(1, 100)}
    w.kill("digits-1").settle()
    for _ in range(300):
        for pod in list(w.alive):
            if pod.name in w.broken_image:
                w.kill(pod.name, 137)
        w.run(2, pace=2)
    assert 5 <= len(w.created) - 3 <= 13
    assert w.phase == "Running"


def test_pods_that_vanish_as_they_come_are_created_at_a_limited_rate(world):
    w = world().start()
    w.broken_image = {f"digits-1r{n}" for n in range(1, 1000)}
    w.kill("digits-1").settle()
    for _ in range(120):
        for pod in list(w.alive):
            if pod.name in w.broken_image:
                w.vanish(pod.name)
        w.settle()
        w.run(1)
    assert len(w.created) <= 3 + 10 + 120 * 3 / 20 + 1
    assert len(set(w.created)) == len(w.created)


def test_a_member_lost_in_a_charged_round_is_named_as_part_of_it(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start().lose_node("digits-1").run(5)
    w.kill("digits-2").run(20)
    assert w.restarts == (0, 1, 0)
    assert (w.last["victims"], w.last["collateral"]) == (["digits-1", "digits-2"], [])


def test_a_member_lost_long_after_its_round_is_an_incident_of_its_own(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start()
    w.nodes.pop(w.pod("digits-1").node)
    w.run(30)
    w.kill("digits-2").settle()
    assert w.restarts == (0, 2, 0)
    assert w.last["victims"] == ["digits-2"]
    assert w.last["round"] == 0


def test_who_has_survived_a_loss_is_told_of_when_it_is_lost_itself(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start().train(3)
    w.fall("digits-0").run(1)
    w.kill("digits-1").settle()
    assert w.last["collateral"] == ["digits-0"]
    w.until(w.training)
    w.nodes.pop(w.pod("digits-2").node)
    w.run(30)
    w.kill("digits-0").run(60)
    assert [i["victims"] for i in w.losses] == [["digits-1"], ["digits-2"], ["digits-0"]]
    assert w.restarts == (0, 3, 0)


def test_a_failed_pod_is_not_charged_again_when_its_incident_has_left_the_status(world):
    w = world().start().kill("digits-1")
    w.until(lambda: len(w.members) == 3 and w.training())
    for _ in range(incidents.KEEP + 1):
        victim = w.members[0]
        w.delete(victim)
        w.until(lambda victim=victim: victim not in w.members and w.training())
    assert w.restarts == (0, 1, incidents.KEEP + 1)
    assert not [p for p in w.pods.values() if p.name == "digits-1"]


def test_many_pods_that_die_before_the_first_round_are_one_incident(world):
    w = world(replicas=30, nodes=40, elastic={"minReplicas": 30})
    w.broken_image = {f"digits-{n}" for n in range(25)}
    w.settle()
    for name in w.broken_image:
        w.kill(name, 137)
    w.settle()
    assert w.restarts == (0, 1, 0)
    assert len(w.last["victims"]) == 25


def test_finished_pods_are_kept_only_so_many(world):
    w = world().start()
    for _ in range(12):
        w.until(lambda: len(w.members) == 3 and w.training())
        w.kill(w.members[1]).settle()
    w.until(w.training)
    kept = [p for p in w.pods.values() if p.over]
    assert 1 <= len(kept) <= 5


def test_a_waiting_pod_that_is_preempted_is_told_and_replaced(world):
    w = world(replicas=3, nodes=2, elastic={"minReplicas": 3}).run(5)
    w.delete("digits-0").settle()
    assert w.restarts == (0, 0, 1)
    assert "digits-0r1" in w.created


def test_pods_on_a_node_that_goes_are_not_made_again_and_again(world):
    w = world(nodes=4).start()
    w.tolerant = True
    for body in w.nodes.values():
        body["spec"]["taints"] = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
    w.run(60)
    assert len(w.created) < 30
    assert len(w.pods) < 12


def test_rounds_and_incidents_are_announced_as_events(world):
    w = world().start().kill("digits-1").settle()
    assert [(e.kind, e.reason) for e in w.events] == [
        ("Normal", "RoundFormed"),
        ("Warning", "PodLost"),
        ("Normal", "RoundFormed"),
    ]
    assert "digits-1" in w.events[1].message
    assert w.events[2].message == "round 2: digits-0, digits-2 (without digits-1)"


def test_a_done_members_peer_that_dies_is_replaced_and_told(world):
    w = world().start().train(5)
    w.finish("digits-0")
    w.kill("digits-1").until(lambda: "digits-1r1" in w.created)
    assert w.restarts == (0, 1, 0)


def test_a_cause_from_another_version_of_the_operator_is_read(world):
    w = world().start().kill("digits-1").run(5)
    w.status["incidents"][0]["cause"] = "MeteorStrike"
    w.run(10)
    assert w.phase == "Running"


def test_pods_that_cannot_start_beside_the_others_spend_no_budget_of_tries(world):
    w = world(save_every=1, restart={"user": {"max": 0}}).start().train(3)
    w.broken_image = {"digits-1r1"}
    w.kill("digits-1").settle()
    w.kill("digits-1r1", 128, "StartError").run(5)
    assert w.phase == "Running"
    assert w.restarts == (1, 1, 0)


def test_replacements_that_cannot_start_while_all_wait_are_tried_within_the_budget(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start().train(3)
    w.broken_image = {f"digits-1r{n}" for n in range(1, 9)}
    w.kill("digits-1").settle()
    for number in range(1, 4):
        w.until(lambda number=number: f"digits-1r{number}" in w.created)
        w.kill(f"digits-1r{number}", 128, "StartError").settle()
        assert w.phase == "Recovering"
    w.until(lambda: "digits-1r4" in w.created)
    w.kill("digits-1r4", 128, "StartError").settle()
    assert w.phase == "Failed"
    assert "spec.restart.user.max is 3" in w.condition("Failed")["message"]


def test_of_two_pods_lost_at_once_the_environments_cause_counts(world):
    w = world().start().train(3)
    w.kill("digits-0", 137, "OOMKilled").kill("digits-1", 137).settle()
    assert w.restarts == (0, 1, 0)
    assert w.last["cause"] == "PodLost"


def test_a_pod_that_fails_beside_an_error_that_is_being_understood_is_told_too(world):
    w = world(save_every=1).start().train(3)
    w.broken_image = {"digits-1r1"}
    w.kill("digits-1").until(w.training)
    w.train(2)
    w.fail("digits-0").kill("digits-1r1", 137)
    w.until(lambda: w.restarts[0] == 1 and w.training())
    assert w.restarts == (1, 2, 0)


def store_gone(w):
    w.fail("digits-0", "R5 no answer", cause="Configuration", reason="Store/R5")
    w.run(5)


def test_a_store_that_stops_answering_a_job_that_has_trained_is_an_outage(world):
    w = world().start().train(20)
    store_gone(w)
    assert w.last["cause"] == "StoreLost"
    assert w.phase != "Failed"
    assert w.restarts == (0, 1, 0)
    w.settle().train(10)
    assert w.phase == "Running"


def test_a_long_outage_of_the_store_is_tried_ever_more_rarely():
    def outage(number, at):
        return incidents.Incident(
            at=at, round=number, cause=Cause.STORE_LOST, evidence="", victims=("digits-0",)
        )

    known = [outage(number, at=100.0) for number in range(1, 8)]
    pauses = [retries.backoff(known[:n], now=100.0) for n in range(1, 8)]
    assert pauses == [0, 0, 2, 4, 8, 16, 32]


def test_rounds_wait_ever_longer_while_the_store_stays_out_of_reach(world):
    w = world().start().train(20)
    w.trains = False
    waits = []
    for _ in range(6):
        rounds, began = len(w.rounds), w.now
        w.fail("digits-0", "R5 no answer", cause="Configuration", reason="Store/R5")
        w.until(lambda rounds=rounds: len(w.rounds) > rounds)
        waits.append(w.now - began)
    assert waits == sorted(waits)
    assert waits[-1] > waits[0] + 10
    assert w.restarts == (0, 6, 0)


def test_a_store_that_cannot_be_written_before_the_first_step_ends_the_job(world):
    w = world()
    w.trains = False
    w.settle()
    w.fail("digits-0", "R5 denied", cause="Configuration", reason="Store/R5").run(10)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "Store:R5"


def test_a_store_that_gives_no_answer_before_the_first_step_is_tried_again(world):
    w = world()
    w.trains = False
    w.settle()
    w.fail("digits-0", "R5 no answer", cause="StoreLost", reason="Store/R5").run(10)
    assert w.phase == "Recovering"
    assert "R5 no answer" in w.condition("Progressing")["message"]
    assert w.restarts == (0, 1, 0)
    w.trains = True
    w.settle().train(10)
    assert w.phase == "Running"


def test_a_store_that_never_answers_ends_the_job_with_its_start_deadline(world):
    w = world(deadlines={"startup": "2m"})
    w.trains = False
    w.settle()
    ends = w.now + 300
    while w.phase != "Failed":
        assert w.now < ends
        w.fail("digits-0", "R5 no answer", cause="StoreLost", reason="Store/R5").run(20)
    assert w.condition("Failed")["reason"] == "StoreLost"
    assert "R5 no answer" in w.condition("Failed")["message"]


def test_a_forced_deletion_is_a_loss_although_it_is_seen_as_a_deletion_first(world):
    w = world().start().train(12)
    pod = w.pod("digits-1")
    pod.forced, pod.kill_at = True, w.now + 2
    w.tick()
    assert w.last["cause"] == "PodLost"
    assert "by force" in w.last["evidence"]
    w.settle()
    assert "digits-1" not in w.members
    assert w.restarts == (0, 1, 0)
