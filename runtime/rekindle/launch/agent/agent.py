"""torch's elastic agent with a main loop of our own.

The stock loop sleeps between polls, looks at failures before new rounds, restarts failed workers
by itself out of a budget of its own, and stops workers with SIGTERM and 30 s of patience. Here
the loop sleeps on a notice, a view or the end of a worker, whichever comes first; what to do then
is a pure function (``decision``); and nothing is restarted unless the coordinator publishes a
round. What is kept of torch's agent is how a rendezvous turns into workers with torchrun's
environment.

For a re-form workers get SIGKILL at once: one that is blocked in a collective with a dead peer
may not hear anything else for minutes, and what it has not committed is lost either way. The next
ones are forked from a process that has imported everything (``forkserver``); until that is warm,
this pod says so and is in no round. While the kernel takes the old workers apart, the round's store
is reached and its directory made.

Two files without a name, in which workers keep copies of the state, live as long as the pod: each
worker inherits them. What is in them is the trainer's business.
"""

import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from rekindle import api
from rekindle.api import AgentPhase, Cause, Directive, ExitCode, Outcome, Round
from rekindle.launch.agent.decision import (
    FAR,
    SAVE_SECONDS,
    Action,
    Ask,
    End,
    ExitAgent,
    Facts,
    Join,
    Ready,
    Terminate,
    WaitForChange,
    ask_at,
    decide,
    leave_by,
    outcome_of,
)
from rekindle.launch.agent.rendezvous import Rendezvous, place
from rekindle.launch.agent.workers import WorkerProcesses
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.health.last_lines import LINES, last_line, outcome_in
from rekindle.launch.health.progress_readers import ProgressSource, text
from rekindle.launch.health.progress_tracker import Tracker
from rekindle.launch.health.watcher import Watcher
from rekindle.launch.pod import termination_message
from rekindle.launch.pod.cgroup import oom_kills
from rekindle.launch.pod.signals import Signals
from rekindle.launch.pod.worker_uptime import names_trainer
from rekindle.launch.spawn.command import Program, Script
from rekindle.launch.spawn.environment import MANY, of_program, of_round, of_worker
from rekindle.launch.spawn.fork_server_client import Starter
from rekindle.launch.spawn.streams import Tap
from rekindle.ranks import heartbeat
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.heartbeat import Beat

logger = logging.getLogger(__name__)

POLL = 0.05
"""Seconds between looks at the workers where the system cannot wake us when one ends."""
RETRY = 1.0
"""Seconds before a round that could not be joined is tried again."""
FLUSH = 1.0
"""Seconds for last words to reach the coordinator."""
LAST_LOOK = 0.5
"""Seconds for what a script has last shown of its progress to be read."""


