"""The operator dies anywhere: nothing is done twice, charged twice or restarted without need."""

import pytest

from rekindle_operator.observed import liveness

WHERE = ["children", "status"]


def whole(w):
    return w.training() and len(w.members) == w.job.replicas


def test_an_operator_that_starts_anew_restarts_nothing(world):
    w = world().start().train(5)
    pods, round_ = list(w.created), w.round
    w.restart_operator().run(60)
    assert w.created == pods
    assert w.round == round_
    assert len(w.rounds) == 1
    assert w.restarts == (0, 0, 0)


def test_the_phase_does_not_flicker_while_agents_report_again(world):
    w = world().start().train(5)
    w.restart_operator(quiet=["digits-0", "digits-1", "digits-2"])
    w.tick()
    assert w.phase == "Running"
    assert w.condition("Ready")["status"] == "True"
    for pod in w.alive:
        pod.agent.quiet = False
    w.run(5)
    assert w.condition("Ready")["message"] == "training on 3 pods, 3 workers"


def test_training_goes_on_while_the_operator_is_away_for_minutes(world):
    w = world().start().train(5).stop_operator()
    w.run(300, pace=10)
    w.restart_operator().run(5)
    assert w.step > 300
    assert len(w.rounds) == 1
    assert w.status["goodput"]["ratio"] > 0.9


@pytest.mark.parametrize("late", ["digits-0", "digits-2"])
def test_an_agent_that_reports_late_is_waited_for(world, late):
    w = world().start().train(5)
    w.restart_operator(quiet=[late]).run(40)
    assert len(w.rounds) == 1
    w.pod(late).agent.quiet = False
    w.run(20)
    assert len(w.rounds) == 1
    assert w.restarts == (0, 0, 0)


def test_a_loss_seen_by_a_new_operator_waits_for_the_other_agents_to_report(world):
    w = world().start().train(5)
    w.restart_operator(quiet=["digits-2"])
    w.kill("digits-0")
    w.run(3)
    assert len(w.rounds) == 1, "digits-2 is alive and may report any moment"
    w.pod("digits-2").agent.quiet = False
    w.settle()
    assert {"digits-1", "digits-2"} <= {m.pod for m in w.rounds[1].members}


def test_an_agent_that_never_reports_again_is_left_behind(world):
    w = world().start().train(5)
    w.restart_operator(quiet=["digits-2"])
    w.kill("digits-0").run(liveness.REANNOUNCE + 2)
    assert "digits-1" in w.members
    assert "digits-2" not in w.members


def test_a_pod_preempted_while_the_operator_is_away_has_saved_and_is_replaced(world):
    w = world().start().train(5).stop_operator().delete("digits-1").run(30)
    w.restart_operator().until(lambda: whole(w))
    assert w.last["stepsLost"] == 0
    assert w.created[3:] == ["digits-1r1"]
    assert sum(w.restarts) == 1


