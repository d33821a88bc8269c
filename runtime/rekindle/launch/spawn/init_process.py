"""The first process of a pod: small, so that its end is seen at once; the agent is its child.

A process that has imported torch takes 30 to 100 ms to die, since the kernel gives back its memory
first and only then closes its connections, tells its parent and kills its children. What stands
for the pod, and what everything else of the pod is tied to, had better die in an instant: then all
of it ends at the same time instead of one after the other, and the survivors go on that much
earlier. So PID 1 is this interpreter as it is before anything is imported, and does what PID 1 has
to do: it hands notices on, buries orphans, and ends with the agent's exit code.

It also holds the pod's lifeline, a connection to the coordinator on which next to nothing is said:
the kernel closes it when this process is killed, which is the first word of that anywhere. One that
breaks for another reason is there again within milliseconds; a pod that ends by itself says
goodbye by ending the body. A machine without power closes nothing, and one that is stopped keeps
its connections: so the coordinator asks now and then, and an answer is a process that runs. Over
TLS it is the same: the kernel ends the connection, and without TLS's own goodbye that counts, too.

Signals stay blocked from before the fork until the agent has its handlers (see ``signals``): one
that comes in between is not lost and does not kill.
"""

import contextlib
import ctypes
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
from typing import NoReturn
from urllib.parse import quote, urlsplit

from rekindle import threads
from rekindle.api import (
    ENV_ACCESS,
    ENV_COORDINATOR,
    ENV_JOB,
    ENV_NAMESPACE,
    ENV_POD,
    ENV_POD_UID,
    ENV_TOKEN,
    LIFELINE,
    PROBED,
    pod_path,
)
from rekindle.launch.pod.access import AccessFiles, CoordinatorAccess, access_to

