"""Who trains together: the pure decision about the next round.

torchrun finds its members by waiting for them, and finds out about dead ones by timeouts.
Kubernetes knows both at once, so here membership is a function of what is observed:

* no round yet: form one when all wanted pods have joined, or, from minReplicas on, when no other
  pod is about to come;
* a member is lost, or its workers failed and another try was granted: form the next one at once
  from those that stay, without waiting for a replacement;
* a member has to go: ask all members to save at an agreed step, then form the next one without it;
* newcomers wait and there is room: the same, then form the next one with them;
* all members are done: the job is done.

Rank order is the order of the slots, so that an unchanged set of pods gets unchanged ranks.
"""

from dataclasses import dataclass
from enum import StrEnum, auto

from rekindle.contract import AgentPhase, ExitCode, Member, Round
from rekindle_operator.observed import Agent, Observed, Pod
from rekindle_operator.spec import TrainingJob

PATIENCE = 60.0
"""Seconds for which a first round waits for pods that are on their way, once one pod has joined."""
UNSCHEDULABLE_PATIENCE = 10.0
"""The same for pods that no node can take."""
GATHER = 10.0
"""Seconds for which newcomers wait for other newcomers, so that one stop serves them all."""
REANNOUNCE = 15.0
"""Seconds that agents have to report again after this operator process began to listen."""
PARTIAL_SAVE = 60.0
"""Seconds after the first member has saved until the others are no longer waited for."""
SAVE_SECONDS = 120.0
"""How long a save may take that nobody's end makes urgent."""


class State(StrEnum):
    """Where a member of a round is."""

    SILENT = auto()
    """Alive, has not reported to this operator process."""
    STARTING = auto()
    """Has not yet begun this round."""
    RUNNING = auto()
    SAVED = auto()
    """Its workers have committed and ended."""
    STOPPED = auto()
    """Its workers ended without having saved."""
    FAILED = auto()
    """Its workers failed; it holds for a verdict."""
    HUNG = auto()
    """Its workers run, but one of them has not got on for longer than it may."""
    DONE = auto()
    LOST = auto()


BUSY = {State.RUNNING, State.STARTING, State.SILENT}
"""States of a member whose workers run or may do so."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows for rounds."""

    form: Round | None = None
    """Publish this round."""
    save: str | None = None
    """Ask the members of the current round to save, for this reason."""
    save_seconds: float = SAVE_SECONDS
    finished: bool = False
    waiting: str | None = None
    """In words, what a round waits for."""
    requeue: float | None = None
    """Decide again after this many seconds even if nothing happens."""


def state_of(member: Member, current: Round, observed: Observed) -> State:
    """Where a member of the current round is."""
    pod, agent = observed.pod(member.uid), observed.agents.get(member.uid)
    if pod is not None and pod.succeeded:
        return State.DONE
    phase = agent.report.phase if agent else None
    in_round = bool(agent and agent.report.round and agent.report.round.key == current.key)
    if in_round and phase is AgentPhase.DONE:
        return State.DONE
    if pod is None or pod.finished or pod.forced or phase is AgentPhase.LEAVING:
        return State.LOST
    node = observed.node_of(pod)
    if node and node.lost:
        return State.LOST
    if agent is None:
        return State.SILENT
    if not in_round:
        return State.STARTING
    if phase is AgentPhase.RUNNING:
        return State.RUNNING if agent.report.hang is None else State.HUNG
    if phase is AgentPhase.FAILED:
        return State.FAILED
    outcome = agent.report.outcome
    return State.SAVED if outcome and outcome.code == ExitCode.SAVED else State.STOPPED


def wanted(job: TrainingJob, pod: Pod) -> bool:
    """Whether the spec still wants this pod: its slot and its template."""
    return pod.slot < job.replicas and pod.template == job.template_hash


def decide(
    job: TrainingJob, observed: Observed, *, last_number: int, hold: bool, now: float
) -> Decision:
    """Decide about the next round.

    ``last_number`` is the highest number ever used. With ``hold`` no round is formed, because a
    failure is still being understood.
    """
    current = observed.round
    if current is None or current.number < last_number and not _anybody_in(current, observed):
        return _form(job, observed, last_number, hold=hold, patient=True, now=now)

    states = {m.uid: state_of(m, current, observed) for m in current.members}
    values = set(states.values())
    if values == {State.DONE}:
        return Decision(finished=True)
    number = max(last_number, current.number)
    inside = {m.uid for m in current.members}
    patient = all(pod.uid not in inside for pod, _ in candidates(job, observed))

    broken = values & {State.LOST, State.FAILED, State.HUNG}
    if broken:
        return _form(job, observed, number, hold=hold, patient=patient, now=now)

    going = {m.pod: why for m in current.members if (why := _going(m, observed))}
    busy, ended = values & BUSY, values & {State.SAVED, State.STOPPED}
    left: float | None = None
    if ended and busy:
        first = min(
            observed.agents[uid].phase_since
            for uid, state in states.items()
            if state in {State.SAVED, State.STOPPED}
        )
        left = first + PARTIAL_SAVE - now
    if (going or ended) and (not busy or left is not None and left <= 0):
        return _form(job, observed, number, hold=hold, patient=patient, now=now)
    if going:
        reason = "; ".join(f"{pod}: {why}" for pod, why in going.items())
        margin = max(job.grace_seconds - 5.0, job.grace_seconds / 2)
        return Decision(save=reason, save_seconds=margin, requeue=left)
    if ended:
        return Decision(save="other members have saved", requeue=left)

    return _consider_newcomers(job, observed, current, values, now)


