"""A job that is being deleted: its pods end, and its status says what still holds it.

Most jobs are gone in the moment they are deleted, and their children are collected. One with a
finalizer of somebody else stays as an object for as long as that one likes. It must not train on
meanwhile, nor show the status of before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rekindle.api.spec import TrainingJob
from rekindle_operator.observed.observations import Observed
from rekindle_operator.plan import Plan
from rekindle_operator.reconcile import wanted_pods
from rekindle_operator.status import conditions, incident_ledger, status
from rekindle_operator.status.status import condition

ORPHAN = "orphan"
"""Kubernetes' own finalizer of a deletion that leaves the children."""
OURS_TO_WAIT = {ORPHAN, "foregroundDeletion"}
"""Finalizers of Kubernetes itself, which go without anybody's help."""


def leave(
    job: TrainingJob,
    current: Mapping[str, Any],
    observed: Observed,
    finalizers: Sequence[str],
    now: float,
) -> Plan:
    """Decide what to do about a job that is being deleted."""
    record = status.read(current)
    keeps_pods = ORPHAN in finalizers
    alive = [pod for pod in observed.pods if pod.alive]
    ends = "its pods stay" if keeps_pods else "no pods run"
    if alive and not keeps_pods:
        ends = conditions.count(len(alive), "pod") + " to end"
    message = f"the job is being deleted, {ends}"
    held = [name for name in finalizers if name not in OURS_TO_WAIT]
    if held:
        message += f"; held by finalizers: {', '.join(held)}; whoever set them takes them away"
    if record.phase not in status.TERMINAL:
        record = incident_ledger.close_all(record, now)
        record = replace(record, phase=status.DELETING, pending_since=None, waiting_since=None)
        told = [
            condition("Ready", False, status.DELETING, message),
            condition("Progressing", bool(alive), status.DELETING, message),
            condition("Degraded", False, "AsExpected", "nothing needs attention"),
            condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
            condition("Complete", False, "NotFinished", "training is not complete"),
            condition("Failed", False, "NotFailed", "the job has not failed"),
        ]
    else:
        told = conditions.ended(record.phase, record.reason or "Completed", record.message)
    doomed = [
        deletion
        for pod in alive
        if (deletion := wanted_pods.deletion(observed, pod)).force or not pod.deleting
    ]
    # No pod is wanted any more, which is how a suspended job counts them.
    return Plan(
        delete=() if keeps_pods else tuple(doomed),
        status=status.render(replace(job, suspend=True), record, observed, told, message, now),
        forget_round=not alive,
    )
