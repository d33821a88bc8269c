"""Signs of life of one worker, in shared memory.

A pod's control page tells how far its *first* worker is. To find the worker that a run waits for,
each of them has to be seen by itself: so each maps a small file of its own in the round's private
directory and stores there what it is at and when it last got on. That costs two stores per step.
The agent reads all of them once a second (`rekindle.launch.health.watchdog`).

A word is aligned and has one writer, so a reader never sees half of a value. Times are those of
`time.monotonic()`, one clock for all processes of a machine.
"""

import math
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from rekindle.api import ENV_RUN_DIR

_SIZE = 64
_STEP, _PHASE, _AT, _BUSY, _RANK, _FIRST = range(6)  # words; _AT and _BUSY are f64
_WORDS = struct.Struct("qqddqq")


class Activity(IntEnum):
    """What a worker is at."""

    STARTING = 0
    """From its start until its first step is done: imports, data, restoring, compiling."""
    TRAINING = 1
    VALIDATING = 2
    SAVING = 3
    BETWEEN = 4
    """Between two epochs: hooks of the script, reading that begins anew."""
    DONE = 5
    """It will make no step any more, and nobody should wait for one."""


_TRAINING = int(Activity.TRAINING)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What one worker has last said of itself."""

    rank: int
    step: int
    phase: Activity
    first: int = 0
    """The step that it began with in this round."""
    at: float
    """time.monotonic() when it was last seen to get on."""
    busy: float | None = None
    """Its own seconds per step, waiting for others left out."""


class Heartbeat:
    """The worker's side."""

    def __init__(self, path: Path | None = None, rank: int = 0) -> None:
        """Make the file and map it; raises OSError where that is not possible.

        Without a path, nobody listens.
        """
        mapped = mmap.mmap(-1, _SIZE)
        if path is not None:
            path.write_bytes(bytes(_SIZE))
            with path.open("r+b") as file:
                mapped = mmap.mmap(file.fileno(), _SIZE)
        _WORDS.pack_into(mapped, 0, 0, Activity.STARTING, time.monotonic(), math.nan, rank, 0)
        view = memoryview(mapped)
        self._ints, self._floats = view.cast("q"), view.cast("d")

    @classmethod
    def from_environment(cls) -> Self:
        """The one of this process; nobody listens to it when no agent has started the process."""
        directory = os.environ.get(ENV_RUN_DIR)
        if not directory:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return cls(path_of(Path(directory), local_rank), int(os.environ.get("RANK", "0")))

    def begin(self, step: int) -> None:
        """Training is about to go on after so many steps."""
        self._ints[_STEP] = self._ints[_FIRST] = step
        self.beat()

    def step(self, step: int, at: float) -> None:
        """So many steps are done, the newest at `at` (hot path: three stores)."""
        self._ints[_STEP] = step
        self._ints[_PHASE] = _TRAINING
        self._floats[_AT] = at

    def beat(self) -> None:
        """Something that takes long gets on: a batch of a validation, a part of a save."""
        self._floats[_AT] = time.monotonic()

    def enter(self, phase: Activity) -> None:
        """Be at something else from now on."""
        self._floats[_AT] = time.monotonic()
        self._ints[_PHASE] = phase

    @contextmanager
    def during(self, phase: Activity) -> Iterator[None]:
        """Be at something for a while."""
        before = Activity(self._ints[_PHASE])
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def busy(self, seconds: float) -> None:
        """Tell the own part of a step, in seconds."""
        self._floats[_BUSY] = seconds


def path_of(directory: Path, local_rank: int) -> Path:
    """Where a worker's file is."""
    return directory / f"beat-{local_rank}"


def read(directory: Path) -> tuple[Beat, ...]:
    """What the workers of a round say, by rank; those that have not begun are left out."""
    found = []
    for path in directory.glob("beat-*"):
        try:
            data = path.read_bytes()[: _WORDS.size]
        except OSError:
            continue
        if len(data) < _WORDS.size:
            continue
        step, phase, at, busy, rank, first = _WORDS.unpack(data)
        if not at:
            continue  # made in this moment
        own = None if math.isnan(busy) else busy
        found.append(
            Beat(rank=rank, step=step, phase=Activity(phase), first=first, at=at, busy=own)
        )
    return tuple(sorted(found, key=lambda beat: beat.rank))
