"""The store, opened beside the training when the state came from memory.

On a first start nothing happens before the store has proven that it takes checkpoints (R5), the
lease is taken and the newest checkpoint is found. When the members' memory holds the state, none of
that is needed for the next step: the proof was given when the run began, and the position is known.
So it happens in a thread, a moment after training has begun, and ends before the first save, which
is told what went wrong if anything did. A store that is down at that time costs saves, no training.

No collective is called here. The fence is rank 0's; the other ranks get it with the first save.
"""

import os
import socket
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from rekindle import threads
from rekindle.api import ENV_POD
from rekindle.checkpoint import CommitRef, Lease, Store
from rekindle.checkpoint.saving import flush
from rekindle.checkpoint.saving.orphan_commit import adopt
from rekindle.peer_memory.store import Ancestry
from rekindle.persistence.admission import who

DELAY = 0.3
"""Seconds that the first steps are left alone; importing an S3 client takes as long."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The right to write, and what the first commit goes back to."""

    fence: int
    base: CommitRef | None


def owner() -> str:
    """Who takes a lease."""
    return os.environ.get(ENV_POD) or socket.gethostname()


class Opening:
    """One try to open a store, in a thread of its own."""

    def __init__(
        self, uri: str, options: Mapping[str, str], *, line: Ancestry | None, delay: float = DELAY
    ) -> None:
        """Begin; with a `line` (rank 0) take the lease and find what the state descends from."""
        self._uri, self._options, self._line, self._delay = uri, options, line, delay
        self._hurry = threading.Event()
        self._done = threading.Event()
        self.store: Store | None = None
        self.opened: Opened | None = None
        self.lease: Lease | None = None
        """On rank 0. Nobody is asked for it: the members whose memory holds the state had one."""
        self.error: Exception | None = None
        threads.task(self._run, name="rekindle-opening")

    @property
    def succeeded(self) -> bool:
        """Whether it has ended well."""
        return self._done.is_set() and self.error is None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, with a result or an error, at most so much later."""
        self._hurry.set()
        return self._done.wait(seconds)

    def _run(self) -> None:
        try:
            self._hurry.wait(self._delay)
            self.store = Store.open(self._uri, **self._options)
            if self._line is not None:
                # What a worker before has left in memory is given the time to become a commit.
                flush.wait(self._uri)
                self.store.probe(uuid.uuid4().hex[:12])
                self.lease = self.store.acquire(owner=owner(), holder=who())
                fence = self.lease.fence
                adopt(self.store, fence=fence)
                self.opened = Opened(fence=fence, base=self._line.newest(self.store.commits()))
        except Exception as error:  # whatever it is belongs to the first save
            self.error = error
        finally:
            self._done.set()
