"""Where the time of a recovery went, from the last step before it to the first step after it.

Five parts, which follow each other without a gap and so add up to the whole:

- ``detect``: from the last step that was done before (where steps are not seen: from the first
  sign, such as a worker that fell with its peer) to the operator's sight of it;
- ``decide``: until the members of the next round have seen it; a settle time and the wait for a
  pod without which there are too few are in here;
- ``restart``: until the new workers form a process group;
- ``restore``: until state is back in them;
- ``firstStep``: until the first optimizer step is done or, where steps are unknown, until the
  workers count as running.

Agents send durations of their own clocks and never times of day, and they are laid on the
operator's clock by when their report came in: nothing rests on clocks that agree. The member that
was last to step decides, since all wait for it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rekindle.api import RECOVERY_PHASES, AgentReport, Timings
from rekindle_operator.observed.observations import AgentState, Observed


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How one incident was recovered from."""

    seconds: Mapping[str, float]
    """By phase; their sum is the whole, from the last step to the first step."""
    restored: tuple[tuple[str, str], ...] = ()
    """(pod, where its state came from) of each member."""


def measured(
    observed: Observed, noticed_at: float, victims: Collection[str] = (), silent: float = 0.0
) -> Recovery | None:
    """What the members of the current round say, once all of them train.

    ``noticed_at`` is when the operator knew of the incident, in unix seconds, and ``victims`` are
    the pods that it took, whose lifelines may have broken earlier. ``silent`` is for how many
    seconds nobody had got on by then. None while somebody has yet to come so far.
    """
    current = observed.round
    if current is None:
        return None
    found: list[tuple[AgentState, Timings]] = []
    for member in current.members:
        agent = observed.agents.get(member.uid)
        report = agent.report if agent else None
        if agent is None or report is None or not _inside(report, current.key):
            return None
        if report.timings is None or _trains(report.timings) is None:
            return None
        found.append((agent, report.timings))
    agent, last = max(found, key=lambda one: one[0].seen_at - one[1].age + (_trains(one[1]) or 0.0))
    seen = agent.seen_at - last.age
    before = _last_step(found)
    broken = max((timings.broken or 0.0 for _, timings in found), default=0.0)
    vanished = [
        pod.vanished_at
        for pod in observed.pods
        if pod.name in victims and pod.vanished_at is not None
    ]
    began = min(noticed_at - silent, seen - broken, *vanished) if before is None else before
    marks = [began, max(began, min(noticed_at, seen)), seen]
    for moment in (last.grouped or last.started, last.restored, _trains(last)):
        at = marks[-1] if moment is None else max(marks[-1], seen + moment)
        marks.append(at)
    seconds = {
        phase: round(after - before, 4)
        for phase, before, after in zip(RECOVERY_PHASES, marks, marks[1:], strict=False)
    }
    return Recovery(seconds=seconds, restored=sources(observed))


def _last_step(found: Iterable[tuple[AgentState, Timings]]) -> float | None:
    """When anybody had done the last step of before; None where nobody knows."""
    told = [a.seen_at - t.age - t.stood for a, t in found if t.stood is not None]
    return max(told, default=None)


def stood_still(observed: Observed) -> float | None:
    """Seconds from the last step done before to the first one after it, as the workers saw it.

    Whoever was away meanwhile, the operator included: how long a loss went unnoticed is in it. None
    where that was not measured.
    """
    current = observed.round
    found = [
        (agent, agent.report.timings)
        for member in (current.members if current else ())
        if (agent := observed.agents.get(member.uid))
        and current
        and _inside(agent.report, current.key)
        and agent.report.timings
    ]
    before = _last_step(found)
    after = [a.seen_at - t.age + first for a, t in found if (first := _trains(t)) is not None]
    if before is None or not after:
        return None
    return max(0.0, max(after) - before)


def sources(observed: Observed) -> tuple[tuple[str, str], ...]:
    """Where each member of the current round says that its state came from."""
    current = observed.round
    found: list[tuple[str, str]] = []
    for member in current.members if current else ():
        agent = observed.agents.get(member.uid)
        if agent and current and _inside(agent.report, current.key) and agent.report.restored:
            found.append((member.pod, agent.report.restored.source))
    return tuple(found)


def _inside(report: AgentReport, key: str) -> bool:
    return report.round is not None and report.round.key == key


def _trains(timings: Timings) -> float | None:
    return timings.running if timings.stepped is None else timings.stepped
