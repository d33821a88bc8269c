"""Ctrl-C and SIGTERM: the first one ends the command in order, the third at once.

Both become a KeyboardInterrupt in the main thread, so that context managers end what they started.
While they do, a second signal is answered and not obeyed, because half an end leaves processes.
"""

import os
import signal
import sys
import time
from types import FrameType

_FORCE = 3
_seen = 0


def install() -> None:
    """Take over both signals; to be called once, in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _seen  # noqa: PLW0603 - a signal handler has nowhere else to count
    _seen += 1
    if _seen == 1:
        raise KeyboardInterrupt
    if _seen >= _FORCE:
        os._exit(128 + number)
    sys.stderr.write("ending; once more to leave everything as it is\n")


def wait() -> None:
    """Wait for a signal; raises the KeyboardInterrupt that it becomes."""
    while True:
        time.sleep(3600)
