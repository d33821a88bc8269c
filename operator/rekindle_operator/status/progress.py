"""How training goes, as its members say: taken over into the record.

The first member of a round speaks for all about steps and results; each pod for itself about
commits it knows of and about how long it was busy. What comes late or from a pod that has just
come never takes the record back.
"""

from collections.abc import Sequence
from dataclasses import replace

from rekindle.api import CheckpointReport
from rekindle.api.spec import TrainingJob
from rekindle_operator.observed.observations import Observed
from rekindle_operator.rounds import rounds, stragglers
from rekindle_operator.rounds.stragglers import Slow
from rekindle_operator.status import status
from rekindle_operator.status.status import JobRecord


def note_progress(record: JobRecord, observed: Observed, now: float) -> JobRecord:
    """Take over what the round's first agent says about steps and checkpoints."""
    checkpoint = _newest_checkpoint(record, observed)
    if checkpoint and checkpoint != record.checkpoint:
        record = replace(record, checkpoint=checkpoint)
    report = status.leader(observed)
    if report is None or not report.trains:
        return record
    first = record.first_step_at if record.first_step_at is not None else now
    record = replace(
        record, first_step_at=first, pending_seconds=record.pending(now), pending_since=None
    )
    if report.progress is None or report.progress.round_steps == 0:
        return record  # it runs, and nobody knows its steps, or not yet
    seen = observed.agents[report.uid].seen_at
    return replace(record, progress=report.progress, progress_at=seen)


def note_waiting(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> JobRecord:
    """Remember since when the job does not train and waits for what others have to give.

    That is pods with a node, or the run that somebody else holds: when that one has left, a start
    begins anew.
    """
    report = status.leader(observed)
    trains = report is not None and report.trains and not record.open_incidents
    held = report is not None and report.waits is not None
    if trains or not held and rounds.scheduled_since(job, observed) is not None:
        if record.waiting_since is None:
            return record
        if record.pending_since is not None:
            record = replace(record, pending_seconds=record.pending(now), pending_since=now)
        return replace(record, waiting_since=None)
    return record if record.waiting_since is not None else replace(record, waiting_since=now)


def _newest_checkpoint(record: JobRecord, observed: Observed) -> CheckpointReport | None:
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


def note_slow(
    job: TrainingJob, record: JobRecord, observed: Observed, found: Sequence[Slow], now: float
) -> tuple[JobRecord, Observed]:
    """Remember slow nodes; where the job wants that, their pods are advised to go."""
    slow = [
        (pod.node, pod, one.words())
        for one in reversed(found)  # a pod's slowest rank speaks for it
        if (pod := observed.pod(one.uid)) and pod.node
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
