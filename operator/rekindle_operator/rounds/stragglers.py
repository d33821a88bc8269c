"""Which pod the others wait for in every step.

All ranks of a round take the same time per step, because they wait for each other; what tells them
apart is the time for which a rank itself was busy, the wait left out (`RankReport.busy`). A rank is
slow when it needs much longer than the others do, as their median says, and long enough for that
to be no noise.

A rank may be slow for a moment for reasons of its data, so a node is called slow when its rank has
been slow for a while without a break. That outlives the pod: new pods rather go elsewhere, for some
hours; and where the job says so, the slow pod is moved as if its node were advised to go.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rekindle_operator.observed.observations import Observed

RATIO = 1.5
"""From this multiple of the others' median on, a rank is called slow."""
SUSTAINED = 60.0
"""Seconds without a break after which a slow rank speaks against its node."""
MEMORY = 6 * 3600.0
"""Seconds for which a node was slow."""
LEAST = 0.002
"""Seconds per step by which a slow rank must differ; below that, it is noise of a scheduler."""


@dataclass(frozen=True, kw_only=True)
class Slow:
    """One rank that holds up the others."""

    pod: str
    uid: str
    rank: int
    seconds: float
    """It is busy for so long in each step."""
    ratio: float
    """That, over the median of the other ranks."""

    def words(self) -> str:
        """For conditions."""
        return (
            f"rank {self.rank} on pod {self.pod} needs {self.seconds:.3g} s for its part of a "
            f"step, {self.ratio:.1f} times as long as the others"
        )


def scores(observed: Observed, ratio: float = RATIO) -> tuple[Slow, ...]:
    """The slow ranks of the current round, slowest first; none while somebody has not measured."""
    current = observed.round
    if current is None:
        return ()
    found: list[tuple[str, str, int, float]] = []
    for member in current.members:
        agent = observed.agents.get(member.uid)
        report = agent.report if agent else None
        if report is None or report.round is None or report.round.key != current.key:
            return ()
        for rank in report.ranks:
            if rank.busy is None:
                return ()
            found.append((member.pod, member.uid, rank.rank, rank.busy))
    if len(found) < 2:
        return ()
    slow = []
    times = sorted(busy for *_, busy in found)
    for pod, uid, number, busy in found:
        usual = _median_without(times, busy)
        if busy > ratio * usual and busy - usual > LEAST:
            slow.append(
                Slow(pod=pod, uid=uid, rank=number, seconds=busy, ratio=busy / max(usual, 1e-9))
            )
    return tuple(sorted(slow, key=lambda one: one.ratio, reverse=True))


def _median_without(times: Sequence[float], one: float) -> float:
    """The median of the others: of sorted times, this one taken out once, without a copy."""
    place = bisect_left(times, one)
    low, high = (len(times) - 2) // 2, (len(times) - 1) // 2
    return (times[low + (low >= place)] + times[high + (high >= place)]) / 2


Spells = Mapping[str, tuple[float, float]]
"""By name of the node: since when, and until when, it was last seen to be slow."""


def remember(known: Spells, slow: set[str], now: float) -> dict[str, tuple[float, float]]:
    """Go on with what is known of nodes, now that these are slow."""
    spells = {}
    for node, (since, last) in known.items():
        if node in slow:
            spells[node] = (since, now)
        elif last - since >= SUSTAINED and now - last < MEMORY:
            spells[node] = (since, last)
    return {**{node: (now, now) for node in slow}, **spells}


def nodes(spells: Spells) -> set[str]:
    """The nodes that were slow for long enough."""
    return {node for node, (since, last) in spells.items() if last - since >= SUSTAINED}
