"""What a pod does next, as a function of what is known: no clock, no process, no network.

The agent's main loop gathers ``Facts``, asks ``decide``, does that one thing, and asks again. So
each rule below is a line of a table in the tests, and an order of events that nobody thought of
still meets a rule. The rules in one breath:

- An order to stop wins over everything. Then ends of workers count, then a new round, then wishes
  to save (a directive's or a notice's), because a round that is over cannot save any more.
- Workers that exit with 75 have committed; one is enough, the rest follow or are ended.
- A worker that fails ends its siblings; what comes of it is the coordinator's verdict, a new
  round or an order to stop, and no restart budget is kept here.
- A pod that has been told to go makes its replacement come before it breaks off: it trains on until
  the coordinator says save, the deadline is near, or the coordinator does not answer. Without
  workers it leaves at once. It leaves with 75 when nothing is lost by its going, and with 76 when
  its workers could not save.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rekindle.api import AgentPhase, Cause, Directive, ExitCode, Outcome
from rekindle.errors.process_endings import ProcessExit, ProcessRole, blame, name_of
from rekindle.errors.process_endings import outcome_of as outcome_of_worker

MARGIN = 3.0
"""Seconds kept back from the grace period for stopping, telling and leaving."""
KILL_AFTER = 1.0
"""Seconds between SIGTERM and SIGKILL for workers whose deadline has passed."""
LINGER = 30.0
"""Seconds that workers may go on after one has exited with 75: all have committed by then."""
DONE_WAIT = 10.0
"""Seconds that a pod whose workers are done waits to be told to stop."""
SAVE_SECONDS = 600.0
"""For a directive to save that names no time."""
PATIENCE = 2.0
"""Seconds after a notice, or after its last answer, that the coordinator has for its word."""
LEAST_SAVE = 3.0
"""Seconds that a save is given at least before the deadline of a notice."""
FAR = 60.0
"""Longest sleep: seconds after which the loop looks at everything anew in any case."""

_STOPPED = frozenset({int(ExitCode.SAVED), int(ExitCode.PREEMPTED)})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a decision rests on. Times are of one monotonic clock."""

    now: float
    phase: AgentPhase
    exits: tuple[int | None, ...] = ()
    """Per worker: None while it runs, else its exit code, negative for a signal."""
    attached: bool = False
    """Whether a trainer watches the control page."""
    joinable: bool = False
    """Whether there is a round to join that has not been tried in vain just now."""
    excluded: bool = False
    """Whether a newer round goes on without this pod."""
    stop: Directive | None = None
    leave_by: float | None = None
    """When saving must be over, for a pod that was told to go; None without a notice."""
    ask_at: float = 0.0
    """When a pod that was told to go asks its workers to save, if nobody has told it to."""
    warm: bool = True
    """Whether workers can be started without delay."""
    save_by: float | None = None
    """When saving must be over, for a directive to save; None without one."""
    asked_by: float | None = None
    """The deadline that the workers were given; None when they have not been asked."""
    terminated_at: float | None = None
    """When the workers were sent SIGTERM."""
    stopped_at: float | None = None
    """When the first worker was seen to have exited with 75 or 76."""
    done_at: float | None = None
    """When the workers were seen to be done."""
    retry_at: float | None = None
    """When joining the round that could not be joined is worth another try."""
    outcome: Outcome | None = None
    """How the workers ended last."""


