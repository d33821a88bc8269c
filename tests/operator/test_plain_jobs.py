"""Programs that are not ours: nobody counts their steps, and a job recovers all the same.

What its workers have to show is that they run. Everything that hangs on a first step elsewhere
hangs on that here, and what only steps could tell is told as unknown.
"""

import pytest

from rekindle.api import Outcome, Progress, Timings
from rekindle_operator.incidents.retries import STEADY


def plain(world, **changes):
    return world(plain=True, **changes)


def test_workers_that_run_are_running_and_their_steps_are_unknown(world):
    w = plain(world, deadlines={"startup": "1m"})
    w.trains = False
    w.settle()
    assert w.phase == "Starting"
    w.trains = True
    w.until(w.training).run(300, pace=10.0)
    assert w.phase == "Running", "the startup deadline is no matter any more"
    assert w.status["message"] == "training on 3 pods, 3 workers; steps unknown"
    assert w.condition("Ready")["message"] == w.status["message"]
    assert "progress" not in w.status
    assert w.status["goodput"]["percent"] == "unknown"
    assert not {"ratio", "productiveSeconds"} & set(w.status["goodput"])
    assert set(w.status["goodput"]["lost"]) == {"pending", "restart"}


@pytest.mark.parametrize(
    ("lose", "cause"),
    [
        (lambda w: w.kill("digits-1"), "PodLost"),
        (lambda w: w.delete("digits-1"), "Preempted"),
        (lambda w: w.lose_node("digits-1"), "NodeLost"),
        (lambda w: w.fail("digits-1"), "UserError"),
    ],
    ids=["kill", "preemption", "node", "error"],
)
def test_a_recovery_ends_when_they_run_again(world, lose, cause):
    w = plain(world, nodes=3, elastic={"minReplicas": 3}).start().run(50)
    lose(w).run(20)
    w.nodes |= {"new": {"spec": {}, "status": {}}}
    w.until(lambda: w.training() and len(w.members) == 3 and w.phase == "Running")
    assert w.last["cause"] == cause
    assert w.last["secondsLost"] > 0
    assert not {"step", "stepsLost", "resumedFrom"} & set(w.last), "nobody knows"
    assert w.last["recoveredInRound"] == w.round.number
    assert set(w.last["recovery"]) == {
        "detect",
        "decide",
        "restart",
        "restore",
        "firstStep",
        "total",
    }
    lost = w.status["goodput"]["lost"]
    assert lost["restart"] == pytest.approx(w.last["secondsLost"], abs=0.01)


def test_while_it_recovers_the_time_so_far_is_booked(world):
    w = plain(world, nodes=3, elastic={"minReplicas": 3}).start().run(50)
    w.lose_node("digits-1").run(40)
    assert w.phase == "Recovering"
    assert w.status["goodput"]["percent"] == "unknown"
    assert 39 <= w.status["goodput"]["lost"]["restart"] <= 41


def test_what_is_booked_outlives_suspensions_and_operators(world):
    w = plain(world, nodes=3, elastic={"minReplicas": 3}).start().run(20)
    w.lose_node("digits-1").run(40).change(suspend=True).run(30)
    w.nodes |= {"new": {"spec": {}, "status": {}}}
    w.restart_operator()
    w.change(suspend=False).start().run(20)
    lost = w.status["goodput"]["lost"]
    assert 39 <= lost["restart"] <= 42
    assert w.losses[0]["secondsLost"] >= 39
    assert "stepsLost" not in w.losses[0]


def test_newcomers_join_once_it_runs(world):
    w = plain(world, nodes=2).start()
    assert len(w.members) == 2
    w.nodes |= {"new": {"spec": {}, "status": {}}}
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.phase == "Running"
    assert w.restarts == (0, 0, 0)


def test_it_scales_suspends_and_ends_like_any_other(world):
    w = plain(world).start().change(replicas=5)
    w.until(lambda: len(w.members) == 5 and w.training())
    w.change(replicas=2).until(lambda: len(w.members) == 2 and w.training())
    w.change(suspend=True).run(40)
    assert (w.phase, w.pods) == ("Suspended", {})
    w.change(suspend=False).start().run(5)
    assert w.phase == "Running"
    for name in list(w.members):
        w.finish(name)
    w.run(20)
    assert w.phase == "Succeeded"
    assert w.restarts == (0, 0, 0)


def test_of_a_success_that_nobody_saw_train_no_goodput_is_told(world):
    w = plain(world)
    w.trains = False
    w.settle()
    for name in list(w.members):
        w.finish(name)
    w.run(20)
    assert w.phase == "Succeeded"
    assert w.status["goodput"] == {"percent": "unknown", "lost": {"restart": 0.0}}


def test_an_error_before_it_ever_ran_is_not_retried(world):
    w = plain(world)
    w.trains = False
    w.settle()
    w.fail("digits-0").run(5)
    assert w.phase == "Failed"
    assert "before the first step" in w.condition("Failed")["message"]


def fails_again(w, after):
    """It runs for so long, and fails."""
    w.until(lambda: w.training() and w.phase == "Running").run(after, pace=10.0)
    return w.fail("digits-0", f"ValueError: after {after}").run(5)


def test_errors_spend_the_budget_since_nobody_can_tell_that_they_are_the_same(world):
    w = plain(world).start()
    for number in range(3):
        fails_again(w, 30)
        assert w.restarts[0] == number + 1
        assert w.phase != "Failed"
    fails_again(w, 30)
    assert w.phase == "Failed"
    assert "spec.restart.user.max is 3 and spent" in w.condition("Failed")["message"]
    assert "step" not in w.condition("Failed")["message"]


