import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.snapshot import JobSnapshot, JobView
from rekindle_cli.jobs.timeline import TimelineEvent
from rekindle_cli.jobs.view import (
    LiveView,
    PlainView,
    open_view,
    print_rows,
    print_sentences,
    screen,
)

NOON = datetime(2026, 11, 20, 12, 0, 40, tzinfo=UTC)


def drawn(snapshot: JobSnapshot) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(screen(snapshot, snapshot.job))
    return console.export_text()


def line(text: str, *, routine: bool = False) -> TimelineEvent:
    return TimelineEvent(at=NOON, kind="pod", text=text, routine=routine)


def test_a_stream_that_is_no_terminal_gets_plain_lines(job) -> None:
    stream = io.StringIO()
    view = open_view(stream, live=True)
    assert isinstance(view, PlainView)
    with view:
        view.show(JobSnapshot.read(at=NOON, job=job()), [line("digits-0 gone"), line("x [y]")])
    assert stream.getvalue() == "12:00:40 digits-0 gone\n12:00:40 x [y]\n"


def test_a_dumb_terminal_gets_plain_lines_too(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(Terminal(), live=True), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_view(Terminal(), live=True), LiveView)
    assert isinstance(open_view(Terminal(), live=False), PlainView)


def test_the_screen_shows_progress_and_pods(job, pod) -> None:
    pods = [pod("digits-0"), pod("digits-1", node="node-2", deleting=True)]
    text = drawn(JobSnapshot.read(at=NOON, job=job(), pods=pods))
    for part in ("default/digits", "Running", "round 3", "ready 2/2", "goodput 80%", "150/300"):
        assert part in text
    rows = [row.split() for row in text.splitlines() if "digits-" in row]
    assert rows == [
        ["0", "digits-0", "node-0", "Running", "yes"],
        ["1", "digits-1", "node-2", "Terminating", "yes"],
    ]


def test_the_screen_of_a_job_that_nobody_has_seen_can_be_drawn(job) -> None:
    text = drawn(JobSnapshot.read(at=NOON, job=job(unseen=True)))
    assert "Unseen" in text
    assert "waiting for the first step" in text


def test_names_with_brackets_are_no_markup(job, pod) -> None:
    text = drawn(JobSnapshot.read(at=NOON, job=job(message="[red]x[/]", phase="Starting"), pods=[]))
    assert "[red]x[/]" in text


def test_what_is_routine_is_left_to_the_screen(job) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveView(console) as view:
        view.show(
            JobSnapshot.read(at=NOON, job=job()),
            [line("checkpoint of step 50", routine=True), line("digits-0 gone")],
        )
    text = console.file.getvalue()
    assert "digits-0 gone" in text
    assert "checkpoint of step 50" not in text


def test_rows_are_aligned_and_long_ones_are_not_wrapped() -> None:
    stream = io.StringIO()
    print_rows([("Job", "x" * 200), ("Steps lost", "0")], stream)
    assert stream.getvalue() == f"\nJob         {'x' * 200}\nSteps lost  0\n"


def test_an_explanation_has_a_paragraph_per_incident(job) -> None:
    stream = io.StringIO()
    print_sentences(explain(JobView.read(job())), stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("digits is Running")
    assert lines[1] == ""
    assert lines[2].startswith("1. 2026-11-20 12:00:18Z")
    assert lines[3].startswith("  evidence: digits-1: node node-1")
    assert lines[-1].startswith("Goodput 80%")


@pytest.mark.parametrize("total", [None, 0])
def test_an_unknown_total_draws_no_bar(job, total) -> None:
    snapshot = JobSnapshot.read(at=NOON, job=job(progress={"totalSteps": total}))
    assert "step 150" in drawn(snapshot)
