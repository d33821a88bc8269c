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
from dataclasses import dataclass, field, replace
from typing import Any

from rekindle.contract import (
    SUSPENDED,
    AgentPhase,
    Cause,
    CheckpointReport,
    Directive,
    DirectiveKind,
    ExitCode,
    Round,
)
from rekindle_operator import incidents, recovery, resources, rounds, status, stragglers
from rekindle_operator.incidents import Incident
from rekindle_operator.observed import Observed, Pod
from rekindle_operator.spec import TrainingJob
from rekindle_operator.status import Record, condition

END_SECONDS = 15.0
"""How long agents have to end by themselves after the job's end, before their pods are deleted."""
REPLACE_SECONDS = 20.0
"""How often all pods of a job may be replaced for long, once a first burst is through."""
KEEP_FINISHED = 5
"""Finished pods that are kept while the job runs, for their logs."""


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """A pod to delete; the uid makes sure that it is still the one that was meant."""

    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Kubernetes event about the job."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, in this order."""

    create: tuple[dict[str, Any], ...] = ()
    delete: tuple[Deletion, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    publish: Round | None = None
    forget_round: bool = False
    directives: Mapping[str, Directive] = field(default_factory=dict)
    """By uid of the pod; complete: an agent that is not named is asked nothing."""
    events: tuple[Event, ...] = ()
    remove_job: bool = False
    requeue: float | None = None
    """Call again after this many seconds even if nothing happens."""
    incidents: tuple[Incident, ...] = ()
    """Incidents that are new in this plan, for the metrics."""
    resolved: tuple[Incident, ...] = ()
    """Incidents that this plan closes, for the metrics."""
    measured: tuple[Incident, ...] = ()
    """Incidents of which all members have now told where the time went, for the metrics."""


def reconcile(
    job: TrainingJob,
    current: Mapping[str, Any],
    observed: Observed,
    *,
    coordinator_url: str,
    token: str,
    now: float,
) -> Plan:
    """Decide what to do about a job whose status is ``current``.

    ``token`` is a fresh secret for the case that the job has none yet.
    """
    record = status.read(current)
    if record.phase in status.TERMINAL:
        return _after_the_end(job, record, observed, now)
    if job.suspend or _still_suspended(record, observed):
        return _suspended(job, record, observed, now)
    record = _note_pods(job, _begin(record, now), observed, now)
    record, operator_incident = _note_operator(record, observed)
    record = _note_progress(record, observed, now)
    record, observed = _note_slow(job, record, observed, now)

    before = record.incidents
    record, fresh, verdict, found = _note_incident(job, record, observed, now)
    explained = _explained(before, record.incidents)
    settle = found.settle
    record, told = _note_rollback(record, observed)
    fresh = (*operator_incident, *told, *fresh)
    record, resolved = _resolve(record, observed, now)
    record, measured = _measure(record, observed)
    pause = incidents.backoff(record.incidents, now)
    outage = bool(record.incidents) and record.incidents[-1].cause is Cause.STORE_LOST
    hold = settle is not None or (outage and pause > 0)
    decision = rounds.decide(job, observed, last_number=record.round, hold=hold, now=now)
    if decision.finished:
        return _end(job, record, observed, now, fresh, reason=None, text="training is complete")

    if verdict is None or verdict.retry:
        verdict = _deadline(job, record, observed, now) or _refusal(observed)
    if verdict is not None:
        return _end(job, record, observed, now, fresh, reason=verdict.reason, text=verdict.message)
    if decision.form:
        record = replace(record, round=decision.form.number)

    create: list[dict[str, Any]] = []
    delete: list[Deletion] = []
    if decision.form is None:
        delete = _unwanted_pods(job, record, observed, hold=hold)
        if not hold and not pause:
            create, record, pause = _missing_pods(job, record, observed, coordinator_url, now)
    support: list[dict[str, Any]] = []
    if not observed.has_secret:
        support.append(resources.secret(job, token))
    if not observed.has_service:
        support.append(resources.service(job))

    record = replace(record, phase=_phase(record, observed, decision, now))
    conditions, message = _conditions(job, record, observed, decision)
    waits = [seconds for seconds in (settle, decision.requeue, pause or None) if seconds]
    waits.extend(_deadlines_left(job, record, now))
    if observed.wakes_at() < math.inf:
        waits.append(max(observed.wakes_at() - now, 0.1))
    return Plan(
        create=(*support, *create),
        delete=tuple(delete),
        status=status.render(job, record, observed, conditions, message, now),
        publish=decision.form,
        directives=_dump_directives(observed)
        if found.dump
        else _save_directives(observed, decision),
        events=(*map(_incident_event, (*explained, *fresh)), *_round_events(decision)),
        requeue=min(waits) if waits else None,
        incidents=fresh,
        resolved=resolved,
        measured=measured,
    )


def _begin(record: Record, now: float) -> Record:
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


def _note_operator(record: Record, observed: Observed) -> tuple[Record, tuple[Incident, ...]]:
    """Tell that another operator process has taken over a job that has had a round."""
    since = observed.listening_since
    before = record.operator_since
    if before == since:
        return record, ()
    record = replace(record, operator_since=since)
    if before is None or record.round == 0:
        return record, ()
    known = incidents.of_the_operator(record.incidents, since)
    return replace(record, incidents=known), known[-1:]


def _still_suspended(record: Record, observed: Observed) -> bool:
    """Whether pods of before a suspension that was taken back still save and end.

    Going on from there begins with pods of its own: the end of the others is no incident.
    """
    return record.suspended_at is not None and bool(observed.pods or observed.round)


def _note_progress(record: Record, observed: Observed, now: float) -> Record:
    """Take over what the round's first agent says about steps and checkpoints."""
    checkpoint = _newest_checkpoint(record, observed)
    if checkpoint and checkpoint != record.checkpoint:
        record = replace(record, checkpoint=checkpoint)
    report = status.leader(observed)
    if report is None:
        return record
    progress = report.progress
    if progress is None or progress.round_steps == 0:
        return record
    first = record.first_step_at if record.first_step_at is not None else now
    agent = observed.agents[report.uid]
    return replace(
        record,
        progress=progress,
        progress_at=agent.seen_at,
        first_step_at=first,
        pending_seconds=record.pending(now),
        pending_since=None,
    )


def _note_slow(
    job: TrainingJob, record: Record, observed: Observed, now: float
) -> tuple[Record, Observed]:
    """Remember slow nodes; where the job wants that, their pods are advised to go."""
    slow = [
        (pod.node, pod, found.words())
        for found in reversed(stragglers.scores(observed))  # a pod's slowest rank speaks for it
        if (pod := observed.pod(found.uid)) and pod.node
    ]
    spells = stragglers.remember(record.slow or {}, {node for node, *_ in slow}, now)
    if spells != (record.slow or {}):
        record = replace(record, slow=spells)
    if job.slow_nodes == "avoid":
        bad = stragglers.nodes(spells)
        # A pod that was made since is there because no other node could take it: to move it
        # would be to stop all others again and again.
        moved = {
            pod.uid: words
            for node, pod, words in slow
            if node in bad and pod.created_at < spells[node][0]
        }
        observed = replace(observed, slow=moved)
    return record, observed


def _newest_checkpoint(record: Record, observed: Observed) -> CheckpointReport | None:
    """The newest commit that members of the round know of.

    It goes back only when training went on from an older one, since the newest was damaged: a
    member that has just come may know less than the status does.
    """
    if observed.round is None:
        return None
    reports = [
        agent.report
        for member in observed.round.members
        if (agent := observed.agents.get(member.uid))
    ]
    found = [report.checkpoint for report in reports if report.checkpoint]
    newest = max(found, key=lambda c: (c.committed_at, c.step), default=None)
    known = record.checkpoint
    if newest is None or known is None or newest.committed_at >= known.committed_at:
        return newest
    report = status.leader(observed)
    fell_back = report and report.restored and report.restored.step < known.step
    return newest if fell_back else None


def _note_incident(
    job: TrainingJob, record: Record, observed: Observed, now: float
) -> tuple[Record, tuple[Incident, ...], incidents.Verdict | None, incidents.Detection]:
    """Find what has gone wrong since, charge it, and say whether there is another try.

    The last part is what could not be charged yet.
    """
    if record.round and observed.round is None:
        listening = now - observed.listening_since
        if listening < rounds.REANNOUNCE:
            # Agents have yet to tell in which round a pod was that is going: it would be charged
            # as one outside of any now, and as a member of its round then.
            return record, (), None, incidents.Detection()
    record, verdict = _note_explanations(job, record, observed, now)
    if verdict is not None:
        return record, (), verdict, incidents.Detection()
    fresh: list[Incident] = []
    known = record.incidents
    step = record.progress.step if record.progress else 0
    # What would follow if nothing had gone wrong: do all train on although some have to go?
    calm = None
    if any(map(observed.notices_of, observed.pods)):
        calm = rounds.decide(job, observed, last_number=record.round, hold=True, now=now).going
    while True:
        found = incidents.detect(
            job,
            observed,
            known,
            charged=record.charged_round,
            progress=step,
            now=now,
            calm=bool(calm),
        )
        if found.collateral:
            more = found.collateral
            known = _with_collateral(known, observed, more)
            record = replace(record, incidents=_with_collateral(record.incidents, observed, more))
            continue
        if found.incident is None:
            return record, tuple(fresh), None, found
        record, incident, verdict = _charged(record, job, found.incident, observed, now)
        fresh.append(incident)
        known = (*known, incident)  # not those of the record: the oldest may have left it just now
        if not verdict.retry:
            return record, tuple(fresh), verdict, incidents.Detection()


def _note_explanations(
    job: TrainingJob, record: Record, observed: Observed, now: float
) -> tuple[Record, incidents.Verdict | None]:
    """Take over what has been said since about pods that vanished; a verdict if that ends the job.

    The budget that has paid gets it back, and the one of the cause pays; where none had to pay,
    because nobody stopped training for that pod, none does.
    """
    for index, incident in enumerate(record.incidents):
        better = incidents.explained(incident, observed)
        if better is None:
            continue
        verdict = None
        history, counts = record.history, dict(record.counts or {})
        if better.klass != incident.klass:
            counts[incident.klass] = max(counts.get(incident.klass, 0) - 1, 0)
            counts[better.klass] = counts.get(better.klass, 0) + 1
        returned = incidents.uncharge(history, incident)
        if better.klass != incident.klass and returned != history:
            verdict = incidents.judge(
                job,
                better,
                returned,
                checkpoint=record.checkpoint.step if record.checkpoint else None,
                started=record.first_step_at is not None,
                training=False,
                now=now,
            )
            better = replace(better, action=verdict.action)
            history = incidents.charge(returned, better, job, now)
        known = (*record.incidents[:index], better, *record.incidents[index + 1 :])
        record = replace(record, incidents=known, history=history, counts=counts)
        if verdict is not None and not verdict.retry:
            return record, verdict
    return record, None


def _explained(before: tuple[Incident, ...], after: tuple[Incident, ...]) -> tuple[Incident, ...]:
    """The incidents of which it has become known what they were."""
    unknown = {i.at for i in before if i.evidence.endswith(incidents.UNEXPLAINED)}
    return tuple(
        i for i in after if i.at in unknown and not i.evidence.endswith(incidents.UNEXPLAINED)
    )


def _note_rollback(record: Record, observed: Observed) -> tuple[Record, tuple[Incident, ...]]:
    """Take over what the trainer has put right by itself; what it does again is rework."""
    found = incidents.of_the_trainer(observed, record.incidents)
    if found is None:
        return record, ()
    known = (*record.incidents, found)[-incidents.KEEP :]
    rework = record.rework_seconds + (found.seconds_lost or 0.0)
    return replace(record, incidents=known, rework_seconds=rework), (found,)


def _charged(
    record: Record, job: TrainingJob, incident: Incident, observed: Observed, now: float
) -> tuple[Record, Incident, incidents.Verdict]:
    """Judge a new incident, and put it into the record."""
    if record.first_step_at is not None:
        incident = incidents.of_a_started_job(incident)
    training = incident.round == 0 and record.first_step_at is not None and _is_whole(observed)
    verdict = incidents.judge(
        job,
        incident,
        record.history,
        checkpoint=record.checkpoint.step if record.checkpoint else None,
        started=record.first_step_at is not None,
        training=training,
        now=now,
    )
    incident = replace(incident, action=verdict.action)
    if training:
        # Nobody had to start again for it: it is told, but no budget of tries pays.
        incident = replace(incident, steps_lost=0, seconds_lost=0.0)
        return record.with_incident(incident, record.history), incident, verdict
    history = incidents.charge(record.history, incident, job, now)
    return record.with_incident(incident, history), incident, verdict


def _with_collateral(
    known: tuple[Incident, ...], observed: Observed, pods: tuple[str, ...]
) -> tuple[Incident, ...]:
    """Name more pods in the incident of the current round."""
    number = observed.round.number if observed.round else 0
    return tuple(
        replace(i, collateral=(*i.collateral, *pods)) if i.round == number else i for i in known
    )


def _is_whole(observed: Observed) -> bool:
    """Whether there is a round of which no member is lost or has failed."""
    current = observed.round
    if current is None:
        return False
    states = {rounds.state_of(member, current, observed) for member in current.members}
    return not states & {rounds.State.LOST, rounds.State.FAILED, rounds.State.HUNG}


def _resolve(record: Record, observed: Observed, now: float) -> tuple[Record, tuple[Incident, ...]]:
    """Close incidents once a round that came after them has completed a step."""
    report, current = status.leader(observed), observed.round
    if report is None or current is None or not report.progress or not report.progress.round_steps:
        return record, ()
    progress = report.progress
    began = progress.step - progress.round_steps
    resumed_from = report.restored.step if report.restored else began
    step_seconds = progress.productive_seconds / progress.step if progress.step else 0.0
    closed: list[Incident] = []
    result: list[Incident] = []
    for incident in record.incidents:
        if incident.open and current.number > incident.round:
            closed.append(
                incidents.resolve(
                    incident,
                    resumed_from=resumed_from,
                    step_seconds=step_seconds,
                    current=current.number,
                    now=now,
                )
            )
            result.append(closed[-1])
        else:
            result.append(incident)
    if not closed:
        return record, ()
    rework = sum((incident.steps_lost or 0) * step_seconds for incident in closed)
    record = replace(record, incidents=tuple(result), rework_seconds=record.rework_seconds + rework)
    return record, tuple(closed)


def _measure(record: Record, observed: Observed) -> tuple[Record, tuple[Incident, ...]]:
    """Add to incidents that the current round has closed where the time went."""
    number = observed.round.number if observed.round else 0
    fresh: dict[int, Incident] = {}
    for index, incident in enumerate(record.incidents):
        if number and incident.recovered_in == number and incident.round and not incident.recovery:
            found = recovery.measured(
                observed, incident.at, incident.victims, silent=incident.silent
            )
            if found is None:
                break
            fresh[index] = replace(incident, recovery=found.seconds, restored=found.restored)
    if not fresh:
        return record, ()
    known = tuple(fresh.get(index, incident) for index, incident in enumerate(record.incidents))
    return replace(record, incidents=known), tuple(fresh.values())


def _deadline(
    job: TrainingJob, record: Record, observed: Observed, now: float
) -> incidents.Verdict | None:
    """Has a deadline of the job passed, and what was in the way."""
    startup, active = job.startup_deadline, job.active_deadline
    late: tuple[str, float] | None = None
    waited = now - (record.pending_since if record.pending_since is not None else now)
    if startup is not None and waited >= startup > 0:
        late = "spec.deadlines.startup", startup
    ran = now - (record.start_time or now) - record.suspended_seconds
    if active is not None and ran >= active:
        late = "spec.deadlines.active", active
    if late is None:
        return None
    blocked = _blocker(job, observed)
    message = f"{late[0]} of {late[1]:.0f} s has passed"
    if blocked:
        message += f"; {blocked[1]}"
    reason = blocked[0] if blocked and late[0].endswith("startup") else str(Cause.TIMEOUT)
    return incidents.Verdict(retry=False, action="", reason=reason, message=message)


def _deadlines_left(job: TrainingJob, record: Record, now: float) -> list[float]:
    """Seconds until the deadlines of the job."""
    left = []
    if job.startup_deadline is not None and record.pending_since is not None:
        left.append(record.pending_since + job.startup_deadline - now)
    if job.active_deadline is not None and record.start_time is not None:
        left.append(record.start_time + record.suspended_seconds + job.active_deadline - now)
    return [max(seconds, 0.1) for seconds in left]


def _refusal(observed: Observed) -> incidents.Verdict | None:
    """The API server will never accept the pods that this template makes."""
    if observed.refused is None:
        return None
    message = f"the API server refuses the pod: {observed.refused}; correct spec.template"
    return incidents.Verdict(retry=False, action="", reason="PodRefused", message=message)


def _note_pods(job: TrainingJob, record: Record, observed: Observed, now: float) -> Record:
    """Remember names that are used up although nobody could write that down in advance."""
    used = dict(record.incarnations or {})
    fresh = [pod for pod in observed.pods if pod.incarnation > used.get(pod.slot, -1)]
    if not fresh:
        return record
    for pod in fresh:
        used[pod.slot] = max(pod.incarnation, used.get(pod.slot, -1))
    left = _tokens(job, record, now) - sum(pod.incarnation > 0 for pod in fresh)
    return replace(record, incarnations=used, tokens=(max(left, 0.0), now))


def _missing_pods(
    job: TrainingJob, record: Record, observed: Observed, coordinator_url: str, now: float
) -> tuple[list[dict[str, Any]], Record, float]:
    """A pod for every slot that has none which stays or is done; seconds to wait for the rest.

    Replacements are created at a limited rate, whatever the reason for which their predecessors
    went: something in the cluster may delete pods as fast as they come.
    """
    used, tokens = dict(record.incarnations or {}), _tokens(job, record, now)
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    missing: list[dict[str, Any]] = []
    mtbf = record.seconds_between_failures(now)
    pause = 0.0
    avoid = _avoided(record, observed)
    for slot in range(job.pods):
        valid = [pod for pod in observed.of_slot(slot) if rounds.wanted(job, pod)]
        if any(observed.stays(pod) or pod.succeeded for pod in valid):
            continue
        outside = [pod for pod in valid if pod.alive and pod.uid not in inside]
        if any(not observed.lost(pod) for pod in outside):
            continue  # Told to go before it has come to train: its successor waits for its end.
        incarnation = used.get(slot, -1) + 1
        if incarnation and tokens < 1.0:
            pause = REPLACE_SECONDS / job.pods
            break
        tokens -= 1.0 if incarnation else 0.0
        used[slot] = incarnation
        missing.append(resources.pod(job, slot, incarnation, coordinator_url, mtbf, avoid))
    if missing and not observed.hindered:  # else the same names are tried again
        record = replace(record, incarnations=used, tokens=(tokens, now))
    return missing, record, pause


def _tokens(job: TrainingJob, record: Record, now: float) -> float:
    """How many replacements may be created now."""
    most = 2.0 * job.pods + 4.0
    if record.tokens is None:
        return most
    left, at = record.tokens
    return min(most, left + max(0.0, now - at) * job.pods / REPLACE_SECONDS)


def _avoided(record: Record, observed: Observed) -> resources.Avoid:
    """Where no new pod should go: nodes that go, and rather not those that may or were slow."""
    known = observed.nodes or {}
    slow = stragglers.nodes(record.slow or {})
    hosts: dict[bool, set[str]] = {
        True: {known[name].hostname if name in known else name for name in slow},
        False: set(),
    }
    for pod in observed.pods:
        node, told = observed.node_of(pod), observed.node_notices(pod)
        if node and told and not node.gone:
            hosts[all(notice.advice for notice in told)].add(node.hostname)
    return resources.Avoid(never=tuple(sorted(hosts[False])), rather_not=tuple(sorted(hosts[True])))


def _unwanted_pods(
    job: TrainingJob, record: Record, observed: Observed, *, hold: bool
) -> list[Deletion]:
    """Pods that nobody wants: scaled down, old template, on a node that goes, long finished."""
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    doomed: list[Deletion] = []
    for pod in observed.pods:
        if (not pod.told and observed.node_lost(pod)) or (pod.lingers and not pod.deleting):
            doomed.append(_deletion(observed, pod))
        elif not pod.alive or pod.deleting:
            continue
        elif not rounds.wanted(job, pod) or pod.uid not in inside and _replaceable(observed, pod):
            doomed.append(Deletion(name=pod.name, uid=pod.uid))
    doomed.extend(_twins(job, observed, inside))
    finished = [p for p in observed.pods if p.failed and not p.lingers and not p.deleting]
    finished.sort(key=lambda pod: (pod.finished_at or pod.created_at, pod.incarnation))
    spare = len(finished) - KEEP_FINISHED
    # An incident that has left the status must not come back through the pod that it is about.
    named = {name for i in record.incidents for name in i.victims + i.collateral}
    doomed.extend(
        Deletion(name=pod.name, uid=pod.uid)
        for number, pod in enumerate(finished)
        if pod.uid not in inside and not hold and (number < spare or pod.name not in named)
    )
    return doomed


def _replaceable(observed: Observed, pod: Pod) -> bool:
    """Whether a pod of no round, that its node tells to go, is of no use any more.

    One that is only advised to go may still train, until its slot has a better one.
    """
    told = observed.node_notices(pod)
    if all(notice.advice for notice in told):
        return bool(told) and any(observed.stays(other) for other in observed.of_slot(pod.slot))
    return True


def _deletion(observed: Observed, pod: Pod) -> Deletion:
    """Delete a pod; at once where its kubelet will never confirm that it has ended.

    The fence of the checkpoint store keeps what may still run there from doing harm.
    """
    force = not pod.told and observed.node_lost(pod)
    return Deletion(name=pod.name, uid=pod.uid, force=force)


def _twins(job: TrainingJob, observed: Observed, inside: set[str]) -> list[Deletion]:
    """Slots held by two pods that both stay, because what seemed to go did not: one is enough."""
    by_slot: dict[int, list[Pod]] = {}
    for pod in observed.pods:
        if observed.stays(pod) and rounds.wanted(job, pod):
            by_slot.setdefault(pod.slot, []).append(pod)
    extra: list[Deletion] = []
    for pods in by_slot.values():
        pods.sort(key=lambda pod: (pod.uid not in inside, pod.incarnation))
        extra.extend(Deletion(name=pod.name, uid=pod.uid) for pod in pods[1:])
    return extra


def _save_directives(observed: Observed, decision: rounds.Decision) -> dict[str, Directive]:
    """Ask every member that still runs to save."""
    current = observed.round
    if decision.save is None or current is None:
        return {}
    return {
        member.uid: Directive(
            kind=DirectiveKind.SAVE,
            round=current.number,
            reason=decision.save,
            seconds=decision.save_seconds,
        )
        for member in current.members
        if rounds.state_of(member, current, observed)
        in {rounds.State.RUNNING, rounds.State.STARTING}
    }


def _dump_directives(observed: Observed) -> dict[str, Directive]:
    """Ask every member where its threads stand."""
    current = observed.round
    if current is None:
        return {}
    return {
        member.uid: Directive(
            kind=DirectiveKind.DUMP, round=current.number, reason="a worker does not get on"
        )
        for member in current.members
        if member.uid in observed.agents
    }


def _stop_directives(observed: Observed, code: int, message: str) -> dict[str, Directive]:
    """Tell every agent that the job is over."""
    number = observed.round.number if observed.round else 0
    return {
        uid: Directive(
            kind=DirectiveKind.STOP,
            round=number,
            reason="the job has ended",
            code=code,
            message=message,
        )
        for uid, agent in observed.agents.items()
        if agent.report.phase is not AgentPhase.LEAVING
    }


def _phase(record: Record, observed: Observed, decision: rounds.Decision, now: float) -> str:
    if record.open_incidents:
        return status.RECOVERING
    report = status.leader(observed)
    if record.first_step_at is not None and record.pending_since is None:
        if report and report.progress and report.progress.round_steps:
            return status.RUNNING
        if record.phase in {status.RUNNING, status.RECOVERING}:
            heard = observed.round or now - observed.listening_since < rounds.REANNOUNCE
            return status.RUNNING if heard else status.STARTING
    started = (
        observed.round or decision.form or any(pod.phase == "Running" for pod in observed.pods)
    )
    return status.STARTING if started else status.PENDING


def _blocker(job: TrainingJob, observed: Observed) -> tuple[str, str] | None:
    """What keeps a pod from starting, in words: reason and message."""
    if observed.hindered:
        return "CannotCreate", observed.hindered
    for pod in observed.pods:
        if not rounds.wanted(job, pod) or not pod.alive:
            continue
        if pod.waiting:
            return pod.waiting.reason, f"pod {pod.name} cannot start: {pod.waiting.message}"
        if pod.unschedulable:
            return "Unschedulable", f"no node can take pod {pod.name}: {pod.unschedulable}"
    return None


def _conditions(
    job: TrainingJob, record: Record, observed: Observed, decision: rounds.Decision
) -> tuple[list[dict[str, Any]], str]:
    """Conditions of a job that has not ended, and the one sentence about it."""
    report = status.leader(observed)
    going_on = record.phase == status.RUNNING
    blocked = _blocker(job, observed)
    skipped = report.restored.skipped if report and report.restored else ()
    if record.open_incidents:
        last = record.open_incidents[-1]
        message = f"recovering from {last.cause}: {last.evidence}"
    elif going_on and observed.round:
        pods, workers = len(observed.round.members), observed.round.world_size
        message = f"training on {_count(pods, 'pod')}, {_count(workers, 'worker')}"
        if decision.going:
            message += f" until another pod takes over: {decision.going}"
    elif going_on:
        message = "training; the operator has started anew and waits to hear from the pods"
    else:
        message = f"waiting for {decision.waiting or 'pods to start'}"
    troubles = [blocked] if blocked else []
    if report and report.progress and not math.isfinite(report.progress.loss or 0.0):
        text = f"the loss is {report.progress.loss} at step {report.progress.step}"
        troubles.append(("LossNotFinite", text))
    if skipped:
        troubles.append(("CheckpointDamaged", "; ".join(skipped)))
    slow = stragglers.scores(observed)
    if slow:
        troubles.append(("Straggler", slow[0].words()))
    if blocked:
        message = blocked[1] if not going_on else f"{message}; {blocked[1]}"
    if troubles:
        attention = condition("Degraded", True, troubles[0][0], "; ".join(t[1] for t in troubles))
    else:
        attention = condition("Degraded", False, "AsExpected", "nothing needs attention")
    reason = "Training" if going_on else record.phase
    return [
        condition("Ready", going_on, reason, message),
        condition("Progressing", not going_on, record.phase, message),
        attention,
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ], message


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _incident_event(incident: Incident) -> Event:
    text = f"{incident.evidence}; {incident.action}"
    kind = "Normal" if incident.cause is Cause.OPERATOR else "Warning"
    return Event(kind=kind, reason=str(incident.cause), message=text)


def _round_events(decision: rounds.Decision) -> tuple[Event, ...]:
    if decision.form is None:
        return ()
    pods = ", ".join(member.pod for member in decision.form.members)
    text = f"round {decision.form.number}: {pods} ({decision.form.reason})"
    return (Event(kind="Normal", reason="RoundFormed", message=text),)


def _end_conditions(phase: str, reason: str, message: str) -> list[dict[str, Any]]:
    done = phase == status.SUCCEEDED
    return [
        condition("Ready", False, phase, message),
        condition("Progressing", False, phase, message),
        condition("Degraded", not done, reason, message),
        condition("Suspended", False, "NotSuspended", "spec.suspend is false"),
        condition("Complete", done, reason, message if done else "training is not complete"),
        condition("Failed", not done, reason, message if not done else "the job has not failed"),
    ]


def _end(
    job: TrainingJob,
    record: Record,
    observed: Observed,
    now: float,
    fresh: tuple[Incident, ...],
    *,
    reason: str | None,
    text: str,
) -> Plan:
    """The job ends now: well when there is no reason, else for that reason."""
    phase = status.FAILED if reason else status.SUCCEEDED
    why = _camel(reason or "Completed")
    closed = tuple(
        replace(i, seconds_lost=round(now - i.at, 3), steps_lost=i.steps_lost or 0) if i.open else i
        for i in record.incidents
    )
    record = replace(
        record, phase=phase, completion_time=now, reason=why, message=text, incidents=closed
    )
    conditions = _end_conditions(phase, why, text)
    code = _exit_code(record, fresh) if reason else ExitCode.DONE
    event = Event(kind="Warning" if reason else "Normal", reason=why, message=text)
    return Plan(
        status=status.render(job, record, observed, conditions, text, now),
        directives=_stop_directives(observed, code, text),
        events=(*(_incident_event(incident) for incident in fresh), event),
        requeue=END_SECONDS,
        incidents=fresh,
    )


def _camel(reason: str) -> str:
    """A condition's reason may hold letters, digits, '_', ',' and ':' only, so no slash."""
    return reason.replace("/", ":")


def _exit_code(record: Record, fresh: tuple[Incident, ...]) -> ExitCode:
    causes = {incident.cause for incident in (fresh or record.incidents[-1:])}
    return ExitCode.INTEGRITY if Cause.INTEGRITY in causes else ExitCode.USER_ERROR


def _after_the_end(job: TrainingJob, record: Record, observed: Observed, now: float) -> Plan:
    """Nothing to decide any more: let pods end, clean up, expire."""
    since = now - (record.completion_time or now)
    running = [
        pod
        for pod in observed.pods
        if (not pod.told or pod.lingers) and (not pod.deleting or _deletion(observed, pod).force)
    ]
    late = since >= END_SECONDS
    doomed = [pod for pod in running if late and job.clean_pods != "None"]
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
    conditions = _end_conditions(record.phase, record.reason or "Completed", text)
    return Plan(
        delete=tuple(_deletion(observed, pod) for pod in doomed),
        status=status.render(job, record, observed, conditions, text, now),
        directives=_stop_directives(observed, code, text),
        remove_job=expired,
        requeue=max(0.1, min(waits)) if waits else None,
    )


def _suspended(job: TrainingJob, record: Record, observed: Observed, now: float) -> Plan:
    """Pods are told to go, which makes them save first; the job and its checkpoints stay."""
    record = _note_progress(record, observed, now)
    alive = [pod for pod in observed.pods if pod.alive]
    if record.suspended_at is None:
        record = replace(record, suspended_at=now, pending_seconds=record.pending(now))
    closed = tuple(
        replace(i, seconds_lost=round(now - i.at, 3), steps_lost=i.steps_lost or 0) if i.open else i
        for i in record.incidents
    )
    record = replace(record, phase=status.SUSPENDED, pending_since=None, incidents=closed)
    saving = f"{len(alive)} pods save and end" if alive else "no pods run"
    step = f" at step {record.checkpoint.step}" if record.checkpoint else ""
    then = "set spec.suspend to false to go on" if job.suspend else "then it goes on"
    message = f"suspended{step}: {saving}; {then}"
    conditions = [
        condition("Ready", False, "Suspended", message),
        condition("Progressing", bool(alive), "Suspended", message),
        condition("Degraded", False, "AsExpected", "nothing needs attention"),
        condition("Suspended", True, "SpecSuspend", message),
        condition("Complete", False, "NotFinished", "training is not complete"),
        condition("Failed", False, "NotFailed", "the job has not failed"),
    ]
    return Plan(
        delete=tuple(
            deletion
            for pod in observed.pods
            if (deletion := _deletion(observed, pod)).force or not pod.deleting
        ),
        status=status.render(job, record, observed, conditions, message, now),
        forget_round=not alive,
        # Told to go alone, they would train until their grace is nearly over.
        directives=_save_directives(
            observed, rounds.Decision(save=SUSPENDED, save_seconds=job.grace_seconds / 2)
        ),
        requeue=None if job.suspend or alive else 0.1,
    )
