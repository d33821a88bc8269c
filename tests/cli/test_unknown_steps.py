"""A program that counts no steps: every view says so, and none makes up a number."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.listing import job_json, row
from rekindle_cli.jobs.report import JobReport, as_json, summary
from rekindle_cli.jobs.snapshot import JobSnapshot, JobView
from rekindle_cli.jobs.timeline import timeline
from rekindle_cli.jobs.view import screen

NOON = datetime(2026, 11, 20, 12, 0, 40, tzinfo=UTC)
LOST = {
    "at": "2026-11-20T12:00:18.500Z",
    "round": 1,
    "cause": "PodLost",
    "evidence": "digits-1 was killed, exit code 137",
    "victims": ["digits-1"],
    "action": "go on from the newest state (1 of 50)",
}
OVER = {
    **LOST,
    "secondsLost": 12.0,
    "recoveredInRound": 2,
    "recovery": {"detect": 0.1, "decide": 0.2, "restart": 5.0, "restore": 0.0, "firstStep": 6.7},
}


@pytest.fixture
def plain(job) -> Any:
    def make(*incidents: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return job(
            **{
                "progress": None,
                "checkpoint": None,
                "message": "training on 2 pods, 2 workers; steps unknown",
                "goodput": {
                    "ratio": None,
                    "productiveSeconds": None,
                    "percent": "unknown",
                    "lost": {"pending": 6.0, "restart": 12.0, "rework": None, "stall": None},
                },
                "incidents": list(incidents),
                **changes,
            }
        )

    return make


def drawn(document: dict[str, Any]) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    snapshot = JobSnapshot.read(at=NOON, job=document)
    console.print(screen(snapshot, snapshot.job))
    return console.export_text()


def everything(document: dict[str, Any]) -> dict[str, str]:
    """What each view makes of a job."""
    job = JobView.read(document)
    report = JobReport(job=job, seconds=60.0)
    before = JobSnapshot.read(at=NOON, job={**document, "status": {}})
    return {
        "why": "\n".join(one.text for one in explain(job)),
        "get": "  ".join(row(job, NOON)),
        "summary": "\n".join(": ".join(pair) for pair in summary(report)),
        "screen": drawn(document),
        "timeline": "\n".join(
            line.text for line in timeline(before, JobSnapshot.read(at=NOON, job=document))
        ),
    }


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
@pytest.mark.parametrize("incidents", [(), (LOST,), (OVER,)], ids=["none", "open", "over"])
def test_every_view_says_unknown_and_no_number(plain, phase, incidents) -> None:
    found = everything(plain(*incidents, phase=phase))
    for name, text in found.items():
        assert "None" not in text, name
        assert "0 steps" not in text, name
        assert "step 0" not in text, name
        assert "first step" not in text, name
        if name != "timeline":
            assert "unknown" in text, name


def test_why_tells_the_cost_in_time(plain) -> None:
    said = everything(plain(OVER))["why"]
    assert "digits is Running, steps unknown, with 2/2 pods ready, in round 3." in said
    assert "training stood still for 12 s; steps unknown." in said
    assert "6.7 s until its workers counted as running" in said
    assert "1 incident: unknown steps and 12 s lost." in said
    assert "Goodput is unknown, like its steps; pending 6.0 s and restart 12 s are known" in said


def test_that_training_goes_on_is_told_once(plain) -> None:
    looks = [JobSnapshot.read(at=NOON, job=plain(i)) for i in (LOST, OVER, OVER)]
    told = [line.text for line in timeline(looks[0], looks[1])]
    assert told == ["training goes on, steps unknown, 12 s lost"]
    assert timeline(looks[1], looks[2]) == []


def test_what_happened_before_the_end_did_go_on(plain) -> None:
    said = everything(plain(OVER, phase="Succeeded"))
    assert "training did not go on" not in said["why"]
    assert "12 s until training went on" in said["summary"]


def test_machines_get_null(plain) -> None:
    job = JobView.read(plain(OVER))
    assert job_json(job)["step"] is None
    assert job_json(job)["goodput"] is None
    found = as_json(JobReport(job=job, seconds=60.0))
    assert found["steps"] is None
    assert found["steps_lost"] is None
    assert found["incidents"][0]["recovered_in_round"] == 2


def test_a_step_without_a_total_is_shown(plain) -> None:
    document = plain(progress={"step": 1234, "totalSteps": None})
    assert "step 1,234" in drawn(document)
    assert "goodput unknown" in drawn(document)
