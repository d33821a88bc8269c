"""What happened between two looks at a job, as lines for people.

A watch gives states, people want events. `timeline` compares two snapshots and says what changed,
so the same function serves a live stream, a slow poll and a test with literal documents; looking
less often loses intermediate states and never invents any. It tells one thing once: a change that
is the consequence of another (a ready count after a pod, a step after a round) makes no line.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rekindle.api import Cause
from rekindle_cli.jobs.rounds import RoundView
from rekindle_cli.jobs.snapshot import IncidentView, JobSnapshot, JobView, PodView
from rekindle_cli.output.causes import SHORT, exit_meaning
from rekindle_cli.output.wording import count, listed, number, seconds, sentence

Kind = Literal["job", "pod", "round", "progress", "checkpoint", "incident", "attention", "end"]
"""What a line is about; a view gives each kind its looks."""

_PROGRESS_SHARES = 10


@dataclass(frozen=True, kw_only=True)
class TimelineEvent:
    """One event of a job's life."""

    at: datetime
    kind: Kind
    text: str
    routine: bool = False
    """Whether it says no more than that training goes on: a screen shows that otherwise."""


def timeline(previous: JobSnapshot | None, current: JobSnapshot) -> list[TimelineEvent]:
    """What changed from one snapshot to the next, in the order in which it makes sense."""
    before = None if previous is None else previous.job
    lines = _Lines(current.at)
    if current.job is None:
        if before is not None:
            lines.add("end", f"TrainingJob {before.name} is deleted")
        return lines.found
    if before is None:
        _accepted(lines, current.job)
    _pods(lines, () if previous is None else previous.pods, current)
    _incidents(lines, before, current.job)
    _rounds(lines, previous, current)
    _progress(lines, before, current.job)
    _state(lines, before, current.job)
    return lines.found


class _Lines:
    def __init__(self, at: datetime) -> None:
        self._at = at
        self.found: list[TimelineEvent] = []

    def add(
        self, kind: Kind, text: str, at: datetime | None = None, *, routine: bool = False
    ) -> None:
        self.found.append(TimelineEvent(at=at or self._at, kind=kind, text=text, routine=routine))


def _accepted(lines: _Lines, job: JobView) -> None:
    wanted = count(job.replicas, "pod")
    if job.min_replicas < job.replicas:
        wanted += f" (goes on with {job.min_replicas})"
    lines.add("job", f"TrainingJob {job.name} accepted: {wanted}, {job.checkpoint_root}")


def _pods(lines: _Lines, before: tuple[PodView, ...], current: JobSnapshot) -> None:
    known = {pod.uid: pod for pod in before}
    for pod in current.pods:
        old = known.pop(pod.uid, None)
        text = _pod_change(old, pod)
        if text:
            lines.add("pod", f"{pod.name} {text}")
    gone = {pod.uid: pod for pod in current.gone}
    for pod in known.values():
        if pod.exit_code is None:
            end = gone.get(pod.uid, pod)
            how = _ended(end) + ", gone" if end.exit_code is not None else "gone"
            lines.add("pod", f"{pod.name} {how}")


def _pod_change(old: PodView | None, new: PodView) -> str:
    """The one thing worth saying about a pod, empty if there is nothing."""
    if new.exit_code is not None:
        return _ended(new) if old is None or old.exit_code is None else ""
    if new.deleting and not (old is not None and old.deleting):
        return f"is told to go away (node {new.node})" if new.node else "is deleted"
    if new.waiting and (old is None or old.waiting != new.waiting):
        return f"waits: {sentence(new.waiting)}"
    started = new.phase == "Running" and not (old is not None and old.phase == "Running")
    if started:
        return f"runs on node {new.node}"
    if old is None:
        place = f" on node {new.node}" if new.node else ""
        return f"created{place}" + (
            f", number {new.generation + 1} in index {new.index}" if new.generation else ""
        )
    return ""


def _ended(pod: PodView) -> str:
    meaning = exit_meaning(pod.exit_code or 0)
    if pod.ended_by == "OOMKilled":
        meaning = "out of memory"
    text = f"ended with exit code {pod.exit_code}" + (f" ({meaning})" if meaning else "")
    outcome = pod.outcome
    if outcome is not None and outcome.message and pod.exit_code:
        text += f": {' '.join(outcome.message.split())}"
    return text


