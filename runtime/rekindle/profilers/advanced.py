"""Every Python function of a call, by cProfile.

It makes Python slower by a factor of two or so; kernels and waiting take as long as always. Threads
other than the main one (workers' pinning, checkpoints on their way) are not seen.
"""

import cProfile
import io
import pstats
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rekindle.profilers.profiler import Profiler

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer

_LINES = 30
"""Functions in a report to the console."""


class AdvancedProfiler(Profiler):
    """Reports the functions that the time was spent in."""

    def __init__(
        self,
        dirpath: "str | None" = None,
        filename: str | None = None,
        line_count_restriction: int | float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        """With `dump_stats` a ``.prof`` file is left, too, for viewers such as snakeviz.

        `line_count_restriction` is a number of functions, or a share of them as float.
        """
        super().__init__(dirpath, filename)
        self._limit, self._dump = line_count_restriction, dump_stats

    @contextmanager
    def around(self, trainer: "Trainer", stage: str) -> Iterator[None]:
        """Profile the call, and report also when it fails."""
        profile = cProfile.Profile()
        profile.enable()
        try:
            yield
        finally:
            profile.disable()
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text).sort_stats("cumulative")
            to_file = self.dirpath is not None or self.filename is not None
            stats.print_stats(self._limit if to_file or self._limit != 1.0 else _LINES)
            self._report(trainer, stage, text.getvalue().strip())
            if self._dump:
                stats.dump_stats(self._path(stage, trainer.global_rank, ".prof"))
