"""What people are told of a job: its conditions, the one sentence beside them, and its events.

The conditions Ready, Progressing, Degraded, Suspended, Complete and Failed are always all there, so
that ``kubectl wait`` can wait for any of them. What hinders a job names the pod and what its owner
can do.
"""

import math
from collections.abc import Sequence
from typing import Any

from rekindle.contract import Cause
from rekindle_operator import rounds, status
from rekindle_operator.incidents import Incident
from rekindle_operator.observed import Observed
from rekindle_operator.plan import Event
from rekindle_operator.spec import TrainingJob
from rekindle_operator.status import Record, condition
from rekindle_operator.stragglers import Slow

GATED = "SchedulingGated"
"""Reason of a pod that the scheduler must not look at yet: Kubernetes' own word."""


def going_on(
    job: TrainingJob,
    record: Record,
    observed: Observed,
    decision: rounds.Decision,
    slow: Sequence[Slow],
) -> tuple[list[dict[str, Any]], str]:
    """Conditions of a job that has not ended, and the one sentence about it."""
    report = status.leader(observed)
    training = record.phase == status.RUNNING
    blocked = blocker(job, observed)
    skipped = report.restored.skipped if report and report.restored else ()
    if record.open_incidents:
        last = record.open_incidents[-1]
        message = f"recovering from {last.cause}: {last.evidence}"
        waits = blocked[1] if blocked else decision.waiting and f"waiting for {decision.waiting}"
        message += f"; {waits}" if waits else ""
    elif training and observed.round:
        pods, workers = len(observed.round.members), observed.round.world_size
        message = f"training on {count(pods, 'pod')}, {count(workers, 'worker')}"
        message += "; steps unknown" if record.progress is None else ""
        if decision.going:
            message += f" until another pod takes over: {decision.going}"
    elif training:
        message = "training; the operator has started anew and waits to hear from the pods"
    else:
        message = f"waiting for {decision.waiting or 'pods to start'}"
    # Its turn in a queue is what a job waits for, and nothing that needs attention.
    troubles = [blocked] if blocked and blocked[0] != GATED else []
    if report and report.progress and not math.isfinite(report.progress.loss or 0.0):
        text = f"the loss is {report.progress.loss} at step {report.progress.step}"
        troubles.append(("LossNotFinite", text))
    if skipped:
        troubles.append(("CheckpointDamaged", "; ".join(skipped)))
    if slow:
        troubles.append(("Straggler", slow[0].words()))
    if blocked and training:
        message = f"{message}; {blocked[1]}"
    elif blocked and not record.open_incidents:
        message = blocked[1]
    if troubles:
        attention = condition("Degraded", True, troubles[0][0], "; ".join(t[1] for t in troubles))
    else:
        attention = condition("Degraded", False, "AsExpected", "nothing needs attention")
    waits = blocked[0] if blocked and record.phase == status.PENDING else record.phase
    return [
        condition("Ready", training, "Training" if training else as_reason(waits), message),
        condition("Progressing", not training, as_reason(waits), message),
        attention,
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ], message


def ended(phase: str, reason: str, message: str) -> list[dict[str, Any]]:
    """Conditions of a job that has ended."""
    done = phase == status.SUCCEEDED
    return [
        condition("Ready", False, phase, message),
        condition("Progressing", False, phase, message),
        condition("Degraded", not done, reason, message),
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", done, reason, message if done else "training is not complete"),
        condition("Failed", not done, reason, message if not done else "the job has not failed"),
    ]


def blocker(job: TrainingJob, observed: Observed) -> tuple[str, str] | None:
    """What keeps a pod from starting, in words: reason and message."""
    if observed.hindered:
        return "CannotCreate", observed.hindered
    for pod in observed.pods:
        if not rounds.wanted(job, pod) or not pod.alive:
            continue
        if pod.waiting:
            return pod.waiting.reason, f"pod {pod.name} cannot start: {pod.waiting.message}"
        if pod.gates:
            gates = f"scheduling gate{'s' * (len(pod.gates) > 1)} {', '.join(pod.gates)}"
            return GATED, f"pod {pod.name} is held by {gates}; who set that has to take it away"
        if pod.unschedulable:
            return "Unschedulable", f"no node can take pod {pod.name}: {pod.unschedulable}"
    return None


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


def round_events(decision: rounds.Decision) -> tuple[Event, ...]:
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
