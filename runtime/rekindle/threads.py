"""Threads beside the main one, of two kinds; nothing else here starts one.

A *lasting* thread is one that something else relies on for as long as the process lives: what
reports, watches, copies, listens. An exception nobody has thought of must not end it in silence, so
its loop is begun anew after a pause that doubles up to a limit, and each kind of exception, which
is its class and the line that raised it, is logged once. What the loop has to remember from one
beginning to the next is therefore kept in an object, not in its local variables.

A *task* is a thread that does one thing and ends with it. Whoever waits for it, with a deadline, is
told the outcome by the task itself; an exception that gets this far is printed as any other.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds before a loop that has failed is begun anew; doubling from the first. No longer, because
one that fails late in each turn still does its work: a pod that reports is not taken for lost."""
KINDS = 100
"""Exceptions of a thread that are told apart; any more are of one kind."""


def lasting(
    body: Callable[[], object], *, name: str, pause: Callable[[float], object] = time.sleep
) -> threading.Thread:
    """Start a daemon thread that runs a loop until it returns, whatever it raises meanwhile."""

    def run() -> None:
        known: set[str] = set()
        delay = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                body()
                return
            except Exception as error:
                kind = _kind(error)
                if kind not in known and len(known) < KINDS:
                    known.add(kind)
                    _log(name)
            if time.monotonic() - began > LONGEST_PAUSE:
                delay = FIRST_PAUSE
            pause(delay)
            delay = min(2 * delay, LONGEST_PAUSE)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def task(body: Callable[[], object], *, name: str) -> threading.Thread:
    """Start a daemon thread that does one thing and ends."""
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def _kind(error: Exception) -> str:
    """The class of an exception and where it was raised: its words may differ each time."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__qualname__} {where}"


def _log(name: str) -> None:
    import logging  # not for PID 1, which is small and has nothing to log as long as all is well

    logging.getLogger(__name__).exception(
        "thread %s begins anew after an error; the same error is not logged again", name
    )
