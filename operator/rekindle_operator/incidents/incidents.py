"""One event that ended a round or a pod, as the job's status keeps it.

An incident has one cause, and the class of that cause says which budget pays for it. It is written
when it is found, closed when training has gone on, and read back by the next operator process.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from rekindle.api import PAID_BY, Cause, Progress
from rekindle.api.timestamps import parse_time
from rekindle_operator.observed.observations import Observed

_STEPS_LOST = re.compile(r"\((\d+) steps lost\)")
LOOK_AGAIN = 3.0
"""Seconds after an incident by which a round that it should have ended has ended."""
KEEP = 20
"""Incidents kept in the status."""
BUDGETS = {"user", "infrastructure", "preemption"}
"""Classes that pay (see klass)."""
ASIDES = 8
"""Of these, so many at most that cost no budget: they must not displace those that do."""

USER = frozenset(cause for cause, payer in PAID_BY.items() if payer == "user")
"""Causes that the user's program, data or manifest is charged with."""


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
    """The last completed step before it; None where steps are unknown."""
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
    """Of a hang or a pod that fell silent: seconds for which it had been so when it was found."""
    reason: str | None = None
    """Stable code of the outcome, Store/R5 for example. Not kept in the status."""
    ran: float = 0.0
    """Seconds for which its round had trained. Not kept in the status."""
    retry: bool = False
    """Whether it may end well next time although a user's error pays. Not kept in the status."""

    @property
    def klass(self) -> str:
        """The budget that it is charged to: user, infrastructure or preemption; or nobody.

        That the operator itself was away, or that the trainer went back by itself, is told and
        charged to nobody.
        """
        return PAID_BY[self.cause]

    @property
    def unfounded(self) -> bool:
        """Whether it has ended nothing, as turned out later."""
        return self.round == 0 and self.recovered_in is not None and self.seconds_lost == 0.0

    @property
    def open(self) -> bool:
        """Whether training has not gone on since."""
        return self.seconds_lost is None


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


def of_the_store(observed: Observed, now: float, *, alone: bool) -> Incident | None:
    """What the current round has passed over because it was damaged; None if nothing.

    The steps that this has cost are those of the incident that ended the round before; ``alone``:
    there is none, and they are told here.
    """
    for member in observed.round.members if observed.round else ():
        agent = observed.agents.get(member.uid)
        told = agent.report.round if agent else None
        if agent is None or told is None or observed.round is None:
            continue
        restored = agent.report.restored
        if told.key != observed.round.key or restored is None or not restored.skipped:
            continue
        evidence = "; ".join(restored.skipped)
        lost = [int(steps) for steps in _STEPS_LOST.findall(evidence)]
        return Incident(
            at=now,
            round=0,
            cause=Cause.CHECKPOINT_DAMAGED,
            evidence=evidence,
            victims=(),
            resumed_from=restored.step,
            steps_lost=max(lost, default=0) if alone else 0,
            seconds_lost=0.0,
            action=f"went on from step {restored.step}; check the object store: `rekindle "
            "checkpoints verify` reads every checkpoint",
        )
    return None


def resolve(
    incident: Incident,
    *,
    resumed_from: int | None,
    step_seconds: float,
    current: int,
    now: float,
    stood: float | None = None,
) -> Incident:
    """Close an incident: training has gone on since, from where ``resumed_from`` says.

    ``current`` is the number of the round that did, and ``stood`` for how long nobody had done a
    step by then, if workers have told. One that ended no round has cost time, but no step; how many
    steps another one has cost is unknown where steps are.
    """
    seconds = now - incident.at + incident.silent if stood is None else stood
    incident = resumed(incident, resumed_from)
    lost = incident.steps_lost or 0
    seconds_lost = round(seconds + lost * step_seconds, 3)
    return replace(incident, seconds_lost=seconds_lost, recovered_in=current)


def resumed(incident: Incident, resumed_from: int | None) -> Incident:
    """The incident once it is known from where training went on.

    Workers do steps that no report tells of any more, and keep them: the last one before the
    incident was that from which they went on at least.
    """
    if incident.round and incident.step is not None and resumed_from is not None:
        incident = replace(incident, step=max(incident.step, resumed_from))
    lost = steps_lost(incident, resumed_from)
    return replace(incident, resumed_from=resumed_from, steps_lost=lost)


def went_on(incident: Incident, progress: Progress | None, now: float) -> bool:
    """Whether a round that an incident should have ended has got on since all the same.

    Who could not be heard for a moment, or was told to go and need not, is back before anybody has
    stopped for it. Where steps are unknown, nobody can say that one was done since: that all run is
    looked at once more.
    """
    if incident.step is None:
        return now - incident.at > LOOK_AGAIN
    return progress is not None and progress.step > incident.step


def taken_back(incident: Incident, current: int) -> Incident:
    """Close an incident that has ended nothing: training has gone on in the round ``current``."""
    return replace(
        incident,
        round=0,
        resumed_from=incident.step,
        steps_lost=0,
        seconds_lost=0.0,
        recovered_in=current,
        action="it was over before anybody had stopped for it; no budget pays",
    )


def steps_lost(incident: Incident, resumed_from: int | None) -> int | None:
    """How many steps are done again; None where nobody knows."""
    if not incident.round:
        return 0
    if incident.step is None or resumed_from is None:
        return None
    return max(0, incident.step - resumed_from)


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
    return kept((*known, fresh))


def kept(known: Sequence[Incident]) -> tuple[Incident, ...]:
    """Those that stay in the status: the newest, and of those that nobody pays for only a few.

    An operator that keeps dying, or a trainer that keeps going back, tells one and the same story.
    """
    asides = [index for index, incident in enumerate(known) if incident.klass not in BUDGETS]
    left_out = set(asides[:-ASIDES])
    return tuple(i for index, i in enumerate(known) if index not in left_out)[-KEEP:]


def of_a_started_job(incident: Incident) -> Incident:
    """See an incident of a job that has trained before in that light.

    Before the first step, a store that refuses is a mistake in the manifest. After it, the same
    words mean an outage: waiting for its end is right, giving up is not.
    """
    if incident.cause is Cause.CONFIGURATION and incident.reason == "Store/R5":
        return replace(incident, cause=Cause.STORE_LOST)
    return incident


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
