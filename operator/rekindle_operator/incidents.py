"""Why a round ended, what that may cost, and whether there is another try.

One event shows up many times: a pod's exit code, its node's taint, errors of peers that lost it.
All of that is one incident, named after the earliest cause and not after the loudest symptom: when
a pod was lost or told to go, errors of its peers are collateral. Only when no pod gives a cause are
the errors themselves read, and a short settle time lets a cause arrive that is still on its way.

Budgets are kept per class and charged once per incident. A user's error is not retried when it
cannot help: before any progress, or at the same step as the one before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from rekindle.contract import Cause, ExitCode, Hang, Member, Outcome, Round
from rekindle_operator.observed import Observed, Pod
from rekindle_operator.rounds import State, seats, state_of, wanted
from rekindle_operator.spec import Budget, TrainingJob
from rekindle_operator.timestamps import parse_time

SETTLE_ERROR = 3.0
"""Seconds between a worker's error and the verdict: a lost pod may be the cause, not seen yet."""
SETTLE_COLLATERAL = 10.0
"""The same when the error itself says that a peer is gone."""
SAME_EVENT = 10.0
"""Seconds after a round's incident in which the end of another of its pods counts as part of it."""
BACKOFF_MOST = 300.0
"""Longest pause in seconds between two pods for one slot."""
BACKOFF_MEMORY = 2 * BACKOFF_MOST
"""Seconds without an incident after which the pauses begin anew."""
SETTLE_HANG = 5.0
"""Seconds between the first word of a hang and the verdict: all ranks tell where they stand."""
KEEP = 20
"""Incidents kept in the status."""

UNEXPLAINED = "its first process has died, of what is not known yet"
"""Ends the evidence of a lost pod until the kubelet says more."""

