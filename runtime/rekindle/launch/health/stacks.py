"""Where the threads of workers stand, asked from outside while they hang.

A worker that hangs sits in C code, where no Python handler runs; `faulthandler` writes from the
signal itself, whatever the interpreter is doing. SIGQUIT asks for it, as it does in other
languages, so a person can do so too (``kill -QUIT``). Each worker writes into a file of its own in
the round's directory; the agent copies that to the pod's log, and a short form of it into its
report, from which the operator finds the rank that all the others wait for.
"""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rekindle.api import Hang

ASK = signal.SIGQUIT
"""Makes a prepared worker write its stacks."""
ROOM = 4000
"""Characters of a report."""
_PATIENCE = 2.0
"""Seconds for all workers to have written."""
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_OURS = "rekindle/launch/spawn/worker.py"
_WAITING = (
    "torch/distributed/",
    "rekindle/ranks/gradients.py",
    "rekindle/ranks/deterministic_reduction.py",
    "rekindle/ranks/consensus.py",
    "rekindle/ranks/distributed.py",
)
"""Parts of paths of what waits for other ranks."""


@dataclass(frozen=True, kw_only=True)
class WorkerStack:
    """The main thread of one worker, innermost frame first."""

    rank: int
    frames: tuple[str, ...]
    """``file:line function``."""

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks; the one that all wait for does something else."""
        return bool(self.frames) and any(part in self.frames[0] for part in _WAITING)


def prepare(directory: Path, rank: int) -> None:
    """From now on this process writes its stacks when asked; where it cannot, it goes on anyway."""
    with suppress(OSError, ValueError, RuntimeError):
        # The file stays open as long as the process: faulthandler keeps only its descriptor.
        file = os.open(path_of(directory, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        faulthandler.register(ASK, file=file, all_threads=True)


def path_of(directory: Path, rank: int) -> Path:
    """Where a worker writes."""
    return directory / f"stacks-{rank}.txt"


def collect(
    directory: Path,
    send: Callable[[signal.Signals], None],
    count: int,
    seconds: float = _PATIENCE,
) -> dict[int, str]:
    """Ask the ``count`` workers of a round, and give what they have written, by rank.

    ``send`` sends a signal to each of them. Workers that have not prepared would die of it: so
    nobody is asked unless all files are there.
    """
    files = {int(path.stem.partition("-")[2]): path for path in directory.glob("stacks-*.txt")}
    before = {rank: path.stat().st_size for rank, path in files.items()}
    if len(files) < count:
        return {}
    send(ASK)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(_whole(path, before[rank]) for rank, path in files.items()):
            break
        time.sleep(0.01)
    return {rank: _tail(path, before[rank]) for rank, path in sorted(files.items())}


def _whole(path: Path, before: int) -> bool:
    """Whether a dump has been written to its end: the main thread comes last."""
    return _OURS in _tail(path, before)


def _tail(path: Path, before: int) -> str:
    with path.open("rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace")


def main_thread(rank: int, text: str) -> WorkerStack:
    """The main thread's part of a dump: the one that began in the worker's own module."""
    for part in _THREAD.split(text):
        frames = [match for line in part.splitlines() if (match := _FRAME.match(line))]
        if any(frame["file"].endswith(_OURS) for frame in frames):
            return WorkerStack(rank=rank, frames=tuple(map(_words, frames)))
    return WorkerStack(rank=rank, frames=())


def _words(frame: re.Match[str]) -> str:
    return f"{frame['file']}:{frame['line']} {frame['function']}"


def located(hang: Hang, dumps: Mapping[int, str]) -> Hang:
    """A hang with what the dumps of this pod's workers say about it."""
    found = [main_thread(rank, text) for rank, text in dumps.items()]
    blamed = next((stack for stack in found if stack.frames and not stack.waits), None)
    if blamed is not None:
        # Of several workers in a pod, the one that does not wait is the one that is waited for.
        hang = replace(hang, rank=blamed.rank)
    own = next((stack for stack in found if stack.rank == hang.rank), None)
    known = own is not None and bool(own.frames)
    return replace(
        hang,
        stacks=summary(sorted(found, key=lambda stack: stack.rank != hang.rank)) or None,
        waits=own.waits if own is not None and known else None,
    )


def summary(stacks: Iterable[WorkerStack]) -> str:
    """What fits into a report: the innermost frames of each main thread."""
    parts = []
    for stack in stacks:
        how = "waits for other ranks" if stack.waits else "stands"
        frames = [frame for frame in stack.frames if _OURS not in frame and "<frozen" not in frame]
        parts.append(f"rank {stack.rank} {how}:\n  " + "\n  ".join(frames[:12] or ["(unknown)"]))
    each = ROOM // max(1, len(parts)) - 1
    return "\n".join(part[:each] for part in parts)
