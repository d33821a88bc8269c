"""The one decision about a job: from what is wanted, remembered and observed to what to do.

``reconcile`` is level-triggered and pure. Whatever woke it up (a pod's event, an agent's report, a
timer, a restart of the operator), it looks at the whole and answers with a `Plan`: children to
create and delete, the status to write, the round to publish and what to ask of agents. The shell
applies a plan in that order, so that dying anywhere in between leaves a state from which the next
call continues: children have names that make creating them twice harmless, the round's number is in
the status before any agent hears of it, and directives are asked again until they show an effect.

Nothing but the status stands between a loss and the round that follows it: a plan that forms one
creates and deletes no pods, and whoever applies it asks again at once. That is as safe as the other
order, since a pod that is missing is missing in the next look, too, by this operator or the next.
Wishes to save rest on nothing that is written, so they are shown before all else; an order to stop
comes after the status that says why, or the next operator would take the pods' ends for failures.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rekindle.api import SUSPENDED, AgentPhase, Cause, ExitCode
from rekindle.api.spec import TrainingJob
from rekindle_operator.incidents import retries
from rekindle_operator.incidents.incidents import Incident, stamp
from rekindle_operator.observed import liveness
from rekindle_operator.observed import run_claims as runs
from rekindle_operator.observed.observations import Observed
from rekindle_operator.plan import Deletion, Event, Plan
from rekindle_operator.pods import manifests
from rekindle_operator.pods.manifests import PodAccess
from rekindle_operator.reconcile import deadlines, rerun, wanted_pods
from rekindle_operator.rounds import directives, rounds, sizing, stragglers
from rekindle_operator.status import conditions, incident_ledger, progress, status
from rekindle_operator.status.status import JobRecord

END_SECONDS = 15.0
"""How long agents have to end by themselves after the job's end, before their pods are deleted."""


def reconcile(
    job: TrainingJob,
    current: Mapping[str, Any],
    observed: Observed,
    *,
    access: PodAccess,
    now: float,
    runtime_image: str = manifests.RUNTIME_IMAGE,
) -> Plan:
    """Decide what to do about a job whose status is ``current``.

    ``access`` is for the secret, should the job have none; ``runtime_image`` is where
    pods get the launcher from that do not have it.
    """
    observed = replace(observed, coordinator=access.url)
    record = status.read(current)
    if record.phase in status.TERMINAL:
        return rerun.begin(job, record, observed, now) or _after_the_end(job, record, observed, now)
    record, unheeded = rerun.ignored(job, record)
    plan = _go_on(
        rerun.placed(job, record),
        record,
        observed,
        access=access,
        now=now,
        runtime_image=runtime_image,
    )
    return replace(plan, events=(*unheeded, *plan.events))


