"""What a sign is worth, by when its pod must be gone, and what follows from that and when."""

import math

import pytest

from rekindle.api import DirectiveKind
from rekindle_operator.observed import preemption_notices
from rekindle_operator.observed.preemption_notices import NOT_READY, SHUTDOWN, UNREACHABLE, Sign

ITN = "aws-node-termination-handler/spot-itn"
GKE = "cloud.google.com/impending-node-termination"
KARPENTER = "karpenter.sh/disrupted"
REBALANCE = "aws-node-termination-handler/rebalance-recommendation"
AZURE = "remediator.kubernetes.azure.com/unschedulable"


def told(*keys, grace=30.0, own=None, now=1000.0):
    signs = tuple(Sign(key=key, at=1000.0) for key in keys)
    return preemption_notices.of_node(signs, grace=grace, own=own or {}, now=now)


@pytest.mark.parametrize(
    ("key", "grace", "seconds"),
    [
        (GKE, 600, 15),
        (ITN, 5, 120),
        (KARPENTER, 45, 45),
        ("ToBeDeletedByClusterAutoscaler", 45, 45),
        (AZURE, 600, 30),
        ("PreemptScheduled", 600, 30),
        (SHUTDOWN, 600, 15),
        (UNREACHABLE, 600, 0),
        ("node.kubernetes.io/out-of-service", 600, 0),
        ("node.cloudprovider.kubernetes.io/shutdown", 600, 0),
        (REBALANCE, 600, math.inf),
        ("VMEventScheduled", 600, math.inf),
    ],
)
def test_each_source_leaves_the_time_that_it_really_leaves(key, grace, seconds):
    (notice,) = told(key, grace=float(grace))
    assert notice.seconds == seconds
    assert notice.deadline == 1000.0 + seconds
    assert (notice.lost, notice.advice) == (seconds == 0, seconds == math.inf)


def test_a_taint_that_nobody_knows_is_no_notice():
    assert told("nvidia.com/gpu", "node.kubernetes.io/unschedulable") == ()


def test_a_job_overrules_a_source_and_adds_its_own():
    own = {GKE: 120.0, "Rebooting": 60.0, "NetworkUnavailable": 0.0, "Old": math.inf}
    found = told(GKE, "Rebooting", "NetworkUnavailable", "Old", own=own)
    assert [(n.source, n.seconds) for n in found] == [
        ("NetworkUnavailable", 0.0),
        ("Rebooting", 60.0),
        (GKE, 120.0),
        ("Old", math.inf),
    ]
    assert found[1].words == "Rebooting is set"


def test_the_most_urgent_of_several_notices_comes_first():
    assert [n.source for n in told(REBALANCE, ITN, GKE)] == [GKE, ITN, REBALANCE]


@pytest.mark.parametrize(
    ("taint", "at"),
    [
        ({"key": ITN}, 1234.0),
        ({"key": ITN, "timeAdded": "2025-06-15T15:06:40Z"}, 1_750_000_000.0),
        ({"key": "ToBeDeletedByClusterAutoscaler", "value": "1750000000"}, 1_750_000_000.0),
        ({"key": "ToBeDeletedByClusterAutoscaler", "value": "yes"}, 1234.0),
    ],
)
def test_a_taint_counts_from_when_it_was_set_or_else_first_seen(taint, at):
    body = {"spec": {"taints": [taint]}}
    (sign,) = preemption_notices.read(body, {}, 1234.0)
    assert sign.at == at
    (again,) = preemption_notices.read(body, {sign.key: sign.at}, 9999.0)
    assert again == sign


@pytest.mark.parametrize(
    ("condition", "key"),
    [
        ({"type": "Ready", "status": "True"}, None),
        ({"type": "Ready", "status": "Unknown"}, UNREACHABLE),
        ({"type": "Ready", "status": "False", "message": "cni is not ready"}, NOT_READY),
        ({"type": "Ready", "status": "False", "message": "node is shutting down"}, SHUTDOWN),
        ({"type": "PreemptScheduled", "status": "True"}, "PreemptScheduled"),
        ({"type": "PreemptScheduled", "status": "False"}, None),
    ],
)
def test_conditions_are_signs_too(condition, key):
    signs = preemption_notices.read({"status": {"conditions": [condition]}}, {}, 1.0)
    assert [sign.key for sign in signs] == ([key] if key else [])


def test_a_node_that_is_not_ready_for_a_moment_is_not_left():
    assert told(NOT_READY, now=1000.0 + preemption_notices.PATIENCE - 1) == ()
    (notice,) = told(NOT_READY, now=1000.0 + preemption_notices.PATIENCE)
    assert notice.advice
    signs = (Sign(key=NOT_READY, at=1000.0),)
    assert preemption_notices.patience_ends(signs, 1001.0) == 1000.0 + preemption_notices.PATIENCE
    assert preemption_notices.patience_ends(signs, 1100.0) is None


def full(world, **more):
    """No machine is left for a replacement."""
    return world(nodes=3, **more).start().train(3)


@pytest.mark.parametrize(
    ("key", "after"), [(GKE, 7.5), (ITN, 60), (KARPENTER, 15), (AZURE, 15), ("Rebooting", 20)]
)
def test_without_a_replacement_training_goes_on_until_the_deadline_nears(world, key, after):
    w = full(world, capacity={"notices": [{"sign": "Rebooting", "seconds": 40}]})
    w.taint("digits-1", key).run(after - 1, pace=0.5)
    assert len(w.rounds) == 1
    assert w.phase == "Running"
    assert not w.losses
    w.run(1.5, pace=0.5)
    assert w.members == ["digits-0", "digits-2"]
    assert w.last["stepsLost"] == 0
    assert w.restarts == (0, 0, 1)


