"""Does a worker still get on? A pure function of its heartbeats, with a limit that it has learned.

A worker that waits in a collective for a peer that hangs raises nothing for half an hour; the
network library's own timeouts are made for the slowest step of anybody. Here the limit follows from
this run: `FACTOR` times the longest time that this phase has ever taken between two signs of life,
and never less than `LEAST`. What cannot be learned yet has a limit of its own: the first steps of a
round, in which models are compiled and data are opened, and a phase that was never seen.

All ranks of a round stop together when one of them hangs, so the pod that says so is rarely the one
to blame. The operator collects what all say and where their threads stand (`culprit`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rekindle.api import Hang
from rekindle.ranks.heartbeat import Activity, Beat

FACTOR = 5.0
"""How many times the longest interval seen a silence may last."""
LEAST = 60.0
"""Seconds; no learned limit is shorter."""
WARM_STEPS = 3
"""Steps of a round from which nothing is learned and for which `UNKNOWN` holds."""
UNKNOWN: Mapping[Activity, float] = {
    Activity.STARTING: 1800.0,
    Activity.TRAINING: 1800.0,
    Activity.VALIDATING: 1800.0,
    Activity.SAVING: 1800.0,
    Activity.BETWEEN: 1800.0,
}
"""Seconds for a phase of which nothing has been learned."""


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """What has been learned; goes from round to round."""

    longest: Mapping[Activity, float] = field(default_factory=dict)
    """Seconds: the longest interval between two signs of life, by phase."""
    seen: Mapping[int, Beat] = field(default_factory=dict)
    """By rank, as last looked at in the present round."""

    def next_round(self) -> "Watchdog":
        """Keep what was learned, forget who was where."""
        return replace(self, seen={})


def observe(known: Watchdog, beats: Sequence[Beat]) -> Watchdog:
    """Learn from newer heartbeats of the same round."""
    longest, seen = dict(known.longest), dict(known.seen)
    for beat in beats:
        before, seen[beat.rank] = seen.get(beat.rank), beat
        if before is None or beat.phase is not before.phase or beat.at <= before.at:
            continue
        steps = beat.step - before.step
        if beat.phase is Activity.TRAINING and steps > 0 and _warm(before):
            took = (beat.at - before.at) / steps
        elif beat.phase is Activity.VALIDATING:
            took = beat.at - before.at
        else:
            continue
        longest[beat.phase] = max(longest.get(beat.phase, 0.0), took)
    return Watchdog(longest=longest, seen=seen)


def limit(known: Watchdog, beat: Beat, given: float | None) -> float | None:
    """Seconds of silence after which a worker counts as hung; None while nothing is expected.

    ``given`` is the job's own limit; it holds once the round's first steps are done, for steps and
    for the batches of a validation. Saving has deadlines of its own, and what a script does between
    epochs shows no sign of life: those are only kept from lasting for ever.
    """
    if beat.phase is Activity.DONE:
        return None
    if beat.phase is Activity.STARTING or (beat.phase is Activity.TRAINING and not _warm(beat)):
        return max(UNKNOWN[beat.phase], given or 0.0)
    if beat.phase in {Activity.SAVING, Activity.BETWEEN}:
        return UNKNOWN[beat.phase]
    if given is not None:
        return given
    longest = known.longest.get(beat.phase)
    return UNKNOWN[beat.phase] if longest is None else max(LEAST, FACTOR * longest)


def _warm(beat: Beat) -> bool:
    """Whether the first steps of the round are done."""
    return beat.step - beat.first >= WARM_STEPS


def verdict(
    known: Watchdog, beats: Sequence[Beat], *, given: float | None, now: float
) -> Hang | None:
    """The worker that has been silent for longest beyond its limit; None when all get on.

    A worker that has never taken a step and whose phase never changed may be a plain script, which
    has no heartbeat: it is left alone.
    """
    late: list[tuple[float, Hang]] = []
    for beat in beats:
        allowed = limit(known, beat, given)
        idle = now - beat.at
        if (
            allowed is None
            or idle <= allowed
            or (beat.phase is Activity.STARTING and not beat.step)
        ):
            continue
        late.append((idle - allowed, _hang(beat, allowed, now)))
    return max(late, key=lambda found: found[0])[1] if late else None


def suspect(
    known: Watchdog, beats: Sequence[Beat], *, given: float | None, now: float
) -> Hang | None:
    """The worker that has been silent for the largest part of its limit, if that is half of it.

    For a pod whose peer says that it hangs: all stand still together, but not to the second.
    """
    shares = [
        ((now - beat.at) / allowed, _hang(beat, allowed, now))
        for beat in beats
        if (allowed := limit(known, beat, given)) is not None
    ]
    share, found = max(shares, key=lambda item: item[0], default=(0.0, None))
    return found if share >= 0.5 else None


def _hang(beat: Beat, allowed: float, now: float) -> Hang:
    return Hang(
        rank=beat.rank,
        step=beat.step,
        phase=beat.phase.name.lower(),
        idle=round(now - beat.at, 3),
        timeout=round(min(allowed, 1e9), 3),
    )
