"""Whether there is another try after an incident, and how long it waits.

Budgets are kept per class and charged once per incident. Fatal means certain: before any progress
only what the script itself has raised ends a job, and what it relies on (`api.CERTAIN`);
afterwards an error at the same step as the one before.

Progress pays debts back: errors before the newest checkpoint count no more. Where steps are
unknown, or come now and then from a program that is not ours, time stands for both: nobody can say
that an error is the same as another, so only the budget ends the job; and a round that has trained
for STEADY has got on, so that what was before it is forgotten. A job has made progress at all once
a round of it has trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rekindle.api import CERTAIN, Cause
from rekindle.api.spec import Budget, TrainingJob
from rekindle_operator.incidents.incidents import Incident

BACKOFF_MOST = 300.0
"""Longest pause in seconds between two pods for one index."""
BACKOFF_MEMORY = 2 * BACKOFF_MOST
"""Seconds without an incident after which the pauses begin anew."""
STEADY = 600.0
"""Seconds of training in one round that count as progress where steps are unknown. Kubernetes
forgets the crashes of a container after as long."""
FATAL = {Cause.CONFIGURATION, Cause.INTEGRITY, Cause.START_FAILED}
"""Of those, the ones that no retry can change."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether there is another try."""

    retry: bool
    action: str
    """For the incident."""
    reason: str = ""
    """For the Failed condition."""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    """What is spent of each budget; kept in status.accounting.spent and nowhere else.

    status.restarts counts incidents, also those that no budget pays.
    """

    user: tuple[tuple[float, int | None], ...] = ()
    """(when, at which step if that is known) of user errors."""
    infrastructure: tuple[float, ...] = ()
    preemptions: int = 0


def uncharge(history: History, incident: Incident) -> History:
    """The history without one incident that was charged; others may be of its moment."""
    if incident.klass == "preemption":
        return replace(history, preemptions=max(history.preemptions - 1, 0))
    user, losses = history.user, history.infrastructure
    times = [at for at, _ in user] if incident.klass == "user" else losses
    one = next((i for i, at in enumerate(times) if abs(at - incident.at) <= 0.01), None)
    if one is None:
        return history
    if incident.klass == "user":
        return replace(history, user=user[:one] + user[one + 1 :])
    return replace(history, infrastructure=losses[:one] + losses[one + 1 :])


def judge(
    job: TrainingJob,
    incident: Incident,
    history: History,
    *,
    checkpoint: int | None,
    started: bool,
    training: bool,
    now: float,
) -> Verdict:
    """Say whether there is another try.

    ``checkpoint`` is the step of the newest commit, ``started`` whether the job has ever
    trained, ``training`` whether it is at it, untouched by this incident. ``history`` does not hold
    this incident yet. The incident's step counts here, and is None unless our trainer counts.
    """
    what = incident.evidence
    if training:
        return Verdict(retry=True, action="training goes on without it; another pod follows")
    fatal = incident.cause in FATAL and not (incident.cause is Cause.START_FAILED and started)
    if fatal and not incident.retry:
        return _fail(incident, f"{incident.cause}: {what}", "no retry: it would end the same way")
    if incident.klass == "user":
        step = incident.step
        if not started and incident.cause in CERTAIN and not incident.retry:
            return _fail(
                incident, f"{what} (before the first step)", "no retry before any progress"
            )
        same = step is not None and any(where == step for _, where in history.user)
        if same and incident.round:
            return _fail(incident, f"{what} (twice at step {step})", "no retry: same step twice")
        fresh = [
            at
            for at, where in _owed(history, incident)
            if now - at < job.user_budget.window
            and (checkpoint is None or where is None or checkpoint <= where)
        ]
        return _within(incident, job.user_budget, len(fresh), "user")
    if incident.klass == "preemption":
        return _within(incident, job.preemption_budget, history.preemptions, "preemption")
    window = job.infrastructure_budget.window
    recent = [at for at in history.infrastructure if now - at < window]
    return _within(incident, job.infrastructure_budget, len(recent), "infrastructure")


def _owed(history: History, incident: Incident) -> tuple[tuple[float, int | None], ...]:
    """The user errors that the round which this incident ended has not made good by its time."""
    return () if incident.step is None and incident.ran >= STEADY else history.user


def _within(incident: Incident, budget: Budget, spent: int, name: str) -> Verdict:
    if budget.max is not None and spent >= budget.max:
        message = (
            f"{incident.evidence}; spec.restart.{name}.max is {budget.max} and spent: "
            f"remove the cause, or raise it and create the job again; "
            f"it goes on from its checkpoint"
        )
        return _fail(incident, message, f"no retry: budget of {budget.max} is spent")
    left = "" if budget.max is None else f" ({spent + 1} of {budget.max})"
    return Verdict(retry=True, action=f"go on from the newest state{left}")


def _fail(incident: Incident, message: str, action: str) -> Verdict:
    reason = incident.reason or str(incident.cause)
    return Verdict(retry=False, action=action, reason=reason, message=message)


def charge(history: History, incident: Incident, job: TrainingJob, now: float) -> History:
    """The history with this incident; entries that no window can reach any more are dropped."""
    if incident.klass == "user":
        owed = _owed(history, incident)
        kept = [(at, s) for at, s in owed if now - at < job.user_budget.window]
        return replace(history, user=(*kept, (incident.at, incident.step))[-100:])
    if incident.klass == "preemption":
        return replace(history, preemptions=history.preemptions + 1)
    window = job.infrastructure_budget.window
    recent = [at for at in history.infrastructure if now - at < window]
    return replace(history, infrastructure=(*recent, incident.at)[-1000:])


def backoff(incidents: Sequence[Incident], now: float) -> float:
    """Seconds to wait before pods are replaced, when incident follows incident without progress.

    A pod that ended outside of any round has made none, whatever the others do meanwhile. What took
    no pod, another operator, a rollback or a false alarm, neither adds to the pause nor begins it
    anew.
    """
    fruitless, after, newest = 0, now, now
    for incident in reversed(incidents):
        if incident.klass == "nobody" or incident.unfounded:
            continue
        idle = incident.round == 0 and after - incident.at < BACKOFF_MEMORY
        lost = incident.klass == "infrastructure" and incident.open
        if not idle and not lost:
            break
        newest = incident.at if fruitless == 0 else newest
        fruitless, after = fruitless + 1, incident.at
    if fruitless < 3:
        return 0.0
    return max(0.0, newest + min(2.0 ** (fruitless - 2), BACKOFF_MOST) - now)
