"""Who trains together: the pure decision about the next round.

torchrun finds its members by waiting for them, and finds out about dead ones by timeouts.
Kubernetes knows both at once, so here membership is a function of what is observed:

* no round yet: form one when all wanted pods have joined, or, from minReplicas on, when no other
  pod is about to come;
* a member is lost, or its workers failed and another try was granted: form the next one at once
  from those that stay and from spares, without waiting for a replacement;
* a member has to go: make before break. Training goes on until somebody is ready to take its
  place, or until its deadline nears; then all members save at an agreed step, and one new round
  has the newcomer in it. A member that is only advised to go is left when a better pod is there;
* newcomers wait and there is room: save, then form the next one with them;
* all members are done: the job is done.

Whoever is not heard is in no new round (see ``contact``): it could be told nothing of it.

A pod that warms up is on its way, like one whose image is being pulled: a round with it would make
all others wait for its imports.

As long as the number of members stays, each of them keeps its rank, and a newcomer takes the place
of the one that went: what is a rank's own (its place in the data, its random numbers) then fits.
When the number changes ranks follow the indexes.
"""

from dataclasses import dataclass, replace
from enum import StrEnum, auto

from rekindle.api import AgentPhase, ExitCode, Member, Round
from rekindle.api.spec import TrainingJob
from rekindle.api.timestamps import clock
from rekindle_operator.observed import preemption_notices
from rekindle_operator.observed.liveness import REANNOUNCE
from rekindle_operator.observed.observations import AgentState, Observed, Pod
from rekindle_operator.rounds import sizing

PATIENCE = 60.0
"""Seconds for which a first round waits for pods that are on their way, once one pod has joined."""
UNSCHEDULABLE_PATIENCE = 10.0
"""The same for pods that no node can take."""
GATHER = 10.0
"""Seconds for which newcomers wait for other newcomers, so that one stop serves them all."""
PARTIAL_SAVE = 60.0
"""Seconds after the first member has saved until the others are no longer waited for."""
SAVE_SECONDS = 120.0
"""How long a save may take that nobody's end makes urgent."""
LEAVING = 3.0
"""Seconds before a pod's end by which its save must be over, to tell of it and to leave."""


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
class RoundDecision:
    """What follows for rounds."""

    form: Round | None = None
    """Publish this round."""
    save: str | None = None
    """Ask the members of the current round to save, for this reason."""
    save_seconds: float = SAVE_SECONDS
    finished: bool = False
    waiting: str | None = None
    """In words, what a round waits for."""
    going: str | None = None
    """In words, who has to go while training goes on until somebody takes over."""
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
    if observed.lost(pod):
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
    """Whether the spec still wants this pod: its index and its template."""
    return pod.index < job.pods and job.wants(pod.template)


def with_strangers(observed: Observed, last_number: int) -> Observed:
    """Mark the pods that ended with 0 and were in no round: they have not trained in this job.

    Something else than the launcher ran there. Whoever was in a round has said so: in the
    termination message, which the launcher writes when its workers are done and which stays with
    the pod, or to this operator. A message can be lost, since a log may not be writable, and what
    agents told to an operator process ends with it: a pod from before this one's time gets the
    benefit of the doubt once there has been a round. To take a stranger for a member would end one
    job too early; the other way round a complete job would fail.
    """
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    strangers = {
        pod.uid
        for pod in observed.pods
        if pod.succeeded
        and pod.outcome is None
        and pod.uid not in inside
        and not ((agent := observed.agents.get(pod.uid)) and agent.report.round)
        and not (last_number and pod.created_at < observed.listening_since)
    }
    if not strangers:
        return observed
    marked = (replace(pod, stranger=pod.uid in strangers) for pod in observed.pods)
    return replace(observed, pods=tuple(marked))


def scheduled_since(job: TrainingJob, observed: Observed) -> float | None:
    """Since when as many pods have had a node as a round needs; None while fewer have one.

    Until then a job waits for capacity, from then on it starts.
    """
    job = sizing.in_use(job, observed)
    done = len(_done(job, observed))
    least = min(max(1, job.min_replicas - done), job.replicas - done)
    indexes: dict[int, float] = {}
    for pod in observed.pods:
        if pod.scheduled_at is None or not wanted(job, pod) or not pod.alive or pod.deleting:
            continue
        indexes[pod.index] = min(pod.scheduled_at, indexes.get(pod.index, pod.scheduled_at))
    times = sorted(indexes.values())
    if least <= 0:
        return times[0] if times else observed.now
    return times[least - 1] if least <= len(times) else None


