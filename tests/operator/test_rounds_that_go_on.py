"""A round that goes on was ended by nothing: whatever had been said, no budget pays for it.

Each row is a way in which something is believed of a member that is over before anybody has
stopped for it.
"""

import pytest

MIN3 = {"elastic": {"minReplicas": 3}}


def lifeline(w):
    w.cut_off[w.pod("digits-1").uid] = w.now
    return w.cut_off.clear


def said_of_its_node(key):
    def said(w):
        w.taint("digits-1", key)
        return w.untaint

    said.__name__ = key
    return said


def condition_of_its_node(w):
    w.condition_of_node("digits-1", "PreemptScheduled")
    return lambda: w.condition_of_node("digits-1", "PreemptScheduled", "False")


WAYS = [
    (lifeline, "infrastructure"),
    (said_of_its_node("node.kubernetes.io/out-of-service"), "preemption"),
    (said_of_its_node("node.cloudprovider.kubernetes.io/shutdown"), "preemption"),
    (said_of_its_node("karpenter.sh/disrupted"), "preemption"),
    (said_of_its_node("aws-node-termination-handler/spot-itn"), "preemption"),
    (condition_of_its_node, "preemption"),
]


@pytest.mark.parametrize("plain", [False, True], ids=["steps", "no steps"])
@pytest.mark.parametrize(("way", "payer"), WAYS, ids=lambda way: getattr(way, "__name__", None))
def test_what_is_over_before_anybody_has_stopped_has_ended_no_round(world, way, payer, plain):
    w = world(nodes=3, plain=plain, **MIN3).start().train(5)
    w.hold_saves = True
    over = way(w)
    while not w.losses and w.now < w.job.created_at + 1000:
        w.tick()
        w.now += 1.0
        w.act()
    assert (w.phase, w.last["round"]) == ("Recovering", 1)
    paid = w.status["accounting"]["spent"][payer]
    assert paid in (1, [w.losses and pytest.approx(w.incidents[-1].at)])
    over()
    w.run(10)
    assert (w.phase, len(w.rounds)) == ("Running", 1)
    assert (w.last["round"], w.last["stepsLost"], w.last["secondsLost"]) == (0, 0, 0.0)
    assert "before anybody had stopped" in w.last["action"]
    assert not any(w.status["accounting"]["spent"].values())
    w.hold_saves = False
    w.delete("digits-1").until(lambda: len(w.rounds) > 1 and w.training())
    assert [i["round"] for i in w.losses] == [0, 1], "what stops it then is charged after all"
    assert w.status["accounting"]["spent"]["preemption"] == 1


def test_an_incident_of_a_round_that_nobody_has_heard_of_is_taken_back(world):
    """Its members go on in the round before: the operator that has published the next one died."""
    w = world(nodes=3, **MIN3).start().train(5)
    w.cut_off[w.pod("digits-1").uid] = w.now
    w.tick()
    (known,) = w.status["incidents"]
    w.status["incidents"] = [known | {"round": 2}]
    w.status["round"] = w.status["accounting"]["chargedRound"] = 2
    w.cut_off.clear()
    w.restart_operator().run(10)
    assert (w.phase, w.members) == ("Running", ["digits-0", "digits-1", "digits-2"])
    assert w.status["accounting"]["spent"]["infrastructure"] == []


def test_false_alarms_make_no_pod_wait(world):
    w = world(nodes=4, elastic={"minReplicas": 2}).start().train(5)
    for _ in range(4):
        w.hold_saves = True
        w.taint("digits-1", "karpenter.sh/disrupted")
        w.nodes.pop("node-3", None)
        w.until(lambda: w.phase == "Recovering", 60)
        w.untaint().until(lambda: w.phase == "Running", 10)
    assert [i["round"] for i in w.losses] == [0] * 4
    w.kill("digits-1").settle()
    assert {p.index for p in w.alive} == {0, 1, 2}, "another pod follows at once"