FORWARDED = frozenset({signal.SIGTERM, signal.SIGINT})
"""What the agent has handlers for."""
DISCARDED = frozenset({signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
"""What people may send to PID 1, which is immune to it. The agent would die of it, and with it the
pod: its workers are the ones that answer to SIGQUIT and SIGUSR2."""
BEAT = 15.0
"""Seconds between two bytes on the lifeline, for those on the way that forget idle connections."""
BYTE, END = b"1\r\n\n\r\n", b"0\r\n\r\n"
"""One, as a chunk of the body; and the body's end."""
RECORD = 16_384
"""Bytes that are read at once: a record of TLS holds no more, so that none is left behind in this
process, where waiting for the connection would not show it."""
CONNECT_SECONDS = 2.0
END_SECONDS = 1.0
"""For a goodbye: the pod is through, and nobody waits for a coordinator that does not listen."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 3.0
"""Seconds before a lifeline that broke or was refused is tried again; doubling from the first."""
_PR_SET_PDEATHSIG = 1


def stand_before_the_agent() -> None:
    """Fork: the first process stays here and ends with the child, in which this returns.

    Only for a pod with an operator, which waits for news of it, and only where the kernel ends a
    child with its parent; else this returns in the process itself.
    """
    operated = os.environ.get(ENV_ACCESS) or os.environ.get(ENV_COORDINATOR)
    if not operated or not sys.platform.startswith("linux"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | DISCARDED | {signal.SIGCHLD})
    first = os.getpid()
    child = os.fork()
    if child:
        _attend(child)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != first:
        os._exit(128 + signal.SIGKILL)  # it has died before the kernel was asked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DISCARDED | {signal.SIGCHLD})


def _attend(child: int) -> NoReturn:
    """Be PID 1 until the agent has ended."""
    lifeline = LifelineRequest()
    forget(ENV_TOKEN)
    threads.lasting(lifeline.hold, name="lifeline")
    while True:
        number = signal.sigwait(FORWARDED | DISCARDED | {signal.SIGCHLD})
        if number in FORWARDED:
            os.kill(child, number)
        if number != signal.SIGCHLD:
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # the agent is there until the line below
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                if code >= 0:
                    lifeline.end()
                os._exit(128 - code if code < 0 else code)
            if pid == 0:
                break


def forget(name: str) -> None:
    """Take a variable out of the environment, and out of what the system shows of this process.

    The latter, ``/proc/self/environ``, is that of every process which is forked from this one, too.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        address = libc.getenv(os.fsencode(name))
        if address:
            ctypes.memset(address, 0, len(os.fsencode(os.environ.get(name, ""))))
    os.environ.pop(name, None)


class LifelineRequest:
    """A request whose body goes on for as long as this process lives.

    The thread that holds it is the only one that touches the connection: two that read and write at
    once would break the state of TLS. Whoever wants it to end asks that thread, and waits.
    """

    def __init__(self) -> None:
        names = (ENV_NAMESPACE, ENV_JOB, ENV_POD, ENV_POD_UID)
        namespace, job, pod, uid = (os.environ.get(name, "") for name in names)
        self._path = f"{pod_path(namespace, job, pod)}{LIFELINE}?uid={quote(uid)}&{PROBED}=1"
        try:
            self._access = access_to(os.environ) or AccessFiles()
        except ValueError:
            self._access = AccessFiles()  # the agent says what is wrong, and ends
        self._ending, self._asks_to_end = socket.socketpair()
        self._ended = False
        self._speaks = threading.Lock()
        """Held from the first byte of a request until nothing more is said on its connection."""

    def hold(self) -> NoReturn:
        """Keep a connection open for ever."""
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                self._hold_one(self._access.read())
            if time.monotonic() - began > 1:
                pause = FIRST_PAUSE  # it was accepted: whatever broke it, be back at once
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def end(self) -> None:
        """Say that this process ends because the pod is through; no other request begins then."""
        self._ended = True
        self._asks_to_end.send(b"!")
        self._speaks.acquire(timeout=END_SECONDS)

    def _head(self, access: CoordinatorAccess) -> bytes:
        url = urlsplit(access.url)
        return (
            f"POST {url.path}{self._path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Authorization: Bearer {access.token}\r\nContent-Type: application/octet-stream\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        ).encode("latin-1", "replace")

    def _hold_one(self, access: CoordinatorAccess) -> None:
        """Open a connection, and return when it is of no use any more."""
        url = urlsplit(access.url)
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        nothing_yet: tuple[type[OSError], ...] = (BlockingIOError,)
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(
                socket.create_connection((host, port), CONNECT_SECONDS)
            )
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(2000 * BEAT))
            if secure:
                import ssl  # large, and not needed by whoever talks in the clear

                nothing_yet = (BlockingIOError, ssl.SSLWantReadError)
                context = access.context()
                connection = stack.enter_context(
                    context.wrap_socket(connection, server_hostname=host)
                )
            with self._speaks:
                if self._ended:
                    return  # the goodbye was heard, and whoever waits for that is to have the lock
                connection.sendall(self._head(access))
                connection.setblocking(False)
                self._answer(connection, nothing_yet)

    def _answer(self, connection: socket.socket, nothing_yet: tuple[type[OSError], ...]) -> None:
        """Answer whoever asks on a connection, until it ends, or this process does and was heard.

        Nothing here waits for the connection alone. What is sent is a few bytes: where there is no
        room for them, nobody has read for long, and the error ends the connection.
        """
        accepted = through = False
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._ending, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(BEAT)]
                if self._ending in ready:
                    # Not closed at once: a question that is unread then would undo the goodbye.
                    selector.unregister(self._ending)
                    connection.sendall(END)
                    through = True
                if connection in ready:
                    try:
                        said = connection.recv(RECORD)
                    except nothing_yet:  # part of a record, or what TLS says for itself
                        continue
                    accepted = accepted or said.startswith(b"HTTP/1.1 200")
                    if not accepted or not said or said == END or said.endswith(b"\r\n" + END):
                        return  # it is refused, or the coordinator goes, or has heard the goodbye
                if not through:
                    connection.sendall(BYTE)
