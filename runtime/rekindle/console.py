"""What a person sees: one line per thing worth knowing, from rank 0 only.

On a terminal progress is one line that is written over; anywhere else (a pod's log) it is a plain
line at most every few seconds. Everything else is a line of its own, always.
"""

import sys
from typing import TextIO

QUIET_SECONDS = 5.0
"""Between two progress lines when there is no terminal."""


class Console:
    """Rank 0's voice; other ranks are silent."""

    def __init__(self, *, first: bool, progress: bool, stream: TextIO | None = None) -> None:
        self._first, self._show = first, progress
        self._stream = stream
        self._open = False
        self._last = float("-inf")

    def _out(self) -> TextIO:
        # Looked up late: whoever redirects sys.stdout wants these lines too.
        return self._stream or sys.stdout

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._first:
            return
        if self._open:
            self._out().write("\n")
            self._open = False
        print(text, file=self._out(), flush=True)

    def progress(self, text: str, now: float, *, last: bool = False) -> None:
        """Show how far training is (`now` in seconds of a steady clock)."""
        if not (self._first and self._show):
            return
        out = self._out()
        if out.isatty():
            out.write(f"\r\x1b[K{text}")
            out.flush()
            self._open = True
        elif last or now - self._last >= QUIET_SECONDS:
            self._last = now
            print(text, file=out, flush=True)


def numbers(values: dict[str, float], limit: int = 6) -> str:
    """``loss 0.1234  val/acc 0.98`` for the first few."""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:limit])
