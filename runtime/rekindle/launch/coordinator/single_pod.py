"""What decides about a pod that has no operator: a pure function in place of the coordinator.

The agent then needs no second way through its life: it reports, and gets a view, which is a round
of its own at first and an order to stop as soon as the workers have ended in any way. There is
nobody who would start the pod again, so nothing is tried twice here.
"""

import time
from collections.abc import Callable

from rekindle.api import (
    AgentPhase,
    AgentReport,
    Directive,
    DirectiveKind,
    ExitCode,
    Member,
    Round,
    View,
)


def solo_view(report: AgentReport, now: float) -> View:
    """Decide for a pod by itself; ``now`` in unix seconds."""
    if report.phase is AgentPhase.WAITING and report.round is None:
        member = Member(
            pod=report.pod,
            uid=report.uid,
            address=report.address,
            store_port=report.store_port,
            nproc=report.nproc,
        )
        alone = Round(number=1, members=(member,), reason="runs by itself", formed_at=now)
        return View(version="round", round=alone)
    if report.phase is AgentPhase.DONE:
        code = int(ExitCode.DONE)
    elif report.phase in {AgentPhase.FAILED, AgentPhase.WAITING}:
        code = report.outcome.code if report.outcome else int(ExitCode.USER_ERROR)
    else:
        return View(version="running", round=report.round)
    reason = "there is no operator to decide otherwise"
    stop = Directive(kind=DirectiveKind.STOP, round=1, reason=reason, code=code)
    return View(version="stop", round=report.round, directive=stop)


class SoloLink:
    """A Link whose other side is ``solo_view``; answers within the call, without threads."""

    heard_at: float | None = None
    """There is nobody who could see to a replacement."""

    def start(self, snapshot: Callable[[], AgentReport], received: Callable[[View], None]) -> None:
        """Remember both."""
        self._snapshot = snapshot
        self._received = received

    def poke(self) -> None:
        """Decide anew."""
        self._received(solo_view(self._snapshot(), time.time()))

    def flush(self, timeout: float) -> bool:
        """Nothing is ever under way."""
        return True

    def close(self) -> None:
        """Nothing to close."""