def _go_on(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    *,
    access: PodAccess,
    now: float,
    runtime_image: str,
) -> Plan:
    """Decide about a job that has not ended."""
    if job.suspend or _still_suspended(record, observed):
        return _suspended(job, record, observed, now)
    if observed.holder is not None and not any(pod.alive for pod in observed.pods):
        return _waits_for_another(job, record, observed, observed.holder, now)
    observed = rounds.with_strangers(observed, record.round)
    job, record = wanted_pods.note_template(job, record)
    record = wanted_pods.note_names(job, _begin(record, now), observed, now)
    record, operator_incident = incident_ledger.note_operator(record, observed)
    record = progress.note_progress(record, observed, now)
    slow = stragglers.scores(observed)
    record, observed = progress.note_slow(job, record, observed, slow, now)

    before = record.incidents
    record, fresh, verdict, found = incident_ledger.note_incidents(job, record, observed, now)
    explained = incident_ledger.newly_explained(before, record.incidents)
    settle = found.settle
    record, rollbacks = incident_ledger.note_rollback(record, observed)
    record, resolved = incident_ledger.resolve(job, record, observed, now)
    record, measured = incident_ledger.measure(record, observed)
    record, damage = incident_ledger.note_damage(record, observed, now)
    fresh = (*operator_incident, *rollbacks, *damage, *fresh)
    record = progress.note_waiting(job, record, observed, now)
    pause = retries.backoff(record.incidents, now)
    outage = bool(record.incidents) and record.incidents[-1].cause is Cause.STORE_LOST
    hold = settle is not None or (outage and pause > 0)
    decision = rounds.decide(job, observed, last_number=record.round, hold=hold, now=now)
    if decision.finished:
        verdict = None
    elif verdict is None or verdict.retry:
        verdict = deadlines.passed(job, record, observed, now) or deadlines.refusal(observed)
    if decision.finished or verdict is not None:
        end = _end(job, record, observed, now, fresh, verdict)
        return replace(end, resolved=resolved, measured=measured)
    if decision.form:
        mtbf = record.seconds_between_failures(now)
        workers = sizing.wanted_workers(job, decision.form.members)
        variables = manifests.variables_of_a_round(job, mtbf, workers)
        form = replace(decision.form, variables=variables)
        decision, record = replace(decision, form=form), replace(record, round=form.number)

    create: list[dict[str, Any]] = []
    delete: list[Deletion] = []
    if decision.form is None:
        if incident_ledger.judges(job, record, observed, now):
            # Not before: what tells of a loss would be gone when it can be told.
            delete = wanted_pods.unwanted(job, record, observed, hold=hold)
        if not hold and not pause:
            create, record, pause = wanted_pods.missing(
                job, record, observed, now, runtime_image=runtime_image
            )
    support: list[dict[str, Any]] = []
    if not observed.has_secret:
        support.append(manifests.secret(job, access))
    if not observed.has_service:
        support.append(manifests.service(job))

    record = replace(record, phase=_phase(job, record, observed, decision, now))
    held = conditions.holds(job, observed)
    told, message = conditions.going_on(job, record, observed, decision, slow, held)
    waits = [seconds for seconds in (settle, decision.requeue, pause or None) if seconds]
    waits.extend(deadlines.left(job, record, observed, now))
    turns = min(observed.wakes_at(), conditions.wakes_at(job, observed))
    if turns < math.inf:
        waits.append(max(turns - now, 0.1))
    return Plan(
        create=(*support, *create),
        delete=tuple(delete),
        end=() if decision.form else tuple(wanted_pods.lingering(observed)),
        status=status.render(job, record, observed, told, message, now),
        publish=decision.form,
        directives=directives.dump(observed) if found.dump else directives.save(observed, decision),
        events=(
            *map(conditions.incident_event, (*explained, *fresh)),
            *conditions.round_events(decision),
            *conditions.wait_events(record.conditions, told, held),
            *conditions.unused_events(record.conditions, told),
        ),
        requeue=min(waits) if waits else None,
        incidents=fresh,
        resolved=resolved,
        measured=measured,
    )


def _waits_for_another(
    job: TrainingJob, record: JobRecord, observed: Observed, holder: runs.Use, now: float
) -> Plan:
    """Another job uses this run: no pods, no clock, no budget until it is this one's turn."""
    began = None if holder.began_at is None else stamp(holder.began_at)
    message = runs.words(holder, began)
    record = replace(record, phase=status.PENDING)
    told = conditions.in_use(message)
    known = {(c["type"], c["reason"]) for c in record.conditions}
    fresh = ("Progressing", runs.IN_USE) not in known
    event = Event(kind="Warning", reason=runs.IN_USE, message=message)
    return Plan(
        status=status.render(job, record, observed, told, message, now),
        events=(event,) if fresh else (),
    )


def _begin(record: JobRecord, now: float) -> JobRecord:
    """Start the clocks; end a suspension."""
    if record.start_time is None:
        return replace(record, start_time=now, pending_since=now, suspended_at=None)
    if record.suspended_at is not None:
        away = now - record.suspended_at
        return replace(
            record,
            suspended_at=None,
            suspended_seconds=record.suspended_seconds + away,
            pending_since=now,
            phase=status.PENDING,
        )
    return record


def _still_suspended(record: JobRecord, observed: Observed) -> bool:
    """Whether pods of before a suspension that was taken back still save and end.

    Going on from there begins with pods of its own: the end of the others is no incident.
    """
    return record.suspended_at is not None and bool(observed.pods or observed.round)


def _phase(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    decision: rounds.RoundDecision,
    now: float,
) -> str:
    if record.open_incidents:
        return status.RECOVERING
    agents = (observed.agents.get(pod.uid) for pod in observed.pods if pod.alive)
    runs = any(agent and agent.report.phase is AgentPhase.RUNNING for agent in agents)
    if decision.waiting and not runs and sizing.least_pods(observed) > job.min_replicas:
        return status.PENDING  # No round, although no pod is lost: the script needs more of them.
    report = status.leader(observed)
    if record.first_step_at is not None and record.pending_since is None:
        if report and report.trains:
            return status.RUNNING
        if record.phase in {status.RUNNING, status.RECOVERING}:
            heard = observed.round or now - observed.listening_since < liveness.REANNOUNCE
            return status.RUNNING if heard else status.STARTING
    starts = decision.form or rounds.scheduled_since(job, observed) is not None
    return status.STARTING if starts else status.PENDING


