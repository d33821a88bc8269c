"""A job that has ended runs again: asked for by an annotation whose value is new.

Any new value of ``rekindle.dev/restart`` is one order, and the value of the last one that was
heeded is in the status, so that an order is obeyed once by whichever operator sees it. A new run
begins in two steps, each of which may be the last one of an operator. First all pods of the run
before go: a finished one would count as done in the new run. When none is left, one write begins
the status anew; before it the job still has ended, after it it is one that waits for its pods.

Numbers of rounds and names of pods go on where they were, since neither is used twice. Budgets,
incidents and clocks begin anew. The state is that of the newest checkpoint, or none at all with
``rekindle.dev/restart-from: scratch``: then the run has a place of its own below the job's URI, and
nothing is deleted. On a job that has not ended an order is told and forgotten: nobody is to be
surprised by it at the end.
"""

import shlex
from dataclasses import replace

from rekindle.api import ANNOTATION_RESTART, ANNOTATION_RESTART_FROM, Progress
from rekindle.api.spec import TrainingJob
from rekindle_operator.observed.observations import Observed
from rekindle_operator.plan import Event, Plan
from rekindle_operator.reconcile import wanted_pods
from rekindle_operator.status import conditions, status
from rekindle_operator.status.status import JobRecord

LATEST, SCRATCH = "latest", "scratch"
PLACES = (LATEST, SCRATCH)
WAIT = 15.0
"""Seconds after which pods that do not go are looked at again."""


def placed(job: TrainingJob, record: JobRecord) -> TrainingJob:
    """The job with its checkpoints where the present run has them."""
    if not record.scratch:
        return job
    uri = f"{job.checkpoint.uri.rstrip('/')}/restart-{record.scratch}"
    return replace(job, checkpoint=replace(job.checkpoint, uri=uri))


def how(job: TrainingJob) -> str:
    """What to type to run a job again."""
    name, namespace = shlex.quote(job.name), shlex.quote(job.namespace)
    return (
        f"rekindle restart {name} -n {namespace}, or kubectl annotate tj {name} -n {namespace} "
        f"{ANNOTATION_RESTART}=$(date +%s) --overwrite"
    )


def ordered(job: TrainingJob, record: JobRecord) -> bool:
    """Whether there is an order that nobody has heeded yet."""
    return job.restart is not None and job.restart != record.restart_seen


def ignored(job: TrainingJob, record: JobRecord) -> tuple[JobRecord, tuple[Event, ...]]:
    """Forget an order to a job that has not ended, and tell of it.

    A manifest may bring the annotation along when it is applied: that is no order.
    """
    if not ordered(job, record):
        return record, ()
    fresh = record.start_time is None and record.suspended_at is None
    record = replace(record, restart_seen=job.restart)
    text = f"{ANNOTATION_RESTART} is heeded once the job has ended, and it has not; set it then"
    event = Event(kind="Warning", reason="RestartIgnored", message=text)
    return record, () if fresh else (event,)


def refusal(job: TrainingJob) -> str | None:
    """What is wrong with an order."""
    if job.restart_from in PLACES:
        return None
    return f"{ANNOTATION_RESTART_FROM} is {job.restart_from!r}, must be {' or '.join(PLACES)}"


def begin(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> Plan | None:
    """Take the next step towards another run; None if nobody has ordered one that can be."""
    if not ordered(job, record) or refusal(job):
        return None
    if observed.pods:
        left = len(observed.pods)
        message = f"runs again once {left} pod{'s' * (left > 1)} of the run before have gone"
        text = record.message or "training is complete"
        told = [
            status.condition("Progressing", True, "Restarting", message)
            if condition["type"] == "Progressing"
            else condition
            for condition in conditions.ended(record.phase, record.reason or "Completed", text)
        ]
        return Plan(
            delete=tuple(
                doomed
                for pod in observed.pods
                if (doomed := wanted_pods.deletion(observed, pod)).force or not pod.deleting
            ),
            status=status.render(job, record, observed, told, message, now),
            requeue=WAIT,
        )
    scratch = job.restart_from == SCRATCH
    run = record.run + 1
    before = record.progress if not scratch and record.progress else Progress()
    record = JobRecord(
        round=record.round,
        charged_round=record.round,
        generations=record.generations,
        operator_since=record.operator_since,
        conditions=record.conditions,
        restart_seen=job.restart,
        run=run,
        scratch=run if scratch else record.scratch,
        checkpoint=None if scratch else record.checkpoint,
        productive_before=before.productive_seconds,
        stall_before=before.stall_seconds,
    )
    state = record.checkpoint
    source = f"the checkpoint of step {state.step}" if state else "the newest checkpoint"
    message = f"run {run + 1} begins from {'scratch' if scratch else source}"
    told = conditions.run_again(message)
    return Plan(
        status=status.render(job, record, observed, told, message, now),
        forget_round=True,
        events=(Event(kind="Normal", reason="Restarted", message=message),),
        requeue=0.1,
    )


def edited(job: TrainingJob, record: JobRecord) -> tuple[JobRecord, str | None, tuple[Event, ...]]:
    """What is to be said of an order or an edit that an ended job does not heed.

    Gives the record, the words as long as they hold, and an event the first time.
    """
    wrong = refusal(job) if ordered(job, record) else None
    if wrong:
        record = replace(record, restart_seen=job.restart)
        event = Event(kind="Warning", reason="RestartRefused", message=f"{wrong}; set both anew")
        return record, None, (event,)
    if record.ended_generation is None:  # ended under an operator that did not write it down
        return replace(record, ended_generation=job.generation), None, ()
    if job.generation <= record.ended_generation:
        return record, None, ()
    text = (
        "the spec has changed since the job has ended, of which only ttlSecondsAfterFinished and "
        f"cleanPods take effect; to run it again: {how(job)}"
    )
    if record.told_generation == job.generation:
        return record, text, ()
    record = replace(record, told_generation=job.generation)
    event = Event(kind="Warning", reason="SpecChangedAfterEnd", message=text)
    return record, text, (event,)
