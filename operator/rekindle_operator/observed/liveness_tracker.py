"""When each pod was heard last, and which have fallen silent: the memory behind `contact`.

Entries are kept in the order in which pods were heard, so that a look meets the silent ones first
and ends at the first one that speaks: where all do, it costs nothing. Times are those that the
caller gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rekindle_operator.observed.liveness import OUTAGE, SILENT, STALL, Hearing

JobKey = tuple[str, str]
"""(namespace, name) of a job."""
PROBE_AFTER = 1.25
"""Seconds without a word after which a pod's lifeline is asked; its agent speaks every second."""
SUSPECT_AFTER = 2.0
"""Seconds without a word after which its peers are asked whether they reach it."""


@dataclass
class Heard:
    """One pod."""

    job: JobKey
    pod: str
    uid: str
    at: float
    told: bool = False
    """Whether somebody was woken up because it has fallen silent."""


class Ear:
    """What is heard of all pods of all jobs."""

    def __init__(self, now: float) -> None:
        self._since = self._looked = self._last = now
        self._deaf = False
        self._heard: dict[str, Heard] = {}

    def hear(self, job: JobKey, pod: str, uid: str, now: float) -> None:
        """A pod has spoken."""
        if self._deaf:
            # Nobody was heard at all: the way was broken. Give the others time to be back, too.
            self._since = now + OUTAGE
        self._last, self._deaf = now, False
        self._heard.pop(uid, None)
        self._heard[uid] = Heard(job, pod, uid, now)

    def forget(self, uid: str) -> None:
        """A pod is no longer waited for."""
        self._heard.pop(uid, None)

    def at(self, uid: str) -> float | None:
        """When a pod was heard last; None if it never was."""
        found = self._heard.get(uid)
        return found.at if found else None

    def hearing(self) -> Hearing:
        """How well all of this can be relied on."""
        return Hearing(since=self._since, looked=self._looked)

    def look(self, now: float) -> list[Heard]:
        """The pods that have said nothing for PROBE_AFTER, longest first; once a moment."""
        if now - self._looked > STALL:
            # This process stood still. What has come meanwhile will be read in a moment.
            self._since = max(self._since, now)
            self._last = now
        self._looked = now
        self._deaf = now - self._last > SILENT
        return list(self._quiet(now))

    def _quiet(self, now: float) -> Iterator[Heard]:
        for found in self._heard.values():
            if now - found.at < PROBE_AFTER:
                return
            yield found