class Agent(LocalElasticAgent):
    """Runs the workers of one pod, round after round; ``serve`` is the whole life of the pod."""

    def __init__(
        self,
        session: PodSession,
        signals: Signals,
        starter: Starter,
        directory: Path,
        *,
        source: ProgressSource,
        target: Script | Program,
        gpus: Sequence[str] = (),
    ) -> None:
        """``directory`` is for this agent alone, and removed at its end.

        ``source`` is where the script shows its progress, ``target`` what workers run, and ``gpus``
        are those of the pod.
        """
        self._session = session
        self._signals = signals
        self._starter = starter
        self._base = directory
        self._page: ControlPage | None = None
        self._workers: WorkerProcesses | None = None
        self._gone_at: float | None = None
        self._course = _Course()
        self._done_at: float | None = None
        self._notice_told = False
        self._hurried_at: float | None = None
        self._code = int(ExitCode.USER_ERROR)
        self._retry: tuple[str, float] | None = None
        self._save_seen: tuple[str, Directive, float] | None = None
        self._watcher = Watcher(
            session, directory=lambda: self.directory, send=self._signal_workers
        )
        self._tracker = Tracker(session, source)
        self._program = target if isinstance(target, Program) else None
        self._gpus = gpus
        self._trainer = isinstance(target, Script) and names_trainer(target.arguments)
        self._printed: dict[int, deque[bytes]] = {}
        session.listen(signals.wake)
        self._settings = settings = session.settings
        spec = WorkerSpec(
            role="default",
            local_world_size=settings.nproc,
            entrypoint="python",  # Workers are started by the starter, which knows the command.
            rdzv_handler=Rendezvous(session, settings.job, pause=signals.wait),
            max_restarts=MANY,
            local_addr=settings.address,
        )
        super().__init__(spec=spec, logs_specs=DefaultLogsSpecs(), exit_barrier_timeout=0)

    def serve(self) -> int:
        """Live until the pod's end; gives its exit code. The termination message is written."""
        self._session.announce(self._session.phase)
        self._watcher.start()
        self._tracker.start()
        try:
            self.run()
        finally:
            self._watcher.close()
            self._tracker.close()
            self._shutdown()
            self._starter.close()
            shutil.rmtree(self._base, ignore_errors=True)
        return self._code

    @property
    def directory(self) -> Path | None:
        """Give the directory of the present round, or of the last one."""
        return self._page.directory if self._page else None

    # What torch's agent asks of a subclass, and what of it must not be done torch's way.

    def run(self, role: str = "default") -> RunResult:
        """Run the main loop; torch's own adds events that look up host names, slow with bad DNS."""
        return self._invoke_run(role)

    @contextmanager
    def record_duration(self, state: str) -> Iterator[None]:
        """Time nothing, for the same reason."""
        yield

    def _construct_event(self, state: str, source: EventSource, *_: Any, **__: Any) -> Event:
        return Event(f"torchelastic.worker.status.{state}", source=source)

    def _invoke_run(self, role: str = "default") -> RunResult:
        while True:
            self._session.turned_at = time.monotonic()
            facts = self._facts()
            action = decide(facts)
            if isinstance(action, ExitAgent):
                self._leave(action.code)
                self._code = action.code
                return RunResult(state=WorkerState.STOPPED)
            self._do(action, facts)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        self._course = _Course(oom_kills=oom_kills(), deaths=self._starter.deaths)
        self._bury()

    def _assign_worker_ranks(
        self, store: object, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        # The round says it all; torch's way waits in the store until every member has come.
        current = self._current()
        where = place(current, self._session.settings.uid)
        return [
            Worker(
                local_rank=local_rank,
                global_rank=where.first_rank + local_rank,
                role_rank=where.first_rank + local_rank,
                world_size=where.world_size,
                role_world_size=where.world_size,
            )
            for local_rank in range(where.nproc)
        ]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        current = self._current()
        directory = self._base / f"round-{current.number}-{current.key}"
        if directory.exists():
            shutil.rmtree(directory)
        (directory / "prometheus").mkdir(parents=True)
        self._take_over(current)
        previous, self._page = self._page, ControlPage(directory, create=True)
        where = place(current, self._session.settings.uid)
        common = of_round(current, directory)
        environments = [
            {
                **common,
                **of_worker(
                    rank=worker.global_rank,
                    local_rank=worker.local_rank,
                    nproc=where.nproc,
                    world_size=where.world_size,
                    group_rank=where.group_rank,
                    group_size=where.group_size,
                    address=str(worker_group.master_addr),
                    port=int(worker_group.master_port or 0),
                ),
            }
            for worker in worker_group.workers
        ]
        if self._program is not None:
            job, gpus = self._session.settings.job, self._gpus
            environments = [
                each | of_program(self._program, each, job, gpus) for each in environments
            ][: 1 if self._program.per_pod else None]
        if self._gone_at is not None:
            self._session.stopped(self._gone_at)
        leads = where.first_rank == 0
        report = self._tracker.begin(directory, leads=leads)
        if report is not None:
            environments[0][api.ENV_REPORT] = str(report)
        self._workers = WorkerProcesses(self._starter)
        self._workers.start(
            environments,
            directory=directory,
            first_rank=worker_group.workers[0].global_rank,
            taps=self._taps(len(environments), leads=leads),
        )
        self._session.attach(self._page, trainer=self._trainer)
        if previous is not None and previous.directory != directory:
            shutil.rmtree(previous.directory, ignore_errors=True)
        return dict(enumerate(self._workers.pids()))

    def _taps(self, count: int, *, leads: bool) -> dict[int, Tap]:
        """Give who reads along what workers print: for their steps, or for the error at their end.

        A script leaves word of its error; a program has nothing but its log.
        """
        self._printed = {}
        found: dict[int, Tap] = {}
        for local_rank in range(count):
            reads = local_rank == 0 and leads and self._tracker.taps
            if self._program is not None:
                kept = self._printed[local_rank] = deque[bytes](maxlen=LINES)
                found[local_rank] = partial(_hear, kept, self._tracker.heard if reads else None)
            elif reads:
                found[local_rank] = self._tracker.heard
        return found

    def _take_over(self, current: Round) -> None:
        """Go by what the job says now, and not by what it said when this pod was made."""
        try:
            self._session.settings = self._settings.in_round(current.variables)
        except ValueError as error:
            logger.warning("round %d: %s; the pod's own value holds", current.number, error)
            self._session.settings = self._settings
        self._signals.grace = self._session.settings.grace

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 1) -> None:
        if self._workers is not None:
            self._workers.kill()
            self._bury()

    def _signal_workers(self, number: signal.Signals) -> None:
        """Signal the workers, from any thread."""
        workers = self._workers
        if workers is not None:
            workers.send(number)

    def _bury(self) -> None:
        """Wait until the workers that were killed are gone."""
        if self._workers is not None:
            self._workers.bury()
            self._workers = None
            self._gone_at = time.monotonic()

    # The main loop's eyes and hands.

    def _current(self) -> Round:
        current = self._session.round
        assert current is not None, "workers exist only within a round"
        return current

    def _facts(self) -> Facts:
        now = time.monotonic()
        session, signals, state = self._session, self._signals, self._course
        self._starter.tend()
        exits = self._workers.exits() if self._workers else ()
        own = [] if self._workers is None else self._workers.pids()
        _reap_orphans([*own, *([] if self._starter.pid is None else [self._starter.pid])])
        if state.stopped_at is None and any(code in (75, 76) for code in exits):
            state.stopped_at = now
        if state.failed_at is None and any(code not in (None, 0, 75, 76) for code in exits):
            state.failed_at = now
        notice, ask = None, 0.0
        if signals.noticed_at is not None:
            notice = leave_by(signals.noticed_at, signals.seconds)
            ask = ask_at(
                noticed_at=signals.noticed_at,
                heard_at=session.heard_at,
                leave_by=notice,
                save_seconds=self._page.save_seconds if self._page else None,
            )
            if signals.hurry:
                self._hurried_at = self._hurried_at or now
                notice = min(notice, self._hurried_at)
                ask = min(ask, notice)
            if not self._notice_told:
                self._notice_told = True
                self._heed_notice()
        offered = session.joinable()
        retry_at = None
        if offered is not None and self._retry is not None and self._retry[0] == offered.key:
            retry_at = self._retry[1]
        return Facts(
            now=now,
            phase=session.phase,
            exits=exits,
            attached=self._page is not None and self._page.attached,
            joinable=offered is not None,
            excluded=session.excluded(),
            stop=session.stop(),
            leave_by=notice,
            ask_at=ask,
            warm=self._starter.ready,
            save_by=self._save_by(now),
            asked_by=state.asked_by,
            terminated_at=state.terminated_at,
            stopped_at=state.stopped_at,
            done_at=self._done_at,
            retry_at=retry_at,
            outcome=session.outcome,
        )

    def _save_by(self, now: float) -> float | None:
        """Give the deadline of a directive to save, counted from when it was first seen."""
        directive = self._session.save()
        if directive is None:
            return None
        key = self._current().key
        known = self._save_seen if self._save_seen and self._save_seen[0] == key else None
        if known is None or known[1] != directive:
            # Another one about this round comes when less time is left than was thought.
            seconds = SAVE_SECONDS if directive.seconds is None else directive.seconds
            by = now + seconds if known is None else min(known[2], now + seconds)
            self._save_seen = known = (key, directive, by)
            logger.info("asked to save and stop within %.0f s: %s", seconds, directive.reason)
        return known[2]

    def _stays(self) -> bool:
        """Whether this pod is asked to save for the sake of a round that it will be in."""
        directive = self._session.save()
        going = self._signals.noticed_at is not None
        return not going and directive is not None and directive.reason != api.SUSPENDED

    def _do(self, action: Action, facts: Facts) -> None:
        state = self._course
        if isinstance(action, WaitForChange):
            files = self._workers.files() if self._workers else []
            seconds = min(action.seconds, FAR) if files is not None else min(action.seconds, POLL)
            self._signals.wait(seconds, [*(files or ()), *self._starter.files])
        elif isinstance(action, Ready):
            self._session.announce(AgentPhase.WAITING)
        elif isinstance(action, Join):
            self._join()
        elif isinstance(action, Ask):
            assert self._page is not None, "workers exist only with a page"
            self._page.request_stop(action.deadline, stays=self._stays())
            state.asked_by = action.deadline
        elif isinstance(action, Terminate):
            assert self._workers is not None, "only running workers are terminated"
            self._workers.send(signal.SIGTERM)
            state.terminated_at = facts.now
        elif isinstance(action, End):
            self._end(action, facts)

    def _join(self) -> None:
        offered = self._session.joinable()
        if offered is None:
            return  # Withdrawn in the meantime.
        if self._workers is not None:
            logger.info("stopping the workers for round %d: %s", offered.number, offered.reason)
            # They are waited for when the round's store has been reached.
            self._workers.kill()
        self._done_at = None
        if self.directory is not None:
            self._session.stepped(last_step(heartbeat.read(self.directory)))
        try:
            self._initialize_workers(self._worker_group)
        except RendezvousConnectionError as error:
            logger.warning("cannot join round %d: %s", offered.number, error)
            self._retry = (offered.key, time.monotonic() + RETRY)
        except RendezvousGracefulExitError:
            pass  # The order to stop is among the facts.
        except OSError as error:
            # The fork server has died at this very moment. There is another one soon.
            self._shutdown()
            outcome = Outcome(
                cause=Cause.POD_LOST,
                code=int(ExitCode.PREEMPTED),
                message=f"the workers of round {offered.number} could not be started: {error}",
                at=time.time(),
            )
            logger.warning("%s", outcome.message)
            now = time.monotonic()
            self._session.announce(AgentPhase.FAILED, outcome, failed_at=now)
        else:
            where = place(self._current(), self._session.settings.uid)
            logger.info(
                "round %d (%s): %d pods, %d workers; ours have rank %d to %d",
                offered.number,
                offered.reason,
                where.group_size,
                where.world_size,
                where.first_rank,
                where.first_rank + where.nproc - 1,
            )

    def _end(self, end: End, facts: Facts) -> None:
        """Close the round for this pod."""
        self._stop_workers(self._worker_group)
        self._tracker.finish(LAST_LOOK)
        outcome = self._outcome(end, facts.exits)
        if end.phase is AgentPhase.DONE:
            self._done_at = facts.now
        if outcome is not None:
            logger.info("the workers have ended: %s", outcome.message)
        failed_at = self._course.failed_at if end.saved is None else None
        self._session.announce(end.phase, outcome, failed_at=failed_at)

    def _outcome(self, end: End, exits: tuple[int | None, ...]) -> Outcome | None:
        assert self._page is not None, "a round that has ended had a page"
        session, state = self._session, self._course
        before, after = state.oom_kills, oom_kills()
        self._starter.tend()  # a fork server that has just died took its workers along
        try:
            left = self._page.outcomes()
        except (OSError, ValueError) as error:
            logger.warning("cannot read what the workers have left: %s", error)
            left = []
        first_rank = place(self._current(), session.settings.uid).first_rank
        printed: dict[int, str] = {}
        if self._program is not None and not left:
            for local_rank, code in enumerate(exits):
                if code not in (None, 0, 75, 76):
                    lines = [text(line) for line in self._printed[local_rank]]
                    printed[local_rank] = last_line(lines)
                    said = outcome_in(lines, rank=first_rank + local_rank, now=time.time())
                    left += [] if said is None else [said]
        progress = session.report().progress
        directive = session.save()
        notice = self._signals.noticed_at is not None
        if notice:
            why = f"{self._signals.source} to this pod"
        else:
            why = directive.reason if directive else "another pod has to go"
        return outcome_of(
            end=end,
            exits=exits,
            first_rank=first_rank,
            left=left,
            oom=before is not None and after is not None and after > before,
            step=progress.step if progress else None,
            checkpoint=session.checkpoint.step if session.checkpoint else None,
            why=why,
            now=time.time(),
            printed=printed,
            orphaned=self._starter.deaths > state.deaths,
        )

    def _heed_notice(self) -> None:
        """Tell of the notice at once, and leave a message in case that SIGKILL comes early."""
        logger.info(
            "%s: this pod has to go within %.0f s",
            self._signals.source,
            self._signals.left,
        )
        self._session.poke()
        if self._workers is not None:
            early = Outcome(
                cause=Cause.PREEMPTED,
                code=int(ExitCode.PREEMPTED),
                message=f"{self._signals.source}; killed before the workers had saved",
                at=time.time(),
            )
            termination_message.write(self._session.settings.termination_log, early)

    def _leave(self, code: int) -> None:
        """End the pod: its workers, its last words, its report."""
        session = self._session
        self._shutdown()
        outcome = last_words(
            code=code,
            phase=session.phase,
            outcome=session.outcome,
            stop=session.stop(),
            source=self._signals.source if self._signals.noticed_at is not None else None,
            now=time.time(),
        )
        termination_message.write(session.settings.termination_log, outcome)
        logger.info("exits with %d: %s", code, outcome.message)
        if self._signals.noticed_at is not None:
            # Who ordered the pod to stop knows; who sent the signal was not the coordinator.
            session.announce(AgentPhase.LEAVING, outcome)
            session.flush(FLUSH)
        session.close()


