"""Why a job is where it is, in plain words: its incidents, what they cost, and what to do now.

Everything said here is in the job's status, so it can be said about any cluster and long after the
pods are gone. An incident has one root cause; pods that failed only because of it are named as
collateral, so that nobody searches their logs for an error that is not theirs. Where the cost of an
incident is not known yet, that is said; no figure is assumed.
"""

from dataclasses import dataclass
from typing import Literal

from rekindle_cli.jobs.snapshot import IncidentView, JobView
from rekindle_cli.output.causes import HAPPENED
from rekindle_cli.output.wording import count, date, listed, seconds, sentence

About = Literal[
    "state",
    "advice",
    "incident",
    "evidence",
    "stacks",
    "collateral",
    "cost",
    "recovery",
    "action",
    "total",
]
"""What a sentence is about; a view gives each its looks."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One statement about a job."""

    about: About
    text: str
    incident: int | None = None
    """Index of the incident that it is about, 0 for the oldest."""


def explain(job: JobView) -> list[Sentence]:
    """All that is to be said about a job: state, advice, each incident, and the sum."""
    said = [Sentence(about="state", text=_state(job))]
    said += [Sentence(about="advice", text=sentence(text)) for text in _advice(job)]
    for index, incident in enumerate(job.incidents):
        said += _incident(index, incident, job)
    said += [Sentence(about="total", text=text) for text in _totals(job)]
    return said


def _state(job: JobView) -> str:
    if not job.seen:
        return f"{job.name}: no operator has looked at this job yet."
    parts = [f"{job.name} is {job.phase or 'Pending'}"]
    if job.step is not None:
        total = f" of {job.total_steps:,}" if job.total_steps else ""
        parts.append(f"at step {job.step:,}{total}")
    elif job.steps_unknown:
        parts.append("steps unknown")
    if not job.finished and job.ready:
        parts.append(f"with {job.ready} pods ready")
    if not job.finished and job.round:
        parts.append(f"in round {job.round}")
    if job.started and job.completed:
        parts.append(f"after {seconds((job.completed - job.started).total_seconds())}")
    return sentence(", ".join(parts))


def _advice(job: JobView) -> list[str]:
    """What blocks the job, and what to do; empty for a job that trains or is done."""
    if not job.seen:
        return [
            f"Look whether the operator runs and watches namespace {job.namespace}: on a cluster "
            f"'kubectl get pods -A -l app.kubernetes.io/name=rekindle', on a laptop 'rekindle up'"
        ]
    if job.phase == "Succeeded":
        return []
    said: list[str] = []
    for kind in ("Failed", "Degraded", "ReplicasUnused"):
        condition = job.holds(kind)
        if condition is not None:
            said.append(f"{condition.reason}: {condition.message}")
    reconciled = job.condition("Reconciled")
    if reconciled is not None and not reconciled.true:
        said.append(
            f"The operator cannot act on it for now: {reconciled.reason}: {reconciled.message}"
        )
    said = list(dict.fromkeys(said))  # the end is a Failed condition and a Degraded one
    if not said and job.phase not in {"Running"}:
        blocked = job.condition("Ready")
        if job.message:
            said.append(job.message)
        elif blocked is not None and not blocked.true and blocked.message:
            said.append(blocked.message)
    if job.suspend and not job.finished and not any("suspend" in text for text in said):
        said.append(
            "It is suspended; set spec.suspend to false to let it go on from its checkpoint"
        )
    if (
        job.generation is not None
        and job.observed_generation is not None
        and job.observed_generation < job.generation
    ):
        said.append("The operator has not yet looked at the newest version of the spec")
    return said


def _incident(index: int, incident: IncidentView, job: JobView) -> list[Sentence]:
    def say(about: About, text: str) -> Sentence:
        return Sentence(about=about, text=sentence(text), incident=index)

    when = date(incident.at) if incident.at else "at an unknown time"
    where = f", round {incident.round}" if incident.round is not None else ""
    if incident.step is not None:
        where += f", step {incident.step:,}"
    said = [say("incident", f"{when}{where}: {happened(incident)}")]
    if incident.evidence:
        said.append(say("evidence", incident.evidence))
    if incident.stacks:
        said.append(Sentence(about="stacks", text=incident.stacks, incident=index))
    if incident.collateral:
        also = listed(incident.collateral)
        said.append(
            say("collateral", f"{also} stopped only because of that; nothing is wrong there")
        )
    said.append(say("cost", _cost(incident, job)))
    if incident.recovery:
        said.append(say("recovery", _recovery(incident)))
    if incident.action:
        said.append(say("action", incident.action))
    return said


