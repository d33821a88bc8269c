from datetime import UTC, datetime

from rekindle_cli.jobs.listing import job_json, table
from rekindle_cli.jobs.snapshot import JobView

NOW = datetime(2026, 11, 20, 12, 1, tzinfo=UTC)


def test_a_job_is_a_row_with_its_progress(job) -> None:
    header, row = table([JobView.read(job())], NOW, namespaces=False)
    assert header.split()[:4] == ["NAME", "PHASE", "READY", "ROUND"]
    assert row.split() == [
        "digits", "Running", "2/2", "3", "150/300", "50%", "0.25", "120", "1", "80%", "60s",
    ]  # fmt: skip


def test_what_is_not_known_is_a_dash(job) -> None:
    _, row = table([JobView.read(job(unseen=True))], NOW, namespaces=False)
    assert row.split() == ["digits", *"--------"[:7], "0", "-", "60s"]


def test_columns_are_aligned_and_namespaces_come_first(job) -> None:
    lines = table([JobView.read(job()), JobView.read(job(unseen=True))], NOW, namespaces=True)
    assert {line.index("digits") for line in lines[1:]} == {lines[0].index("NAME", 9)}


def test_machines_get_conditions_and_incidents_too(job) -> None:
    found = job_json(JobView.read(job()))
    assert found["conditions"][0]["type"] == "Ready"
    assert found["incidents"][0]["resumed_from"] == 120
    assert found["checkpoint"]["step"] == 120