USER = {
    Cause.USER_ERROR,
    Cause.OUT_OF_MEMORY,
    Cause.CONFIGURATION,
    Cause.INTEGRITY,
    Cause.START_FAILED,
}
"""Causes that the user's program, data or manifest is charged with."""
FATAL = {Cause.CONFIGURATION, Cause.INTEGRITY, Cause.START_FAILED}
"""Of those, the ones that no retry can change."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One event that ended a round or a pod, as in status.incidents."""

    at: float
    round: int
    """The round that it ended; 0 when it ended a pod outside of any."""
    cause: Cause
    evidence: str
    victims: tuple[str, ...]
    collateral: tuple[str, ...] = ()
    step: int | None = None
    """The last completed step before it."""
    resumed_from: int | None = None
    steps_lost: int | None = None
    seconds_lost: float | None = None
    action: str = ""
    recovered_in: int | None = None
    """The round in which training went on."""
    recovery: Mapping[str, float] = field(default_factory=dict)
    """Where the time went, in seconds by phase (see recovery); empty until all have measured it."""
    restored: tuple[tuple[str, str], ...] = ()
    """(pod, where its state came from) of each member of the round that went on."""
    stacks: str = ""
    """Of a hang: where the rank to blame stood."""
    silent: float = 0.0
    """Of a hang: seconds for which nobody had got on when it was noticed."""
    reason: str | None = None
    """Stable code of the outcome, Store/R5 for example. Not kept in the status."""

    @property
    def klass(self) -> str:
        """The budget that it is charged to: user, infrastructure or preemption.

        That the operator itself was away, or that the trainer went back by itself, is told and
        charged to nobody.
        """
        if self.cause in USER:
            return "user"
        if self.cause is Cause.OPERATOR:
            return "operator"
        if self.cause is Cause.ROLLED_BACK:
            return "trainer"
        return "preemption" if self.cause is Cause.PREEMPTED else "infrastructure"

    @property
    def open(self) -> bool:
        """Whether training has not gone on since."""
        return self.seconds_lost is None


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What was found: an incident, or a failure that is not understood yet."""

    incident: Incident | None = None
    settle: float | None = None
    """Seconds until a verdict can be given."""
    collateral: tuple[str, ...] = ()
    """Pods that belong to the known incident of the current round."""
    dump: bool = False
    """Whether to ask all members where their threads stand."""


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
    """What budgets are counted from; kept in status.accounting."""

    user: tuple[tuple[float, int], ...] = ()
    """(when, at which step) of user errors."""
    infrastructure: tuple[float, ...] = ()
    preemptions: int = 0


def detect(
    job: TrainingJob,
    observed: Observed,
    known: Sequence[Incident],
    *,
    charged: int,
    progress: int,
    now: float,
    calm: bool = False,
) -> Detection:
    """Find the incident of the current round, or of a pod outside of it, that is not known yet.

    ``charged`` is the highest round whose incident is known, ``progress`` the newest completed
    step that the status knows. While ``calm``, members that have to go train on until others can
    take over: that is an incident only once it stops the round.
    """
    current = observed.round
    fresh = current is not None and current.number > charged
    if current is not None and fresh:
        found = _of_round(job, observed, current, progress, calm, now)
        if found.incident or found.settle is not None:
            return found
    inside = {m.uid for m in current.members} if current else set()
    # Who is in this round has survived what ended an earlier one, and can be lost all the same.
    past = [i for i in known if current and 0 < i.round < current.number]
    named = _named(i for i in known if i not in past)
    gone = named | _named(past)
    lost = [
        pod
        for pod in observed.pods
        if pod.name not in (named if pod.uid in inside else gone)
        and not (fresh and pod.uid in inside)
        and _counts(job, observed, pod)
        and _lost_outside(job, observed, pod)
    ]
    last = next((i for i in reversed(known) if current and i.round == current.number), None)
    if last is not None and now - last.at <= SAME_EVENT:
        more = tuple(pod.name for pod in lost if pod.uid in inside)
        if more:
            return Detection(collateral=more)
    if not lost:
        return Detection()
    found_causes = sorted((_why_pod(observed, pod) for pod in lost), key=lambda why: why[0] in USER)
    cause, evidence, reason = found_causes[0]
    return Detection(
        incident=Incident(
            at=now,
            round=0,
            cause=cause,
            evidence=evidence,
            victims=tuple(pod.name for pod in lost),
            step=progress or None,
            reason=reason,
        )
    )


def _named(known: Iterable[Incident]) -> set[str]:
    """Pods that these incidents name."""
    return {name for incident in known for name in incident.victims + incident.collateral}


def _lost_outside(job: TrainingJob, observed: Observed, pod: Pod) -> bool:
    """Whether a pod of no running round has failed, or has to go without a successor."""
    if pod.failed:
        return True
    if not pod.alive or observed.may_stay(pod):
        return False
    return not any(
        wanted(job, other) and observed.stays(other) for other in observed.of_slot(pod.slot)
    )


def _counts(job: TrainingJob, observed: Observed, pod: Pod) -> bool:
    """Whether a pod's end is an event, rather than something that the operator wanted."""
    return wanted(job, pod) and pod.uid not in observed.retired and not job.suspend


