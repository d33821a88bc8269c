"""Hangs, rollbacks and stragglers: what the incident log and the conditions say of them."""

import pytest

from rekindle.api import DirectiveKind, RankReport, Rollback, Timings
from rekindle_operator.incidents import detection
from rekindle_operator.rounds.stragglers import RATIO, scores


def hung(w):
    """Rank 1 stands in the user's code, the others wait for it."""
    w.hang("digits-0", waits=True, stacks="rank 0 waits")
    w.hang("digits-1", waits=False, stacks="rank 1 stands:\n  net.py:17 forward")
    return w.hang("digits-2", waits=True, stacks="rank 2 waits")


def test_the_rank_that_does_not_wait_is_to_blame_and_all_begin_again(world):
    w = world().start().train(12)
    w.timings = Timings(age=0.0, grouped=0.1, restored=0.2, stepped=0.3)
    w = hung(w).settle()
    assert w.last["cause"] == "Hung"
    assert w.last["victims"] == ["digits-1"]
    assert "rank 1 on digits-1" in w.last["evidence"]
    assert "2 other pods wait for it" in w.last["evidence"]
    assert "net.py:17" in w.last["stacks"]
    assert w.restarts == (0, 1, 0)
    w.trains = True
    w.until(lambda: "recovery" in w.last)
    assert w.last["recovery"]["detect"] == pytest.approx(65.0, abs=0.5)
    assert w.last["secondsLost"] >= 65.0
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert w.round.number == 2
    assert w.restarts == (0, 1, 0)


def test_all_are_asked_where_they_stand_before_anybody_is_blamed(world):
    w = world().start().train(3).hang("digits-2").settle()
    assert {d.kind for d in w.directives.values()} == {DirectiveKind.DUMP}
    assert len(w.directives) == 3
    assert not w.losses
    w.run(detection.SETTLE_HANG + 1)
    assert w.last["victims"] == ["digits-2"], "who has not answered is not waited for"


def test_a_pod_that_is_gone_explains_a_hang(world):
    w = world().start().train(3).hang("digits-0").settle()
    w.kill("digits-1").settle()
    assert [i["cause"] for i in w.losses] == ["PodLost"]


def test_a_worker_that_gets_on_again_is_no_incident(world):
    w = world().start().train(3).hang("digits-0").settle()
    w.pod("digits-0").agent.more = {}
    w.trains = True
    w.run(detection.SETTLE_HANG + 2)
    assert not w.losses
    assert w.round.number == 1
    assert not w.directives


def test_a_rollback_joins_the_log_and_costs_no_budget(world):
    w = world().start().train(12)
    back = Rollback(at_step=12, to_step=10, reason="the loss is not finite", at=w.now - 0.5)
    for agent in w.group():
        agent.more["rollback"] = back
    w.run(2)
    (found,) = w.losses
    assert (found["cause"], found["stepsLost"]) == ("RolledBack", 2)
    assert (found["resumedFrom"], found["secondsLost"]) == (10, pytest.approx(2.0))
    assert w.restarts == (0, 0, 0)
    assert w.status["accounting"]["reworkSeconds"] == pytest.approx(2.0)
    w.restart_operator().run(2)
    assert len(w.losses) == 1, "a new operator tells it once more"
    assert w.phase == "Running"


def test_many_rollbacks_do_not_delay_the_replacement_of_a_lost_pod(world):
    w = world().start().train(12)
    for _ in range(6):
        back = Rollback(at_step=12, to_step=10, reason="a spike", at=w.now)
        for agent in w.group():
            agent.more["rollback"] = back
        w.run(1)
    assert len(w.losses) == 6
    w.trains = False
    w.kill("digits-1").run(1)
    assert "digits-1r1" in w.created


def measured(w, *seconds):
    for agent, busy in zip(w.group(), seconds, strict=True):
        rank = RankReport(rank=agent.pod.index, step=3, phase="training", idle=0.0, busy=busy)
        agent.more["ranks"] = (rank,)
    return w.run(1)


def test_the_pod_that_the_others_wait_for_is_named(world):
    w = measured(world().start(), 0.1, 0.1, 0.1 * RATIO + 0.05)
    (slow,) = scores(w.observed())
    assert (slow.pod, slow.rank) == ("digits-2", 2)
    assert slow.ratio == pytest.approx(2.0)
    assert w.condition("Degraded")["reason"] == "Straggler"
    assert "rank 2 on pod digits-2" in w.condition("Degraded")["message"]


@pytest.mark.parametrize("seconds", [(0.1, 0.1, 0.12), (0.0001, 0.0001, 0.001), (None, 0.1, 0.9)])
def test_noise_and_what_is_not_known_yet_name_nobody(world, seconds):
    w = measured(world().start(), *seconds)
    assert scores(w.observed()) == ()
    assert w.condition("Degraded")["status"] == "False"


def test_of_two_the_slower_one_is_named(world):
    w = measured(world(replicas=2).start(), 0.3, 0.1)
    assert [slow.pod for slow in scores(w.observed())] == ["digits-0"]


def test_a_rank_alone_has_nobody_to_be_slower_than(world):
    w = measured(world(replicas=1, elastic={"minReplicas": 1}).start(), 0.3)
    assert scores(w.observed()) == ()
