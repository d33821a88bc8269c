"""What this pod says of itself and what it has been told: the state that threads share.

The main loop writes the phase, and when it got how far with a round; the link's threads read a
whole report and write views, the exporter reads. All of it is small and behind one lock; nothing
slow happens while the lock is held, and listeners are called without it.

How far the workers are is read from the control page at the moment of a report. A page that no
trainer has begun to fill is no progress: telling zeros in between would look like a run that was
thrown back; what a script without a trainer shows (``tracker``) stands in for it. When the workers
have ended, the last reading stays.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rekindle.api import (
    AgentPhase,
    AgentReport,
    CheckpointReport,
    Directive,
    DirectiveKind,
    Hang,
    Outcome,
    Progress,
    RankReport,
    RestoredFrom,
    Rollback,
    Round,
    Suspect,
    Timings,
    View,
)
from rekindle.launch.coordinator.client import Link
from rekindle.launch.pod.round_store import Spare
from rekindle.launch.pod.settings import Settings
from rekindle.launch.pod.signals import Signals
from rekindle.launch.pod.worker_uptime import running_at
from rekindle.ranks.control_page import ControlPage

logger = logging.getLogger(__name__)


class PodSession:
    """The pod's state towards whoever decides about it."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        spare: Spare,
        signals: Signals | None = None,
        phase: AgentPhase = AgentPhase.WAITING,
    ) -> None:
        """``phase`` is what the first report says."""
        self.settings = settings
        self.spare = spare
        self.rounds_joined = 0
        self.turned_at = time.monotonic()
        """When the main loop was last seen alive; for /healthz."""
        self._link = link
        self._signals = signals
        self._lock = threading.Lock()
        self._phase = phase
        self._round: Round | None = None
        self._outcome: Outcome | None = None
        self._page: ControlPage | None = None
        self._progress: Progress | None = None
        self._tracked: Progress | None = None
        self._awaited = False
        self._checkpoint: CheckpointReport | None = None
        self._restored: RestoredFrom | None = None
        self._failed_at: float | None = None
        self._began: _Began | None = None
        self._stepped_at: float | None = None
        self._offered: tuple[str, float] | None = None
        self._ranks: tuple[RankReport, ...] = ()
        self._hang: Hang | None = None
        self._rollback: Rollback | None = None
        self._waits: str | None = None
        self._worlds: tuple[int | None, int | None] = (None, None)
        self._unreachable: tuple[str, ...] = ()
        self.reach_port = 0
        """Where other pods can ask whether this one is there; 0: nowhere."""
        self._view: View | None = None
        self._listeners: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to report."""
        self._link.start(self.report, self._receive)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call the listener, from any thread, after each change of the view."""
        self._listeners.append(listener)

    # What the pod says.

    def announce(
        self,
        phase: AgentPhase,
        outcome: Outcome | None = None,
        *,
        failed_at: float | None = None,
    ) -> None:
        """Change the phase and report it at once.

        ``failed_at`` (time.monotonic()) is when workers were first seen to fail.
        """
        self._read_page()
        with self._lock:
            self._phase = phase
            self._outcome = outcome
            self._failed_at = failed_at
        self._link.poke()

    def joined(self, number: Round) -> None:
        """Say that the workers of a round are about to run here."""
        with self._lock:
            self._phase = AgentPhase.RUNNING
            self._round = number
            self._outcome = None
            self._page = None
            self._progress = self._tracked = None
            self._awaited = False
            self._restored = self._waits = None
            self._ranks, self._hang, self._rollback = (), None, None
            seen = self._offered
            at = seen[1] if seen and seen[0] == number.key else time.monotonic()
            broken = None if self._failed_at is None else max(0.0, at - self._failed_at)
            self._failed_at = None
            stood = None if self._stepped_at is None else max(0.0, at - self._stepped_at)
            self._began = _Began(seen_at=at, broken=broken, stood=stood)
            self.rounds_joined += 1
        self._link.poke()

    def stepped(self, at: float | None) -> None:
        """Say when the workers of a round, which is over, have last got on (time.monotonic())."""
        with self._lock:
            self._stepped_at = self._stepped_at if at is None else at

    def stopped(self, at: float) -> None:
        """Say when the workers of the round before were gone (time.monotonic())."""
        with self._lock:
            if self._began is not None:
                self._began.stopped_at = at

    def attach(self, page: ControlPage, *, trainer: bool = False) -> None:
        """Read progress from this page from now on: the workers have been started.

        ``trainer``: the script looks as if a trainer were going to attach to the page.
        """
        with self._lock:
            self._page = page
            self._awaited = trainer
            if self._began is not None:
                self._began.started_at = time.monotonic()

    def tracked(self, progress: Progress | None) -> None:
        """Say what a script without a trainer shows of its progress, None for nothing yet.

        That the workers run, and their first step, is told at once.
        """
        with self._lock:
            before = self._progress, self._began and self._began.running_at
            self._tracked = progress
            if progress is not None and progress.round_steps and self._began is not None:
                self._began.reported_at = self._began.reported_at or time.monotonic()
        self._read_page()
        with self._lock:
            after = self._progress, self._began and self._began.running_at
        if any((was is None) != (now is None) for was, now in zip(before, after, strict=True)):
            self._link.poke()

    @property
    def runs(self) -> bool:
        """Whether the workers of the round count as running."""
        with self._lock:
            return self._began is not None and self._began.running_at is not None

    def watched(self, ranks: tuple[RankReport, ...], hang: Hang | None) -> None:
        """Say how the workers get on; a hang that begins, is located or ends is told at once."""
        with self._lock:
            before, self._ranks, self._hang = self._hang, ranks, hang
        if (before and replace(before, idle=0.0)) != (hang and replace(hang, idle=0.0)):
            self._link.poke()

    def missed(self, unreachable: tuple[str, ...]) -> None:
        """Say which of the suspects this pod cannot reach; a change is told at once."""
        with self._lock:
            before, self._unreachable = self._unreachable, unreachable
        if before != unreachable:
            self._link.poke()

    def poke(self) -> None:
        """Report at once, because something outside this object has changed."""
        self._link.poke()

    def flush(self, timeout: float) -> bool:
        """Wait until the present state has arrived at the other side; False when it has not."""
        return self._link.flush(timeout)

    def close(self) -> None:
        """Stop talking."""
        self._link.close()

    def report(self) -> AgentReport:
        """Give the whole state."""
        self._read_page()
        settings = self.settings
        notice, seconds = None, None
        if self._signals is not None and self._signals.noticed_at is not None:
            notice, seconds = self._signals.source, self._signals.left
        with self._lock:
            return AgentReport(
                pod=settings.pod,
                uid=settings.uid,
                address=settings.address,
                store_port=self.spare.port,
                nproc=settings.nproc,
                phase=self._phase,
                round=self._round,
                notice=notice,
                notice_seconds=seconds,
                progress=self._progress,
                checkpoint=self._checkpoint,
                restored=self._restored,
                outcome=self._outcome,
                failed_for=(
                    None
                    if self._failed_at is None
                    else max(0.0, time.monotonic() - self._failed_at)
                ),
                timings=None if self._began is None else self._began.timings(),
                ranks=self._ranks,
                hang=self._hang,
                rollback=self._rollback,
                least_world=self._worlds[0],
                useful_world=self._worlds[1],
                reach_port=self.reach_port,
                unreachable=self._unreachable,
                waits=self._waits,
            )

    # What it has been told.

    @property
    def heard_at(self) -> float | None:
        """When the other side last answered, 0 before the first time; None: there is none."""
        return self._link.heard_at

    @property
    def phase(self) -> AgentPhase:
        """Where the agent is in its life."""
        return self._phase

    @property
    def round(self) -> Round | None:
        """The round that its workers run in, or last ran in."""
        return self._round

    @property
    def outcome(self) -> Outcome | None:
        """How the workers ended, while there are none."""
        return self._outcome

    @property
    def progress(self) -> Progress | None:
        """The last reading of the page."""
        return self._progress

    @property
    def checkpoint(self) -> CheckpointReport | None:
        """The newest commit that this pod knows of."""
        return self._checkpoint

    def stop(self) -> Directive | None:
        """Give the order to stop, if there is one."""
        directive = self._view.directive if self._view else None
        return directive if directive and directive.kind is DirectiveKind.STOP else None

    def save(self) -> Directive | None:
        """Give the order to save, if there is one about the present round."""
        directive = self._view.directive if self._view else None
        if directive is None or directive.kind is not DirectiveKind.SAVE or self._round is None:
            return None
        return directive if directive.round == self._round.number else None

    def dump(self) -> Directive | None:
        """Give the wish to know where the workers of the present round stand, if there is one."""
        directive = self._view.directive if self._view else None
        if directive is None or directive.kind is not DirectiveKind.DUMP or self._round is None:
            return None
        return directive if directive.round == self._round.number else None

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """The pods that the other side does not hear."""
        return self._view.suspects if self._view else ()

    def joinable(self) -> Round | None:
        """Give the round that this pod should join next, if there is one."""
        return joinable(self._view, self.settings.uid, self._round)

    def excluded(self) -> bool:
        """Say whether a newer round goes on without this pod."""
        current = self._view.round if self._view else None
        if current is None or self._round is None:
            return False
        newer = current.number > self._round.number
        return newer and current.first_rank(self.settings.uid) is None

    def _receive(self, view: View) -> None:
        with self._lock:
            changed = view != self._view
            self._view = view
            offered = view.round
            if offered is not None and (not self._offered or self._offered[0] != offered.key):
                self._offered = (offered.key, time.monotonic())
        if changed:
            for listener in self._listeners:
                listener()

    def _read_page(self) -> None:
        with self._lock:
            page = self._page
        if page is None:
            return
        try:
            progress = page.progress()
            restored = page.restored()
            stamps = page.stamps()
            rollback = page.rollback()
            waits = page.waits() if restored is None else None
            attached, awaited, formed = page.attached, page.awaited, page.formed_at
        except (OSError, ValueError) as error:
            logger.warning("cannot read what the workers have left: %s", error)
            return
        checkpoint = page.checkpoint(self.settings.checkpoint_uri)
        with self._lock:
            if page is not self._page:
                return
            if restored is not None or progress.step or progress.round_steps:
                self._progress = progress
            elif self._tracked is not None:
                self._progress = self._tracked
            self._restored = restored
            self._rollback = rollback
            self._waits = waits
            if restored is not None:
                # It holds for the rounds to come, until their workers say otherwise.
                self._worlds = page.worlds
            if self._began is not None:
                began = self._began
                began.stamps = stamps if attached else (formed or stamps[0], *stamps[1:])
                if began.running_at is None and self._phase is AgentPhase.RUNNING:
                    began.running_at = running_at(
                        now=time.monotonic(),
                        started=began.started_at,
                        formed=formed,
                        stepped=stamps[2],
                        reported=began.reported_at,
                        attached=attached,
                        awaited=awaited or self._awaited,
                    )
            self._checkpoint = checkpoint or self._checkpoint


