"""What a program that has failed has printed last, read for its error: a pure function of lines.

A program that is no Python script of ours leaves no word but its exit code and its log. In most
cases there is Python below it, and the traceback stands near the end of the log, often followed by
those of the launchers between, which only say that what they started has failed.
"""

import re
from collections.abc import Sequence

from rekindle.api import Cause, ExitCode, Outcome
from rekindle.errors.outcome import by_words
from rekindle.errors.process_endings import signal_in

LINES = 400
"""Lines of a worker that are kept for this."""
_BEGIN = "Traceback (most recent call last):"
_PREFIX = re.compile(r"^\[(?:[\w-]*rank)?\d+\]:?\s?")
"""What torch and we put before the lines of a rank."""
_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*|[a-z_]+[a-z])(?::\s?(.*))?$")
_CARRIERS = frozenset(
    {"ChildFailedError", "CalledProcessError", "SignalException", "RendezvousClosedError"}
)
"""Errors by which a launcher says that what it has started has failed."""


def outcome_in(lines: Sequence[str], *, rank: int, now: float) -> Outcome | None:
    """Give the last error that tells something; None when there is none.

    A launcher may say that what it has started was ended by a signal, which leaves no traceback.
    """
    plain = [_PREFIX.sub("", line.rstrip()) for line in lines]
    killed = next((line.strip() for line in reversed(plain) if signal_in(line) is not None), None)
    for begin in reversed([at for at, line in enumerate(plain) if line.strip() == _BEGIN]):
        end = next(
            (
                at
                for at in range(begin + 1, len(plain))
                if plain[at] and not plain[at].startswith((" ", "\t"))
            ),
            None,
        )
        if end is None or (found := _ERROR.match(plain[end])) is None:
            continue
        if found[1] in _CARRIERS or found[1] == "SystemExit":
            continue
        lost = by_words(found[1], found[2] or "")
        if lost and killed is not None:
            break
        return Outcome(
            cause=Cause.PEER_LOST if lost else Cause.USER_ERROR,
            code=int(ExitCode.USER_ERROR),
            message=plain[end].strip()[:1000],
            rank=rank,
            traceback=_shortened("\n".join(plain[begin : end + 1])),
            at=now,
        )
    if killed is None:
        return None
    code = int(ExitCode.USER_ERROR)
    return Outcome(cause=Cause.USER_ERROR, code=code, message=killed[:1000], rank=rank, at=now)


def last_line(lines: Sequence[str]) -> str:
    """Give the last line that is not empty, for an error that is no traceback; at most 300 signs.

    A shell that does not find a program has nothing more to say.
    """
    plain = (_PREFIX.sub("", line).strip() for line in reversed(lines))
    found = next((line for line in plain if line), "")
    return "".join(sign if sign.isprintable() else " " for sign in found)[:300]


def _shortened(text: str) -> str:
    return text if len(text) <= 1900 else f"{text[:700]}\n[...]\n{text[-1150:]}"
