"""Kubernetes timestamps as unix seconds; everything else in the operator counts in those."""

from datetime import UTC, datetime
from functools import lru_cache


def parse_time(text: str | None) -> float | None:
    """Unix seconds of a Kubernetes timestamp; None for none."""
    return _parsed(text) if text else None


@lru_cache(maxsize=1024)
def _parsed(text: str) -> float:
    """The same times come with each look at a job."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def clock(at: float) -> str:
    """A time in a message, to the second: 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(round(at, 3), UTC).isoformat(timespec="seconds")[:19] + "Z"