def decide(
    job: TrainingJob, observed: Observed, *, last_number: int, hold: bool, now: float
) -> RoundDecision:
    """Decide about the next round.

    ``last_number`` is the highest number ever used. With ``hold`` no round is formed, because a
    failure is still being understood.
    """
    asked, job = job.replicas, sizing.in_use(job, observed)
    current = observed.round
    if current is None or current.number < last_number and not _anybody_in(current, observed):
        return _form(job, observed, last_number, hold=hold, patient=True, now=now)

    states = {m.uid: state_of(m, current, observed) for m in current.members}
    values = set(states.values())
    if values == {State.DONE}:
        return RoundDecision(finished=True)
    number = max(last_number, current.number)
    if values & {State.LOST, State.FAILED, State.HUNG}:
        return _form_next(job, observed, current, number, hold=hold, now=now)

    going = [
        pod
        for m in current.members
        if states[m.uid] is not State.DONE
        and (pod := observed.pod(m.uid))
        and observed.notices_of(pod)
    ]
    hurried = [pod for pod in going if not observed.may_stay(pod)]
    busy, ended = values & BUSY, values & {State.SAVED, State.STOPPED}
    left: float | None = None
    if ended and busy:
        first = min(
            observed.agents[uid].phase_since
            for uid, state in states.items()
            if state in {State.SAVED, State.STOPPED}
        )
        left = first + PARTIAL_SAVE - now
    if (hurried or ended) and (not busy or left is not None and left <= 0):
        return _form_next(job, observed, current, number, hold=hold, now=now)
    if ended:
        why = _why_going(observed, hurried) or "other members have saved"
        return RoundDecision(
            save=why,
            save_seconds=_seconds_left(observed, hurried, now),
            requeue=left,
            going=None if hurried else _why_going(observed, going) or None,
        )
    if going:
        decision = _make_before_break(job, observed, current, going, now)
        if decision is not None:
            return decision
    surplus = len(current.members) > job.replicas
    if surplus and (job.replicas == asked or _stepping(current, observed)):
        return RoundDecision(save=sizing.why_fewer(job, asked))
    decision = _consider_newcomers(job, observed, current, values, now)
    return replace(decision, going=_why_going(observed, going) or None)


def _form_next(
    job: TrainingJob, observed: Observed, current: Round, number: int, *, hold: bool, now: float
) -> RoundDecision:
    """Form the round after this one; where none of its members is left, there is no hurry."""
    inside = {m.uid for m in current.members}
    patient = all(pod.uid not in inside for pod, _ in candidates(job, observed))
    return _form(job, observed, number, hold=hold, patient=patient, now=now)


def _why_going(observed: Observed, going: list[Pod]) -> str:
    return "; ".join(f"{pod.name}: {observed.going(pod)}" for pod in going)


def _seconds_left(observed: Observed, going: list[Pod], now: float) -> float:
    """How long a save may take so that those that have to go can leave in time."""
    ends = [notice.deadline for pod in going for notice in observed.notices_of(pod)]
    left = max(min(ends, default=now + SAVE_SECONDS) - now, 0.0)
    return min(max(left - LEAVING, left / 2, 1.0), SAVE_SECONDS)


def _make_before_break(
    job: TrainingJob, observed: Observed, current: Round, going: list[Pod], now: float
) -> RoundDecision | None:
    """Members have to go and all still train: save when others can take over, or time is up.

    None when all of them are only advised to go, and nobody is there who is better.
    """
    reason = _why_going(observed, going)
    told = [notice for pod in going for notice in observed.notices_of(pod) if not notice.advice]
    urgent = min((n.deadline - preemption_notices.lead(n.seconds) for n in told), default=None)
    seconds = _seconds_left(observed, going, now)
    if urgent is not None and now >= urgent:
        return RoundDecision(save=reason, save_seconds=seconds)
    inside = {m.uid for m in current.members}
    most = job.replicas - len(_done(job, observed))
    next_ = seats(job, observed)
    fresh = [(pod, agent) for pod, agent in next_ if pod.uid not in inside]
    leaves = [pod for pod in going if pod.uid not in {other.uid for other, _ in next_}]
    wait = None if urgent is None else urgent - now
    if not leaves:
        return None
    if len(next_) < min(most, len(inside)):
        until = "" if urgent is None else f" until {clock(urgent)}"
        return RoundDecision(
            waiting=f"pods to take over{until} ({reason})", going=reason, requeue=wait
        )
    if not _stepping(current, observed):
        return RoundDecision(waiting="the current round to train", going=reason, requeue=1.0)
    gather = _gather(
        job, observed, fresh, room=most - len(next_) + len(going) - len(leaves), now=now
    )
    if gather > 0:
        return RoundDecision(going=reason, requeue=gather if wait is None else min(gather, wait))
    joins = ", ".join(pod.name for pod, _ in fresh)
    return RoundDecision(
        save=f"{joins} takes over ({reason})" if joins else reason, save_seconds=seconds
    )