def _anybody_in(current: Round, observed: Observed) -> bool:
    """Whether an alive pod is a member of the round."""
    return any((pod := observed.pod(m.uid)) and pod.alive for m in current.members)


def _going(member: Member, observed: Observed) -> str | None:
    pod = observed.pod(member.uid)
    return observed.going(pod) if pod and pod.alive else None


def candidates(job: TrainingJob, observed: Observed) -> list[tuple[Pod, Agent]]:
    """The pods that could be members of a new round, in rank order."""
    ready = {AgentPhase.WAITING, AgentPhase.RUNNING, AgentPhase.FAILED}
    found = [
        (pod, agent)
        for pod in observed.pods
        if wanted(job, pod)
        and observed.stays(pod)
        and (agent := observed.agents.get(pod.uid))
        and agent.report.phase in ready
    ]
    # Two pods can hold one slot when a predecessor that had to go does not; it keeps its place.
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    found.sort(key=lambda f: (f[0].uid not in inside, f[0].incarnation), reverse=True)
    chosen = {pod.slot: (pod, agent) for pod, agent in found}
    return [chosen[slot] for slot in sorted(chosen)]


def _coming(job: TrainingJob, observed: Observed, now: float) -> list[Pod]:
    """Pods that have not joined but can be expected to."""
    found = []
    for pod in observed.pods:
        if not wanted(job, pod) or not observed.stays(pod) or pod.uid in observed.agents:
            continue
        age = now - pod.created_at
        if pod.waiting or (pod.unschedulable and age > UNSCHEDULABLE_PATIENCE):
            continue
        found.append(pod)
    return found


def _is_done(pod: Pod, observed: Observed) -> bool:
    """Whether a pod's share of the training is complete; its agent may not have exited yet."""
    agent = observed.agents.get(pod.uid)
    waits = pod.alive and agent is not None and agent.report.phase is AgentPhase.DONE
    return pod.succeeded or waits


def _patience_ends(coming: list[Pod], now: float) -> float:
    """Seconds until one of these is no longer expected, because no node takes it."""
    ends = [pod.created_at + UNSCHEDULABLE_PATIENCE for pod in coming if pod.unschedulable]
    return max(min(ends, default=now + PATIENCE) - now, 0.0) + 0.1


def _form(
    job: TrainingJob,
    observed: Observed,
    last_number: int,
    *,
    hold: bool,
    patient: bool,
    now: float,
) -> Decision:
    """Form a round from those that are there, or say what it waits for."""
    if hold:
        return Decision(waiting="a failure is being understood")
    done = {pod.slot for pod in observed.pods if wanted(job, pod) and _is_done(pod, observed)}
    ready = [(pod, agent) for pod, agent in candidates(job, observed) if pod.slot not in done]
    if len(done) == job.replicas and not ready:
        return Decision(finished=True)
    most = job.replicas - len(done)
    least = min(max(1, job.min_replicas - len(done)), most)
    silent = now - observed.listening_since < REANNOUNCE
    coming = _coming(job, observed, now)
    if len(ready) < most and coming and (patient or len(ready) < least or silent):
        since = max([agent.phase_since for _, agent in ready], default=now)
        patience = REANNOUNCE if silent and not patient else PATIENCE
        left = since + patience - now
        if len(ready) < least or left > 0:
            names = ", ".join(pod.name for pod in coming)
            again = min(max(left, 1.0), _patience_ends(coming, now))
            return Decision(waiting=f"{names} to join", requeue=again)
    if len(ready) < least:
        have = f"{len(ready)} of at least {least} pods have joined"
        return Decision(waiting=have, requeue=5.0)
    members = tuple(
        Member(
            pod=pod.name,
            uid=pod.uid,
            address=agent.report.address,
            store_port=agent.report.store_port,
            slots=agent.report.slots,
        )
        for pod, agent in ready[:most]
    )
    reason = _difference(observed.round, members)
    return Decision(
        form=Round(number=last_number + 1, members=members, reason=reason, formed_at=now)
    )


def _difference(old: Round | None, members: tuple[Member, ...]) -> str:
    """What a new round changes, in words."""
    before = {m.uid: m.pod for m in old.members} if old else {}
    after = {m.uid: m.pod for m in members}
    gone = [pod for uid, pod in before.items() if uid not in after]
    come = [pod for uid, pod in after.items() if uid not in before]
    if not before:
        return "first round"
    if not gone and not come:
        return "the same pods again"
    parts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(come)
    return " and ".join(parts)


def _consider_newcomers(
    job: TrainingJob, observed: Observed, current: Round, values: set[State], now: float
) -> Decision:
    """A whole, running round: is there room and is somebody waiting to fill it."""
    inside = {m.uid for m in current.members}
    ready = candidates(job, observed)
    fresh = [(pod, agent) for pod, agent in ready if pod.uid not in inside]
    if not fresh or len(inside) >= job.replicas or values != {State.RUNNING}:
        return Decision()
    if not _stepping(current, observed):
        return Decision(waiting="the current round's first step", requeue=1.0)
    waited = now - min(agent.phase_since for _, agent in fresh)
    if _coming(job, observed, now) and waited < GATHER:
        return Decision(requeue=GATHER - waited)
    return Decision(save=f"{', '.join(pod.name for pod, _ in fresh)} joins")


def _stepping(current: Round, observed: Observed) -> bool:
    """Whether the round has completed a step, so that a stop does not starve progress."""
    for member in current.members:
        agent = observed.agents.get(member.uid)
        progress = agent.report.progress if agent else None
        inside = agent and agent.report.round and agent.report.round.key == current.key
        if inside and progress and progress.round_steps > 0:
            return True
    return False
