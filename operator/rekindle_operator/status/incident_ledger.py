"""The record of what went wrong: each event charged once, explained later, closed, and measured.

`detection` finds one event and `retries` judges it; here it is put into the memory that survives
the operator. An incident passes through up to four plans: it is charged when it is found, put right
when the kubelet tells what a broken lifeline could not, closed when a later round trains, and
measured when all members of that round have told where the time went.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rekindle.api.spec import TrainingJob
from rekindle_operator.failures.pod_endings import UNEXPLAINED
from rekindle_operator.incidents import detection, incidents, recovery, retries
from rekindle_operator.incidents.incidents import Incident
from rekindle_operator.observed.observations import Observed
from rekindle_operator.rounds import rounds
from rekindle_operator.status import status
from rekindle_operator.status.status import JobRecord


def note_operator(record: JobRecord, observed: Observed) -> tuple[JobRecord, tuple[Incident, ...]]:
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


def judges(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> bool:
    """Whether losses can be told apart: an operator that has just begun may not know the round.

    Until agents have told it in which one a pod was that is going, that would be charged as one
    outside of any, and then again as a member of its round.
    """
    known = observed.round.number if observed.round else 0
    return known >= record.round or not rounds.yet_to_tell(job, observed, now)


def _ended_unseen(record: JobRecord, observed: Observed) -> int:
    """The number of the round that trained when it was last seen, and of which nobody is left."""
    gone = observed.round is None and record.phase == status.RUNNING
    return record.round if gone and record.round > record.charged_round else 0


def note_incidents(
    job: TrainingJob, record: JobRecord, observed: Observed, now: float
) -> tuple[JobRecord, tuple[Incident, ...], retries.Verdict | None, detection.Detection]:
    """Find what has gone wrong since, charge it, and say whether there is another try.

    The last part is what could not be charged yet.
    """
    if not judges(job, record, observed, now):
        return record, (), None, detection.Detection()
    record, verdict = _note_explanations(job, record, observed, now)
    if verdict is not None:
        return record, (), verdict, detection.Detection()
    fresh: list[Incident] = []
    known = record.incidents
    step = record.progress.step if record.progress else None
    calm = _is_calm(job, record, observed, now)
    while True:
        found = detection.detect(
            job,
            observed,
            known,
            charged=record.charged_round,
            ended=_ended_unseen(record, observed),
            progress=step,
            now=now,
            calm=calm,
        )
        if found.collateral:
            more = found.collateral
            known = _with_collateral(known, observed, more)
            record = replace(record, incidents=_with_collateral(record.incidents, observed, more))
            continue
        if found.victims:
            known = _with_victims(known, found)
            ended = max(record.charged_round, found.round)
            known_now = _with_victims(record.incidents, found)
            record = replace(record, incidents=known_now, charged_round=ended)
            continue
        if found.incident is None:
            return record, tuple(fresh), None, found
        record, incident, verdict = _charged(record, job, found.incident, observed, now)
        fresh.append(incident)
        known = (*known, incident)  # not those of the record: the oldest may have left it just now
        if not verdict.retry:
            return record, tuple(fresh), verdict, detection.Detection()


def _is_calm(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> bool:
    """Whether all train on although some have to go, as far as nothing else has gone wrong."""
    if not any(map(observed.notices_of, observed.pods)):
        return False
    decision = rounds.decide(job, observed, last_number=record.round, hold=True, now=now)
    return bool(decision.going)


def _note_explanations(
    job: TrainingJob, record: JobRecord, observed: Observed, now: float
) -> tuple[JobRecord, retries.Verdict | None]:
    """Take over what has been said since about pods that vanished; a verdict if that ends the job.

    The budget that has paid gets it back, and the one of the cause pays; where none had to pay,
    because nobody stopped training for that pod, none does.
    """
    for index, incident in enumerate(record.incidents):
        better = detection.explained(job, incident, observed)
        if better is None:
            continue
        verdict = None
        history, counts = record.history, dict(record.counts or {})
        if better.klass != incident.klass:
            counts[incident.klass] = max(counts.get(incident.klass, 0) - 1, 0)
            counts[better.klass] = counts.get(better.klass, 0) + 1
        returned = retries.uncharge(history, incident)
        if better.klass != incident.klass and returned != history:
            verdict = retries.judge(
                job,
                _in_budgets(record, better),
                returned,
                checkpoint=record.checkpoint.step if record.checkpoint else None,
                started=record.first_step_at is not None,
                training=False,
                now=now,
            )
            better = replace(better, action=verdict.action)
            history = retries.charge(returned, _in_budgets(record, better), job, now)
        known = (*record.incidents[:index], better, *record.incidents[index + 1 :])
        record = replace(record, incidents=known, history=history, counts=counts)
        if verdict is not None and not verdict.retry:
            return record, verdict
    return record, None


def newly_explained(
    before: tuple[Incident, ...], after: tuple[Incident, ...]
) -> tuple[Incident, ...]:
    """The incidents of which it has become known what they were."""
    unknown = {i.at for i in before if i.evidence.endswith(UNEXPLAINED)}
    return tuple(i for i in after if i.at in unknown and not i.evidence.endswith(UNEXPLAINED))


def note_rollback(record: JobRecord, observed: Observed) -> tuple[JobRecord, tuple[Incident, ...]]:
    """Take over what the trainer has put right by itself; what it does again is rework."""
    found = incidents.of_the_trainer(observed, record.incidents)
    if found is None:
        return record, ()
    known = incidents.kept((*record.incidents, found))
    rework = record.rework_seconds + (found.seconds_lost or 0.0)
    return replace(record, incidents=known, rework_seconds=rework), (found,)


def note_damage(
    record: JobRecord, observed: Observed, now: float
) -> tuple[JobRecord, tuple[Incident, ...]]:
    """Tell of damaged checkpoints that the current round has passed over, once; it costs no budget.

    Where they could not be marked as bad, later rounds come upon the same ones again.
    """
    number = observed.round.number if observed.round else 0
    alone = not any(i.round and (i.open or i.recovered_in == number) for i in record.incidents)
    found = incidents.of_the_store(observed, now, alone=alone)
    if found is None:
        return record, ()
    mark = hashlib.sha256(found.evidence.encode()).hexdigest()[:12]
    if mark == record.damage_told:
        return record, ()
    known = (*record.incidents, found)[-incidents.KEEP :]
    return replace(record, incidents=known, damage_told=mark), (found,)


def _charged(
    record: JobRecord, job: TrainingJob, incident: Incident, observed: Observed, now: float
) -> tuple[JobRecord, Incident, retries.Verdict]:
    """Judge a new incident, and put it into the record."""
    if record.first_step_at is not None:
        incident = incidents.of_a_started_job(incident)
    training = incident.round == 0 and record.first_step_at is not None and _is_whole(observed)
    verdict = retries.judge(
        job,
        _in_budgets(record, incident),
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
    history = retries.charge(record.history, _in_budgets(record, incident), job, now)
    return record.with_incident(incident, history), incident, verdict


def _in_budgets(record: JobRecord, incident: Incident) -> Incident:
    """The incident as budgets see it: its step means something only where our trainer counts them.

    What a program reports now and then may be the same step for errors that are not.
    """
    counted = record.progress is not None and record.progress.productive_seconds > 0
    return incident if counted else replace(incident, step=None)


def _with_collateral(
    known: tuple[Incident, ...], observed: Observed, pods: tuple[str, ...]
) -> tuple[Incident, ...]:
    """Name more pods in the incident of the current round."""
    number = observed.round.number if observed.round else 0
    return tuple(
        replace(i, collateral=(*i.collateral, *pods)) if i.round == number else i for i in known
    )


def _with_victims(known: tuple[Incident, ...], found: detection.Detection) -> tuple[Incident, ...]:
    """Name more pods in a known incident, also those that seemed to have fallen with others."""
    return tuple(
        replace(
            i,
            victims=(*i.victims, *found.victims),
            collateral=tuple(name for name in i.collateral if name not in found.victims),
        )
        if i == found.of
        else i
        for i in known
    )


def _is_whole(observed: Observed) -> bool:
    """Whether there is a round of which no member is lost or has failed."""
    current = observed.round
    if current is None:
        return False
    states = {rounds.state_of(member, current, observed) for member in current.members}
    return not states & {rounds.State.LOST, rounds.State.FAILED, rounds.State.HUNG}


def _doomed(
    job: TrainingJob, record: JobRecord, observed: Observed, now: float
) -> frozenset[str] | None:
    """Members for which the current round is about to end; None when somebody has stopped."""
    current = observed.round
    stopped = {rounds.State.SAVED, rounds.State.STOPPED}
    if current is None or not _is_whole(observed):
        return None
    if stopped & {rounds.state_of(member, current, observed) for member in current.members}:
        return None
    calm = _is_calm(job, record, observed, now)
    found = detection.of_round(job, observed, current, progress=None, calm=calm, now=now).incident
    return frozenset(found.victims if found else ())


def resolve(
    job: TrainingJob, record: JobRecord, observed: Observed, now: float
) -> tuple[JobRecord, tuple[Incident, ...]]:
    """Close incidents once a round that came after them trains, or the one before has gone on.

    Where its first step becomes known only later, so does what the incidents have cost in steps.
    """
    report, current = status.leader(observed), observed.round
    if report is None or current is None or not report.trains:
        return record, ()
    progress = report.progress if report.progress and report.progress.round_steps else None
    began = progress.step - progress.round_steps if progress else None
    resumed_from = report.restored.step if report.restored else began
    step_seconds = progress.productive_seconds / max(progress.step, 1) if progress else 0.0
    closed: list[Incident] = []
    result: list[Incident] = []
    rework = 0.0
    doomed = _doomed(job, record, observed, now) if record.open_incidents else None
    for incident in record.incidents:
        if incident.open and current.number > incident.round:
            stood = recovery.stood_still(observed) if not closed else None
            closed.append(
                incidents.resolve(
                    incident,
                    resumed_from=resumed_from,
                    step_seconds=step_seconds,
                    current=current.number,
                    stood=stood,
                    now=now,
                )
            )
            result.append(closed[-1])
        elif (
            incident.open
            and doomed is not None
            and not doomed.intersection(incident.victims)
            and incidents.went_on(incident, progress, now)
        ):
            closed.append(incidents.taken_back(incident, current.number))
            result.append(closed[-1])
            history = retries.uncharge(record.history, incident)
            record = replace(record, history=history, charged_round=current.number - 1)
        elif incident.recovered_in == current.number and incident.resumed_from is None:
            result.append(incidents.resumed(incident, resumed_from))
        else:
            result.append(incident)
            continue
        rework += (result[-1].steps_lost or 0) * step_seconds
    record = _add_restart(record, closed, now)
    rework += record.rework_seconds
    return replace(record, incidents=tuple(result), rework_seconds=rework), tuple(closed)


def _add_restart(record: JobRecord, closed: Sequence[Incident], now: float) -> JobRecord:
    """Book the time for which these, which end together, have kept training from going on."""
    since = min((incident.at - incident.silent for incident in closed), default=now)
    return replace(record, restart_seconds=record.restart_seconds + max(0.0, now - since))


def measure(record: JobRecord, observed: Observed) -> tuple[JobRecord, tuple[Incident, ...]]:
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


def close_all(record: JobRecord, now: float) -> JobRecord:
    """Close what is open: training stops here, whatever happened before."""
    record = _add_restart(record, record.open_incidents, now)
    closed = tuple(
        replace(
            i,
            seconds_lost=round(now - i.at + i.silent, 3),
            steps_lost=i.steps_lost or _none_lost(i),
        )
        if i.open
        else i
        for i in record.incidents
    )
    return replace(record, incidents=closed)


def _none_lost(incident: Incident) -> int | None:
    """What is said of the steps of an incident after which nobody has gone on."""
    return None if incident.round and incident.step is None else 0
