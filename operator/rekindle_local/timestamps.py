"""Times as Kubernetes writes them.

Two formats exist in the API: `Time` (whole seconds, pod and container statuses) and `MicroTime`
(six digits, leases). Log lines carry nanoseconds as a container runtime's do.
"""

from datetime import UTC, datetime


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def seconds(moment: datetime) -> str:
    """`Time`: RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micros(moment: datetime) -> str:
    """`MicroTime`: RFC 3339 in UTC with six digits after the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> datetime:
    """Read either format; digits past the microsecond are cut off. Raises ValueError."""
    body = text.removesuffix("Z")
    if "." in body:
        head, _, digits = body.partition(".")
        return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}+00:00")
    return datetime.fromisoformat(body if "+" in body else f"{body}+00:00")