def _of_round(
    job: TrainingJob, observed: Observed, current: Round, progress: int, calm: bool, now: float
) -> Detection:
    states = {m.uid: state_of(m, current, observed) for m in current.members}
    gone: list[tuple[Member, Cause, str, str | None]] = []
    for member in current.members:
        pod = observed.pod(member.uid)
        if member.uid in observed.retired or job.suspend or (pod and not wanted(job, pod)):
            continue
        if states[member.uid] is State.DONE:
            continue
        lost = states[member.uid] is State.LOST
        leaves = pod and pod.alive and not observed.stays(pod) and not calm
        if leaves and pod and observed.may_stay(pod):
            # Only advised to go: it is in the next round, too, unless another takes its place.
            leaves = all(other.uid != pod.uid for other, _ in seats(job, observed))
        if lost or leaves:
            saved = State.SAVED in states.values()
            gone.append((member, *_why_member(observed, member, pod, saved)))
    failed = [m for m in current.members if states[m.uid] is State.FAILED]
    step = max(progress, *(_step_of(observed, m, current) for m in current.members))

    def incident(
        cause: Cause, evidence: str, victims: list[str], reason: str | None = None
    ) -> Incident:
        others = [m.pod for m in failed if m.pod not in victims]
        return Incident(
            at=now,
            round=current.number,
            cause=cause,
            evidence=evidence,
            victims=tuple(victims),
            collateral=tuple(others),
            step=step,
            reason=reason,
        )

    if gone:
        # The environment explains more than a program does: it comes first.
        gone.sort(key=lambda found: found[1] in USER)
        _, cause, evidence, reason = gone[0]
        return Detection(incident=incident(cause, evidence, [m.pod for m, *_ in gone], reason))
    if not failed and State.HUNG in states.values():
        left, blamed_pod, evidence, hang = _hang(observed, current, now)
        if left > 0:
            return Detection(settle=left, dump=True)
        hung = incident(Cause.HUNG, evidence, [blamed_pod])
        stood = round(hang.idle, 3)
        return Detection(incident=replace(hung, stacks=hang.stacks or "", silent=stood))
    if not failed:
        return Detection()
    agents = [(observed.agents[m.uid], m) for m in failed]
    since = min(agent.phase_since for agent, _ in agents)
    blamed = [
        (agent.report.outcome.at, m, agent.report.outcome)
        for agent, m in agents
        if agent.report.outcome and agent.report.outcome.cause != Cause.PEER_LOST
    ]
    left = since + (SETTLE_ERROR if blamed else SETTLE_COLLATERAL) - now
    if left > 0:
        return Detection(settle=left)
    if not blamed:
        evidence = "workers lost contact with each other although all pods are alive"
        first = agents[0][0].report.outcome
        if first:
            evidence += f": {first.message}"
        return Detection(incident=incident(Cause.PEER_LOST, evidence, [m.pod for m in failed]))
    _, member, outcome = min(blamed, key=lambda b: b[0])
    cause, evidence, reason = _why_outcome(outcome)
    return Detection(incident=incident(cause, evidence, [member.pod], reason))


def _hang(observed: Observed, current: Round, now: float) -> tuple[float, str, str, Hang]:
    """Seconds until a verdict about a hang; pod to blame, evidence, what its agent says.

    All ranks stand still. To blame is one whose main thread does something else than wait for
    others; failing that, the one that is fewest steps on, and last the one that is silent longest.
    """
    found: list[tuple[Hang, str, float]] = []
    for member in current.members:
        agent = observed.agents.get(member.uid)
        if agent is None or agent.report.round is None or agent.report.round.key != current.key:
            continue
        if agent.report.hang is not None:
            found.append((agent.report.hang, member.pod, agent.hang_since or now))
    told = len(found) == len(current.members) and all(hang.stacks for hang, *_ in found)
    left = 0.0 if told else min(since for *_, since in found) + SETTLE_HANG - now
    hang, pod, _ = min(
        found, key=lambda item: (item[0].waits is not False, item[0].step, -item[0].idle)
    )
    waiting = sum(other.waits is True for other, *_ in found)
    evidence = (
        f"rank {hang.rank} on {pod} has not got on for {hang.idle:.0f} s ({hang.phase}, after step "
        f"{hang.step}; limit {hang.timeout:.0f} s)"
    )
    if waiting:
        evidence += f"; {waiting} other pod{'s' * (waiting > 1)} wait for it"
    return left, pod, evidence, hang


