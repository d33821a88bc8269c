"""What is true of all jobs together, for alerts: who waits, who needs attention, who has not saved.

Pure, and made from the specs and the statuses when somebody looks: nothing is written when time
passes, and a new operator says the same as the one before. A job is no label here; the longest of
all is what an alert needs, and which job it is ``kubectl get tj -A`` shows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle.api.timestamps import parse_time
from rekindle_operator.failures import pod_waits, scheduler_messages
from rekindle_operator.observed import run_claims
from rekindle_operator.status import status

SUSPENDING = "Suspending"
"""A suspended job of which pods still save and end."""
WAITING = (status.PENDING, status.STARTING, status.RECOVERING, SUSPENDING)
"""Where a job is that does not train and is to go on from there."""
REASONS = tuple(
    sorted(
        {
            "CannotCreate",
            "CheckpointDamaged",
            run_claims.IN_USE,
            "ErrImagePull",
            "ImagePullBackOff",
            "InvalidSpec",
            "LossNotFinite",
            "Straggler",
        }
        | {row.reason for row in pod_waits.ROWS}
        | {reason for _, reason, _ in scheduler_messages.REFUSALS}
    )
)
"""Reasons of the condition Degraded that are labels; all others are ``Other``."""
OTHER = "Other"
LATELY = 3600.0
"""Seconds for which an end counts as one that somebody should still hear of."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All jobs of an operator."""

    waiting: Mapping[str, float]
    """Seconds of the job that waits longest, by where it is."""
    degraded: Mapping[str, int]
    """Jobs that need attention, by reason."""
    degraded_seconds: Mapping[str, float]
    """Seconds of the one that has needed it longest."""
    failed_lately: int
    overdue: float
    """Seconds by which the training job with the oldest commit is beyond its own interval."""


@dataclass
class _Sums:
    waiting: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WAITING, 0.0))
    degraded: Counter[str] = field(default_factory=Counter)
    degraded_seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*REASONS, OTHER), 0.0)
    )
    failed_lately: int = 0
    overdue: float = 0.0


def look(jobs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], now: float) -> Fleet:
    """Look at the spec and the status of each job."""
    sums = _Sums()
    for spec, known in jobs:
        try:
            _add(sums, spec, known, now)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # A status that somebody has edited; the figures of the others count.
    return Fleet(
        waiting=sums.waiting,
        degraded={reason: sums.degraded[reason] for reason in (*REASONS, OTHER)},
        degraded_seconds=sums.degraded_seconds,
        failed_lately=sums.failed_lately,
        overdue=sums.overdue,
    )


def _add(sums: _Sums, spec: Mapping[str, Any], known: Mapping[str, Any], now: float) -> None:
    phase = known.get("phase")
    if phase in status.TERMINAL:
        ended = parse_time(known.get("completionTime"))
        sums.failed_lately += phase == status.FAILED and ended is not None and now - ended < LATELY
        return
    where = phase
    if phase == status.SUSPENDED and _condition(known, "Progressing").get("status") == "True":
        where = SUSPENDING
    if where in WAITING:
        waits = now - _waits_since(known, where, now)
        sums.waiting[where] = max(sums.waiting[where], waits)
    attention = _condition(known, "Degraded")
    if attention.get("status") == "True":
        reason = attention["reason"] if attention["reason"] in REASONS else OTHER
        lasts = now - (parse_time(attention.get("lastTransitionTime")) or now)
        sums.degraded[reason] += 1
        sums.degraded_seconds[reason] = max(sums.degraded_seconds[reason], lasts)
    if phase == status.RUNNING:
        sums.overdue = max(sums.overdue, _overdue(spec, known, now))


def _waits_since(known: Mapping[str, Any], where: str, now: float) -> float:
    if where == SUSPENDING:
        since = parse_time(_condition(known, "Suspended").get("lastTransitionTime"))
        return now if since is None else since
    pending = (known.get("accounting") or {}).get("pendingSince")
    if pending is not None and where != status.RECOVERING:
        return float(pending)
    stopped = parse_time(_condition(known, "Ready").get("lastTransitionTime"))
    return now if stopped is None else stopped


def _overdue(spec: Mapping[str, Any], known: Mapping[str, Any], now: float) -> float:
    """Beyond the interval that the job asks for in seconds; others have none that is known."""
    saved = parse_time((known.get("checkpoint") or {}).get("committedAt"))
    if saved is None and not (known.get("goodput") or {}).get("productiveSeconds"):
        return 0.0  # A program that does not save by us.
    began = parse_time(_condition(known, "Ready").get("lastTransitionTime")) or now
    every = ((spec.get("checkpoint") or {}).get("every") or {}).get("seconds") or 0
    return max(0.0, now - max(saved or 0.0, began) - float(every))


def _condition(known: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in known.get("conditions") or () if c["type"] == kind), {})
