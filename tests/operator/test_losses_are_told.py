"""Every member that is lost is told once, whoever saw it: nothing of it is deleted before.

A new operator learns from agents in which round a pod was. Until one of them is heard it can name
no loss, so the finished pod has to stay; and of a pod whose object has gone only the round knows.
"""

import pytest

LOSSES = {
    "kill": lambda w, name: w.kill(name),
    "vanish": lambda w, name: w.vanish(name),
    "node": lambda w, name: w.lose_node(name),
    "cut": lambda w, name: w.cut(name),
}


def whole(w):
    return w.training() and len(w.members) == w.job.replicas


def all_are_heard(w):
    for pod in w.alive:
        if pod.agent:
            pod.agent.quiet = False
    w.until(lambda: whole(w) and "digits-1" not in w.members, 120)


@pytest.mark.parametrize("away", [0, 3])
@pytest.mark.parametrize("quiet", [["digits-0"], ["digits-2"], ["digits-0", "digits-2"]])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_that_was_lost_before_anybody_was_heard(world, loss, quiet, away):
    w = world().start().train(5).stop_operator().run(away)
    LOSSES[loss](w, "digits-1")
    w.restart_operator(quiet=quiet).run(5)
    all_are_heard(w)
    named = [name for i in w.losses for name in (*i["victims"], *i["collateral"])]
    assert named == ["digits-1"]
    assert sum(w.restarts) == 1


@pytest.mark.parametrize("after", [0, 1, 12])
@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("anew", [False, True], ids=["same operator", "new operator"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_one_before_the_next_round_trains(world, loss, anew, least, after):
    w = world(elastic={"minReplicas": least})
    w.warms_for = 15.0
    w.start().train(5).kill("digits-0").tick()
    w.run(after)
    LOSSES[loss](w, "digits-1")
    if anew:
        w.restart_operator(quiet=["digits-1", "digits-2"]).run(3)
    all_are_heard(w)
    victims = [name for i in w.losses for name in i["victims"]]
    collateral = [name for i in w.losses for name in i["collateral"]]
    assert victims.count("digits-0") == 1
    assert [*victims, *collateral].count("digits-1") == 1
    assert 1 <= sum(w.restarts) <= 2


@pytest.mark.parametrize("away", [0, 30])
@pytest.mark.parametrize("loss", LOSSES)
def test_all_are_lost_while_no_operator_watches(world, loss, away):
    w = world(save_every=3).start().train(7).stop_operator()
    for name in list(w.members):
        LOSSES[loss](w, name)
    w.run(away).restart_operator()
    w.until(lambda: whole(w) and len(w.rounds) == 2, 200)
    (incident,) = w.losses
    assert incident["round"] == 1
    assert incident["stepsLost"] == incident["step"] - incident["resumedFrom"] > 0
    assert incident["recoveredInRound"] == 2
    assert sum(w.restarts) == 1
    gone = loss == "vanish"
    assert incident["victims"] == ([] if gone else ["digits-0", "digits-1", "digits-2"])
    assert not gone or "no pod of round 1 is left" in incident["evidence"]


def test_a_job_that_goes_on_after_a_suspension_has_lost_nobody(world):
    w = world().start().train(7).change(suspend=True)
    w.until(lambda: not w.pods, 120)
    w.restart_operator().run(30)
    w.change(suspend=False)
    w.restart_operator().until(lambda: whole(w), 120)
    assert w.losses == []
    assert sum(w.restarts) == 0
