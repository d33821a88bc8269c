"""What a person sees: one line per thing worth knowing, from rank 0 only.

On a terminal progress is a bar that is drawn over; anywhere else (a pod's log) it is one line of
JSON at most every few seconds, for people and for whoever collects logs. Everything else is a line
of its own, always.

The bar is drawn by a thread that looks at the run's counters a few times a second. So the loop does
nothing for it, and it moves although losses are read at the log interval only.
"""

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TextIO

from rekindle import threads

QUIET_SECONDS = 5.0
"""Between two progress lines when there is no terminal."""
DRAW_SECONDS = 0.2
"""Between two looks at the counters when there is one."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far training is."""

    step: int
    total: int | None = None
    epoch: int = 0
    epochs: int | None = None
    phase: str = "training"
    unit: str = "step"
    """What `step` counts: steps of a run, or a pass's ``batch``."""
    rate: float | None = None
    """Samples per second."""
    loss: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """What was logged with ``prog_bar=True``, or what a bar of the script's own shows."""

    def line(self, at: float) -> str:
        """As JSON; `at` in unix seconds."""
        if self.unit != "step":
            return json.dumps({"time": round(at, 3), "phase": self.phase, "batches": self.step})
        document: dict[str, object] = {
            "time": round(at, 3),
            "epoch": self.epoch,
            "step": self.step,
            "total_steps": self.total,
            "loss": _finite(self.loss),
            "samples_per_second": _finite(self.rate),
            "metrics": {name: _finite(value) for name, value in self.values.items()},
        }
        return json.dumps({name: value for name, value in document.items() if value is not None})


class Renderer(Protocol):
    """Draws progress on a terminal."""

    def draw(self, progress: TrainingProgress, now: float) -> None:
        """Show it (`now` in seconds of a steady clock)."""

    def say(self, text: str) -> None:
        """Write a line, above or below what is drawn."""

    def close(self) -> None:
        """Leave the terminal as a program that says nothing more."""