def last_step(beats: Sequence[Beat]) -> float | None:
    """Give when the workers of a round had done their last step (time.monotonic()), if any."""
    return max((beat.at for beat in beats if beat.step > beat.first), default=None)


def _hear(kept: deque[bytes], also: Tap | None, line: bytes) -> None:
    kept.append(line)
    if also is not None:
        also(line)


@dataclass
class _Course:
    """What has been done to the workers of a round so far."""

    asked_by: float | None = None
    terminated_at: float | None = None
    stopped_at: float | None = None
    failed_at: float | None = None
    oom_kills: int | None = None
    """The kernel's count when the round began."""
    deaths: int = 0
    """How many fork servers had died by then."""


def last_words(
    *,
    code: int,
    phase: AgentPhase,
    outcome: Outcome | None,
    stop: Directive | None,
    source: str | None,
    now: float,
) -> Outcome:
    """Give the termination message of a pod that exits with ``code``; ``now`` in unix seconds.

    A pod that holds an outcome of its own tells that. One that is stopped while it runs or waits
    tells the coordinator's reason, and one that a signal finds without workers tells the signal.
    """
    own = phase in {AgentPhase.FAILED, AgentPhase.DONE, AgentPhase.LEAVING}
    if outcome is not None and own:
        return replace(outcome, code=code)
    if stop is not None:
        message = stop.message or f"stopped by the coordinator: {stop.reason}"
    elif source is not None:
        message = f"{source} while waiting for a round; nothing is lost"
    else:
        message = "training is complete"
    causes = {
        ExitCode.DONE: Cause.COMPLETED,
        ExitCode.INTEGRITY: Cause.INTEGRITY,
        ExitCode.SAVED: Cause.SAVED,
        ExitCode.PREEMPTED: Cause.PREEMPTED,
    }
    cause = next((cause for value, cause in causes.items() if value == code), Cause.USER_ERROR)
    return Outcome(cause=cause, code=code, message=message, at=now)


def _reap_orphans(own: Collection[int]) -> None:
    """As PID 1, bury the processes that lost their parent.

    The end of an own child must stay for its Popen object to see, so this looks before it takes.
    """
    if os.getpid() != 1:
        return
    try:
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
    except ChildProcessError:
        return
