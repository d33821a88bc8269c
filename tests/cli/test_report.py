from dataclasses import replace

import pytest

from rekindle_cli.jobs.evidence import Committed, Evidence, Samples
from rekindle_cli.jobs.report import JobReport, Preemption, _samples, as_json, flaws, summary
from rekindle_cli.jobs.rounds import RoundView
from rekindle_cli.jobs.snapshot import JobView

EXACT = Samples(expected=19200, used=19200, repeated=0, missed=0, digest_ok=True)
LAST = Committed(step=300, fence=3, world_size=2, created=0.0, base=140)


@pytest.fixture
def report(job) -> JobReport:
    done = job(
        phase="Succeeded",
        progress={"step": 300, "metrics": {"val/loss": 0.1, "val/accuracy": 0.97}},
    )
    return JobReport(
        job=JobView.read(done),
        seconds=61.23456,
        rounds=(
            RoundView(number=1, reason="first", at=None, members=("a", "b"), pods=2, workers=2),
            RoundView(number=2, reason="without b", at=None, members=("a",), pods=1, workers=1),
        ),
        evidence=Evidence(commits=(LAST,), samples=EXACT),
        preemption=Preemption(at_step=118, pod="digits-1", node="node-1", notice_seconds=20),
    )


def test_a_run_that_lost_nothing_has_no_flaw(report) -> None:
    assert flaws(report) == []


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"phase": "Failed"}, "the job is Failed"),
        ({"phase": ""}, "the job is not seen by any operator"),
        ({"incidents": ()}, "the preemption is not among the incidents"),
    ],
)
def test_a_job_that_did_not_go_as_promised_is_a_flaw(report, change, flaw) -> None:
    assert flaw in flaws(replace(report, job=replace(report.job, **change)))


@pytest.mark.parametrize(("lost", "flaw"), [(3, "3 steps lost"), (None, "not known")])
def test_lost_or_unknown_steps_are_a_flaw(report, lost, flaw) -> None:
    (incident,) = report.job.incidents
    job = replace(report.job, incidents=(replace(incident, steps_lost=lost),))
    (found,) = flaws(replace(report, job=job))
    assert flaw in found


def test_progress_that_fell_back_is_a_flaw_whatever_the_incidents_say(report) -> None:
    assert flaws(replace(report, steps_back=4)) == ["4 steps lost"]


def test_training_resumed_from_where_the_newest_incident_says(report) -> None:
    (incident,) = report.job.incidents
    later = replace(incident, resumed_from=222)
    still_open = replace(incident, resumed_from=None)
    job = replace(report.job, incidents=(incident, later, still_open))
    assert replace(report, job=job).resumed_from == 222


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"repeated": 2}, "2 samples repeated"),
        ({"missed": 1}, "1 sample missed"),
        ({"digest_ok": False}, "the samples used are not those of the data order"),
        ({"used": 19199}, "the samples used are not those of the data order"),
    ],
)
def test_samples_that_are_not_exact_are_a_flaw(report, change, flaw) -> None:
    evidence = replace(report.evidence, samples=replace(EXACT, **change))
    assert flaws(replace(report, evidence=evidence)) == [flaw]


def test_samples_without_proof_are_a_flaw(report) -> None:
    evidence = Evidence(commits=(LAST,), problem="no answer")
    assert flaws(replace(report, evidence=evidence)) == ["the samples cannot be proven: no answer"]


def test_a_run_without_a_preemption_is_a_flaw(report) -> None:
    assert flaws(replace(report, preemption=None)) == [
        "the job ended before a pod could be preempted"
    ]


def test_a_newest_checkpoint_before_the_end_is_a_flaw(report) -> None:
    evidence = replace(report.evidence, commits=(replace(LAST, step=280),))
    assert "the newest checkpoint is of step 280, not of 300" in flaws(
        replace(report, evidence=evidence)
    )


def test_machines_get_the_promised_fields(report) -> None:
    found = as_json(report)
    promised = {
        "steps": 300,
        "steps_lost": 0,
        "samples_repeated": 0,
        "samples_missed": 0,
        "final_metric": 0.97,
        "resumed_from": 120,
    }
    assert {name: found[name] for name in promised} == promised
    assert found["final_metric_name"] == "val/accuracy"
    assert [entry["members"] for entry in found["rounds"]] == [["a", "b"], ["a"]]
    assert found["incidents"][0]["cause"] == "Preempted"
    assert found["world_sizes"] == [2, 1]


def test_what_is_not_known_is_null_and_not_zero(report) -> None:
    found = as_json(replace(report, evidence=Evidence(problem="no answer")))
    assert (found["samples_repeated"], found["samples_missed"]) == (None, None)
    assert found["evidence_problem"] == "no answer"


def test_people_get_a_row_for_each_promise(report) -> None:
    rows = dict(summary(report))
    assert rows["Job"] == "default/digits: Succeeded"
    assert rows["Round 2"] == "(without b): a"
    assert rows["Steps lost"] == "0"
    assert rows["Samples"] == "19,200 used, 0 repeated, 0 missed (proven by the ledger)"
    assert rows["Final metric"] == "val/accuracy 0.97"
    assert rows["Total time"] == "1m 01s"


def test_people_are_told_when_nothing_is_proven(report) -> None:
    rows = dict(summary(replace(report, evidence=Evidence(problem="no answer"))))
    assert rows["Samples"] == "9,600 used, as the program counted; not proven: no answer"
    assert _samples(Evidence(problem="no answer"), None) == "not proven: no answer"
