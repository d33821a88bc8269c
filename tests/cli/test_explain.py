import pytest

from rekindle.api import Cause
from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.snapshot import JobView
from rekindle_cli.output.causes import HAPPENED, SHORT, exit_meaning


def said(document, about=None) -> list[str]:
    return [one.text for one in explain(JobView.read(document)) if about in {None, one.about}]


def test_a_running_job_is_described_without_advice(job) -> None:
    assert said(job(), "state") == [
        "digits is Running, at step 150 of 300, with 2/2 pods ready, in round 3."
    ]
    assert said(job(), "advice") == []


@pytest.mark.parametrize("phase", ["", "Pending", "Running"])
def test_an_operator_that_cannot_act_is_not_one_that_does_not_run(job, phase) -> None:
    document = job(phase=phase)
    told = {"type": "Reconciled", "status": "False", "reason": "ApiServerRefuses", "message": "no"}
    document["status"]["conditions"] = [told]
    text = " ".join(said(document))
    assert "The operator cannot act on it for now: ApiServerRefuses: no." in text
    assert "Look whether the operator runs" not in text
    assert "no operator has looked" not in text


def test_an_incident_is_told_from_cause_to_cost(job) -> None:
    incident = [one.text for one in explain(JobView.read(job())) if one.incident == 0]
    assert incident == [
        "2026-11-20 12:00:18Z, round 1, step 120: digits-1 was told to go away: its machine was "
        "reclaimed or drained, or it was evicted or deleted.",
        "digits-1: node node-1: taint aws-node-termination-handler/spot-itn.",
        "0 steps had to be done again, training stood still for 4.0 s; it went on from step 120.",
        "go on from the newest state.",
    ]


def test_a_recovery_says_where_its_time_went_and_where_the_state_came_from(job) -> None:
    entry = {
        "cause": "PodLost",
        "victims": ["digits-1"],
        "recovery": {"decide": 0.03, "detect": 0.05, "restart": 0.1, "restore": 0.02, "total": 0.2},
        "restored": [
            {"pod": "digits-0", "source": "memory"},
            {"pod": "digits-2", "source": "memory"},
            {"pod": "digits-1r1", "source": "memory of digits-0"},
        ],
    }
    assert said(job(incidents=[entry]), "recovery") == [
        "the recovery took 0.2 s: 0.05 s until the operator knew, 0.03 s until the pods had the "
        "next round, 0.1 s until its workers had met, 0.02 s until state was back; state came back "
        "to digits-0 and digits-2 from their own memory; digits-1r1 from memory of digits-0."
    ]


def test_a_hang_shows_where_the_pod_to_blame_stood(job) -> None:
    stacks = "rank 1 stands:\n  net.py:17 forward"
    entry = {"cause": "Hung", "victims": ["digits-1"], "evidence": "e", "stacks": stacks}
    assert said(job(incidents=[entry]), "stacks") == [stacks]


def test_collateral_is_told_apart_from_the_victim(job) -> None:
    entry = {"cause": "PodLost", "victims": ["digits-1"], "collateral": ["digits-0", "digits-2"]}
    assert said(job(incidents=[entry]), "collateral") == [
        "digits-0 and digits-2 stopped only because of that; nothing is wrong there."
    ]


def test_a_cost_that_is_not_known_is_not_made_up(job) -> None:
    entry = {"cause": "PodLost", "victims": ["digits-1"]}
    assert said(job(incidents=[entry]), "cost") == ["not known before training goes on."]
    ended = {**entry, "stepsLost": 0, "secondsLost": 0.0}
    assert said(job(incidents=[ended], phase="Failed"), "cost") == [
        "training did not go on after it."
    ]


def test_the_sum_counts_incidents_steps_and_seconds(job) -> None:
    entry = {"cause": "PodLost", "victims": ["a"], "stepsLost": 7, "secondsLost": 2.5}
    assert said(job(incidents=[entry, entry]), "total") == [
        "2 incidents: 14 steps and 5.0 s lost.",
        "Goodput 80%; the rest went into pending 6.0 s, restart 4.0 s and stall 0.5 s.",
    ]


def test_the_sum_does_not_count_what_is_not_known_yet_as_nothing(job) -> None:
    entry = {"cause": "PodLost", "victims": ["a"]}
    closed = {**entry, "stepsLost": 7, "secondsLost": 2.5}
    assert said(job(incidents=[closed, entry]), "total")[0] == (
        "2 incidents: 7 steps and 2.5 s lost, training has not gone on yet after the newest."
    )
    assert said(job(incidents=[entry]), "total")[0] == (
        "1 incident, training has not gone on yet after the newest."
    )


def test_incidents_that_fell_out_of_the_status_are_mentioned(job) -> None:
    document = job(restarts={"preemption": 31})
    assert said(document, "total")[0].startswith("1 incident shown of 31 (older ones")


def test_a_job_without_incidents_says_so(job) -> None:
    assert "No incidents." in said(job(incidents=[]))


def test_a_job_that_no_operator_has_seen_says_where_to_look(job) -> None:
    found = said(job(unseen=True))
    assert found[0] == "digits: no operator has looked at this job yet."
    assert "rekindle up" in found[1]


def test_what_blocks_a_job_comes_with_its_condition(job) -> None:
    trouble = {
        "type": "Degraded",
        "status": "True",
        "reason": "ErrImagePull",
        "message": "pod digits-0 cannot start: no such image; correct the image",
    }
    assert said(job(phase="Pending", conditions=[trouble]), "advice") == [
        "ErrImagePull: pod digits-0 cannot start: no such image; correct the image."
    ]


def test_a_job_that_waits_says_for_what(job) -> None:
    document = job(phase="Starting", message="waiting for digits-1 to join", conditions=[])
    assert said(document, "advice") == ["waiting for digits-1 to join."]


def test_a_failed_job_says_why_once_for_each_condition(job) -> None:
    failed = {"status": "True", "reason": "UserError", "message": "rank 0: ValueError"}
    both = [{"type": "Failed", **failed}, {"type": "Degraded", **failed}]
    assert said(job(phase="Failed", conditions=both), "advice") == [
        "UserError: rank 0: ValueError."
    ]


def test_a_suspended_job_says_how_it_goes_on(job) -> None:
    document = job(phase="Suspended", message="", conditions=[], spec={"suspend": True})
    assert "spec.suspend" in said(document, "advice")[0]


def test_a_spec_that_the_operator_has_not_seen_yet_is_mentioned(job) -> None:
    document = job(observedGeneration=0)
    assert said(document, "advice") == [
        "The operator has not yet looked at the newest version of the spec."
    ]


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_of_the_contract_has_words(cause, job) -> None:
    entry = {"cause": cause.value, "victims": ["digits-1"]}
    (text,) = said(job(incidents=[entry]), "incident")
    assert cause in SHORT
    assert cause in HAPPENED or cause is Cause.OPERATOR
    assert f"digits-1: {cause.value}" not in text


def test_a_cause_of_a_newer_operator_is_passed_through(job) -> None:
    entry = {"cause": "Meteorite", "victims": ["digits-1"]}
    assert said(job(incidents=[entry]), "incident") == ["at an unknown time: digits-1: Meteorite."]


def test_an_exit_code_without_a_meaning_has_no_words() -> None:
    assert exit_meaning(3) == ""
    assert exit_meaning(143) == "ended by SIGTERM"