@dataclass
class _Began:
    """How far the workers of a round have come, in time.monotonic()."""

    seen_at: float
    broken: float | None = None
    """Seconds for which the workers of the round before had been dead then."""
    stood: float | None = None
    """Seconds for which those of the rounds before had done no step then."""
    stopped_at: float | None = None
    started_at: float | None = None
    reported_at: float | None = None
    """When a script without a trainer was first seen to have done a step."""
    running_at: float | None = None
    """Once it is known it stays: workers do not stop to run within a round."""
    stamps: tuple[float | None, float | None, float | None] = (None, None, None)

    def timings(self) -> Timings:
        """Give them as seconds since the round was first seen."""
        stopped, started, running, grouped, restored, stepped = (
            None if at is None else round(max(0.0, at - self.seen_at), 4)
            for at in (self.stopped_at, self.started_at, self.running_at, *self.stamps)
        )
        return Timings(
            age=max(0.0, time.monotonic() - self.seen_at),
            broken=self.broken,
            stood=self.stood,
            stopped=stopped,
            started=started,
            grouped=grouped,
            restored=restored,
            stepped=stepped,
            running=running,
        )


def joinable(view: View | None, uid: str, ran: Round | None) -> Round | None:
    """Give the view's round if the pod is in it and should join it.

    Not one that it has run, nor one from before that (an answer that was overtaken, or a
    coordinator that has not yet been told everything again).
    """
    offered = view.round if view else None
    if offered is None or offered.first_rank(uid) is None:
        return None
    if ran is not None:
        if offered.number < ran.number:
            return None
        if offered.number == ran.number and offered.key == ran.key:
            return None
    return offered