_PHASES = {
    "detect": "until the operator knew",
    "decide": "until the pods had the next round",
    "restart": "until its workers had met",
    "restore": "until state was back",
    "firstStep": "until the first step was done",
}


_RUNS = {"firstStep": "until its workers counted as running"}
"""Instead, where steps are unknown."""


def _recovery(incident: IncidentView) -> str:
    """Where the time went, and where the state came from."""
    total = sum(amount for _, amount in incident.recovery)
    phases = _PHASES if incident.resumed_from is not None else _PHASES | _RUNS
    parts = [f"{amount:.3g} s {phases[name]}" for name, amount in incident.recovery]
    text = f"the recovery took {total:.3g} s: {', '.join(parts)}"
    sources: dict[str, list[str]] = {}
    for pod, source in incident.restored:
        sources.setdefault(source, []).append(pod)
    if sources:
        told = [f"{listed(pods)} from {_source(s, len(pods))}" for s, pods in sources.items()]
        text += f"; state came back to {'; '.join(told)}"
    return text


def _source(source: str, pods: int) -> str:
    if source == "memory":
        return "its own memory" if pods == 1 else "their own memory"
    return "nothing, since there was no checkpoint" if source == "scratch" else source


def happened(incident: IncidentView) -> str:
    """Subject and predicate: who, and what the cause did."""
    if incident.cause == "OperatorRestarted":
        return "the operator was away and came back; training goes on without it"
    who = listed(incident.victims) if incident.victims else "the job"
    what = HAPPENED.get(incident.cause)
    return f"{who} {what}" if what else f"{who}: {incident.cause}"


def _cost(incident: IncidentView, job: JobView) -> str:
    if not incident.over and job.finished:
        return "training did not go on after it"
    if incident.steps_lost is None and incident.seconds_lost is None:
        return "not known before training goes on"
    parts = []
    if incident.steps_lost is not None:
        parts.append(f"{count(incident.steps_lost, 'step')} had to be done again")
    if incident.seconds_lost is not None:
        parts.append(f"training stood still for {seconds(incident.seconds_lost)}")
    text = ", ".join(parts)
    if incident.resumed_from is not None:
        text += f"; it went on from step {incident.resumed_from:,}"
    elif incident.over and incident.steps_lost is None:
        text += "; steps unknown"
    return text


def _totals(job: JobView) -> list[str]:
    said = []
    if job.incidents:
        known = [incident for incident in job.incidents if incident.seconds_lost is not None]
        steps = sum(incident.steps_lost or 0 for incident in known)
        lost = sum(incident.seconds_lost or 0.0 for incident in known)
        everything = sum(amount for _, amount in job.restarts)
        text = f"{count(len(job.incidents), 'incident')}"
        if everything > len(job.incidents):
            text += f" shown of {everything} (older ones are no longer in the status)"
        if known:
            unknown = any(incident.steps_lost is None for incident in known)
            done_again = "unknown steps" if unknown else count(steps, "step")
            text += f": {done_again} and {seconds(lost)} lost"
        if len(known) < len(job.incidents):
            text += ", training has not gone on yet after the newest" if not job.finished else ""
        said.append(sentence(text))
    elif job.phase:
        said.append("No incidents.")
    booked = [f"{name} {seconds(amount)}" for name, amount in job.lost_seconds if amount > 0]
    if job.goodput is not None:
        text = f"Goodput {job.goodput:.0%}"
        if booked:
            text += f"; the rest went into {listed(booked)}"
        said.append(sentence(text))
    elif job.goodput_unknown:
        known_lost = f"; {listed(booked)} are known to be lost" if booked else ""
        said.append(sentence(f"Goodput is unknown, like its steps{known_lost}"))
    return said