def _end(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    now: float,
    fresh: tuple[Incident, ...],
    verdict: retries.Verdict | None,
) -> Plan:
    """The job ends now: well when there is no verdict, else as that says."""
    phase = status.FAILED if verdict else status.SUCCEEDED
    why = conditions.as_reason(verdict.reason if verdict else "Completed")
    text = verdict.message if verdict else "training is complete"
    record = incident_ledger.close_all(record, now)
    record = replace(record, phase=phase, completion_time=now, reason=why, message=text)
    record = replace(record, ended_generation=job.generation)
    code = _exit_code(record, fresh) if verdict else ExitCode.DONE
    event = Event(kind="Warning" if verdict else "Normal", reason=why, message=text)
    return Plan(
        status=status.render(job, record, observed, conditions.ended(phase, why, text), text, now),
        directives=directives.stop(observed, code, text),
        events=(*(conditions.incident_event(incident) for incident in fresh), event),
        requeue=END_SECONDS,
        incidents=fresh,
    )


def _exit_code(record: JobRecord, fresh: tuple[Incident, ...]) -> ExitCode:
    causes = {incident.cause for incident in (fresh or record.incidents[-1:])}
    return ExitCode.INTEGRITY if Cause.INTEGRITY in causes else ExitCode.USER_ERROR


def _after_the_end(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> Plan:
    """Nothing to decide any more: let pods end, clean up, expire.

    A pod whose training is through and whose sidecar is not has finished, and is kept as those are.
    """
    since = now - (record.completion_time or now)
    running = [
        pod
        for pod in observed.pods
        if (not pod.told or pod.lingers)
        and (not pod.deleting or wanted_pods.deletion(observed, pod).force)
    ]
    late = since >= END_SECONDS
    clean = late and job.clean_pods != "None"
    doomed = [pod for pod in running if clean and (not pod.lingers or observed.node_lost(pod))]
    if job.clean_pods == "All" and (late or not running):
        doomed = [pod for pod in observed.pods if not pod.deleting]
    waits = [END_SECONDS - since] if running and not late else []
    expired = False
    if job.ttl_after_finished is not None:
        left = job.ttl_after_finished - since
        expired = left <= 0
        waits.append(left)
    done = record.phase == status.SUCCEEDED
    code = ExitCode.DONE if done else _exit_code(record, ())
    text = record.message or "training is complete"
    record, edit, events = rerun.edited(job, record)
    told = conditions.ended(record.phase, record.reason or "Completed", text, edit)
    return Plan(
        delete=tuple(wanted_pods.deletion(observed, pod) for pod in doomed),
        end=tuple(wanted_pods.lingering(observed)) if clean and job.clean_pods == "Running" else (),
        status=status.render(job, record, observed, told, f"{text}; {edit}" if edit else text, now),
        directives=directives.stop(observed, code, text),
        events=events,
        remove_job=expired,
        requeue=max(0.1, min(waits)) if waits else None,
    )


def _suspended(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> Plan:
    """Pods are told to go, which makes them save first; the job and its checkpoints stay."""
    record = progress.note_progress(record, observed, now)
    alive = [pod for pod in observed.pods if pod.alive]
    if record.suspended_at is None:
        record = replace(record, suspended_at=now, pending_seconds=record.pending(now))
    record = incident_ledger.close_all(record, now)
    record = replace(record, phase=status.SUSPENDED, pending_since=None, waiting_since=None)
    saving = conditions.count(len(alive), "pod") + " to save and end" if alive else "no pods run"
    step = f" at step {record.checkpoint.step}" if record.checkpoint else ""
    then = "set spec.suspend to false to go on" if job.suspend else "then it goes on"
    message = f"suspended{step}: {saving}; {then}"
    overdue = [wait for wait in conditions.holds(job, observed) if wait.reason == "Terminating"]
    message += "".join(f"; {wait.message}" for wait in overdue)
    told = conditions.suspended(message, saving=bool(alive))
    return Plan(
        delete=tuple(
            doomed
            for pod in observed.pods
            if (doomed := wanted_pods.deletion(observed, pod)).force or not pod.deleting
        ),
        status=status.render(job, record, observed, told, message, now),
        forget_round=not alive,
        # Told to go alone, they would train until their grace is nearly over.
        directives=directives.save(
            observed, rounds.RoundDecision(save=SUSPENDED, save_seconds=job.grace_seconds / 2)
        ),
        requeue=None if job.suspend or alive else 0.1,
    )
