"""Which event ended a round, or a pod outside of any: found once, and named after its cause.

One event shows up many times: a pod's exit code, its node's taint, errors of peers that lost it.
All of that is one incident, named after the earliest cause and not after the loudest symptom: when
a pod was lost or told to go, errors of its peers are collateral. Only when no pod gives a cause are
the errors themselves read, and a short settle time lets a cause arrive that is still on its way.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rekindle.api import Cause, Hang, Member, Round
from rekindle.api.spec import TrainingJob
from rekindle_operator.failures.pod_endings import UNEXPLAINED, Ending, ending
from rekindle_operator.failures.pod_signs import of_outcome
from rekindle_operator.incidents.incidents import USER, Incident
from rekindle_operator.observed.observations import Observed, Pod
from rekindle_operator.pods.manifests import index_of
from rekindle_operator.rounds.rounds import State, seats, state_of, wanted

SETTLE_ERROR = 3.0
"""Seconds between a worker's error and the verdict: a lost pod may be the cause, not seen yet."""
SETTLE_COLLATERAL = 10.0
"""The same when the error itself says that a peer is gone."""
SAME_EVENT = 10.0
"""Seconds after a round's incident in which the end of another of its pods counts as part of it."""
_LOSSES = {Cause.POD_LOST, Cause.NODE_LOST}
"""Causes that can take several pods at once, without a word of any."""
SETTLE_HANG = 5.0
"""Seconds between the first word of a hang and the verdict: all ranks tell where they stand."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What was found: an incident, or a failure that is not understood yet."""

    incident: Incident | None = None
    settle: float | None = None
    """Seconds until a verdict can be given."""
    collateral: tuple[str, ...] = ()
    """Pods that belong to the known incident of the current round."""
    victims: tuple[str, ...] = ()
    """Pods that have ended in a known incident, too."""
    of: Incident | None = None
    """The known one."""
    round: int = 0
    """The round that has ended with them, before it began: it has no incident of its own."""
    dump: bool = False
    """Whether to ask all members where their threads stand."""


def detect(
    job: TrainingJob,
    observed: Observed,
    known: Sequence[Incident],
    *,
    charged: int,
    progress: int | None,
    now: float,
    ended: int = 0,
    calm: bool = False,
) -> Detection:
    """Find the incident of the current round, or of a pod outside of it, that is not known yet.

    ``charged`` is the highest round whose incident is known, ``progress`` the newest completed
    step that the status knows, if any, and ``ended`` a round of which nobody is left to tell who
    was in it: all have gone while no operator watched. While ``calm``, members that have to go
    train on until others can take over: that is an incident only once it stops the round.
    """
    current = observed.round
    fresh = current is not None and current.number > charged
    if current is not None and fresh:
        early = _lost_on_the_way(job, observed, current, known, now)
        if early is not None:
            return early
        found = of_round(job, observed, current, progress=progress, calm=calm, now=now)
        if found.incident or found.settle is not None:
            return found
    inside = {m.uid for m in current.members} if current else set()
    # Who is in this round has survived what ended an earlier one, and can be lost all the same.
    past = [i for i in known if current and 0 < i.round < current.number]
    named = _named(i for i in known if i not in past)
    # Who fell with others and is lost by itself now is a victim, too.
    fell = {name for i in known if i not in past for name in i.collateral} - {
        name for i in known for name in i.victims
    }
    of_members = (named - fell) | _told_on_the_way(current, known, past, fresh=fresh)
    of_others = named | _named(past)
    lost = [
        pod
        for pod in observed.pods
        if pod.name not in (of_members if pod.uid in inside else of_others)
        and not (fresh and pod.uid in inside)
        and _counts(job, observed, pod)
        and _lost_outside(job, observed, pod)
    ]
    endings = [
        (why, pod)
        for pod in lost
        if (why := _why(job, observed, pod)).cause is not Cause.PEER_LOST or pod.name not in fell
    ]
    endings += [
        (_without_a_word(pod.name), pod)
        for pod in observed.gone
        if pod.uid not in inside and pod.name not in of_others and _counts(job, observed, pod)
    ]
    more = [(why, pod.name) for why, pod in endings if pod.uid in inside]
    if current is not None and not fresh:
        more += _vanished(job, observed, current, of_members)
    last = next((i for i in reversed(known) if current and i.round == current.number), None)
    if last is not None and now - last.at <= SAME_EVENT:
        own = tuple(name for why, name in more if why.cause is not Cause.PEER_LOST)
        if own:
            return Detection(victims=own, of=last)
        if more:
            return Detection(collateral=tuple(name for _, name in more))
    losses = [*more, *((why, pod.name) for why, pod in endings if pod.uid not in inside)]
    if not losses and not ended:
        return Detection()
    same = _of_one_kind(job, known, endings) if not ended else None
    if same is not None:
        return same
    nobody = _nobody_left(ended)
    why = min((why for why, _ in losses), key=lambda why: why.cause in USER, default=nobody)
    return Detection(
        incident=Incident(
            at=now,
            round=ended,
            cause=why.cause,
            evidence=why.evidence,
            victims=tuple(name for _, name in losses),
            step=progress or None,
            reason=why.reason,
            retry=why.retry,
        )
    )


