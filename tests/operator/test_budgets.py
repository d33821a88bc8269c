"""Budgets count what they name: what is spent is in one place, and nothing else gets into it."""

import pytest

from rekindle.api import Cause, spec
from rekindle_operator.incidents import retries
from rekindle_operator.incidents.incidents import Incident


def spent(w):
    return w.status["accounting"]["spent"]


def test_a_spare_that_is_preempted_costs_nothing_of_the_members_budget(world):
    w = world(elastic={"spares": 1}, restart={"preemption": {"max": 1}}).start()
    w.until(lambda: w.status.get("spares") == 1)
    w.delete("digits-3").until(lambda: w.restarts == (0, 0, 1))
    assert spent(w)["preemption"] == 0
    w.restart_operator().run(2).delete("digits-1")
    w.until(lambda: w.restarts == (0, 0, 2) and w.training())
    assert (w.phase, spent(w)["preemption"]) == ("Running", 1)
    w.delete("digits-2").run(60)
    assert w.phase == "Failed"
    assert "spec.restart.preemption.max is 1" in w.condition("Failed")["message"]


@pytest.mark.parametrize("budget", ["user", "infrastructure", "preemption"])
def test_what_is_spent_is_read_as_it_was_written_whatever_the_counts_say(world, budget):
    w = world().start().train(3)
    {
        "user": lambda: w.fail("digits-0"),
        "infrastructure": lambda: w.kill("digits-0"),
        "preemption": lambda: w.delete("digits-0"),
    }[budget]()
    w.until(lambda: sum(w.restarts) == 1 and len(w.members) == 3 and w.training())
    before = spent(w)
    assert [name for name, paid in before.items() if paid] == [budget]
    w.status["restarts"] = {"user": 7, "infrastructure": 7, "preemption": 7, "total": 21}
    w.restart_operator().run(5)
    assert spent(w) == before


def test_of_two_losses_of_one_moment_only_the_explained_one_is_given_back():
    losses = [
        Incident(at=5.0, round=n, cause=Cause.POD_LOST, evidence="", victims=()) for n in (1, 0)
    ]
    history = retries.History(infrastructure=(1.0, 5.0, 5.0))
    assert retries.uncharge(history, losses[0]).infrastructure == (1.0, 5.0)


@pytest.mark.parametrize(
    ("cause", "paid"),
    [
        (Cause.POD_LOST, {"infrastructure": (1.0, 5.0)}),
        (Cause.USER_ERROR, {"user": ((1.0, 3), (5.0, 4))}),
        (Cause.PREEMPTED, {"preemptions": 2}),
        (Cause.ROLLED_BACK, {}),
    ],
)
def test_what_is_given_back_is_what_was_charged(bodies, cause, paid):
    job = spec.parse(bodies(), 0.0)
    incident = Incident(at=5.0, round=1, cause=cause, evidence="", victims=(), step=4)
    before = {"infrastructure": (1.0,), "user": ((1.0, 3),), "preemptions": 1}
    after = retries.History(**before)
    if paid:
        after = retries.charge(after, incident, job, 5.0)
    assert after == retries.History(**{**before, **paid})
    assert retries.uncharge(after, incident) == retries.History(**before)


def starting(world, **more):
    """A job whose members have begun their first round, and have made no step."""
    w = world(**more)
    w.trains = False
    w.settle()
    return w


@pytest.mark.parametrize(
    ("cause", "payer"),
    [("WorkerKilled", 1), ("Crashed", 0), ("OutOfMemory", 0), ("PeerLost", 1), ("PodLost", 1)],
)
def test_what_the_script_has_not_raised_ends_no_job_before_the_first_step(world, cause, payer):
    w = starting(world)
    w.fail("digits-0", "worker 0 was killed by SIGKILL", cause=cause).run(15)
    assert w.phase == "Recovering"
    assert w.restarts[payer] == sum(w.restarts) == 1
    w.trains = True
    w.until(w.training)


def test_kills_from_outside_leave_the_users_budget_alone(world):
    w = world(restart={"user": {"max": 1}}).start()
    for number in range(5):
        w.train(2).fail(w.members[0], "worker 0 was killed", cause="WorkerKilled").settle()
        assert w.restarts == (0, number + 1, 0), "there is no better word to wait for"
        w.until(w.training)
    assert spent(w)["user"] == []


def test_an_error_of_the_script_beside_a_kill_from_outside_is_collateral(world):
    w = world().start().train(3)
    w.fail("digits-2", "ValueError: the other has gone", at=w.now - 0.5)
    w.fail("digits-0", "worker 0 was killed by SIGKILL", cause="WorkerKilled").settle()
    assert (w.last["cause"], w.last["victims"]) == ("WorkerKilled", ["digits-0"])
    assert w.last["collateral"] == ["digits-2"]


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ('exec: "trian": executable file not found in $PATH', "Failed"),
        ("exec /bin/x: permission denied", "Failed"),
        ("exec /bin/x: exec format error", "Failed"),
        ("failed to create shim task: context deadline exceeded", "Recovering"),
        ("write /run/x: no space left on device", "Recovering"),
        ("", "Recovering"),
    ],
)
def test_a_runtime_that_could_not_start_a_container_may_do_so_elsewhere(world, words, phase):
    w = world().settle()
    w.kill("digits-1", 128, "StartError", words).settle()
    assert w.phase == phase
