"""Budgets count what they name: what is spent is in one place, and nothing else gets into it."""

import pytest

from rekindle.contract import Cause
from rekindle_operator import retries
from rekindle_operator.incidents import Incident


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