def _vanished(
    job: TrainingJob, observed: Observed, current: Round, told: set[str]
) -> list[tuple[Ending, str]]:
    """Members whose objects are gone, of which no incident tells.

    An operator that has begun since has never seen them: only the round knows of them.
    """
    saved = any(state_of(m, current, observed) is State.SAVED for m in current.members)
    return [
        (_why_member(job, observed, member, None, saved), member.pod)
        for member in current.members
        if observed.pod(member.uid) is None
        and state_of(member, current, observed) is State.LOST
        and member.pod not in told
        and member.uid not in observed.retired
        and index_of(job.name, member.pod) in range(job.pods)
        and not job.suspend
    ]


def _of_one_kind(
    job: TrainingJob, known: Sequence[Incident], endings: Sequence[tuple[Ending, Pod]]
) -> Detection | None:
    """Pods that end as others did that were made along with them: one event, charged once.

    What is wrong with a template is wrong in all its pods, and they come upon it one after another.
    """
    for incident in reversed(known):
        if incident.round or incident.cause not in USER:
            continue
        taken = {index_of(job.name, name) for name in incident.victims}
        more = {
            pod.index: pod.name
            for why, pod in endings
            if why.cause is incident.cause
            and pod.created_at <= incident.at
            and pod.index not in taken  # a pod's successor is another try
        }
        return Detection(victims=tuple(more.values()), of=incident) if more else None
    return None


def _lost_on_the_way(
    job: TrainingJob,
    observed: Observed,
    current: Round,
    known: Sequence[Incident],
    now: float,
) -> Detection | None:
    """Members that are lost before they were seen in this round, which followed a loss.

    Whatever kills several pods at once is seen one after the other, and a round may be formed in
    between: they were lost with the first, and the round has not begun. None if any of the lost
    was in it.
    """
    last = next((i for i in reversed(known) if i.open and i.round), None)
    if last is None or now - last.at > SAME_EVENT or last.cause not in _LOSSES:
        return None
    names = []
    for member in current.members:
        pod, agent = observed.pod(member.uid), observed.agents.get(member.uid)
        if state_of(member, current, observed) is not State.LOST:
            continue
        if member.uid in observed.retired or (pod and not wanted(job, pod)):
            continue
        report = agent.report.round if agent else None
        joined = report is not None and report.key == current.key
        if joined or _why_member(job, observed, member, pod, False).cause not in _LOSSES:
            return None
        names.append(member.pod)
    return Detection(victims=tuple(names), of=last, round=current.number) if names else None


def _told_on_the_way(
    current: Round | None, known: Sequence[Incident], past: Sequence[Incident], *, fresh: bool
) -> set[str]:
    """Pods of whose loss an incident of an earlier round tells, although they are in this one.

    A round that has ended on the way has no incident of its own. The one that tells of it is over
    if those that were left have trained in that round for a moment.
    """
    if current is None:
        return set()
    early = not fresh and all(i.round != current.number for i in known)
    told = [i for i in past if i.open or (early and i.recovered_in == current.number)]
    return {name for incident in told for name in incident.victims}


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
        wanted(job, other) and observed.stays(other) for other in observed.of_index(pod.index)
    )


def _counts(job: TrainingJob, observed: Observed, pod: Pod) -> bool:
    """Whether a pod's end is an event, rather than something that the operator wanted."""
    return wanted(job, pod) and pod.uid not in observed.retired and not job.suspend


