"""A node that holds up all others: told, avoided by new pods, and left where the job wants that."""

import statistics

import pytest

from rekindle.api import RankReport
from rekindle_operator.rounds import stragglers


def test_a_node_is_slow_only_after_a_while_without_a_break():
    spells = stragglers.remember({}, {"a"}, 0.0)
    for at in (20.0, 40.0, 59.0):
        spells = stragglers.remember(spells, {"a"}, at)
    assert not stragglers.nodes(spells)
    assert stragglers.remember(spells, set(), 59.5) == {}
    spells = stragglers.remember(spells, {"a", "b"}, 60.0)
    assert stragglers.nodes(spells) == {"a"}
    spells = stragglers.remember(spells, set(), 61.0)
    assert spells == {"a": (0.0, 60.0)}
    assert stragglers.remember(spells, set(), 61.0 + stragglers.MEMORY) == {}


def liked(pod):
    affinity = pod.body["spec"].get("affinity", {}).get("nodeAffinity", {})
    wishes = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", ())
    return [v for w in wishes for e in w["preference"]["matchExpressions"] for v in e["values"]]


def test_new_pods_rather_go_elsewhere_than_to_a_node_that_was_slow(world):
    w = world().start().train(3).slow("digits-1").run(70)
    slow = w.pod("digits-1").node
    assert len(w.rounds) == 1, "by default it is only told"
    assert w.condition("Degraded")["reason"] == "Straggler"
    w.restart_operator().run(5)
    w.kill("digits-2").settle()
    assert liked(w.pod("digits-2r1")) == [slow]


def test_a_slow_pod_is_moved_where_the_job_wants_that(world):
    w = world(capacity={"slowNodes": "avoid"}).start().train(3)
    slow = w.pod("digits-1").node
    w.slow("digits-1").run(stragglers.SUSTAINED - 5)
    assert len(w.created) == 3
    w.until(lambda: w.members == ["digits-0", "digits-1r1", "digits-2"] and w.training(), 20)
    assert len(w.rounds) == 2
    assert w.last["stepsLost"] == 0
    assert "times as long" in w.last["evidence"]
    assert liked(w.pod("digits-1r1")) == [slow]
    w.run(5)
    assert sorted(p.name for p in w.alive) == w.members


@pytest.mark.parametrize("seconds", [10, 55])
def test_one_that_is_slow_for_a_moment_stays(world, seconds):
    w = world(capacity={"slowNodes": "avoid"}).start().train(3)
    w.slow("digits-1").run(seconds).slow("digits-1", factor=1.0).run(100, pace=5)
    assert len(w.rounds) == 1
    assert len(w.created) == 3
    assert not liked(w.pod("digits-1"))


def test_a_pod_that_found_no_other_node_is_not_moved_again_and_again(world):
    w = world(capacity={"slowNodes": "avoid"}, nodes=4).start().train(3)
    slow = w.pod("digits-1").node
    w.slow("digits-1").until(lambda: "digits-1r1" in w.members and w.training(), 90)
    w.kill("digits-1r1").until(lambda: "digits-1r2" in w.members and w.training())
    assert w.pod("digits-1r2").node == slow
    rounds = len(w.rounds)
    w.slow("digits-1r2").run(2 * stragglers.SUSTAINED)
    assert len(w.rounds) == rounds
    assert w.condition("Degraded")["reason"] == "Straggler"


@pytest.mark.parametrize(
    "times",
    [(1, 4), (2, 1, 9), (1, 8, 9), (3, 1, 7, 1), (5, 5, 1, 1, 20), (1, 1, 1, 3, 3, 3, 3)],
    ids=str,
)
def test_a_rank_is_held_against_the_median_of_all_others(world, times):
    w = world(replicas=len(times)).start()
    for agent, busy in zip(w.group(), times, strict=True):
        words = {"rank": agent.pod.index, "step": 1, "phase": "training", "idle": 0.0}
        agent.more["ranks"] = (RankReport(**words, busy=float(busy)),)
    w.settle()
    others = [statistics.median([*times[:n], *times[n + 1 :]]) for n in range(len(times))]
    slow = {n: times[n] / usual for n, usual in enumerate(others) if times[n] > 1.5 * usual}
    assert {one.rank: one.ratio for one in stragglers.scores(w.observed())} == slow