def of_the_trainer(observed: Observed, known: Sequence[Incident]) -> Incident | None:
    """The newest rollback of the current round, unless it is known.

    The trainer has put it right itself, within the round; it is told, and costs no budget.
    """
    current = observed.round
    agent = observed.agents.get(current.members[0].uid) if current else None
    if current is None or agent is None or agent.report.rollback is None:
        return None
    report, back = agent.report, agent.report.rollback
    if report.round is None or report.round.key != current.key:
        return None
    at = round(back.at, 3)
    if any(i.cause is Cause.ROLLED_BACK and abs(i.at - at) < 0.01 for i in known):
        return None
    seconds = report.progress.productive_seconds if report.progress else 0.0
    per_step = seconds / report.progress.step if report.progress and report.progress.step else 0.0
    lost = max(0, back.at_step - back.to_step)
    return Incident(
        at=at,
        round=0,
        cause=Cause.ROLLED_BACK,
        evidence=back.reason,
        victims=(),
        step=back.at_step,
        resumed_from=back.to_step,
        steps_lost=lost,
        seconds_lost=round(lost * per_step, 3),
        action=f"went back to step {back.to_step} by itself; no pod was restarted",
    )


def _step_of(observed: Observed, member: Member, current: Round) -> int:
    """The newest step of this round that a member has reported."""
    agent = observed.agents.get(member.uid)
    if agent is None or not agent.report.round or agent.report.round.key != current.key:
        return 0
    report = agent.report
    return max(
        report.progress.step if report.progress else 0,
        (report.outcome.step or 0) if report.outcome else 0,
    )


def _why_member(
    observed: Observed, member: Member, pod: Pod | None, peers_saved: bool
) -> tuple[Cause, str, str | None]:
    if pod is None:
        agent = observed.agents.get(member.uid)
        if agent and agent.report.notice:
            return Cause.PREEMPTED, f"{member.pod} was told to go: {agent.report.notice}", None
        if peers_saved:
            # While nobody watched, its notice made all ranks agree to save: a loss cannot do that.
            return Cause.PREEMPTED, f"{member.pod} was told to go and is gone; all saved", None
        return Cause.POD_LOST, f"pod {member.pod} is gone", None
    return _why_pod(observed, pod)


def _why_pod(observed: Observed, pod: Pod) -> tuple[Cause, str, str | None]:
    """Cause, evidence and reason code of one pod's end, or of its being about to end."""
    if pod.disruption:
        return Cause.PREEMPTED, f"{pod.name}: {pod.disruption}", None
    if observed.node_lost(pod):
        return Cause.NODE_LOST, f"{pod.name}: {observed.node_going(pod)}", None
    if pod.forced and not pod.told:
        return Cause.POD_LOST, f"{pod.name} was deleted by force, without time to save", None
    going = None if pod.told else observed.going(pod)
    if going:
        return Cause.PREEMPTED, f"{pod.name}: {going}", None
    agent = observed.agents.get(pod.uid)
    told = pod.outcome is not None and pod.outcome.code in {ExitCode.SAVED, ExitCode.PREEMPTED}
    if pod.deleting or told or (agent and agent.report.notice):
        code = f", exit code {pod.exit_code}" if pod.exit_code is not None else ""
        return Cause.PREEMPTED, f"{pod.name} was told to go (SIGTERM){code}", None
    if node_going := observed.node_going(pod):
        return Cause.PREEMPTED, f"{pod.name}: {node_going}", None
    if not pod.told and pod.vanished_at is not None:
        return Cause.POD_LOST, f"{pod.name}: {UNEXPLAINED}", None
    if pod.exit_reason == "OOMKilled":
        text = f"{pod.name} was killed for using more memory than its limit (OOMKilled)"
        return Cause.OUT_OF_MEMORY, text, None
    if pod.outcome is not None:
        cause, evidence, reason = _why_outcome(pod.outcome)
        return cause, f"{pod.name}: {evidence}", reason
    if pod.exit_reason in {"StartError", "ContainerCannotRun"} or pod.exit_code in {126, 127, 128}:
        return Cause.START_FAILED, f"{pod.name} could not start: {pod.exit_message}".strip(), None
    if pod.exit_code is not None and (pod.exit_code > 128 or pod.exit_code < 0):
        return Cause.POD_LOST, f"{pod.name} was killed, exit code {pod.exit_code}", None
    if pod.exit_code is not None:
        tail = pod.exit_message.strip().splitlines()[-1:] or ["see its log"]
        return Cause.USER_ERROR, f"{pod.name} exited with {pod.exit_code}: {tail[0]}", None
    if pod.exit_reason:
        return Cause.POD_LOST, f"{pod.name}: {pod.exit_reason} {pod.exit_message}".strip(), None
    return Cause.POD_LOST, f"{pod.name} failed without saying why", None