def of_round(
    job: TrainingJob,
    observed: Observed,
    current: Round,
    *,
    progress: int | None,
    calm: bool,
    now: float,
) -> Detection:
    """Find what ends the current round, whatever is known of it already; see `detect`."""
    states = {m.uid: state_of(m, current, observed) for m in current.members}
    gone: list[tuple[Member, Ending]] = []
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
            gone.append((member, _why_member(job, observed, member, pod, saved)))
    failed = [m for m in current.members if states[m.uid] is State.FAILED]
    known = [progress, *(_step_of(observed, m, current) for m in current.members)]
    step = max((step for step in known if step is not None), default=None)
    ran = max(_ran(observed, m, current, now) for m in current.members)

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
            ran=ran,
        )

    if gone:
        # The environment explains more than a program does: it comes first.
        why = min((why for _, why in gone), key=lambda why: why.cause in USER)
        found = incident(why.cause, why.evidence, [m.pod for m, _ in gone], why.reason)
        stood = max((_silent(observed, observed.pod(m.uid)) for m, _ in gone), default=0.0)
        return Detection(incident=replace(found, retry=why.retry, silent=round(stood, 3)))
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
    # Who says that it was killed says why all others fell: there is no better word to wait for.
    outside = [one for one in blamed if of_outcome(one[2])[0] not in USER]
    blamed = outside or blamed
    settle = 0.0 if outside else SETTLE_ERROR if blamed else SETTLE_COLLATERAL
    left = since + settle - now
    if left > 0:
        return Detection(settle=left)
    if not blamed:
        evidence = "workers lost contact with each other although all pods are alive"
        first = agents[0][0].report.outcome
        if first:
            evidence += f": {first.message}"
        return Detection(incident=incident(Cause.PEER_LOST, evidence, [m.pod for m in failed]))
    _, member, outcome = min(blamed, key=lambda b: b[0])
    cause, evidence, reason = of_outcome(outcome)
    return Detection(incident=incident(cause, evidence, [member.pod], reason))


def _silent(observed: Observed, pod: Pod | None) -> float:
    """Seconds for which a pod that nobody has told of had been lost when that was found out."""
    if pod is None or pod.finished or observed.loss(pod) is None:
        return 0.0
    silence = observed.silence(pod)
    return silence if silence < math.inf else 0.0


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


def _step_of(observed: Observed, member: Member, current: Round) -> int | None:
    """The newest step of this round that a member has reported, if it knows steps."""
    agent = observed.agents.get(member.uid)
    if agent is None or not agent.report.round or agent.report.round.key != current.key:
        return None
    progress, outcome = agent.report.progress, agent.report.outcome
    told = [progress.step if progress else None, outcome.step if outcome else None]
    return max((step for step in told if step is not None), default=None)


def _ran(observed: Observed, member: Member, current: Round, now: float) -> float:
    """For how many seconds a member has trained in this round, by its own clock."""
    agent = observed.agents.get(member.uid)
    if agent is None or not agent.report.round or agent.report.round.key != current.key:
        return 0.0
    timings = agent.report.timings
    if timings is None or timings.running is None:
        return 0.0
    return max(0.0, timings.age - timings.running + now - agent.seen_at)


def _why_member(
    job: TrainingJob, observed: Observed, member: Member, pod: Pod | None, peers_saved: bool
) -> Ending:
    if pod is not None:
        return _why(job, observed, pod)
    agent = observed.agents.get(member.uid)
    if agent and agent.report.notice:
        words = f"{member.pod} was told to go: {agent.report.notice}"
        return Ending(row="object gone", cause=Cause.PREEMPTED, evidence=words)
    if peers_saved:
        # While nobody watched, its notice made all ranks agree to save: a loss cannot do that.
        words = f"{member.pod} was told to go and is gone; all saved"
        return Ending(row="object gone", cause=Cause.PREEMPTED, evidence=words)
    return _without_a_word(member.pod)


def _without_a_word(name: str) -> Ending:
    words = f"pod {name} is gone without notice, as one that was deleted by force"
    return Ending(row="object gone", cause=Cause.POD_LOST, evidence=words)


def _nobody_left(number: int) -> Ending:
    words = f"no pod of round {number} is left: all went while no operator watched"
    return Ending(row="object gone", cause=Cause.POD_LOST, evidence=words)


def _why(job: TrainingJob, observed: Observed, pod: Pod) -> Ending:
    return ending(observed, pod, pinned=job.template["spec"].get("nodeName"))


def explained(job: TrainingJob, incident: Incident, observed: Observed) -> Incident | None:
    """The incident of a pod that had vanished, as what has been said since tells it; None if none.

    Training has gone on meanwhile: the kubelet takes its time.
    """
    if not incident.evidence.endswith(UNEXPLAINED):
        return None
    pod = next((pod for pod in observed.pods if pod.name == incident.victims[0]), None)
    if pod is None or not (pod.told or observed.node_lost(pod)):
        return None
    why = _why(job, observed, pod)
    return replace(
        incident, cause=why.cause, evidence=why.evidence, reason=why.reason, retry=why.retry
    )
