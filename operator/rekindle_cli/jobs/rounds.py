"""Which rounds there were, who trained in each, and why it was formed.

The status has the number of the newest round and no more, since it is kept small. But every pod's
launcher says in its log which rounds it joined, why they were formed and which ranks it got, so the
logs of the pods together name the members in rank order. That works on any cluster, needs no access
to the coordinator, and is what the pods did rather than what they were told to do. A round is
`whole` once as many pods as it has have been heard; a pod that is gone with its log leaves a gap.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rekindle_cli.output.wording import parse_time

_JOINED = re.compile(
    r"^(?P<at>\S+) .*\brekindle round (?P<number>\d+) \((?P<reason>.*)\): (?P<pods>\d+) pods, "
    r"(?P<workers>\d+) workers; ours have rank (?P<first>\d+) to (?P<last>\d+)\s*$"
)


@dataclass(frozen=True, kw_only=True)
class PodJoined:
    """One pod's word that it is in a round."""

    pod: str
    at: datetime | None
    number: int
    reason: str
    pods: int
    workers: int
    first_rank: int


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """A set of pods that trained together, in rank order as far as known."""

    number: int
    reason: str
    at: datetime | None
    """When the first of them joined."""
    members: tuple[str, ...]
    pods: int
    workers: int

    @property
    def whole(self) -> bool:
        """Whether every member is known by name."""
        return len(self.members) == self.pods


def joined(pod: str, log: Iterable[str]) -> list[PodJoined]:
    """The rounds that a pod's log tells of; lines begin with the API server's time stamp."""
    found = []
    for line in log:
        match = _JOINED.match(line)
        if match:
            found.append(
                PodJoined(
                    pod=pod,
                    at=parse_time(match["at"]),
                    number=int(match["number"]),
                    reason=match["reason"],
                    pods=int(match["pods"]),
                    workers=int(match["workers"]),
                    first_rank=int(match["first"]),
                )
            )
    return found


def assemble(words: Iterable[PodJoined]) -> tuple[RoundView, ...]:
    """The rounds that the pods tell of together, oldest first."""
    by_number: dict[int, dict[str, PodJoined]] = {}
    for word in words:
        by_number.setdefault(word.number, {})[word.pod] = word
    return tuple(_round(number, by_number[number]) for number in sorted(by_number))


def _round(number: int, heard: Mapping[str, PodJoined]) -> RoundView:
    members: Sequence[PodJoined] = sorted(heard.values(), key=lambda word: word.first_rank)
    times = [word.at for word in members if word.at is not None]
    return RoundView(
        number=number,
        reason=members[0].reason,
        at=min(times, default=None),
        members=tuple(word.pod for word in members),
        pods=members[0].pods,
        workers=members[0].workers,
    )
