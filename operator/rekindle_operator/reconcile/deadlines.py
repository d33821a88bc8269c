"""Ends of a job that no incident brings: its deadlines, and pods that will never be accepted.

Each deadline counts what its name says:

- ``pending`` counts for as long as the job waits for what others have to give: a node for each of
  minReplicas pods, quota to create them, its turn in a queue, gates to be taken away, a run that
  somebody else holds. It begins anew whenever that wait does, in a recovery, too; there is none
  unless the job names one, because capacity comes and goes and a job that waits for it is well.
- ``startup`` counts from when so many pods have a node, until training runs for the first time and
  for the first time after a suspension. Pulling images is in it, since that is up to the job. It
  begins anew when their number falls below that before training runs. A recovery is not a start.
- ``active`` counts from the start of the job to its end, without suspensions.
"""

from rekindle.api import Cause
from rekindle.api.spec import TrainingJob
from rekindle_operator.incidents.retries import Verdict
from rekindle_operator.observed.observations import Observed
from rekindle_operator.rounds import rounds
from rekindle_operator.status import conditions
from rekindle_operator.status.status import JobRecord


def _running(
    job: TrainingJob, record: JobRecord, observed: Observed
) -> list[tuple[str, float, float]]:
    """The deadlines that run: name, seconds, and when it began."""
    found = []
    if job.pending_deadline is not None and record.waiting_since is not None:
        found.append(("pending", job.pending_deadline, record.waiting_since))
    scheduled = rounds.scheduled_since(job, observed)
    starts = record.pending_since is not None and record.waiting_since is None
    if job.startup_deadline is not None and starts and scheduled is not None:
        began = max(scheduled, record.pending_since or 0.0)
        found.append(("startup", job.startup_deadline, began))
    if job.active_deadline is not None and record.start_time is not None:
        began = record.start_time + record.suspended_seconds
        found.append(("active", job.active_deadline, began))
    return found


def passed(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> Verdict | None:
    """Has a deadline of the job passed, and what was in the way."""
    late = [one for one in _running(job, record, observed) if now - one[2] >= one[1]]
    if not late:
        return None
    name, seconds, _ = late[-1]
    blocked = conditions.blocker(job, observed)
    message = f"spec.deadlines.{name} of {seconds:.0f} s has passed"
    if blocked:
        message += f"; {blocked[1]}"
    reason = blocked[0] if blocked and name != "active" else str(Cause.TIMEOUT)
    out = next((i for i in record.open_incidents if i.cause is Cause.STORE_LOST), None)
    if out is not None and not blocked:
        message += f"; {out.evidence}"
        reason = reason if name == "active" else str(Cause.STORE_LOST)
    return Verdict(retry=False, action="", reason=reason, message=message)


def left(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> list[float]:
    """Seconds until the deadlines of the job."""
    running = _running(job, record, observed)
    return [max(began + seconds - now, 0.1) for _, seconds, began in running]


def refusal(observed: Observed) -> Verdict | None:
    """The API server will never accept the pods that this template makes."""
    if observed.refused is None:
        return None
    message = f"the API server refuses the pod: {observed.refused}; correct spec.template"
    return Verdict(retry=False, action="", reason="PodRefused", message=message)
