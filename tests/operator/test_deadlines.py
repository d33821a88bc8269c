"""Deadlines count what they name: waiting for others, starting, or the whole life of a job."""

import pytest

GATE = "kueue.x-k8s.io/admission"


def gated(**changes):
    """A job whose pods are held until a queue admits them."""
    container = {"name": "trainer", "image": "i", "args": ["t.py"]}
    pod = {"containers": [container], "schedulingGates": [{"name": GATE}]}
    return {"template": {"spec": pod}, **changes}


def no_nodes(world, **changes):
    return world(nodes=0, **changes)


def quota(world, **changes):
    w = world(**changes)
    w.quota = 1
    return w


def gates(world, **changes):
    return world(**gated(**changes))


def let_through(w):
    w.quota = None
    w.nodes |= {f"new-{n}": {"spec": {}, "status": {}} for n in range(4)}
    return w.take_away_gates()


WAITS = [
    (no_nodes, "Unschedulable", "no node can take pod digits-0: Unschedulable: 0/8 nodes"),
    (quota, "QuotaExceeded", "exceeded quota: gpus"),
    (gates, "SchedulingGated", f"pod digits-0 is held by scheduling gate {GATE}"),
]
IDS = ["no node", "quota", "gates"]


@pytest.mark.parametrize(("how", "reason", "words"), WAITS, ids=IDS)
def test_a_job_that_waits_for_others_is_pending_with_the_reason_and_never_ends(
    world, how, reason, words
):
    w = how(world, elastic={"minReplicas": 3}, deadlines={"startup": "2m"})
    w.run(1800, pace=60.0)
    assert w.phase == "Pending"
    assert words in w.status["message"]
    for kind, value in (("Ready", "False"), ("Progressing", "True")):
        found = w.condition(kind)
        assert (found["status"], found["reason"]) == (value, reason)
        assert words in found["message"]
    let_through(w).start()
    assert w.phase == "Running"


@pytest.mark.parametrize(("how", "reason", "words"), WAITS, ids=IDS)
def test_the_pending_deadline_ends_it_with_the_reason(world, how, reason, words):
    w = how(world, elastic={"minReplicas": 3}, deadlines={"startup": None, "pending": "2m"})
    w.settle()
    assert 0 < w.alarm - w.now <= 120, "the operator is waked up for it"
    w.run(119, pace=7.0)
    assert w.phase == "Pending"
    w.run(2)
    assert (w.phase, w.condition("Failed")["reason"]) == ("Failed", reason)
    assert "spec.deadlines.pending of 120 s has passed" in w.condition("Failed")["message"]
    assert words in w.condition("Failed")["message"]


def test_a_turn_in_a_queue_needs_nobodys_attention(world):
    w = gates(world).run(30)
    assert w.condition("Degraded")["status"] == "False"


@pytest.mark.parametrize(("how", "reason", "words"), WAITS, ids=IDS)
def test_startup_begins_when_enough_pods_have_a_node(world, how, reason, words):
    w = how(world, elastic={"minReplicas": 3}, deadlines={"startup": "2m"})
    w.trains = False
    w.run(900, pace=60.0)
    let_through(w).run(5)
    assert w.phase == "Starting"
    w.run(110, pace=5.0)
    assert w.phase == "Starting"
    w.run(10, pace=1.0)
    assert w.phase == "Failed"
    assert "spec.deadlines.startup of 120 s has passed" in w.condition("Failed")["message"]


def test_a_pod_that_no_round_needs_is_not_waited_for(world):
    w = world(nodes=2, elastic={"minReplicas": 2}, deadlines={"startup": "2m", "pending": "1m"})
    w.trains = False
    w.settle()
    assert w.phase == "Starting"
    w.run(119, pace=7.0)
    assert w.phase == "Starting"
    w.run(3)
    assert "spec.deadlines.startup" in w.condition("Failed")["message"]


def test_pulling_an_image_is_starting(world):
    w = world(deadlines={"startup": "2m", "pending": "1m"})
    w.broken_image = {"*"}
    w.run(119, pace=7.0)
    assert w.phase == "Starting"
    w.run(3)
    assert w.condition("Failed")["reason"] == "ErrImagePull"


def test_startup_begins_anew_when_capacity_goes_before_training_runs(world):
    w = world(nodes=3, elastic={"minReplicas": 3}, deadlines={"startup": "2m"})
    w.trains = False
    w.run(100, pace=5.0)
    w.lose_node("digits-2").run(600, pace=20.0)
    assert w.phase == "Recovering"
    w.nodes["new"] = {"spec": {}, "status": {}}
    w.run(100, pace=5.0)
    assert w.phase == "Recovering"
    w.trains = True
    w.until(w.training)


def test_a_recovery_that_waits_for_capacity_says_what_for(world):
    w = world(nodes=3, elastic={"minReplicas": 3}, deadlines={"startup": "1m"}).start()
    w.lose_node("digits-1").run(1000, pace=50.0)
    assert w.phase == "Recovering"
    assert "recovering from NodeLost" in w.status["message"]
    assert "no node can take pod digits-1r1" in w.status["message"]


def test_the_pending_deadline_holds_for_a_recovery_and_begins_with_each_wait(world):
    w = world(nodes=3, elastic={"minReplicas": 3}, deadlines={"pending": "2m"}).start()
    w.lose_node("digits-1").run(100, pace=5.0)
    w.nodes["new"] = {"spec": {}, "status": {}}
    w.until(lambda: len(w.members) == 3 and w.training())
    w.lose_node("digits-2").run(100, pace=5.0)
    assert w.phase == "Recovering"
    w.run(30, pace=5.0)
    assert w.condition("Failed")["reason"] == "Unschedulable"


def test_a_wait_is_remembered_by_the_next_operator(world):
    w = no_nodes(world, deadlines={"pending": "2m"}).run(90, pace=10.0)
    w.restart_operator()
    w.run(35, pace=5.0)
    assert w.phase == "Failed"


def test_a_job_that_trains_does_not_wait(world):
    w = world(nodes=2, elastic={"minReplicas": 2}, deadlines={"pending": "1m"}).start()
    w.change(replicas=4, elastic={"minReplicas": 4}).run(300, pace=10.0)
    assert w.phase == "Running"


def test_a_suspended_job_does_not_wait_and_its_start_is_one_again(world):
    w = world(nodes=3, elastic={"minReplicas": 3}, deadlines={"startup": "2m", "pending": "5m"})
    w.start().change(suspend=True).run(1000, pace=50.0)
    assert w.phase == "Suspended"
    nodes, w.nodes = w.nodes, {}
    w.change(suspend=False).run(200, pace=10.0)
    assert w.phase == "Pending"
    w.nodes, w.trains = nodes, False
    w.run(100, pace=5.0)
    assert w.phase == "Starting"
    w.run(30, pace=5.0)
    assert w.phase == "Failed"