@dataclass(frozen=True)
class WaitForChange:
    """Sleep until something happens, at most so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ready:
    """Say that this pod can run workers."""


@dataclass(frozen=True)
class Join:
    """Kill what runs and join the round that is there."""


@dataclass(frozen=True)
class Ask:
    """Ask the workers, through the page, to save and stop before the deadline."""

    deadline: float


@dataclass(frozen=True)
class Terminate:
    """Send SIGTERM to the workers."""


@dataclass(frozen=True)
class End:
    """The round is over for this pod: kill what is left, say so, and go on from ``phase``."""

    phase: AgentPhase
    """What to report; LEAVING is followed by the exit."""
    saved: bool | None = None
    """Whether the workers committed; None where that is not the question."""


@dataclass(frozen=True)
class ExitAgent:
    """End the process."""

    code: int


Action = WaitForChange | Ready | Join | Ask | Terminate | End | ExitAgent


def decide(facts: Facts) -> Action:
    """Give the next action."""
    if facts.phase is AgentPhase.LEAVING:
        return ExitAgent(facts.outcome.code if facts.outcome else int(ExitCode.PREEMPTED))
    if facts.stop is not None:
        return ExitAgent(facts.stop.code)
    if facts.phase is AgentPhase.RUNNING:
        return _running(facts)
    if facts.leave_by is not None:
        return ExitAgent(leaving_code(facts.phase, facts.outcome))
    if facts.phase is AgentPhase.WARMING:
        return Ready() if facts.warm else WaitForChange(FAR)
    if facts.joinable:
        if not facts.warm:
            return WaitForChange(FAR)
        if facts.retry_at is None or facts.now >= facts.retry_at:
            return Join()
        return WaitForChange(facts.retry_at - facts.now)
    if facts.phase is AgentPhase.DONE and facts.done_at is not None:
        left = facts.done_at + DONE_WAIT - facts.now
        return WaitForChange(left) if left > 0 else ExitAgent(int(ExitCode.DONE))
    return WaitForChange(FAR)


def _running(facts: Facts) -> Action:
    noticed = facts.leave_by is not None
    gone = AgentPhase.LEAVING if noticed else AgentPhase.WAITING
    ended = [code for code in facts.exits if code is not None]
    saved = int(ExitCode.SAVED) in ended and int(ExitCode.PREEMPTED) not in ended
    if facts.terminated_at is None:
        if any(code != 0 and code not in _STOPPED for code in ended):
            return End(AgentPhase.LEAVING if noticed else AgentPhase.FAILED)
        if len(ended) == len(facts.exits) and all(code == 0 for code in ended):
            return End(AgentPhase.DONE)
    if len(ended) == len(facts.exits):
        return End(gone, saved=saved)
    if not noticed or facts.asked_by is None:
        # The coordinator knows of a notice: in a round of its making, a pod may run until it goes.
        if facts.joinable:
            return Join() if facts.warm else WaitForChange(FAR)
        if facts.excluded:
            return End(AgentPhase.WAITING)
    unasked = facts.asked_by is None and facts.save_by is None and facts.stopped_at is None
    if noticed and unasked and facts.now < facts.ask_at:
        # Somebody is there who sees to a replacement first; training goes on until then.
        return WaitForChange(facts.ask_at - facts.now)
    deadlines = [by for by in (facts.leave_by, facts.save_by) if by is not None]
    if deadlines:
        return _stopping(facts, min(deadlines), End(gone, saved=saved))
    if facts.stopped_at is not None:
        left = facts.stopped_at + LINGER - facts.now
        return WaitForChange(left) if left > 0 else End(gone, saved=saved)
    return WaitForChange(FAR)


def _stopping(facts: Facts, deadline: float, end: End) -> Action:
    """Decide for workers that should save and stop."""
    if facts.asked_by is None or deadline < facts.asked_by:
        return Ask(deadline)
    if facts.terminated_at is None:
        # A plain script knows nothing of the page. Nor does a trainer that has only begun to start,
        # but then there is nothing to save.
        if facts.attached and facts.now < deadline:
            return WaitForChange(deadline - facts.now)
        return Terminate()
    kill_at = max(deadline, facts.terminated_at + KILL_AFTER)
    return WaitForChange(kill_at - facts.now) if facts.now < kill_at else end


def leave_by(noticed_at: float, grace: float) -> float:
    """Give the deadline for saving after a notice: the grace less a margin, at least half of it."""
    return noticed_at + max(grace - MARGIN, grace / 2)


def ask_at(
    *, noticed_at: float, heard_at: float | None, leave_by: float, save_seconds: float | None
) -> float:
    """Say when a pod that was told to go asks its workers to save, if nobody tells it to.

    At once without a coordinator (``heard_at`` None). One that answers, ``heard_at`` the last time,
    knows of the notice and says when: after a replacement has come. Should it not say, saving
    begins when what a save takes (``save_seconds``, None: never measured), twice and a little, is
    left until ``leave_by``.
    """
    if heard_at is None:
        return noticed_at
    allowance = (leave_by - noticed_at) / 2
    if save_seconds is not None:
        allowance = max(LEAST_SAVE, 2 * save_seconds + 1)
    return max(noticed_at, min(max(noticed_at, heard_at) + PATIENCE, leave_by - allowance))


def leaving_code(phase: AgentPhase, outcome: Outcome | None) -> int:
    """Give the exit code of a pod that is told to go while it has no workers.

    Waiting pods leave with 75: what their workers may have lost was lost before, to another event,
    and their going costs nothing more. Pods whose workers are done leave with 0. A failed pod keeps
    its verdict when the program or the data are to blame, so that a notice cannot hide a bug; a pod
    whose workers fell with a peer has not saved: 76.
    """
    if phase is AgentPhase.DONE:
        return int(ExitCode.DONE)
    if phase is not AgentPhase.FAILED:
        return int(ExitCode.SAVED)
    return failure_code(outcome)


def failure_code(outcome: Outcome | None) -> int:
    """Give the exit code of a pod that leaves with failed workers."""
    lasting = {int(ExitCode.USER_ERROR), int(ExitCode.INTEGRITY)}
    if outcome is not None and outcome.code in lasting and outcome.cause != Cause.PEER_LOST:
        return outcome.code
    return int(ExitCode.PREEMPTED)


def outcome_of(
    *,
    end: End,
    exits: Sequence[int | None],
    first_rank: int,
    left: Sequence[Outcome],
    oom: bool,
    step: int | None,
    checkpoint: int | None,
    why: str,
    now: float,
    printed: Mapping[int, str] | None = None,
    orphaned: bool = False,
) -> Outcome | None:
    """Say how the workers of a round ended; ``now`` in unix seconds.

    ``left`` is what workers have left behind, earliest first: how they failed, or why training is
    complete before its limits; ``why`` is what asked them to stop, and ``printed`` the last line of
    workers (by local rank) that can leave nothing; ``orphaned``: their fork server has ended.
    None when they were ended only because the round goes on elsewhere.
    """
    base = Outcome(
        cause=Cause.COMPLETED,
        code=int(ExitCode.DONE),
        message="training is complete",
        step=step,
        checkpoint=checkpoint,
        at=now,
    )
    ends = [outcome for outcome in left if outcome.cause == Cause.COMPLETED]
    if end.phase is AgentPhase.DONE:
        return replace(base, message=ends[0].message) if ends else base
    told = [one for one in left if one not in ends]
    if end.saved is None:
        if end.phase is AgentPhase.WAITING:
            return None
        failure = _failure(base, exits, first_rank, told, oom, printed or {}, orphaned)
        if end.phase is AgentPhase.LEAVING:
            return replace(failure, code=failure_code(failure))
        return failure
    if end.saved:
        return replace(
            base, cause=Cause.SAVED, code=int(ExitCode.SAVED), message=f"saved and stopped: {why}"
        )
    ended = ", ".join(_manner(code) for code in exits)
    words = f" A worker says: {left[0].message}" if left else ""
    return replace(
        base,
        cause=Cause.PREEMPTED,
        code=int(ExitCode.PREEMPTED),
        message=f"not saved: the workers were asked to stop ({why}) and ended with {ended}; only "
        f"exit code {int(ExitCode.SAVED)} says that state is committed.{words}",
    )


def _failure(
    base: Outcome,
    exits: Sequence[int | None],
    first_rank: int,
    left: Sequence[Outcome],
    oom: bool,
    printed: Mapping[int, str],
    orphaned: bool,
) -> Outcome:
    """Find the root among the workers that have failed, or have said that they do."""
    words: dict[int, Outcome] = {}
    for said in left:
        local = (said.rank or 0) - first_rank
        words.setdefault(local if 0 <= local < len(exits) else 0, said)
    ends = {
        local: ProcessExit(
            process=ProcessRole.WORKER,
            code=int(ExitCode.USER_ERROR) if code is None else code,
            words=words.get(local),
            oom=oom,
            orphaned=orphaned,
        )
        for local, code in enumerate(exits)
        if (code is None and local in words) or code not in {None, 0, *_STOPPED}
    }
    found = [
        (end, outcome_of_worker(end, worker=first_rank + n, base=base, printed=printed.get(n)))
        for n, end in ends.items()
    ]
    return min(found, key=lambda one: blame(*one))[1]


def _manner(code: int | None) -> str:
    if code is None:
        return "no end before the deadline"
    return name_of(-code) if code < 0 else f"code {code}"