@pytest.mark.parametrize(
    ("source", "capacity", "after"),
    [
        ("file: rack 7 moves", {}, 20),
        ("SIGTERM", {}, 7.5),
        ("SIGTERM", {"notices": [{"sign": "SIGTERM", "seconds": 40}]}, 20),
    ],
    ids=["a file", "a machine that shuts down", "a machine that is known"],
)
def test_what_only_the_agent_was_told_has_a_deadline_too(world, source, capacity, after):
    w = full(world, capacity=capacity)
    w.tell("digits-1", source, seconds=40.0).run(after - 1, pace=0.5)
    assert len(w.rounds) == 1
    w.run(1.5, pace=0.5)
    assert [m.pod for m in w.rounds[1].members] == ["digits-0", "digits-2"]
    assert w.last["stepsLost"] == 0


def test_nobody_is_hurried_by_an_advice(world):
    w = full(world)
    w.taint("digits-1", REBALANCE).run(200, pace=5)
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert len(w.rounds) == 1
    assert not w.losses
    w.taint("digits-1", ITN).run(61)
    assert w.members == ["digits-0", "digits-2"]


def test_an_advice_is_followed_once_a_better_pod_is_ready(world):
    w = full(world).taint("digits-1", REBALANCE)
    w.run(30)
    w.nodes["fresh"] = {"spec": {}, "status": {}}
    w.until(lambda: w.members == ["digits-0", "digits-1r1", "digits-2"] and w.training())
    assert len(w.rounds) == 2
    assert "AWS expects" in w.last["evidence"]
    assert w.last["stepsLost"] == 0
    w.run(5)
    assert sorted(p.name for p in w.alive) == w.members


def test_when_all_nodes_are_advised_to_go_the_job_starts_there(world):
    w = world(nodes=3)
    w.tolerant = True
    for body in w.nodes.values():
        body["spec"]["taints"] = [{"key": REBALANCE, "effect": "NoSchedule"}]
    w.start().run(120, pace=5)
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert len(w.rounds) == 1
    assert not w.deleted


def test_newcomers_join_although_a_member_is_advised_to_go(world):
    w = world(replicas=2).start().train(3)
    w.broken_image = {"digits-1r1"}
    w.taint("digits-1", REBALANCE).run(20)
    w.change(replicas=3)
    w.until(lambda: w.members == ["digits-0", "digits-1", "digits-2"] and w.training())
    assert not w.losses


@pytest.mark.parametrize(("passed", "left"), [(16, 11.0), (20, 7.0), (29, 1.0)])
def test_a_wish_to_save_says_what_is_left_until_the_pod_must_have_gone(world, passed, left):
    w = full(world)
    w.hold_saves = True
    w.delete("digits-1").run(passed)
    orders = [d for d in w.directives.values() if d.kind is DirectiveKind.SAVE]
    assert orders
    assert orders[0].seconds == pytest.approx(left, abs=0.6)


def test_who_is_told_again_with_less_time_is_left_by_then(world):
    w = full(world)
    w.delete("digits-1", 30).run(2).delete("digits-1", 5).run(3)
    assert "digits-1" not in w.members
    assert w.last["stepsLost"] == 0
    assert w.restarts == (0, 0, 1)


def test_a_node_whose_kubelet_starts_anew_loses_no_pod(world):
    w = world().start().train(3).condition_of_node("digits-1", "Ready", "False")
    w.run(preemption_notices.PATIENCE - 5)
    w.condition_of_node("digits-1", "Ready").run(120, pace=5)
    assert len(w.rounds) == 1
    assert not w.losses
    assert len(w.created) == 3


def test_a_node_that_stays_not_ready_is_left_without_hurry(world):
    w = world().start().train(3).condition_of_node("digits-1", "Ready", "False")
    w.until(lambda: "digits-1r1" in w.members and w.training(), 60)
    assert w.now - w.pod("digits-0").created_at >= preemption_notices.PATIENCE
    assert "not ready" in w.last["evidence"]
    assert w.last["stepsLost"] == 0


def test_time_alone_wakes_the_operator_for_a_node_that_stays_not_ready(world):
    w = world().start().train(3).condition_of_node("digits-1", "Ready", "False").settle()
    assert w.alarm == pytest.approx(w.now + preemption_notices.PATIENCE, abs=0.1)


def test_a_node_of_which_nothing_is_known_any_more_is_lost_at_once(world):
    w = world().start().train(3).condition_of_node("digits-1", "Ready", "Unknown")
    w.die_unnoticed("digits-1").run(4)
    assert w.members == ["digits-0", "digits-2"]
    assert w.last["cause"] == "NodeLost"
    assert "digits-1" not in [p.name for p in w.pods.values()], "removed by force"


def test_a_pod_that_stays_terminating_on_a_dead_node_holds_up_nobody(world):
    w = world(nodes=3).start().train(3).die_unnoticed("digits-1").delete("digits-1")
    w.hold_saves = True  # the dead one cannot agree
    w.run(45)
    assert w.members == ["digits-0", "digits-2"]
    w.hold_saves = False
    assert "digits-1" in [p.name for p in w.pods.values()], "nobody has confirmed its end"
    w.until(w.training)


def test_a_notice_that_is_taken_back_costs_nothing(world):
    w = world()
    w.warms_for = 10.0
    w.start().train(3).taint("digits-1", KARPENTER).run(5)
    assert "digits-1r1" in w.created
    w.untaint().run(60)
    assert len(w.rounds) == 1
    assert [p.name for p in w.alive] == ["digits-0", "digits-1", "digits-2"]
    assert not w.losses
