"""Kubernetes timestamps as unix seconds; everything else in the operator counts in those."""

from datetime import datetime


def parse_time(text: str | None) -> float | None:
    """Unix seconds of a Kubernetes timestamp; None for none."""
    if not text:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
