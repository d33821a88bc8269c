"""Contact beats hearsay, and silence is evidence: pods that speak whatever is said of their nodes,
and pods that say nothing any more although nobody has told of their end."""

import pytest

from rekindle_operator.observed import liveness

VICTIM = "digits-1"
UNREACHABLE = "node.kubernetes.io/unreachable"


def dark(world, **options):
    """The machine under a pod of three loses its power; nobody is told."""
    w = world(**options).start().train(3)
    return w.die_unnoticed(VICTIM)


def gone_on(w, seconds=7):
    """The others train in a round without the victim within so many seconds; a step takes one."""
    return w.until(lambda: VICTIM not in w.members and w.training(), seconds)


@pytest.mark.parametrize("blind", [False, True])
def test_without_power_a_pod_is_left_within_seconds_and_named(world, blind):
    w = dark(world)
    w.blind = blind
    gone_on(w)
    assert (w.last["cause"], w.last["victims"]) == ("PodLost", [VICTIM])
    for words in ("no report for", "digits-0, digits-2 cannot reach it"):
        assert words in w.last["evidence"]
    assert w.last["secondsLost"] >= liveness.SILENT, "it stood still since it was heard last"
    assert w.restarts == (0, 1, 0)


@pytest.mark.parametrize("blind", [False, True])
def test_its_replacement_comes_beside_it_on_another_node_and_joins(world, blind):
    w = dark(world)
    w.blind = blind
    node = w.pod(VICTIM).node
    w.until(lambda: f"{VICTIM}r1" in w.members and w.training(), 30)
    assert w.pod(f"{VICTIM}r1").node != node, "although no taint tells of it yet"
    old = w.pod(VICTIM)
    assert not old.removed, "its node may come back: nothing is forced"
    assert old.kill_at is not None, "and then its kubelet ends it"
    w.run(200, pace=5.0)
    assert w.restarts == (0, 1, 0)
    assert len(w.losses) == 1


def test_what_is_heard_of_the_node_later_explains_it_and_lets_go_of_the_pod(world):
    w = gone_on(dark(world))
    w.taint(VICTIM, UNREACHABLE).settle()
    assert w.last["cause"] == "NodeLost"
    assert len(w.losses) == 1
    assert w.restarts == (0, 1, 0)
    assert VICTIM not in [pod.name for pod in w.pods.values()], "removed by force"


@pytest.mark.parametrize("seconds", [25, 100])
def test_a_node_whose_network_was_away_is_charged_once_and_its_pod_is_of_use_again(world, seconds):
    w = dark(world, nodes=3)  # no other node has room
    w.run(seconds)
    assert w.restarts == (0, 1, 0)
    w.dead.clear()
    w.until(lambda: len(w.members) == 3 and w.training(), 60)
    w.run(30)
    assert w.restarts == (0, 1, 0)
    assert len(w.losses) == 1
    assert len(w.alive) == 3
    assert len({pod.index for pod in w.alive}) == 3


def test_a_pod_that_nobody_takes_is_made_anew_when_the_node_that_it_avoids_is_well_again(world):
    w = dark(world, nodes=3).run(10)
    assert w.pod(f"{VICTIM}r1").node is None
    lost = w.pod(VICTIM)
    w.dead.clear()
    w._delete(lost, 0)  # the machine has been restarted, and nothing is left of the pod
    w.until(lambda: len(w.members) == 3 and w.training(), 60)
    assert w.restarts == (0, 1, 0)


def test_pods_that_speak_train_on_while_their_nodes_are_called_unreachable(world):
    """The API server was away for two minutes, or the kubelets were."""
    w = world().start().train(3)
    for pod in list(w.alive):
        w.taint(pod.name, UNREACHABLE).condition_of_node(pod.name, "Ready", "Unknown")
    step = w.group()[0].step
    w.run(120)
    assert w.group()[0].step >= step + 120
    assert (len(w.rounds), w.restarts, w.status["incidents"]) == (1, (0, 0, 0), [])
    assert len(w.created) == 3
    w.untaint().run(30)
    assert len(w.rounds) == 1