def _gather(
    job: TrainingJob,
    observed: Observed,
    fresh: list[tuple[Pod, AgentState]],
    *,
    room: int,
    now: float,
) -> float:
    """Seconds for which newcomers still wait for others that are on their way to the same room."""
    if room <= 0 or not fresh or not _coming(job, observed, now):
        return 0.0
    return min(agent.phase_since for _, agent in fresh) + GATHER - now


def _anybody_in(current: Round, observed: Observed) -> bool:
    """Whether an alive pod is a member of the round."""
    return any((pod := observed.pod(m.uid)) and pod.alive for m in current.members)


def candidates(job: TrainingJob, observed: Observed) -> list[tuple[Pod, AgentState]]:
    """The pods that could be members of a new round, in the order of their indexes."""
    ready = {AgentPhase.WAITING, AgentPhase.RUNNING, AgentPhase.FAILED}
    found = [
        (pod, agent)
        for pod in observed.pods
        if wanted(job, pod)
        and observed.may_stay(pod)
        and observed.hears(pod)
        and (agent := observed.agents.get(pod.uid))
        and agent.report.phase in ready
    ]
    # Two pods can hold one index when a predecessor that had to go does not; it keeps its place,
    # unless it is still advised to go.
    inside = {m.uid for m in observed.round.members} if observed.round else set()

    def rank(found: tuple[Pod, AgentState]) -> tuple[bool, bool, int]:
        pod, _ = found
        return not observed.stays(pod), pod.uid not in inside, pod.generation

    found.sort(key=rank, reverse=True)
    chosen = {pod.index: (pod, agent) for pod, agent in found}
    return [chosen[index] for index in sorted(chosen)]


def _coming(job: TrainingJob, observed: Observed, now: float) -> list[Pod]:
    """Pods that have not joined, or are warming up, but can be expected to be ready."""
    found = []
    for pod in observed.pods:
        agent = observed.agents.get(pod.uid)
        if agent and agent.report.phase is not AgentPhase.WARMING:
            continue
        if not wanted(job, pod) or not observed.may_stay(pod):
            continue
        age = now - pod.created_at
        if pod.waiting or (pod.unschedulable and age > UNSCHEDULABLE_PATIENCE):
            continue
        found.append(pod)
    return found


def yet_to_tell(job: TrainingJob, observed: Observed, now: float) -> list[Pod]:
    """Pods that may have trained before this operator listened, and have yet to tell so.

    Spares may well be heard before them, and are no reason to stop what they do.
    """
    if now - observed.listening_since >= REANNOUNCE:
        return []
    return [
        pod
        for pod in observed.pods
        if pod.uid not in observed.agents
        and pod.alive
        and pod.phase == "Running"
        and not observed.lost(pod)
        and wanted(job, pod)
        and pod.created_at <= observed.listening_since
    ]


