"""What went wrong in the operator itself, told where the job's owner looks: condition Reconciled.

Everything that a reconcile, a watch's handler or a request of an agent raises becomes a `Fault`: a
reason for programs, and one sentence that says whose turn it is. A traceback stays in the log; what
a job's token could be in is blacked out.

Trouble that passes, an API server that restarts for example, is told when it meets a second try,
too: told at once it would double the load of a server that is in trouble already.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rekindle.api.spec import SpecError
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.kube.cluster import TROUBLE, KubernetesError
from rekindle_operator.plan import Event
from rekindle_operator.status.status import condition

RECONCILED = "Reconciled"
"""Type of the condition."""
INVALID_SPEC = "InvalidSpec"
RETRY_LEAST, RETRY_MOST = 0.2, 30.0
"""Seconds before a failed reconcile is tried again: doubling from the first to the second."""
LENGTH = 500
"""Characters of a message; a server may answer with pages."""
TRY_AGAIN = 500
"""From this HTTP status on another try may succeed; so it may after 408 and 429."""
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+\S+")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why the operator cannot do for a job what it should."""

    reason: str
    message: str
    passes: bool = False
    """Whether another try may find it gone."""

    def event(self) -> Event:
        """The same for ``kubectl describe``."""
        return Event(kind="Warning", reason="ReconcileFailed", message=self.message)


def fault_of(error: BaseException, secrets: Iterable[str | None] = ()) -> Fault:
    """Put an exception into words; ``secrets`` are never among them."""
    if isinstance(error, SpecError):
        reason, text, passes = INVALID_SPEC, str(error), False
    elif isinstance(error, KubernetesError):
        passes = error.status >= TRY_AGAIN or error.status in {408, 429}
        reason = "ApiServerError" if passes else "ApiServerRefuses"
        text = f"the API server answers {error}"
    elif isinstance(error, TROUBLE):
        reason, passes = "ApiServerUnreachable", True
        text = f"the API server does not answer: {_named(error)}"
    else:
        reason, passes = "InternalError", False
        text = (
            f"{_named(error)} ({_place(error.__traceback__)}): a fault of the operator; "
            "report it with the operator's log"
        )
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return Fault(reason=reason, message=_BEARER.sub(r"\1 ***", text)[:LENGTH], passes=passes)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the operator's own in a traceback."""
    here, place = Path(__file__).parents[1], "somewhere"
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if here in file.parents:
            place = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def pause(failures: int, fault: Fault, *, arrived: bool = False) -> float:
    """Seconds until the next try after so many in a row that have failed.

    ``arrived``: the first word of it has just been written. Trouble that passes may well have done
    so by then; and of an API server that does not answer, no status should speak for long.
    """
    if arrived and fault.passes:
        return RETRY_LEAST
    # Half of an hour without the API server is more doublings than a float can hold.
    return float(min(RETRY_LEAST * (2 if fault.passes else 4) ** min(failures, 16), RETRY_MOST))


def is_reconciled(known: Mapping[str, Any]) -> bool:
    """Whether a status says that all is well with the operator's part."""
    conditions = known.get("conditions") or ()
    return any(c.get("type") == RECONCILED and c.get("status") == "True" for c in conditions)


def with_reconciled(
    fresh: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    fault: Fault | None,
    generation: int,
    now: float,
) -> list[dict[str, Any]]:
    """The conditions of a status and Reconciled beside them; ``before`` tells since when it is so.

    A spec that cannot be read is the job's fault, not the operator's: it is Degraded by it, too.
    """
    if fault:
        told = [condition(RECONCILED, False, fault.reason, fault.message)]
    else:
        told = [condition(RECONCILED, True, "AsPlanned", "the operator does what the job needs")]
    if fault and fault.reason == INVALID_SPEC:
        told.append(condition("Degraded", True, INVALID_SPEC, fault.message))
    mine = {item["type"] for item in told}
    result = [dict(item) for item in fresh if item["type"] not in mine]
    last = {item.get("type"): item for item in before}
    for item in told:
        old = last.get(item["type"]) or {}
        same = old.get("status") == item["status"] and old.get("lastTransitionTime")
        at = old["lastTransitionTime"] if same else stamp(now)
        result.append({**item, "lastTransitionTime": at, "observedGeneration": generation})
    return result
