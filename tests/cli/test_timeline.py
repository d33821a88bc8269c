import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rekindle_cli.jobs.rounds import RoundView
from rekindle_cli.jobs.snapshot import JobSnapshot
from rekindle_cli.jobs.timeline import timeline

NOW = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)


def seen(job, *pods, rounds=()) -> JobSnapshot:
    return JobSnapshot.read(at=NOW, job=job, pods=pods, rounds=rounds)


def texts(before, after, kind=None) -> list[str]:
    return [line.text for line in timeline(before, after) if kind in {None, line.kind}]


def test_nothing_is_said_when_nothing_changed(job, pod) -> None:
    snapshot = seen(job(), pod())
    assert timeline(snapshot, snapshot) == []


def test_a_new_job_is_introduced_with_its_pods_and_place(job) -> None:
    assert texts(None, seen(job(unseen=True))) == [
        "TrainingJob digits accepted: 2 pods (goes on with 1), s3://rekindle/digits"
    ]


def test_a_deleted_job_is_the_end(job) -> None:
    assert texts(seen(job()), seen(None)) == ["TrainingJob digits is deleted"]


def test_a_pod_is_followed_from_creation_to_its_end(job, pod) -> None:
    done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    stages = [
        seen(job()),
        seen(job(), pod(phase="Pending", node="", ready=False)),
        seen(job(), pod(phase="Pending", ready=False)),
        seen(job(), pod()),
        seen(job(), pod(phase="Succeeded", state=done, ready=False)),
        seen(job()),
    ]
    said = [texts(a, b, "pod") for a, b in zip(stages, stages[1:], strict=False)]
    assert said == [
        ["digits-0 created"],
        [],
        ["digits-0 runs on node node-0"],
        ["digits-0 ended with exit code 0 (done)"],
        [],
    ]


def test_a_pod_that_vanishes_without_an_exit_code_is_gone(job, pod) -> None:
    assert texts(seen(job(), pod()), seen(job()), "pod") == ["digits-0 gone"]


def test_a_replacement_is_told_apart_from_its_predecessor(job, pod) -> None:
    fresh = pod("digits-1", generation=1, phase="Pending", ready=False, node="")
    assert texts(seen(job()), seen(job(), fresh), "pod") == [
        "digits-1 created, number 2 in index 1"
    ]


def test_a_pod_that_is_told_to_go_is_mentioned_once(job, pod) -> None:
    going = seen(job(), pod(deleting=True))
    assert texts(seen(job(), pod()), going, "pod") == ["digits-0 is told to go away (node node-0)"]
    assert texts(going, going, "pod") == []


def test_a_pod_that_failed_is_quoted(job, pod) -> None:
    message = json.dumps({"cause": "UserError", "code": 1, "message": "ValueError:\n no"})
    state = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    after = seen(job(), pod(phase="Failed", state=state))
    assert texts(seen(job(), pod()), after, "pod") == [
        "digits-0 ended with exit code 1 (error in the program): ValueError: no"
    ]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (75, "Error", " (saved)"),
        (76, "Error", " (had to go before it could save)"),
        (137, "Error", " (ended by SIGKILL)"),
        (137, "OOMKilled", " (out of memory)"),
        (42, "Error", ""),
    ],
)
def test_an_exit_code_is_said_with_its_meaning(job, pod, code, reason, words) -> None:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    after = seen(job(), pod(phase="Failed", state=state))
    assert texts(None, after, "pod") == [f"digits-0 ended with exit code {code}{words}"]


def test_why_a_pod_waits_is_said_again_only_when_it_changes(job, pod) -> None:
    def waiting(reason: str) -> JobSnapshot:
        return seen(job(), pod(phase="Pending", state={"waiting": {"reason": reason}}))

    assert texts(seen(job()), waiting("ErrImagePull"), "pod") == ["digits-0 waits: ErrImagePull."]
    assert texts(waiting("ErrImagePull"), waiting("ErrImagePull"), "pod") == []
    assert len(texts(waiting("ErrImagePull"), waiting("ImagePullBackOff"), "pod")) == 1


ROUND = RoundView(number=1, reason="first round", at=None, members=("digits-0",), pods=2, workers=2)


