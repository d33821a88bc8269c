"""Whether a pod can be reached: each agent says its uid to whoever connects, and asks others so.

That a connection is accepted proves nothing: the kernel of a machine whose processes stand still
does that, too. So the answer is a word of the agent itself, and it is the pod's uid, since an
address may belong to another pod by now. Nothing is read from whoever connects, so that nobody can
keep the thread waiting.
"""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Collection

from rekindle import threads
from rekindle.api import Suspect

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds after something went wrong with a connection, the limit of files for example."""


class Doorstep:
    """Where this pod can be reached; a daemon thread."""

    def __init__(self, address: str, uid: str) -> None:
        """Listen on a free port of an address; raises OSError."""
        self._server = socket.create_server((address, 0), backlog=64)
        self._uid = uid.encode()
        self.port = int(self._server.getsockname()[1])
        threads.lasting(self._serve, name="doorstep")

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
                with connection:
                    connection.send(self._uid)
            except OSError as error:
                if self._server.fileno() < 0:
                    return
                logger.debug("cannot answer who asks for this pod: %s", error)
                time.sleep(AGAIN)

    def close(self) -> None:
        """Answer no more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread up
        self._server.close()


def unreached(suspects: Collection[Suspect], seconds: float) -> tuple[str, ...]:
    """Give the uids of those that have not said their uid in time; all are asked at once."""
    missing = {suspect.uid for suspect in suspects}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for suspect in suspects:
            with contextlib.suppress(OSError, ValueError):
                family = socket.AF_INET6 if ":" in suspect.address else socket.AF_INET
                connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                connection.setblocking(False)
                connection.connect_ex((suspect.address, suspect.reach_port))
                selector.register(connection, selectors.EVENT_READ, suspect.uid)
        while missing and (left := deadline - time.monotonic()) > 0 and selector.get_map():
            for key, _ in selector.select(left):
                with contextlib.suppress(OSError):
                    said = key.fileobj.recv(256)  # type: ignore[union-attr]
                    if said == key.data.encode():
                        missing.discard(key.data)
                selector.unregister(key.fileobj)
    return tuple(sorted(missing))
