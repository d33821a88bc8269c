"""What a profiler is: something that watches a whole call of `fit`, and named sections within it.

A profiler is a callback as well, so that it may count steps; `around` encloses the call, which is
how it gets to report when the run is preempted or fails, too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rekindle.callback import Callback
from rekindle.plugins import named

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rekindle.trainer.trainer import Trainer


class Profiler(Callback):
    """Base class of profilers; on its own it measures nothing."""

    def __init__(
        self,
        dirpath: "str | os.PathLike[str] | None" = None,
        filename: str | None = None,
    ) -> None:
        """Results go to ``dirpath/filename``; without them to the console, if they are text."""
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.filename = filename

    @contextmanager
    def around(self, trainer: "Trainer", stage: str) -> Iterator[None]:
        """Encloses a call of the trainer; `stage` is ``fit``, ``validate``, ``test``, ..."""
        yield

    def profile(self, name: str) -> "AbstractContextManager[None]":
        """Measure a section of one's own: ``with self.trainer.profiler.profile("decode"): ...``."""
        return self._section(name)

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        yield

    def _path(self, stage: str, rank: int, suffix: str) -> Path:
        """File of a result: ``fit-perf.txt``, and on other ranks ``fit-perf-1.txt``."""
        parts = [stage, self.filename or "", "" if rank == 0 else str(rank)]
        directory = self.dirpath or Path("profiler")
        directory.mkdir(parents=True, exist_ok=True)
        return directory / ("-".join(part for part in parts if part) + suffix)

    def _report(self, trainer: "Trainer", stage: str, text: str) -> None:
        """To the file, or else once to the console."""
        if self.dirpath is None and self.filename is None:
            trainer.print(text)
        else:
            self._path(stage, trainer.global_rank, ".txt").write_text(text + "\n")


_NAMED = {
    "simple": "SimpleProfiler",
    "advanced": "AdvancedProfiler",
    "pytorch": "PyTorchProfiler",
}


def chosen(given: object) -> Profiler:
    """What the trainer's flag `profiler` means; raises ValueError or TypeError."""
    names = ", ".join(map(repr, _NAMED))
    given = named("profiler", given, _NAMED)
    if given is None:
        return Profiler()
    if isinstance(given, Profiler):
        return given
    if not isinstance(given, str):
        raise TypeError(f"profiler={given!r} must be {names} or a rekindle.profilers.Profiler")
    if given not in _NAMED:
        raise ValueError(
            f"profiler={given!r} is not known; allowed are {names} and an object of "
            f"rekindle.profilers"
        )
    from rekindle import profilers

    made: Profiler = getattr(profilers, _NAMED[given])()
    return made
