"""What people are told of a job: its conditions, the one sentence beside them, and its events.

The conditions Ready, Progressing, Degraded, Suspended, Complete and Failed are always all there, so
that ``kubectl wait`` can wait for any of them; ReplicasUnused is there while a job goes on. What
hinders a job names the pod and what its owner can do.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rekindle.api import Cause
from rekindle.api.spec import TrainingJob
from rekindle.api.timestamps import clock
from rekindle_operator.failures import pod_waits
from rekindle_operator.failures.pod_waits import PodWait
from rekindle_operator.incidents import retries
from rekindle_operator.incidents.incidents import Incident
from rekindle_operator.observed import run_claims
from rekindle_operator.observed.observations import Observed
from rekindle_operator.plan import Event
from rekindle_operator.rounds import rounds, sizing
from rekindle_operator.rounds.stragglers import Slow
from rekindle_operator.status import status
from rekindle_operator.status.status import JobRecord, condition

UNUSED = "ReplicasUnused"


def going_on(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    decision: rounds.RoundDecision,
    slow: Sequence[Slow],
    held: Sequence[PodWait],
) -> tuple[list[dict[str, Any]], str]:
    """Conditions of a job that has not ended, and the one sentence about it."""
    report = status.leader(observed)
    training = record.phase == status.RUNNING
    blocked = next((wait for wait in held if wait.blocks), None)
    skipped = report.restored.skipped if report and report.restored else ()
    current = observed.round
    before = max((incident.round for incident in record.open_incidents), default=0)
    pause = retries.backoff(record.incidents, observed.now)
    if pause > 0:
        to_come = f"the next pods are made at {clock(observed.now + pause)}"
    elif decision.waiting or current is None or current.number <= before:
        to_come = f"waiting for {decision.waiting or 'pods to start'}"
    else:
        members = count(len(current.members), "pod")
        to_come = f"round {current.number} of {members} starts; its first step is to come"
    if record.open_incidents:
        last = record.open_incidents[-1]
        message = f"recovering from {last.cause}: {last.evidence}"
        message += f"; {blocked.message if blocked else to_come}"
    elif training and current:
        pods, workers = len(current.members), current.world_size
        message = f"training on {count(pods, 'pod')}, {count(workers, 'worker')}"
        message += "; steps unknown" if record.progress is None else ""
        if decision.going:
            message += f" until another pod takes over: {decision.going}"
    elif training:
        message = "training; the operator has started anew and waits to hear from the pods"
    else:
        message = to_come
    # Its turn in a queue is what a job waits for, and nothing that needs attention.
    troubles = [(wait.reason, wait.message) for wait in held if wait.attention]
    if report and report.progress and not math.isfinite(report.progress.loss or 0.0):
        text = f"the loss is {report.progress.loss} at step {report.progress.step}"
        troubles.append(("LossNotFinite", text))
    if skipped:
        troubles.append(("CheckpointDamaged", "; ".join(skipped)))
    if slow:
        troubles.append(("Straggler", slow[0].words()))
    if blocked and training:
        message = f"{message}; {blocked.message}"
    elif blocked and not record.open_incidents:
        message = blocked.message
    if troubles:
        words = "; ".join(text for _, text in troubles)
        attention = condition("Degraded", True, as_reason(troubles[0][0]), words)
    else:
        attention = condition("Degraded", False, "AsExpected", "nothing needs attention")
    early = record.phase in {status.PENDING, status.STARTING}
    waits = blocked.reason if blocked and early else record.phase
    return [
        condition("Ready", training, "Training" if training else as_reason(waits), message),
        condition("Progressing", not training, as_reason(waits), message),
        attention,
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
        unused(job, record, observed),
    ], message


def unused(job: TrainingJob, record: JobRecord, observed: Observed) -> dict[str, Any]:
    """Whether more pods are wanted than have something to do: how many, and what to set."""
    useful, most = sizing.useful_world(observed), sizing.useful_pods(job, observed)
    known = next((one for one in record.conditions if one["type"] == UNUSED), None)
    if useful is None and known and not observed.agents:
        # This operator has yet to hear from the pods.
        return condition(UNUSED, known["status"] == "True", known["reason"], known["message"])
    if most >= job.replicas:
        return condition(UNUSED, False, "AllInUse", "no pod is wanted that has nothing to do")
    workers = count(useful or 0, "worker")
    then = (
        f"{most} of {count(job.replicas, 'pod')} train and the others are spares; set "
        f"spec.replicas to {most}"
    )
    if sizing.least_world(observed) == useful:
        text = f"the script goes on with {workers} as it began, so {then}"
        return condition(UNUSED, True, "FixedWorkers", text)
    text = (
        f"the global batch is work for {workers}, so {then}, or give the script a larger "
        f"global_batch_size or a smaller batch_size"
    )
    return condition(UNUSED, True, "BatchTooSmall", text)


def unused_events(
    before: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]
) -> tuple[Event, ...]:
    """That pods have nothing to do, once."""

    def messages(of: Sequence[Mapping[str, Any]]) -> set[str]:
        return {one["message"] for one in of if one["type"] == UNUSED and one["status"] == "True"}

    fresh = messages(told) - messages(before)
    return tuple(Event(kind="Warning", reason=UNUSED, message=text) for text in fresh)


def run_again(message: str) -> list[dict[str, Any]]:
    """Conditions of a job whose next run begins, before there is anything of it."""
    return [
        condition("Ready", False, status.PENDING, message),
        condition("Progressing", True, "Restarting", message),
        condition("Degraded", False, "AsExpected", "nothing needs attention"),
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ]


def in_use(message: str) -> list[dict[str, Any]]:
    """Conditions of a job that waits for another one to leave its checkpoints."""
    return [
        condition("Ready", False, run_claims.IN_USE, message),
        condition("Progressing", True, run_claims.IN_USE, message),
        condition("Degraded", True, run_claims.IN_USE, message),
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ]


def ended(phase: str, reason: str, message: str, edit: str | None = None) -> list[dict[str, Any]]:
    """Conditions of a job that has ended; ``edit``: what is to be said of a change since."""
    done = phase == status.SUCCEEDED
    return [
        condition("Ready", False, phase, message),
        condition("Progressing", False, "SpecChangedAfterEnd" if edit else phase, edit or message),
        condition("Degraded", not done, reason, message),
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", done, reason, message if done else "training is not complete"),
        condition("Failed", not done, reason, message if not done else "the job has not failed"),
    ]


def holds(job: TrainingJob, observed: Observed) -> tuple[PodWait, ...]:
    """What holds the job's pods, or keeps one from being made."""
    pods = [pod for pod in observed.pods if rounds.wanted(job, pod) and pod.alive]
    return pod_waits.waits(observed, pods, pinned_to(job))