def test_a_round_is_said_once_all_its_members_are_known(job) -> None:
    whole = replace(ROUND, members=("digits-0", "digits-1"))
    partly, fully = seen(job(), rounds=(ROUND,)), seen(job(), rounds=(whole,))
    assert texts(seen(job()), partly) == []
    assert texts(partly, fully) == ["round 1 (first round): digits-0 and digits-1"]
    assert texts(fully, fully) == []


def test_workers_are_counted_where_they_are_not_one_per_pod(job) -> None:
    both = RoundView(number=2, reason="x", at=None, members=("a", "b"), pods=2, workers=8)
    assert texts(seen(job()), seen(job(), rounds=(both,))) == ["round 2 (x): a and b, 8 workers"]


def test_an_incident_is_said_when_it_happens_and_again_when_training_goes_on(job) -> None:
    entry = job()["status"]["incidents"][0]
    fields = ("at", "round", "cause", "evidence", "victims", "step")
    fresh = {key: entry[key] for key in fields}
    happened = timeline(seen(job(incidents=[])), seen(job(incidents=[fresh])))
    assert [line.text for line in happened] == [
        "digits-1: preempted at step 120 "
        "(digits-1: node node-1: taint aws-node-termination-handler/spot-itn)"
    ]
    assert happened[0].at.second == 18, "the time of the incident, not of the look"
    assert texts(seen(job(incidents=[fresh])), seen(job())) == [
        "training goes on from step 120, 0 steps lost, 4.0 s lost"
    ]


def test_a_new_checkpoint_is_a_line(job) -> None:
    after = seen(job(checkpoint={"step": 140}))
    assert texts(seen(job()), after) == ["checkpoint of step 140 committed"]


def test_progress_is_a_line_at_every_tenth_of_the_steps(job) -> None:
    def at(step: int) -> JobSnapshot:
        return seen(job(progress={"step": step}))

    assert texts(at(150), at(179)) == []
    assert texts(at(179), at(181)) == ["step 181/300, loss 0.25"]
    assert len(texts(at(150), at(299))) == 1, "a slow poll does not make up lines"


def test_steps_that_were_lost_do_not_make_progress(job) -> None:
    before, after = seen(job(progress={"step": 181})), seen(job(progress={"step": 150}))
    assert texts(before, after) == []


def test_what_needs_attention_is_said_with_its_reason(job) -> None:
    trouble = {
        "type": "Degraded",
        "status": "True",
        "reason": "Unschedulable",
        "message": "no node can take pod digits-1",
    }
    before, after = seen(job()), seen(job(conditions=[trouble]))
    assert texts(before, after) == ["Unschedulable: no node can take pod digits-1."]
    assert texts(after, before) == ["Unschedulable: over"]


def test_a_phase_is_said_with_the_operators_message(job) -> None:
    after = seen(job(phase="Recovering", message="recovering from Preempted"))
    assert texts(seen(job()), after) == ["Recovering: recovering from Preempted."]


def test_the_end_of_a_failed_job_quotes_the_condition(job) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "UserError", "message": "ValueError"}
    after = seen(job(phase="Failed", conditions=[failed]))
    assert texts(seen(job()), after) == ["Failed: ValueError."]


def test_the_end_is_not_said_twice(job) -> None:
    failed = {"status": "True", "reason": "UserError", "message": "ValueError"}
    both = [{"type": kind, **failed} for kind in ("Failed", "Degraded")]
    after = seen(job(phase="Failed", conditions=both))
    assert texts(seen(job()), after) == ["Failed: ValueError."]


def test_the_end_of_a_deleted_pod_is_still_told(job, pod) -> None:
    state = {"terminated": {"exitCode": 75, "reason": "Error"}}
    last = JobSnapshot.read(
        at=NOW, job=job(), gone=[pod(phase="Failed", state=state, deleting=True)]
    )
    assert texts(seen(job(), pod()), last, "pod") == [
        "digits-0 ended with exit code 75 (saved), gone"
    ]


def test_the_save_before_a_preemption_is_named_as_such(job) -> None:
    entry = {"cause": "Preempted", "victims": ["digits-1"], "step": 138}
    before = seen(job(incidents=[entry]))
    (line,) = timeline(before, seen(job(incidents=[entry], checkpoint={"step": 140})))
    assert line.text == "checkpoint of step 140 committed, at the step that all pods agreed on"
    assert not line.routine
    (earlier,) = timeline(before, seen(job(incidents=[entry], checkpoint={"step": 137})))
    assert earlier.routine, "a save that was under way when the notice came is not the agreed one"