def test_a_pod_that_speaks_moves_when_it_is_evicted_from_such_a_node(world):
    w = world().start().train(3).taint(VICTIM, UNREACHABLE).run(20)
    assert len(w.rounds) == 1
    w.evict(VICTIM, "DeletionByTaintManager")
    w.until(lambda: f"{VICTIM}r1" in w.members and w.training(), 40)
    assert (w.last["cause"], w.last["stepsLost"]) == ("Preempted", 0)


@pytest.mark.parametrize(
    "key", ["node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"]
)
def test_a_pod_that_speaks_moves_from_a_machine_that_is_said_to_be_gone(world, key):
    w = world().start().train(3).taint(VICTIM, key)
    w.until(lambda: f"{VICTIM}r1" in w.members and w.training(), 40)
    assert (w.last["cause"], w.last["stepsLost"]) == ("Preempted", 0)


def test_a_pod_that_is_not_heard_and_that_its_peers_reach_is_not_lost(world):
    w = world().start().train(3)
    w.pod(VICTIM).agent.quiet = True
    w.run(300, pace=5.0)
    assert (len(w.rounds), w.restarts) == (1, (0, 0, 0))
    assert len(w.created) == 3


def test_but_it_is_in_no_new_round_until_it_is_heard(world):
    w = world(nodes=3).start().train(3)
    w.pod(VICTIM).agent.quiet = True
    w.run(5).kill("digits-0").settle()
    assert w.members == ["digits-2"]
    w.pod(VICTIM).agent.quiet = False
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.restarts == (0, 1, 0)


@pytest.mark.parametrize("blind", [False, True])
def test_when_nobody_is_heard_nobody_is_lost(world, blind):
    w = world().start().train(3)
    w.blind = blind
    for agent in w.group():
        agent.quiet = True
    w.run(120, pace=5.0)
    for pod in w.alive:
        pod.agent.quiet = False
    w.run(30)
    assert (len(w.rounds), w.restarts, len(w.created)) == (1, (0, 0, 0), 3)


def test_agents_of_before_that_tell_nothing_of_their_peers_leave_it_to_the_node(world):
    w = dark(world)
    w.peers_tell = False
    w.run(40)
    assert len(w.rounds) == 1
    w.taint(VICTIM, UNREACHABLE).settle()
    assert VICTIM not in w.members
    assert w.last["cause"] == "NodeLost"
    assert w.last["secondsLost" if "secondsLost" in w.last else "silentSeconds"] >= 40


def test_a_job_of_one_pod_whose_machine_is_gone_goes_on_elsewhere(world):
    w = world(replicas=1).start().train(3).die_unnoticed("digits-0").run(20)
    w.taint("digits-0", UNREACHABLE).run(5)
    assert len(w.rounds) == 1, "nobody is heard: it may be the way"
    w.until(lambda: w.members == ["digits-0r1"] and w.training(), 60)
    assert w.last["cause"] == "NodeLost"


def test_an_operator_that_begins_after_a_machine_has_lost_its_power_finds_out(world):
    w = dark(world).restart_operator()
    w.until(lambda: VICTIM not in w.members and w.training(), liveness.REANNOUNCE + 5)
    assert (w.last["cause"], w.last["victims"]) == ("PodLost", [VICTIM])
    assert "no report has come" in w.last["evidence"]


def test_two_machines_at_once_are_one_incident(world):
    w = world(replicas=4).start().train(3)
    w.die_unnoticed("digits-1").die_unnoticed("digits-2")
    w.until(lambda: len(w.rounds) > 1, 5)
    assert [m.pod for m in w.rounds[1].members] == ["digits-0", "digits-3"]
    assert (w.restarts, sorted(w.last["victims"])) == ((0, 1, 0), ["digits-1", "digits-2"])


def test_a_newcomer_that_falls_silent_before_it_joins_holds_up_nobody(world):
    w = world().start().train(3).kill(VICTIM)
    w.trains = False  # a newcomer waits for the first step of the round that it would stop
    w.until(lambda: w.pod(f"{VICTIM}r1").agent is not None)
    w.die_unnoticed(f"{VICTIM}r1").run(5)
    w.trains = True
    w.until(lambda: f"{VICTIM}r2" in w.members and w.training(), 60)
    assert w.restarts[0] == 0
