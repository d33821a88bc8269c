"""Showing a job that runs: a live screen on a terminal, plain lines elsewhere.

A view is given each snapshot and the lines that the timeline made of it, and decides nothing. The
live screen is drawn when something changed and not by a clock: the cores belong to the training.
Plain output has only changes, one per line with its time, so that it can be kept as a log.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rekindle_cli.jobs.explain import About, Sentence
from rekindle_cli.jobs.snapshot import JobSnapshot, JobView, PodView
from rekindle_cli.jobs.timeline import Kind, TimelineEvent
from rekindle_cli.output.causes import SHORT
from rekindle_cli.output.wording import clock, number, seconds

_COLOURS: dict[Kind, str] = {
    "job": "cyan",
    "pod": "",
    "round": "blue",
    "progress": "dim",
    "checkpoint": "green",
    "incident": "yellow",
    "attention": "bold red",
    "end": "bold",
}
_PHASES = {
    "Running": "green",
    "Succeeded": "bold green",
    "Failed": "bold red",
    "Recovering": "yellow",
    "Suspended": "magenta",
}


class ProgressView(Protocol):
    """Where a followed job is shown; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def note(self, text: str) -> None:
        """Say something that is not about the job itself."""

    def show(self, snapshot: JobSnapshot, lines: Sequence[TimelineEvent]) -> None:
        """Show how things are now, and what led there."""


def open_view(stream: IO[str], *, live: bool) -> ProgressView:
    """The live screen where it was asked for and `stream` is a terminal, else plain lines."""
    console = Console(file=stream, highlight=False)
    if live and console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView(stream)


class PlainView:
    """One line per event."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def note(self, text: str) -> None:
        """Say something that is not about the job itself."""
        self._print(TimelineEvent(at=datetime.now(UTC), kind="job", text=text))

    def show(self, snapshot: JobSnapshot, lines: Sequence[TimelineEvent]) -> None:
        """Print the lines; the snapshot itself says nothing new."""
        for line in lines:
            self._print(line)

    def _print(self, line: TimelineEvent) -> None:
        print(f"{clock(line.at)} {line.text}", file=self._stream, flush=True)


class LiveView:
    """Pods and progress at the bottom of the terminal, the events above them."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._console = console

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Say something that is not about the job itself."""
        self._console.print(_line(TimelineEvent(at=datetime.now(UTC), kind="job", text=text)))

    def show(self, snapshot: JobSnapshot, lines: Sequence[TimelineEvent]) -> None:
        """Print events above the screen and draw it anew."""
        for line in lines:
            if not line.routine:  # the screen shows it
                self._console.print(_line(line))
        if snapshot.job is not None:
            self._live.update(screen(snapshot, snapshot.job), refresh=True)


def _line(line: TimelineEvent) -> Text:
    text = Text(f"{clock(line.at)} ", style="dim")
    return text.append(line.text, style=_COLOURS[line.kind])


def screen(snapshot: JobSnapshot, job: JobView) -> RenderableType:
    """The live part of the screen."""
    parts: list[RenderableType] = [Text(), _head(job, snapshot), _bar(job), _figures(job)]
    if job.message and not job.finished:
        parts.append(Text(job.message, style="dim"))
    attention = job.holds("Degraded")
    if attention is not None:
        parts.append(Text(f"{attention.reason}: {attention.message}", style="bold red"))
    parts.append(_pods(snapshot.pods))
    return Group(*parts)


def _head(job: JobView, snapshot: JobSnapshot) -> Text:
    text = Text(f"{job.namespace}/{job.name}  ", style="bold")
    text.append(job.phase or "Unseen", style=_PHASES.get(job.phase, "cyan"))
    if job.round:
        text.append(f"  round {job.round}")
    if job.ready:
        text.append(f"  ready {job.ready}")
    if job.goodput is not None:
        text.append(f"  goodput {job.goodput:.0%}")
    elif job.goodput_unknown:
        text.append("  goodput unknown")
    if job.started is not None:
        end = job.completed or snapshot.at
        text.append(f"  {seconds(max(0.0, (end - job.started).total_seconds()))}", style="dim")
    return text


def _bar(job: JobView) -> RenderableType:
    share = job.fraction
    if share is None:
        known = "waiting for the first step" if job.step is None else f"step {job.step:,}"
        return Text("steps unknown" if job.steps_unknown else known, style="dim")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=40)
    grid.add_column()
    left = f"step {job.step:,}/{job.total_steps:,}  {share:.0%}"
    if job.eta is not None and not job.finished:
        left += f"  until {clock(job.eta)}"
    grid.add_row(ProgressBar(total=1.0, completed=share, width=40), Text(left))
    return grid


def _figures(job: JobView) -> Text:
    parts = []
    if job.epoch is not None:
        parts.append(f"epoch {job.epoch}")
    if job.loss is not None:
        parts.append(f"loss {number(job.loss)}")
    parts += [f"{name} {number(value)}" for name, value in job.validation]
    if job.samples_per_second:
        parts.append(f"{number(job.samples_per_second)} samples/s")
    if job.checkpoint_step is not None:
        parts.append(f"checkpoint {job.checkpoint_step:,}")
    parts += [f"{amount} {kind}" for kind, amount in job.restarts]
    if job.incidents:
        newest = job.incidents[-1]
        parts.append(f"last incident: {SHORT.get(newest.cause, newest.cause)}")
    return Text("  ".join(parts))


def _pods(pods: Sequence[PodView]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("SLOT", "POD", "NODE", "PHASE", "READY", ""):
        table.add_column(title)
    for pod in pods:
        style = "dim" if pod.exit_code is not None else "yellow" if pod.deleting else ""
        table.add_row(
            "" if pod.index is None else str(pod.index),
            escape(pod.name),
            escape(pod.node),
            "Terminating" if pod.deleting and pod.exit_code is None else pod.phase,
            "yes" if pod.ready else "no",
            Text(_remark(pod), overflow="ellipsis", no_wrap=True),
            style=style,
        )
    return table


def _remark(pod: PodView) -> str:
    if pod.exit_code is not None:
        return f"exit {pod.exit_code}"
    return pod.waiting


def print_rows(rows: Sequence[tuple[str, str]], stream: IO[str]) -> None:
    """The summary: labels aligned, in bold on a terminal."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = max((len(label) for label, _ in rows), default=0)
    console.print()
    for label, text in rows:
        console.print(Text(f"{label:<{width}}  ", style="bold").append(text, style="not bold"))


_MARKS: dict[About, tuple[str, str]] = {
    "state": ("", "bold"),
    "advice": ("  ", "bold red"),
    "incident": ("\n", "yellow"),
    "evidence": ("  evidence: ", ""),
    "collateral": ("  collateral: ", ""),
    "stacks": ("  where it stood: ", ""),
    "cost": ("  cost: ", ""),
    "recovery": ("  recovery: ", ""),
    "action": ("  action: ", ""),
    "total": ("\n", ""),
}


def print_sentences(said: Sequence[Sentence], stream: IO[str]) -> None:
    """An explanation: a paragraph per incident, its details below it."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    before: Sentence | None = None
    for one in said:
        mark, style = _MARKS[one.about]
        if one.about == "total" and before is not None and before.about == "total":
            mark = ""
        number = (
            f"{one.incident + 1}. " if one.about == "incident" and one.incident is not None else ""
        )
        console.print(Text(mark + number).append(one.text, style=style))
        before = one