def blocker(job: TrainingJob, observed: Observed) -> tuple[str, str] | None:
    """What keeps a pod from starting, in words: reason and message."""
    wait = next((wait for wait in holds(job, observed) if wait.blocks), None)
    return (as_reason(wait.reason), wait.message) if wait else None


def pinned_to(job: TrainingJob) -> str | None:
    """The node that the template names, past the scheduler."""
    name = job.template["spec"].get("nodeName")
    return str(name) if name else None


def wakes_at(job: TrainingJob, observed: Observed) -> float:
    """When time alone will change what is said of the pods; infinity if it will not."""
    pinned = pinned_to(job)
    times = (
        pod_waits.changes_at(pod_waits.held_of(observed, pod, pinned))
        for pod in observed.pods
        if rounds.wanted(job, pod) and pod.alive
    )
    return min((at for at in times if at is not None), default=math.inf)


def wait_events(
    before: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]], held: Sequence[PodWait]
) -> tuple[Event, ...]:
    """What has begun to hold the job, once: a condition that says the same need not be repeated."""
    shown = {"Degraded", "Progressing"}
    known = {pod_waits.kind(c["reason"]) for c in before if c["type"] in shown}
    fresh = {c["reason"] for c in told if c["type"] in shown}
    return tuple(
        Event(
            kind="Warning" if wait.attention else "Normal",
            reason=as_reason(wait.reason),
            message=wait.message,
        )
        for wait in held
        if as_reason(wait.reason) in fresh and pod_waits.kind(as_reason(wait.reason)) not in known
    )


def count(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_reason(reason: str) -> str:
    """A condition's reason may hold letters, digits, '_', ',' and ':' only, so no slash."""
    return reason.replace("/", ":")


def incident_event(incident: Incident) -> Event:
    """What happened and what follows, for whoever describes the job."""
    text = f"{incident.evidence}; {incident.action}"
    kind = "Normal" if incident.cause is Cause.OPERATOR else "Warning"
    return Event(kind=kind, reason=str(incident.cause), message=text)


def round_events(decision: rounds.RoundDecision) -> tuple[Event, ...]:
    """Who trains together from now on; nothing when no round is formed."""
    if decision.form is None:
        return ()
    pods = ", ".join(member.pod for member in decision.form.members)
    text = f"round {decision.form.number}: {pods} ({decision.form.reason})"
    return (Event(kind="Normal", reason="RoundFormed", message=text),)


def suspended(message: str, *, saving: bool) -> list[dict[str, Any]]:
    """Conditions of a job that is suspended; ``saving``: whether pods of it still run."""
    return [
        condition("Ready", False, "Suspended", message),
        condition("Progressing", saving, "Suspended", message),
        condition("Degraded", False, "AsExpected", "nothing needs attention"),
        condition("Suspended", True, "SpecSuspend", message),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ]
