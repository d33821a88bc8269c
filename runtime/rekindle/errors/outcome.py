"""How a worker's end is put into words for its agent.

The agent sees an exit code; people need the user's own error, first line first, and the operator
needs to know whether trying again can help. `classify` turns an exception into an `Outcome` and is
pure: the trainer uses it inside `fit`, the launcher for errors outside of it. It imports no torch,
so errors of collectives are recognised by the names of their types and by gloo's own words: the
launcher must be able to classify in a process that never loaded torch.

Five kinds matter. A *lost peer* is collateral: some other worker has the real reason. *Integrity*
means that every checkpoint, or the data, is damaged (exit code 70). *Configuration* is a check that
refused before training (a store that cannot be written, a world size that does not fit). A *store
out of reach* gave no answer: that may pass, so nobody's program or manifest is to blame. Everything
else is the user's program.
"""

import re
import traceback

from rekindle.api import Cause, ExitCode, Outcome
from rekindle.errors.requirement import cause_of, code_of, passes, reason_of

_HEAD, _TAIL = 700, 1200
_PEER_TYPES = {"DistBackendError", "DistNetworkError", "DistStoreError"}
_PEER_WORDS = re.compile(
    r"gloo/|connection closed by peer|connection reset by peer|socket timeout|broken pipe"
    r"|connection was likely closed|failed to recv|remote process exited|nccl.*(remote|abort)"
    r"|timed out waiting \d+ ?ms for (recv|send)|could not connect to any of the peers",
    re.IGNORECASE,
)


class Preempted(SystemExit):
    """Raised by `Trainer.fit` once state is saved because the job has to go on elsewhere.

    It is a `SystemExit`, so a script that does not care ends with the exit code that asks for a
    restart: 75 when the state is committed, 76 when there was not enough time.
    """

    def __init__(self, step: int, *, saved: bool) -> None:
        super().__init__(int(ExitCode.SAVED if saved else ExitCode.PREEMPTED))
        self.step = step
        self.saved = saved


class Damaged(SystemExit):
    """Raised by `Trainer.fit` when checkpoints or data are damaged beyond use: exit code 70."""

    def __init__(self) -> None:
        super().__init__(int(ExitCode.INTEGRITY))


def classify(
    error: BaseException,
    *,
    step: int | None,
    rank: int,
    now: float,
    checkpoint: int | None = None,
) -> Outcome:
    """Put an exception that ended a worker into words; pure (`now` in unix seconds)."""
    code = code_of(str(error))
    if isinstance(error, Preempted):
        cause, exit_code = Cause.PREEMPTED, ExitCode.PREEMPTED
        if error.saved:
            cause, exit_code = Cause.SAVED, ExitCode.SAVED
        message = f"{'saved' if error.saved else 'could not save in time'} at step {error.step}"
    else:
        cause = cause_of(code) if code else _uncoded(error)
        if passes(error) and (code == "R5" or cause is Cause.USER_ERROR):
            cause = Cause.STORE_LOST
        exit_code = ExitCode.INTEGRITY if cause is Cause.INTEGRITY else ExitCode.USER_ERROR
        message = headline(error)
    return Outcome(
        cause=cause,
        code=int(exit_code),
        message=message,
        reason=reason_of(code) if code else None,
        step=step,
        checkpoint=checkpoint,
        rank=rank,
        traceback=None if isinstance(error, Preempted) else _traceback(error),
        at=now,
    )


def _uncoded(error: BaseException) -> Cause:
    return Cause.PEER_LOST if lost_peer(error) else Cause.USER_ERROR


def lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another worker went away."""
    current: BaseException | None = error
    while current is not None:
        if {kind.__name__ for kind in type(current).__mro__} & _PEER_TYPES:
            return True
        if type(current) is RuntimeError and _PEER_WORDS.search(str(current)):
            return True
        current = current.__cause__
    return False


def by_words(kind: str, words: str) -> bool:
    """Whether an error, by the name of its type and its words, is that of a lost peer."""
    return kind in _PEER_TYPES or (kind == "RuntimeError" and bool(_PEER_WORDS.search(words)))


def headline(error: BaseException) -> str:
    """An error in one line: with the name of its type, unless it has a code, which says more."""
    text = str(error)
    if not code_of(text):
        words = " ".join(text.split())
        text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text.strip().split("\n")[0][:1000]


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]}\n[...]\n{text[-_TAIL:]}"
