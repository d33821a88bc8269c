"""The end of loader workers.

Workers are deaf to SIGTERM (see `loader`), which is also how Python ends them when the
interpreter exits: a script whose workers are still there would wait for them for ever. So they are
ended when what has begun them is over (`fit`, `validate`, `test`, `predict`), the way DataLoader
does it itself, also when an error holds on to their iterator; and what is left when the interpreter
exits is killed.
"""

import atexit
import multiprocessing
import pickle
import signal
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from rekindle.data.worker_pickling import unsendable, words

_registered: list[bool] = []
_living: "weakref.WeakSet[Any]" = weakref.WeakSet()
_GRACE = 0.5
"""Seconds that processes of the script get for their own way out; loader workers need none."""


def close(loader: Any) -> None:
    """End the workers that a loader keeps between two passes; it can be used again."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose iterators can be found again."""

    def __iter__(self) -> Any:
        with warnings.catch_warnings():
            # What torch guesses of an error in starting workers is told exactly below.
            warnings.filterwarnings("ignore", "Got pickle error when attempting to start")
            try:
                iterator = super().__iter__()
            except (AttributeError, TypeError, pickle.PicklingError) as error:
                self._explain(error)
                raise
        if self.num_workers:
            _living.add(iterator)
        return iterator

    def _explain(self, error: Exception) -> None:
        """Raise ValueError that names what could not be sent to workers, if that was it."""
        if not self.num_workers:
            return
        context = self.multiprocessing_context or multiprocessing
        start = context.get_start_method()
        sent = {n: getattr(self, n) for n in ("dataset", "collate_fn", "worker_init_fn")}
        found = None if start == "fork" else unsendable(sent)
        if found is not None:
            raise ValueError(words(*found, start, error)) from error


@contextmanager
def ended() -> Iterator[None]:
    """End the workers of all iterators that are begun inside."""
    before = list(_living)
    try:
        yield
    finally:
        for iterator in list(_living):
            if not any(iterator is old for old in before):
                iterator._shutdown_workers()


def at_exit() -> None:
    """See to it that no worker outlives the interpreter; once per process."""
    if not _registered:
        _registered.append(True)
        # Registered after multiprocessing's own function, so run before it.
        atexit.register(_kill)


def _kill() -> None:
    # Which of them are loader workers does not show: a started process forgets its target. So all
    # are asked, as multiprocessing is about to do, but nobody is waited for without end.
    left = [child for child in multiprocessing.active_children() if child.daemon]
    if left:
        # torch's handler would call the death of a worker an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in left:
        child.terminate()
    until = time.monotonic() + _GRACE
    for child in left:
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
        child.join(5)