def _done(job: TrainingJob, observed: Observed) -> set[int]:
    """Slots whose share of the training is complete."""
    return {pod.index for pod in observed.pods if wanted(job, pod) and _is_done(pod, observed)}


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
) -> RoundDecision:
    """Form a round from those that are there, or say what it waits for."""
    if in_the_way := "a failure is being understood" if hold else sizing.too_few(job, observed):
        return RoundDecision(waiting=in_the_way)
    done = _done(job, observed)
    ready = [(pod, agent) for pod, agent in candidates(job, observed) if pod.index not in done]
    if len(done) >= job.replicas:
        return RoundDecision(finished=True)
    most = job.replicas - len(done)
    least = min(max(1, job.min_replicas - len(done)), most)
    coming = _coming(job, observed, now)
    late = yet_to_tell(job, observed, now) if last_number else []
    untold = observed.round is None and late
    silent = now - observed.listening_since < REANNOUNCE
    short = len(ready) < most and (late or coming and (patient or len(ready) < least))
    if untold or short:
        since = max([agent.phase_since for _, agent in ready], default=now)
        patience = REANNOUNCE if silent and not patient else PATIENCE
        left = since + patience - now
        if untold or len(ready) < least or left > 0:
            names = ", ".join(dict.fromkeys(pod.name for pod in (*late, *coming)))
            again = min(max(left, 1.0), _patience_ends(coming, now))
            if untold:
                again = max(observed.listening_since + REANNOUNCE - now, 0.1)
            return RoundDecision(waiting=f"{names} to join", requeue=again)
    if len(ready) < least:
        # Whoever comes is an event: time alone changes nothing any more, for days perhaps.
        return RoundDecision(waiting=f"more pods: {len(ready)} of at least {least} have joined")
    members = tuple(
        Member(
            pod=pod.name,
            uid=pod.uid,
            address=agent.report.address,
            store_port=agent.report.store_port,
            nproc=agent.report.nproc,
            reach_port=agent.report.reach_port,
        )
        for pod, agent in seats(job, observed)
    )
    reason = _difference(observed.round, members, again=last_number > 0)
    return RoundDecision(
        form=Round(number=last_number + 1, members=members, reason=reason, formed_at=now)
    )


def seats(job: TrainingJob, observed: Observed) -> list[tuple[Pod, AgentState]]:
    """Who would be in a round that is formed now, in rank order.

    Pods that stay go before those that are advised to go, members before newcomers, low indexes
    before high ones, which are those of the spares. When there are as many as before, those that
    were members keep their ranks, and newcomers take the ranks of those that went.
    """
    job = sizing.in_use(job, observed)
    done = _done(job, observed)
    ready = [(pod, agent) for pod, agent in candidates(job, observed) if pod.index not in done]
    before = [m.uid for m in observed.round.members] if observed.round else []
    chosen = sorted(
        ready,
        key=lambda found: (
            not observed.stays(found[0]),
            found[0].uid not in before,
            found[0].index,
        ),
    )[: max(0, job.replicas - len(done))]
    by_index = sorted(chosen, key=lambda found: found[0].index)
    if len(chosen) != len(before):
        return by_index
    keep = {pod.uid: (pod, agent) for pod, agent in chosen if pod.uid in before}
    fresh = iter(found for found in by_index if found[0].uid not in keep)
    return [keep[uid] if uid in keep else next(fresh) for uid in before]


def _difference(old: Round | None, members: tuple[Member, ...], *, again: bool) -> str:
    """What a new round changes, in words."""
    before = {m.uid: m.pod for m in old.members} if old else {}
    after = {m.uid: m.pod for m in members}
    gone = [pod for uid, pod in before.items() if uid not in after]
    come = [pod for uid, pod in after.items() if uid not in before]
    if not before:
        return "training goes on" if again else "first round"
    if not gone and not come:
        return "the same pods again"
    parts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(come)
    return " and ".join(parts)


def _consider_newcomers(
    job: TrainingJob, observed: Observed, current: Round, values: set[State], now: float
) -> RoundDecision:
    """A whole, running round: is there room and is somebody waiting to fill it."""
    inside, done = {m.uid for m in current.members}, _done(job, observed)
    room = job.replicas - len(done) - len(inside)
    if room <= 0 or values != {State.RUNNING}:
        return RoundDecision()
    ready = candidates(job, observed)
    fresh = [
        (pod, agent) for pod, agent in ready if pod.uid not in inside and pod.index not in done
    ]
    if not fresh:
        return RoundDecision()
    if not _stepping(current, observed):
        return RoundDecision(waiting="the current round to train", requeue=1.0)
    fresh = fresh[:room]
    gather = _gather(job, observed, fresh, room=room - len(fresh), now=now)
    if gather > 0:
        return RoundDecision(requeue=gather)
    return RoundDecision(save=f"{', '.join(pod.name for pod, _ in fresh)} joins")


def _stepping(current: Round, observed: Observed) -> bool:
    """Whether the round has got on, so that a stop does not starve progress."""
    for member in current.members:
        agent = observed.agents.get(member.uid)
        inside = agent and agent.report.round and agent.report.round.key == current.key
        if agent and inside and agent.report.trains:
            return True
    return False
