"""When optimizer steps were done, written by the workers themselves and read from outside.

Each worker appends one record per optimizer step to a file of its own: CLOCK_MONOTONIC, which all
processes of a machine share, the step, the generation (which start of the training the step belongs
to: Rekindle's round, or the process under torchrun) and the world size. One write of 32 bytes costs
a microsecond or two. How long training stood still is then a question to the records alone, and no
product measures itself.
"""

import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_RECORD = struct.Struct("<dqqq")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step of one worker."""

    at: float
    """Seconds of CLOCK_MONOTONIC at the end of the step."""
    step: int
    generation: int
    world: int


class StepLog:
    """A worker's file."""

    def __init__(self, directory: str | Path, name: str, *, generation: int, world: int) -> None:
        path = Path(directory) / f"{name}.steps"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._generation, self._world = generation, world

    def note(self, step: int) -> None:
        """Step number ``step`` has just been done."""
        record = _RECORD.pack(time.monotonic(), step, self._generation, self._world)
        os.write(self._file, record)


def parse(data: bytes) -> list[Step]:
    """Read records; a last one that is cut off is left out."""
    whole = len(data) - len(data) % _RECORD.size
    return [
        Step(at=at, step=step, generation=generation, world=world)
        for at, step, generation, world in _RECORD.iter_unpack(data[:whole])
    ]


class Course:
    """The records of all workers of a run, by the names of their files; read on as they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.workers: dict[str, list[Step]] = {}

    def read(self) -> Mapping[str, Sequence[Step]]:
        """Read what has come since."""
        for path in self._directory.glob("*.steps"):
            known = self.workers.setdefault(path.stem, [])
            with path.open("rb") as file:
                file.seek(len(known) * _RECORD.size)
                known.extend(parse(file.read()))
        return self.workers


def settled(steps: Sequence[Step], generation: int, count: int) -> bool:
    """Whether a worker has done ``count`` steps of a generation, and none of a later one."""
    if not steps or steps[-1].generation != generation or len(steps) < count:
        return False
    return steps[-count].generation == generation


def resumed_at(steps: Iterable[Step], since: float, after: int) -> float | None:
    """When a worker did its first step of a generation later than ``after``; None: not yet."""
    found = (each.at for each in steps if each.at > since and each.generation > after)
    return next(found, None)


def longest_gap(steps: Sequence[Step], begin: float, end: float) -> float:
    """The longest time between two successive steps of which the later one lies in the span."""
    pairs = zip(steps, steps[1:], strict=False)
    return max((b.at - a.at for a, b in pairs if begin < b.at <= end), default=0.0)


def steps_lost(workers: Iterable[Sequence[Step]], since: float) -> int:
    """How many steps were done over again by generations that began after ``since``."""
    spans: dict[int, tuple[float, int, int]] = {}
    for each in (each for steps in workers for each in steps):
        began, first, last = spans.get(each.generation, (each.at, each.step, each.step))
        spans[each.generation] = (
            min(began, each.at), min(first, each.step), max(last, each.step)
        )  # fmt: skip
    in_order = [spans[generation] for generation in sorted(spans)]
    pairs = zip(in_order, in_order[1:], strict=False)
    return sum(max(0, old[2] - (new[1] - 1)) for old, new in pairs if new[0] > since)
