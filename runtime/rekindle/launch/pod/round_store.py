"""Stores for rounds: each agent keeps a spare one, whose port the coordinator knows beforehand.

The workers of a round meet in a TCPStore. Were it made when the round is known, its address would
have to travel to all members first; as it already listens, a round is complete when it is
published. Keys are not prefixed with a round, and those of a round that broke down would mislead
the next one: so a store is used for one round only, and whoever has used its spare makes a fresh
one.

The server lives in a thread of this process (of torch's C++ code), so it dies with the pod: that
is why the first member hosts *its round* only.

Whoever reaches a store can read and write what the ranks say to each other, and it asks nobody who
they are. So it listens where it has to and nowhere else: on the pod's address, and on loopback for
a round whose ranks are all in this pod.
"""

import queue
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rekindle import threads
from rekindle.api import Round

LOOPBACK = "127.0.0.1"
TRY_SECONDS = 1.0
"""For one attempt to reach the first member's store."""
ANSWER_TIMEOUT = timedelta(seconds=10)
"""For a store that accepts a connection to answer; a host may be frozen."""
LOOK = 0.05
"""Seconds between two looks at whether a store is still wanted that has not answered yet."""
BACKLOG = 2048
"""Ranks that may knock at the same time."""
STORE_TIMEOUT = timedelta(seconds=60)
"""For calls to a store that has been reached; torchrun's own agent waits for its peers in one."""


class RoundStoreError(Exception):
    """The store of a round cannot be had: its host has died, or the round is outdated."""


class Spare:
    """The store that this pod would host, and the one that it hosts."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._active: TCPStore | None = None
        self._spare = self._listen(0)

    @property
    def port(self) -> int:
        """Port of the spare store."""
        return int(self._spare.port)

    def take(self, port: int) -> TCPStore:
        """Open the store for a round that this pod hosts, and give a client of it.

        Usually that is the spare one, and a fresh one takes its place. When two rounds are formed
        within a moment, the second may name the port of the first, because it was decided before
        this pod could tell of its new spare: then the used store is closed and a fresh one opened
        on that port. Who is still connected has missed a round that is over.

        Raises StoreError for a port that is neither.
        """
        if port == self.port:
            # The one before last is closed here, long after its round.
            self._active, self._spare = self._spare, self._listen(0)
        elif self._active is not None and port == self._active.port:
            # First out of existence, then anew: one port cannot be listened on twice.
            self._active = None
            self._active = self._listen(port)
        else:
            raise RoundStoreError(
                f"the round wants the store on port {port} of this pod, which is closed; the spare "
                f"one is on port {self.port}"
            )
        return self._client(self._address, port)

    def take_alone(self) -> tuple[TCPStore, int]:
        """Open a store for a round without other members: a client of it, and its port."""
        self._active = self._listen(0, LOOPBACK)
        port = int(self._active.port)
        return self._client(LOOPBACK, port), port

    def _client(self, address: str, port: int) -> TCPStore:
        """A client, so that whoever holds it does not keep the server alive."""
        try:
            return _client(address, port)
        except RuntimeError as error:
            raise RoundStoreError(
                f"this pod's own store on port {port} does not answer: {error}"
            ) from error

    def _listen(self, port: int, address: str | None = None) -> TCPStore:
        # Port 0 lets the system choose. Left to itself, the server listens on all interfaces.
        address = address or self._address
        try:
            listening = _socket(address, port)
            try:
                return _server(listening, address)
            except NotImplementedError:
                # Of torch 2.6, only the older of two servers takes a socket that listens.
                return _server(listening, address, use_libuv=False)
            finally:
                listening.detach()  # the server's from now on
        except (OSError, RuntimeError) as error:
            raise RoundStoreError(f"cannot listen on {address}, port {port}: {error}") from error


def _socket(address: str, port: int) -> socket.socket:
    """A socket that listens on this address; raises OSError."""
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(place[:2], family=family, backlog=BACKLOG)


def _server(listening: socket.socket, address: str, **kind: bool) -> TCPStore:
    return TCPStore(
        address,
        listening.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_TIMEOUT,
        master_listen_fd=listening.fileno(),
        **kind,
    )


def _client(address: str, port: int) -> TCPStore:
    """Connect; raises RuntimeError when the server does not answer."""
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=ANSWER_TIMEOUT)
    store.set_timeout(STORE_TIMEOUT)
    return store


def _client_unless(outdated: Callable[[], bool], address: str, port: int) -> TCPStore:
    """Connect, in a thread of its own: a host that stands still is waited for without a limit.

    Its kernel accepts the connection, and torch's timeouts begin only after the first answer.
    Raises TimeoutError when there is none in time or it is not wanted any more, else RuntimeError.
    """
    answers: queue.SimpleQueue[TCPStore | RuntimeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_client(address, port))
        except RuntimeError as error:
            answers.put(error)

    threads.task(ask, name="store")
    deadline = time.monotonic() + ANSWER_TIMEOUT.total_seconds()
    while True:
        try:
            answer = answers.get(timeout=LOOK)
        except queue.Empty:
            if outdated() or time.monotonic() > deadline:
                raise TimeoutError(
                    f"{address}:{port} accepts connections and says nothing"
                ) from None
            continue
        if isinstance(answer, RuntimeError):
            raise answer
        return answer


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
            return _client_unless(outdated, first.address, first.store_port)
        except (OSError, RuntimeError) as error:  # torch's network errors are RuntimeErrors.
            if outdated():
                raise RoundStoreError(f"round {offered.number} is outdated") from error
            if time.monotonic() > deadline:
                raise RoundStoreError(
                    f"the store of round {offered.number} at {place} (pod {first.pod}) does not "
                    f"answer: {error}"
                ) from error
        pause(0.1)
