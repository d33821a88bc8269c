"""Stores for rounds: each agent keeps a spare one, whose port the coordinator knows beforehand.

The workers of a round meet in a TCPStore. Were it made when the round is known, its address would
have to travel to all members first; as it already listens, a round is complete when it is
published. Keys are not prefixed with a round, and those of a round that broke down would mislead
the next one: so a store is used for one round only, and whoever has used its spare makes a fresh
one.

The server lives in a thread of this process (of torch's C++ code), so it dies with the pod: that
is why the first member hosts *its round* only.
"""

import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rekindle.contract import Round

TRY_SECONDS = 1.0
"""For one attempt to reach the first member's store."""
ANSWER_TIMEOUT = timedelta(seconds=10)
"""For a store that accepts a connection to answer; a host may be frozen."""
STORE_TIMEOUT = timedelta(seconds=60)
"""For calls to a store that has been reached; torchrun's own agent waits for its peers in one."""


class StoreError(Exception):
    """The store of a round cannot be had: its host has died, or the round is outdated."""


class Spare:
    """The store that this pod would host, and the one that it hosts."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._active: TCPStore | None = None
        self._spare = self._listen()

    @property
    def port(self) -> int:
        """Port of the spare store."""
        return int(self._spare.port)

    def take(self, port: int) -> TCPStore:
        """Give the spare store for a round and put a fresh one in its place.

        Raises StoreError when the round names another port: that store has been used before, and
        the round was made from a report that was overtaken.
        """
        if port != self.port:
            raise StoreError(
                f"the round wants the store on port {port} of this pod, which has been used; "
                f"the spare one is on port {self.port}"
            )
        # The one before last is closed here, long after its round.
        self._active, self._spare = self._spare, self._listen()
        return self._active

    def _listen(self) -> TCPStore:
        # Port 0 lets the system choose. The server listens on all interfaces.
        return TCPStore(
            self._address,
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
        )


def connect(
    offered: Round, *, seconds: float, outdated: Callable[[], bool], pause: Callable[[float], None]
) -> TCPStore:
    """Reach the store of a round that another pod hosts.

    A plain socket knocks first, because torch's client answers a closed port with a page of C++
    frames and a delay. Raises StoreError after ``seconds``, or when ``outdated()``.
    """
    first = offered.members[0]
    place = f"{first.address}:{first.store_port}"
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((first.address, first.store_port), TRY_SECONDS):
                pass
            store = TCPStore(
                first.address,
                first.store_port,
                is_master=False,
                wait_for_workers=False,
                timeout=ANSWER_TIMEOUT,
            )
            store.set_timeout(STORE_TIMEOUT)
            return store
        except (OSError, RuntimeError) as error:  # torch's network errors are RuntimeErrors.
            if outdated():
                raise StoreError(f"round {offered.number} is outdated") from error
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the store of round {offered.number} at {place} (pod {first.pod}) does not "
                    f"answer: {error}"
                ) from error
        pause(0.1)