def _incidents(lines: _Lines, before: JobView | None, job: JobView) -> None:
    known = {} if before is None else {incident.key: incident for incident in before.incidents}
    for incident in job.incidents:
        old = known.get(incident.key)
        if old is None:
            lines.add("incident", _happened(incident), incident.at)
        if incident.over and not (old is not None and old.over):
            lines.add("incident", _recovered(incident))


def _happened(incident: IncidentView) -> str:
    what = SHORT.get(incident.cause, incident.cause)
    text = f"{listed(incident.victims)}: {what}" if incident.victims else what
    if incident.step is not None:
        text += f" at step {incident.step:,}"
    if incident.evidence:
        text += f" ({incident.evidence.rstrip('.')})"
    return text


def _recovered(incident: IncidentView) -> str:
    if incident.resumed_from is None:
        start = ", steps unknown"
    else:
        first = incident.resumed_from
        start = f" from step {first:,}" if first else " from the beginning"
    text = f"training goes on{start}"
    if incident.steps_lost is not None:
        text += f", {count(incident.steps_lost, 'step')} lost"
    if incident.seconds_lost is not None:
        text += f", {seconds(incident.seconds_lost)} lost"
    return text


def _rounds(lines: _Lines, previous: JobSnapshot | None, current: JobSnapshot) -> None:
    known = {} if previous is None else {found.number: found for found in previous.rounds}
    for found in current.rounds:
        old = known.get(found.number)
        # Said once, when every member has been heard: a round grows as logs come in.
        if found.whole and (old is None or not old.whole):
            lines.add("round", round_text(found), found.at)


def round_text(found: RoundView) -> str:
    """A round in one line."""
    text = f"round {found.number} ({found.reason}): {listed(found.members)}"
    if found.workers != found.pods:
        text += f", {count(found.workers, 'worker')}"
    return text


def _progress(lines: _Lines, before: JobView | None, job: JobView) -> None:
    if job.checkpoint_step is not None and (
        before is None or before.checkpoint_step != job.checkpoint_step
    ):
        why = _why(job)
        text = f"checkpoint of step {job.checkpoint_step:,} committed{why}"
        lines.add("checkpoint", text, routine=not why)
    if job.step is None or not job.total_steps:
        return
    old = before.step if before is not None else None
    if old is None or _share(old, job.total_steps) < _share(job.step, job.total_steps):
        lines.add("progress", _step(job), routine=True)


def _why(job: JobView) -> str:
    """What a checkpoint is for, where that is known."""
    newest = job.incidents[-1] if job.incidents else None
    if newest is None or newest.cause != Cause.PREEMPTED or newest.over:
        return ""
    agreed = (job.checkpoint_step or 0) >= (newest.step or 0)
    return ", at the step that all pods agreed on" if agreed else ""


def _share(step: int, total: int) -> int:
    return step * _PROGRESS_SHARES // total


def _step(job: JobView) -> str:
    text = f"step {job.step:,}/{job.total_steps:,}"
    if job.loss is not None:
        text += f", loss {number(job.loss)}"
    for name, value in job.validation:
        text += f", {name} {number(value)}"
    if job.samples_per_second:
        text += f", {number(job.samples_per_second)} samples/s"
    return text


def _state(lines: _Lines, before: JobView | None, job: JobView) -> None:
    old = before.holds("Degraded") if before is not None else None
    new = job.holds("Degraded")
    if job.finished:
        new = old = None  # the end says the same
    if new is not None and (old is None or old.message != new.message):
        lines.add("attention", f"{new.reason}: {sentence(new.message)}")
    if new is None and old is not None:
        lines.add("attention", f"{old.reason}: over")
    if job.deleting and not (before is not None and before.deleting):
        lines.add("job", f"TrainingJob {job.name} is being deleted")
    if before is not None and before.phase == job.phase:
        return
    if job.finished:
        lines.add("end", f"{job.phase}: {sentence(_last_word(job))}")
    elif job.phase:
        lines.add("job", f"{job.phase}" + (f": {sentence(job.message)}" if job.message else ""))


def _last_word(job: JobView) -> str:
    condition = job.holds("Failed" if job.phase == "Failed" else "Complete")
    return (condition.message if condition else "") or job.message or "nothing more is known"