class Bar:
    """One line that is written over, as wide as the terminal at most."""

    def __init__(self, stream: TextIO, *, every: int = 1, leave: bool = False) -> None:
        """Draw when `every` more steps are done; with `leave` each epoch keeps its line."""
        self._stream, self._every, self._leave = stream, every, leave
        self._open = False
        self._drawn: TrainingProgress | None = None
        self._began: tuple[int, float] | None = None

    def draw(self, progress: TrainingProgress, now: float) -> None:
        """Write over the line."""
        before = self._drawn
        if before is not None and replace(progress, step=before.step) == before:
            ahead = progress.step - before.step
            if 0 <= ahead < self._every and not (ahead and progress.step == progress.total):
                return
        if self._leave and self._open and before is not None and before.epoch != progress.epoch:
            self._stream.write("\n")
        self._drawn = progress
        self._stream.write(f"\r\x1b[K{self.text(progress, now)}")
        self._stream.flush()
        self._open = True

    def text(self, progress: TrainingProgress, now: float, width: int | None = None) -> str:
        """The line; speed and time are those since the first call."""
        if self._began is None or progress.step < self._began[0]:
            self._began = (progress.step, now)
        first, began = self._began
        elapsed, done = now - began, progress.step - first
        speed = done / elapsed if elapsed > 0 and done > 0 else None
        parts = [f"epoch {progress.epoch}"]
        if progress.unit != "step":
            parts = []
        elif progress.epochs is not None:
            parts = [f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"]
        if progress.total:
            share = min(1.0, progress.step / progress.total)
            parts.append(f"{progress.step}/{progress.total} {_blocks(share)} {share:4.0%}")
            left = None if speed is None else (progress.total - progress.step) / speed
            parts.append(f"{clock(elapsed)}<{'?' if left is None else clock(left)}")
        else:
            parts += [f"{progress.unit} {progress.step}", clock(elapsed)]
        if speed is not None:
            parts.append(f"{speed:.3g} {progress.unit}/s")
        if progress.rate is not None:
            parts.append(f"{progress.rate:.0f} samples/s")
        if progress.phase != "training":
            parts.append(progress.phase)
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        parts += [f"{name} {shown(value)}" for name, value in progress.values.items()]
        return "  ".join(parts)[: (width or shutil.get_terminal_size().columns) - 1]

    def say(self, text: str) -> None:
        """Write a line; the bar comes again below it."""
        if self._open:
            self._stream.write("\r\x1b[K")
            self._open = False
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


class Console:
    """Rank 0's voice; other ranks are silent."""

    def __init__(self, *, first: bool, progress: bool, stream: TextIO | None = None) -> None:
        self._first, self._show = first, progress
        self._stream = stream
        self._last = float("-inf")
        self._lock = threading.Lock()
        self._renderer: Renderer | None = None
        self._make: Callable[[TextIO], Renderer] = Bar
        self._values: Callable[[], dict[str, Any]] | None = None
        self._newest: TrainingProgress | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def _out(self) -> TextIO:
        # Looked up late: whoever redirects sys.stdout wants these lines too.
        return self._stream or sys.stdout

    @property
    def draws(self) -> bool:
        """Whether there is a terminal to draw on, and the wish to."""
        return self._first and self._show and self._out().isatty()

    def use(
        self,
        make: Callable[[TextIO], Renderer],
        values: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Draw with what `make` gives for a terminal, from now on; `values` says what to show."""
        self._make, self._values = make, values

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._first:
            return
        with self._lock:
            if self._renderer is None:
                print(text, file=self._out(), flush=True)
            else:
                self._renderer.say(text)

    def follow(self, look: Callable[[], TrainingProgress]) -> None:
        """Begin to draw what `look` gives, until `close`; does nothing without a terminal."""
        if not self.draws or self._thread is not None:
            return
        self._end.clear()
        self._thread = threads.lasting(
            lambda: self._draw(look), name="rekindle-progress", pause=self._end.wait
        )

    def progress(self, progress: TrainingProgress, now: float, *, last: bool = False) -> None:
        """Show how far training is (`now` in seconds of a steady clock)."""
        if not (self._first and self._show):
            return
        if self._values is not None:
            progress = replace(progress, values=self._values())
        self._newest = progress
        if self.draws:
            with self._lock:
                self._drawing().draw(progress, now)
        elif last or now - self._last >= QUIET_SECONDS:
            self._last = now
            print(progress.line(time.time()), file=self._out(), flush=True)

    def close(self) -> None:
        """Stop drawing; lines may follow."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._renderer is not None:
                self._renderer.close()
                self._renderer = None

    def _drawing(self) -> Renderer:
        if self._renderer is None:
            self._renderer = self._make(self._out())
        return self._renderer

    def _draw(self, look: Callable[[], TrainingProgress]) -> None:
        while True:
            seen, known = look(), self._newest
            if known is not None:
                # Losses and rates are those of the last report.
                seen = replace(seen, rate=known.rate, loss=known.loss, values=known.values)
            with self._lock:
                self._drawing().draw(seen, time.perf_counter())
            if self._end.wait(DRAW_SECONDS):
                return


def clock(seconds: float) -> str:
    """``01:05``, ``2:00:00`` or ``3 d 02:00:00``."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}"
    if days:
        return f"{days} d {hours:02d}:{text}"
    return f"{hours}:{text}" if hours else text


def _blocks(share: float, width: int = 10) -> str:
    full = int(share * width)
    return "|" + "█" * full + " " * (width - full) + "|"


def shown(value: Any) -> str:
    """A value as a bar shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> float | str | None:
    """JSON has no number for what is not finite, and people must see it."""
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    return str(value)


class Silent:
    """Draws nothing, where a script draws for itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def draw(self, progress: TrainingProgress, now: float) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing."""