def explained(incident: Incident, observed: Observed) -> Incident | None:
    """The incident of a pod that had vanished, as what has been said since tells it; None if none.

    Training has gone on meanwhile: the kubelet takes its time.
    """
    if not incident.evidence.endswith(UNEXPLAINED):
        return None
    pod = next((pod for pod in observed.pods if pod.name == incident.victims[0]), None)
    if pod is None or not (pod.told or observed.node_lost(pod)):
        return None
    cause, evidence, reason = _why_pod(observed, pod)
    return replace(incident, cause=cause, evidence=evidence, reason=reason)


def uncharge(history: History, incident: Incident) -> History:
    """The history without an incident of the class infrastructure."""
    kept = tuple(at for at in history.infrastructure if abs(at - incident.at) > 0.01)
    return replace(history, infrastructure=kept)


def _why_outcome(outcome: Outcome) -> tuple[Cause, str, str | None]:
    try:
        cause = Cause(outcome.cause)
    except ValueError:
        cause = Cause.USER_ERROR
    where = f"rank {outcome.rank}" if outcome.rank is not None else ""
    if outcome.step is not None:
        where += f" after step {outcome.step}"
    return (
        cause,
        f"{where.strip()}: {outcome.message}" if where else outcome.message,
        outcome.reason,
    )


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

    ``checkpoint`` is the step of the newest commit, ``started`` whether the job has ever completed
    a step, ``training`` whether it is at it, untouched by this incident. ``history`` does not hold
    this incident yet.
    """
    what = incident.evidence
    if training:
        return Verdict(retry=True, action="training goes on without it; another pod follows")
    if incident.cause in FATAL and not (incident.cause is Cause.START_FAILED and started):
        return _fail(incident, f"{incident.cause}: {what}", "no retry: it would end the same way")
    if incident.klass == "user":
        step = incident.step or 0
        if not started:
            return _fail(
                incident, f"{what} (before the first step)", "no retry before any progress"
            )
        same = [at for at, where in history.user if where == step]
        if same and incident.round:
            return _fail(incident, f"{what} (twice at step {step})", "no retry: same step twice")
        fresh = [
            at
            for at, where in history.user
            if now - at < job.user_budget.window and (checkpoint is None or checkpoint <= where)
        ]
        return _within(incident, job.user_budget, len(fresh), "user")
    if incident.klass == "preemption":
        return _within(incident, job.preemption_budget, history.preemptions, "preemption")
    window = job.infrastructure_budget.window
    recent = [at for at in history.infrastructure if now - at < window]
    return _within(incident, job.infrastructure_budget, len(recent), "infrastructure")


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
        kept = [(at, s) for at, s in history.user if now - at < job.user_budget.window]
        return replace(history, user=(*kept, (incident.at, incident.step or 0))[-100:])
    if incident.klass == "preemption":
        return replace(history, preemptions=history.preemptions + 1)
    window = job.infrastructure_budget.window
    recent = [at for at in history.infrastructure if now - at < window]
    return replace(history, infrastructure=(*recent, incident.at)[-1000:])


def resolve(
    incident: Incident, *, resumed_from: int, step_seconds: float, current: int, now: float
) -> Incident:
    """Close an incident: training has completed a step since, from where ``resumed_from`` says.

    ``current`` is the number of the round that did.

    One that ended no round has cost time, but no step.
    """
    lost = max(0, (incident.step or 0) - resumed_from) if incident.round else 0
    return replace(
        incident,
        resumed_from=resumed_from,
        steps_lost=lost,
        seconds_lost=round(now - incident.at + incident.silent + lost * step_seconds, 3),
        recovered_in=current,
    )


def of_the_operator(known: Sequence[Incident], at: float) -> tuple[Incident, ...]:
    """The incidents with one more, that this operator process is not the one of before.

    Several in a row are one, so that an operator that keeps dying does not displace the others.
    """
    fresh = Incident(
        at=at,
        round=0,
        cause=Cause.OPERATOR,
        evidence="another operator process has taken over; training needs none to go on",
        victims=("operator",),
        steps_lost=0,
        seconds_lost=0.0,
        action="agents report again, nothing is restarted",
    )
    if known and known[-1].cause is Cause.OPERATOR:
        known = known[:-1]
    return (*known, fresh)[-KEEP:]


def of_a_started_job(incident: Incident) -> Incident:
    """See an incident of a job that has trained before in that light.

    Before the first step, a store that cannot be written is a mistake in the manifest. After it,
    the same words mean an outage: waiting for its end is right, giving up is not.
    """
    if incident.cause is Cause.CONFIGURATION and incident.reason == "Store/R5":
        return replace(incident, cause=Cause.STORE_LOST)
    return incident


def backoff(incidents: Sequence[Incident], now: float) -> float:
    """Seconds to wait before pods are replaced, when incident follows incident without progress.

    A pod that ended outside of any round has made none, whatever the others do meanwhile. What took
    no pod, another operator or a rollback, neither adds to the pause nor begins it anew.
    """
    fruitless, after, newest = 0, now, now
    for incident in reversed(incidents):
        if incident.klass in {"operator", "trainer"}:
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


@lru_cache(maxsize=1024)
def stamp(at: float) -> str:
    """A Kubernetes timestamp with milliseconds.

    A status is rendered at every look at a job, and mostly holds the times that it held before.
    """
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_status(incident: Incident) -> dict[str, Any]:
    """As in status.incidents."""
    return {
        "at": stamp(incident.at),
        "round": incident.round,
        "cause": str(incident.cause),
        "evidence": incident.evidence[:1000],
        "victims": list(incident.victims),
        "collateral": list(incident.collateral),
        "action": incident.action,
        **{
            key: value
            for key, value in (
                ("step", incident.step),
                ("resumedFrom", incident.resumed_from),
                ("stepsLost", incident.steps_lost),
                ("secondsLost", incident.seconds_lost),
                ("recoveredInRound", incident.recovered_in),
                ("recovery", _recovery(incident) or None),
                ("restored", [{"pod": p, "source": s} for p, s in incident.restored] or None),
                ("stacks", incident.stacks[:2000] or None),
                ("silentSeconds", incident.silent or None),
            )
            if value is not None
        },
    }


def _recovery(incident: Incident) -> dict[str, float]:
    if not incident.recovery:
        return {}
    return {**incident.recovery, "total": round(sum(incident.recovery.values()), 4)}


def from_status(document: Mapping[str, Any]) -> Incident:
    """The way back."""
    return Incident(
        at=parse_time(document["at"]) or 0.0,
        round=document.get("round", 0),
        cause=_cause(document.get("cause", "")),
        evidence=document.get("evidence", ""),
        victims=tuple(document.get("victims", ())),
        collateral=tuple(document.get("collateral", ())),
        step=document.get("step"),
        resumed_from=document.get("resumedFrom"),
        steps_lost=document.get("stepsLost"),
        seconds_lost=document.get("secondsLost"),
        action=document.get("action", ""),
        recovered_in=document.get("recoveredInRound"),
        recovery={k: v for k, v in (document.get("recovery") or {}).items() if k != "total"},
        restored=tuple((e["pod"], e["source"]) for e in document.get("restored") or ()),
        stacks=document.get("stacks", ""),
        silent=document.get("silentSeconds", 0.0),
    )


def _cause(text: str) -> Cause:
    """A cause; one that another version of the operator has written counts as a lost pod."""
    try:
        return Cause(text)
    except ValueError:
        return Cause.POD_LOST
