"""Where the time of a recovery went, and where the state came from."""

from dataclasses import replace

import pytest

from rekindle.api import (
    RECOVERY_PHASES,
    AgentPhase,
    AgentReport,
    Member,
    RestoredFrom,
    Round,
    Timings,
)
from rekindle_operator.incidents.recovery import measured
from rekindle_operator.observed.observations import AgentState, Observed

MEMBERS = tuple(
    Member(pod=f"digits-{n}", uid=f"u{n}", address="10.0.0.1", store_port=1, nproc=1)
    for n in range(2)
)
ROUND = Round(number=2, members=MEMBERS, reason="without digits-2", formed_at=0.0)
TIMINGS = Timings(
    age=1.0, broken=0.06, stopped=0.01, started=0.05, grouped=0.1, restored=0.13, stepped=0.15
)


def agent(number: int, timings: Timings | None = TIMINGS, **more) -> AgentState:
    member = MEMBERS[number]
    report = AgentReport(
        pod=member.pod,
        uid=member.uid,
        address="10.0.0.1",
        store_port=1,
        nproc=1,
        phase=AgentPhase.RUNNING,
        round=ROUND,
        restored=RestoredFrom(step=7, source="memory" if not number else "memory of digits-0"),
        timings=timings,
        **more,
    )
    # The round was seen by both at 100.0 of the operator's clock.
    return AgentState(report=report, seen_at=101.0, phase_since=100.0)


def seen(*agents: AgentState) -> Observed:
    return Observed(agents={a.report.uid: a for a in agents}, round=ROUND)


def test_the_parts_follow_each_other_and_add_up_to_the_whole():
    slower = replace(TIMINGS, stepped=0.25, broken=0.08)
    found = measured(seen(agent(0), agent(1, slower)), noticed_at=99.97)
    assert found is not None
    assert tuple(found.seconds) == RECOVERY_PHASES
    assert found.seconds == pytest.approx(
        {"detect": 0.05, "decide": 0.03, "restart": 0.1, "restore": 0.03, "firstStep": 0.12},
        abs=1e-4,
    )
    # From the first worker that fell (99.92) to the last first step (100.25).
    assert sum(found.seconds.values()) == pytest.approx(0.33, abs=1e-3)
    assert found.restored == (("digits-0", "memory"), ("digits-1", "memory of digits-0"))


def test_a_loss_that_no_worker_felt_begins_when_the_operator_saw_it():
    found = measured(seen(*(agent(n, replace(TIMINGS, broken=None)) for n in range(2))), 99.5)
    assert found is not None
    assert found.seconds["detect"] == 0.0
    assert found.seconds["decide"] == pytest.approx(0.5)


def test_what_was_not_measured_has_no_time_of_its_own():
    script = Timings(age=1.0, started=0.05, stepped=0.4)
    found = measured(seen(agent(0, script), agent(1, script)), 99.9)
    assert found is not None
    assert found.seconds["restore"] == 0.0
    assert sum(found.seconds.values()) == pytest.approx(0.5)


@pytest.mark.parametrize("last", [None, replace(TIMINGS, stepped=None)])
def test_nothing_is_said_before_all_have_stepped(last):
    assert measured(seen(agent(0), agent(1, last)), 99.9) is None
    assert measured(seen(agent(0)), 99.9) is None


def test_an_incident_tells_where_the_time_went_and_the_next_operator_knows(world):
    w = world().start().train(12)
    w.timings = replace(TIMINGS, age=0.0)
    w.kill("digits-1").settle()
    assert "recovery" not in w.last, "no member has made a step yet"
    w.until(lambda: "recovery" in w.last)
    assert set(w.last["recovery"]) == {*RECOVERY_PHASES, "total"}
    parts = [w.last["recovery"][phase] for phase in RECOVERY_PHASES]
    assert w.last["recovery"]["total"] == pytest.approx(sum(parts), rel=0.05)
    assert {e["pod"] for e in w.last["restored"]} == {"digits-0", "digits-2"}
    before = w.last
    w.restart_operator().run(2)
    assert w.last == before


def test_a_recovery_into_the_last_step_is_in_the_metrics_too(world):
    w = world().start().train(12)
    w.total_steps = w.committed.step + 1
    w.kill("digits-1").run(20)
    assert w.phase == "Succeeded"
    assert [incident.victims for incident in w.resolved] == [("digits-1",)]
