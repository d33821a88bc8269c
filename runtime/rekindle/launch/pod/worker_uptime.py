"""Since when the workers of a round run: a pure function of what has been seen of them.

With our trainer, a round runs when its first step is done. Of a script without it nobody knows a
step unless it reports one; then its process group, or mere time, has to do. What makes it hard is
that both look alike at first: a script may read data for a minute before it makes its trainer. So a
script that speaks of a trainer (``names_trainer``) is given longer.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from rekindle.api import RUNS_AFTER

LATE_TRAINER = 300.0
"""Seconds after which a script that names a trainer counts as running without one."""
_NAMED = re.compile(
    rb"^[ \t]*(?:import|from)[ \t]+(?:[\w., \t]*\b)?(?:rekindle|lightning|pytorch_lightning)\b",
    re.MULTILINE,
)
_OURS = ("rekindle", "lightning", "pytorch_lightning")
_SCRIPT_BYTES = 1 << 20


def running_at(
    *,
    now: float,
    started: float | None,
    formed: float | None = None,
    stepped: float | None = None,
    reported: float | None = None,
    attached: bool = False,
    awaited: bool = False,
) -> float | None:
    """Say since when the workers run; None: not yet. All times are of one clock.

    ``reported`` is when a step was first read; ``attached``: a trainer is there, ``awaited``: one
    may be about to come.
    """
    if attached:
        return stepped
    known = [at for at in (stepped, reported) if at is not None]
    if formed is not None:
        known.append(formed + (RUNS_AFTER if awaited else 0.0))
    if started is not None:
        known.append(started + (LATE_TRAINER if awaited else RUNS_AFTER))
    at = min(known, default=None)
    return at if at is not None and at <= now else None


def names_trainer(command: Sequence[str]) -> bool:
    """Whether a worker's script, by its text, may use our trainer, or one that we serve."""
    if command[0] == "-m":
        return command[1].partition(".")[0] in _OURS
    try:
        if command[0] == "-c":
            source = command[1].encode()
        else:
            with Path(command[0]).open("rb") as file:
                source = file.read(_SCRIPT_BYTES)
    except OSError:
        return False
    return _NAMED.search(source) is not None