EVENTS = {
    "kill": lambda w: w.kill("digits-1"),
    "kill of rank 0": lambda w: w.kill("digits-0"),
    "preemption": lambda w: w.delete("digits-1"),
    "taint": lambda w: w.taint("digits-1", "karpenter.sh/disrupted"),
    "node": lambda w: w.lose_node("digits-1"),
    "error": lambda w: w.fail("digits-1"),
    "vanished": lambda w: w.vanish("digits-1"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("when", range(5))
@pytest.mark.parametrize("event", EVENTS)
def test_dying_at_any_moment_of_a_recovery_charges_once(world, event, when, where):
    w = world(save_every=3).start().train(7)
    EVENTS[event](w)
    for tick in range(5):
        w.kubernetes()
        w.act()
        w.tick(die_after=where if tick == when else None)
        if event == "error":
            w.now += 1.0
    # That nothing is heard of a node shows only when time has passed.
    w.until(lambda: whole(w) and (event != "node" or "digits-1" not in w.members))
    assert sum(w.restarts) == 1
    assert len(w.created) == (3 if event == "error" else 4)
    assert len(set(w.created)) == len(w.created)
    assert len(w.losses) == 1


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("when", range(4))
def test_dying_at_any_moment_of_the_start_creates_every_pod_once(world, when, where):
    w = world()
    for tick in range(4):
        w.kubernetes()
        w.act()
        w.tick(die_after=where if tick == when else None)
    w.until(lambda: whole(w))
    assert sorted(w.created) == ["digits-0", "digits-1", "digits-2"]
    assert w.restarts == (0, 0, 0)
    assert w.children == {"Secret/digits-rekindle": 1, "Service/digits-pods": 1}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("when", range(4))
def test_dying_at_any_moment_of_the_end_ends_the_job_once(world, when, where):
    w = world(total_steps=12).start()
    w.until(lambda: w.group() and w.group()[0].step >= 11)
    w.now += 1
    w.pass_time(1)
    for tick in range(4):
        w.kubernetes()
        w.act()
        w.tick(die_after=where if tick == when else None)
    w.run(60)
    assert w.phase == "Succeeded"
    assert {p.terminated["exitCode"] for p in w.pods.values()} == {0}
    assert len(w.rounds) == 1
    assert w.restarts == (0, 0, 0)


@pytest.mark.parametrize("where", WHERE)
def test_dying_between_status_and_publish_never_names_two_rounds_alike(world, where):
    w = world().start().train(3).kill("digits-1")
    w.kubernetes()
    w.tick(die_after=where)
    w.until(lambda: whole(w))
    numbers = [r.number for r in w.rounds]
    assert numbers == sorted(set(numbers))
    if where == "status":
        assert numbers[:2] == [1, 3], "number 2 was in the status and is not used again"


@pytest.mark.parametrize("where", WHERE)
def test_dying_while_suspending_and_resuming_charges_nothing(world, where):
    w = world().start().train(3).change(suspend=True)
    w.tick(die_after=where)
    w.run(5)
    assert w.phase == "Suspended"
    w.change(suspend=False)
    w.tick(die_after=where)
    w.until(lambda: whole(w))
    assert w.restarts == (0, 0, 0)


def test_a_new_operator_does_not_take_its_predecessors_deletions_for_preemptions(world):
    w = world().start()
    w.change(template={"spec": {"containers": [{"name": "trainer", "image": "new"}]}})
    w.tick(die_after="children")
    w.until(lambda: whole(w) and "digits-0r1" in w.members)
    assert w.restarts == (0, 0, 0)


def test_ten_losses_in_a_row_each_with_an_operator_that_dies_too(world):
    w = world(replicas=4, nodes=8).start()
    for number in range(10):
        w.until(lambda: whole(w))
        w.kill(w.members[number % 4])
        w.kubernetes()
        w.tick(die_after=WHERE[number % 2])
    w.until(lambda: whole(w))
    assert w.restarts == (0, 10, 0)
    assert len(set(w.created)) == len(w.created) == 14


def test_a_loss_during_a_recovery(world):
    w = world(replicas=4).start().train(3).kill("digits-1").settle()
    w.kill("digits-0").until(lambda: whole(w))
    assert w.restarts == (0, 2, 0)


def test_a_loss_while_the_others_save(world):
    w = world(replicas=3).start().train(3)
    w.hold_saves = True
    w.delete("digits-1").settle()
    w.kill("digits-2").settle()
    assert "digits-0" in w.members
    assert not {"digits-1", "digits-2"} & set(w.members)
    w.hold_saves = False
    w.until(lambda: whole(w))
    assert sum(w.restarts) <= 2


def test_a_loss_during_the_start(world):
    w = world()
    w.trains = False
    w.settle()
    w.kill("digits-1").settle()
    assert w.members[0] == "digits-0"
    w.trains = True
    w.until(lambda: whole(w))
    assert w.restarts == (0, 1, 0)


def test_a_pod_that_was_told_to_go_and_went_while_no_operator_was_there_is_a_preemption(world):
    w = world(replicas=2).start().train(5).stop_operator()
    w.delete("digits-1")
    w.run(60)
    assert [pod.name for pod in w.pods.values()] == ["digits-0"]
    w.restart_operator().run(5)
    assert w.last["cause"] == "Preempted"
    assert w.restarts == (0, 0, 1)


def test_another_operator_is_told_once_and_charged_to_nobody(world):
    w = world().start().train(5)
    w.restart_operator().run(5)
    w.restart_operator().run(5)
    (incident,) = w.status["incidents"]
    assert incident["cause"] == "OperatorRestarted"
    assert incident["victims"] == ["operator"]
    assert incident["secondsLost"] == 0
    assert w.restarts == (0, 0, 0)
    assert w.phase == "Running"


def test_an_operator_that_finds_a_job_without_a_round_has_nothing_to_tell(world):
    w = world()
    w.tick()
    w.restart_operator()
    w.start()
    assert w.status["incidents"] == []


def test_what_a_pod_said_when_it_left_counts_after_it_is_gone(world):
    w = world(replicas=2).start().train(5).stop_operator()
    w.hold_saves = True
    w.delete("digits-1").settle()
    w.restart_operator(quiet=["digits-0"])
    w.hear(w.pod("digits-1").agent)  # it reports, and is gone before anybody looks
    w.vanish("digits-1").run(2)
    w.pod("digits-0").agent.quiet = False
    w.run(10)
    assert w.last["cause"] == "Preempted"
    assert w.restarts == (0, 0, 1)


def test_a_pod_that_goes_while_no_agent_has_reported_yet_is_charged_once(world):
    w = world(replicas=2).start().train(5)
    w.hold_saves = True
    w.delete("digits-1")
    w.restart_operator(quiet=["digits-0", "digits-1"]).run(2)
    w.hold_saves = False
    for pod in w.alive:
        if pod.agent:
            pod.agent.quiet = False
    w.run(30)
    assert w.last["cause"] == "Preempted"
    assert w.restarts == (0, 0, 1)


@pytest.mark.parametrize("late", ["digits-0", "digits-1"])
def test_a_spare_that_is_heard_first_is_no_reason_to_stop_who_trains(world, late):
    w = world(replicas=2, elastic={"spares": 2}).start().train(5)
    w.restart_operator(quiet=["digits-0", "digits-1"]).run(10)
    assert len(w.rounds) == 1
    for pod in w.alive:
        pod.agent.quiet = pod.name == late
    w.run(60)
    assert len(w.rounds) == 1
    assert w.training()
    assert w.restarts == (0, 0, 0)