def test_a_step_that_is_reported_now_and_then_does_not_say_that_errors_are_the_same(world):
    w = plain(world)
    w.tells_steps = True
    w.start()
    for _ in range(3):
        fails_again(w, 130)
        assert w.last["step"] == 100
        assert w.phase != "Failed"
    fails_again(w, 130)
    assert "spec.restart.user.max is 3 and spent" in w.condition("Failed")["message"]


@pytest.mark.parametrize("away", [False, True], ids=["watched", "another operator"])
def test_a_round_that_runs_for_long_has_got_on_and_pays_its_debts(world, away):
    w = plain(world, restart={"user": {"max": 3, "window": "24h"}}).start()
    for _ in range(3):
        fails_again(w, 30)
    if away:
        w.until(w.training).restart_operator()
    fails_again(w, STEADY + 20)
    assert w.phase != "Failed"
    for _ in range(2):
        fails_again(w, 30)
        assert w.phase != "Failed"
    fails_again(w, 30)
    assert w.phase == "Failed", "the error after the long run is the first of the new ones"


def test_waiting_for_a_peer_is_no_running(world):
    """A round is paid for by its running time, not by the time that it has been there."""
    w = plain(world, restart={"user": {"max": 1, "window": "24h"}}).start()
    w.run(30).fail("digits-0")
    w.trains = False
    w.run(STEADY + 60, pace=10.0)
    assert w.phase == "Recovering"
    w.trains = True
    fails_again(w, 30)
    assert w.phase == "Failed"


def test_steps_that_become_known_later_are_told_from_then_on(world):
    w = plain(world, nodes=3, elastic={"minReplicas": 3}).start().run(10)
    w.kill("digits-1").until(lambda: w.training() and w.phase == "Running")
    assert "stepsLost" not in w.last
    known = Progress(step=40, round_steps=4)
    for agent in w.group():
        report = agent.report
        agent.report = lambda _, report=report: with_progress(report(w), known)
    w.run(5)
    assert w.step == 40
    assert "unknown" not in w.status["message"]
    assert w.last["resumedFrom"] == 36
    assert "stepsLost" not in w.last, "where it stood before is still not known"
    assert w.status["goodput"]["percent"] == "unknown", "nobody has told what was productive"


def with_progress(report, progress):
    return type(report)(**{**vars(report), "progress": progress})


def test_a_step_from_before_a_loss_is_held_against_the_one_after_it(world):
    w = world(nodes=3, elastic={"minReplicas": 3}).start().run(25)
    at, w.plain = w.step, True
    w.kill("digits-1").until(lambda: w.training() and w.phase == "Running")
    assert w.last["step"] == at
    assert "stepsLost" not in w.last
    w.plain = False
    w.run(5)
    assert w.last["stepsLost"] == at - w.last["resumedFrom"]
    assert w.status["goodput"]["lost"]["rework"] > 0


# Who was in no round has not trained.


def test_pods_that_end_well_without_having_been_in_a_round_are_no_success(world):
    w = world()
    w.warms_for = 1000.0
    w.settle()
    for n in range(3):
        w.leave_without_a_word(f"digits-{n}")
    w.run(5)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "StartFailed"
    message = w.condition("Failed")["message"]
    assert "was in no round" in message
    assert "admission webhook" in message
    assert w.status["round"] == 0
    assert w.restarts == (1, 0, 0)


@pytest.mark.parametrize("restart", [False, True])
def test_one_of_them_is_enough(world, restart):
    w = world()
    w.warms_for = 1000.0
    w.settle()
    if restart:
        w.restart_operator()
    w.leave_without_a_word("digits-1").run(5)
    assert w.phase == "Failed"
    assert w.last["victims"] == ["digits-1"]


def test_a_stranger_in_a_job_that_has_trained_is_replaced(world):
    w = world(nodes=3).start().train(20)
    w.warms_for = 1000.0
    w.kill("digits-2").until(lambda: len(w.members) == 2 and w.training())
    w.warms_for = 0.0
    w.leave_without_a_word("digits-2r1").run(5)
    w.until(lambda: len(w.members) == 3 and w.training())
    assert w.phase == "Running"
    assert w.last["cause"] == "StartFailed"
    assert "was in no round" in w.last["evidence"]


def test_a_success_while_no_operator_watched_is_one(world):
    w = world(total_steps=30).start()
    w.stop_operator()
    w.run(60)
    assert {p.phase for p in w.pods.values()} == {"Succeeded"}
    w.restart_operator()
    w.run(5)
    assert w.phase == "Succeeded"


def test_a_success_whose_words_are_lost_is_one_if_there_has_been_a_round(world):
    w = world(total_steps=30).start()
    w.stop_operator()
    w.run(60)
    for pod in w.pods.values():
        pod.terminated = {**pod.terminated, "message": ""}
    w.restart_operator()
    w.run(5)
    assert w.phase == "Succeeded"
    assert len(w.created) == 3, "nobody has to do it again"


def test_a_shell_that_hides_the_failure_of_the_launcher_does_not_make_it_a_success(world):
    w = world().start().train(5)
    outcome = Outcome(cause="Configuration", code=1, message="no bucket", at=w.now)
    w.exit(w.pod("digits-0"), 0, outcome)
    w.run(5)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "Configuration"


def test_a_first_step_without_running_is_enough(world):
    """A runtime of before tells of steps only."""
    w = world()
    w.timings = Timings(age=1.0)
    assert w.start().phase == "Running"
