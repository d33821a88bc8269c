"""What the log tells of a job's life: what one plan has changed, as lines.

Made from the status before, the status after and the plan, so that each event is one line, whoever
is told of it elsewhere. Pure; the shell writes the lines.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle.api import Cause
from rekindle.api.changes import Effect, told
from rekindle_operator.plan import Event, Plan
from rekindle_operator.status import status


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of the log."""

    level: int
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """See rekindle_operator.logs.FIELDS."""


def lines(before: Mapping[str, Any], plan: Plan) -> Iterator[LogLine]:
    """What a plan has changed, in the order in which it happened."""
    after = plan.status
    old, new = before.get("phase"), after.get("phase")
    if old is None:
        yield LogLine(level=logging.INFO, message="created", fields={"reason": "Created"})
    if old in status.TERMINAL and new not in status.TERMINAL:
        message = "runs again after its end"
        yield LogLine(level=logging.INFO, message=message, fields={"reason": "Restarted"})
    if old == status.SUSPENDED and new not in {status.SUSPENDED, *status.TERMINAL}:
        yield LogLine(level=logging.INFO, message="goes on", fields={"reason": "Resumed"})
    for incident in plan.incidents:
        mere = incident.cause is Cause.OPERATOR
        yield LogLine(
            level=logging.INFO if mere else logging.WARNING,
            message=f"{incident.cause}: {incident.evidence}; {incident.action}",
            fields={"incident": str(incident.cause), "round": incident.round or None},
        )
    if plan.publish:
        pods = ", ".join(member.pod for member in plan.publish.members)
        yield LogLine(
            level=logging.INFO,
            message=f"round {plan.publish.number}: {pods} ({plan.publish.reason})",
            fields={"reason": "RoundFormed", "round": plan.publish.number},
        )
    for incident in plan.resolved:
        yield LogLine(
            level=logging.INFO,
            message=f"recovered from {incident.cause} in {incident.seconds_lost or 0.0:.1f} s",
            fields={
                "incident": str(incident.cause),
                "reason": "Recovered",
                "round": incident.recovered_in,
            },
        )
    if new == status.DELETING and old != status.DELETING:
        message = str(after.get("message"))
        yield LogLine(level=logging.INFO, message=message, fields={"reason": "Deleting"})
    if new == status.SUSPENDED and old != status.SUSPENDED:
        message = str(after.get("message"))
        yield LogLine(level=logging.INFO, message=message, fields={"reason": "Suspended"})
    if new in status.TERMINAL and old not in status.TERMINAL:
        failed = new == status.FAILED
        kind = "Failed" if failed else "Complete"
        why = next((c["reason"] for c in after.get("conditions") or () if c["type"] == kind), new)
        yield LogLine(
            level=logging.ERROR if failed else logging.INFO,
            message=f"{str(new).lower()}: {after.get('message')}",
            fields={"reason": why, "round": after.get("round")},
        )


def edits(found: Mapping[str, Effect], plan: Plan) -> tuple[Event, ...]:
    """When changes of the spec take effect; an ended job tells of its edits otherwise."""
    if not found or plan.status.get("phase") in status.TERMINAL:
        return ()
    return (Event(kind="Normal", reason="SpecChanged", message=told(found)),)
