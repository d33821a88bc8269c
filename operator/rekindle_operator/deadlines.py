"""Ends of a job that no incident brings: its deadlines, and pods that will never be accepted."""

from rekindle.contract import Cause
from rekindle_operator import conditions
from rekindle_operator.observed import Observed
from rekindle_operator.retries import Verdict
from rekindle_operator.spec import TrainingJob
from rekindle_operator.status import Record


def passed(job: TrainingJob, record: Record, observed: Observed, now: float) -> Verdict | None:
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
    blocked = conditions.blocker(job, observed)
    message = f"{late[0]} of {late[1]:.0f} s has passed"
    if blocked:
        message += f"; {blocked[1]}"
    reason = blocked[0] if blocked and late[0].endswith("startup") else str(Cause.TIMEOUT)
    return Verdict(retry=False, action="", reason=reason, message=message)


def left(job: TrainingJob, record: Record, now: float) -> list[float]:
    """Seconds until the deadlines of the job."""
    left = []
    if job.startup_deadline is not None and record.pending_since is not None:
        left.append(record.pending_since + job.startup_deadline - now)
    if job.active_deadline is not None and record.start_time is not None:
        left.append(record.start_time + record.suspended_seconds + job.active_deadline - now)
    return [max(seconds, 0.1) for seconds in left]


def refusal(observed: Observed) -> Verdict | None:
    """The API server will never accept the pods that this template makes."""
    if observed.refused is None:
        return None
    message = f"the API server refuses the pod: {observed.refused}; correct spec.template"
    return Verdict(retry=False, action="", reason="PodRefused", message=message)
