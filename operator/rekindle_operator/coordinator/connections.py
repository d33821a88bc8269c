"""The door of the operator's ports: who may hold how many connections, and for how long.

Whoever can reach a port can open connections, and each costs a file of this process, which needs
files for more important things: a process without any left neither watches nor writes. So
connections are accepted here, one by one, and entered into a register before anything is read.
Who has not shown a job's token yet is a stranger. Of strangers there may be some altogether and
fewer from one address; for one too many, the one that has waited longest goes, of the address that
has most: who is in earnest shows its token within milliseconds. A pod that is known may hold a few
connections, and for one too many its oldest goes. All limits follow from how many files this
process may have.

A connection that does not come to the end of its handshake, or of a request's head, within some
seconds is closed by the same clock that closes idle ones.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from rekindle_operator import metrics

logger = logging.getLogger(__name__)

IDLE = 10.0
"""Seconds for the head of a request, from the connection's begin or the answer before."""
HANDSHAKE = 5.0
"""Seconds for a TLS handshake."""
MOST_FILES = 65_536
"""More are not asked for: some systems allow a billion, and tables grow with the limit."""
RETRY = 0.1
"""Seconds until the next try to accept when the system has no file left for it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many connections there may be."""

    total: int
    strangers: int
    """That have not shown a token."""
    per_peer: int
    """Strangers from one address."""
    per_pod: int = 8
    """Of a pod that is known: it reports, polls and holds a lifeline, and may connect anew."""


WITHOUT_TOKENS = Limits(total=48, strangers=48, per_peer=16)
"""For a port that asks for no token: /metrics and /healthz."""


def limits(files: int) -> Limits:
    """The limits for a process that may have so many files open."""
    total = max(16, files - max(128, files // 4))
    strangers = max(8, min(1024, total // 3))
    return Limits(total=total, strangers=strangers, per_peer=max(4, strangers // 2))


def raise_file_limit() -> int:
    """Take as many files as may be had without asking anybody; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return MOST_FILES if soft == resource.RLIM_INFINITY else soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Register:
    """Who is connected. Each entry of one more may name one that has to go for it."""

    def __init__(self, allowed: Limits) -> None:
        self._allowed = allowed
        self._strangers: dict[str, dict[Hashable, None]] = {}
        """By address, in the order of their coming."""
        self._known: dict[Hashable, dict[Hashable, None]] = {}
        """By whose they are, likewise."""
        self._places: dict[Hashable, tuple[dict[Any, dict[Hashable, None]], Hashable]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._places)

    def arrive(self, connection: Hashable, peer: str) -> Hashable | None:
        """Enter a stranger; gives who has to go for it, maybe itself."""
        out = None
        mine = self._strangers.get(peer, {})
        full = self._waiting >= self._allowed.strangers or len(self) >= self._allowed.total
        if len(mine) >= self._allowed.per_peer:
            out = next(iter(mine))
        elif full:
            most = max(self._strangers.values(), key=len, default={})
            out = next(iter(most), connection)
        self._enter(connection, self._strangers, peer)
        self._waiting += 1
        return out

    def know(self, connection: Hashable, whose: Hashable) -> Hashable | None:
        """It has shown whose it is; gives who has to go for it, maybe itself."""
        place = self._places.get(connection)
        if place is None or place == (self._known, whose):
            return None
        self.leave(connection)
        mine = self._known.get(whose, {})
        out = next(iter(mine)) if len(mine) >= self._allowed.per_pod else None
        if out is None and len(self) >= self._allowed.total - self._allowed.strangers:
            out = connection
        self._enter(connection, self._known, whose)
        return out

    def leave(self, connection: Hashable) -> None:
        """It is gone."""
        place = self._places.pop(connection, None)
        if place is None:
            return
        book, key = place
        self._waiting -= book is self._strangers
        del book[key][connection]
        if not book[key]:
            del book[key]

    def _enter(self, connection: Hashable, book: dict[Any, dict[Hashable, None]], key: Any) -> None:
        book.setdefault(key, {})[connection] = None
        self._places[connection] = book, key


class Visitor(web.RequestHandler):
    """A connection, as aiohttp serves it, that is in the register."""

    def __init__(self, door: "Door", server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._door = door

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed, by whomever."""
        self._door.leave(self)
        super().connection_lost(exc)

    def recognise(self, whose: Hashable) -> None:
        """It has shown whose it is."""
        self._door.know(self, whose)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Say of what is no HTTP what kind of error it is, and nothing of what it holds.

        A head that cannot be parsed is quoted by the error, token and all.
        """
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError):
            kind = type(error).__name__
            logger.warning("%s does not speak HTTP: %s", self._door.peer(self), kind)
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be parsed, without quoting it either."""
        self.log_exception(exc_info=exc)
        metrics.REFUSED.labels(code=str(status)).inc()
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        answer = web.Response(status=status, text="this is no request that can be served here\n")
        answer.force_close()
        return answer


def recognise(request: web.Request, whose: Hashable) -> None:
    """The connection of a request has shown whose it is."""
    if isinstance(request.protocol, Visitor):
        request.protocol.recognise(whose)


class Door:
    """A port with a register; serves the application of a runner that is set up."""

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        allowed: Limits,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen; raises OSError if the port cannot be had."""
        self._runner = runner
        self._context = context
        self._register = Register(allowed)
        self._peers: dict[Visitor, str] = {}
        self._handshakes: dict[Visitor, asyncio.Task[Any]] = {}
        self._task: asyncio.Task[None] | None = None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            (host, port), family=family, backlog=1024, dualstack_ipv6=both
        )
        self._socket.setblocking(False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def open(self) -> None:
        """Begin to accept."""
        self._task = asyncio.create_task(self._accept(), name=f"door {self.port}")

    async def close(self) -> None:
        """Stop accepting. Who is in is the runner's to see out."""
        tasks = [*self._handshakes.values(), *([self._task] if self._task else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    def peer(self, visitor: Visitor) -> str:
        """The address that a connection came from."""
        return self._peers.get(visitor, "somewhere")

    def know(self, visitor: Visitor, whose: Hashable) -> None:
        """A stranger is one no more."""
        self._turn_out(self._register.know(visitor, whose), "its pod holds too many")

    def leave(self, visitor: Visitor) -> None:
        """A connection is gone."""
        self._register.leave(visitor)
        self._peers.pop(visitor, None)
        self._handshakes.pop(visitor, None)

    def _turn_out(self, visitor: Hashable | None, why: str) -> None:
        if not isinstance(visitor, Visitor):
            return
        metrics.DROPPED.inc()
        logger.warning("a connection from %s is closed: %s", self.peer(visitor), why)
        self._register.leave(visitor)
        handshake = self._handshakes.get(visitor)
        if visitor.transport is not None:
            visitor.transport.abort()
        elif handshake is not None:
            handshake.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._socket)
            except OSError as error:
                logger.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(RETRY)
                continue
            self._let_in(connection, address[0])
            await asyncio.sleep(0)  # so that those inside are served while others come

    def _let_in(self, connection: socket.socket, peer: str) -> None:
        server = self._runner.server
        if server is None:
            connection.close()
            return
        visitor = Visitor(
            self,
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=IDLE,
            lingering_time=1.0,
            auto_decompress=False,  # a small body must not become a large one
        )
        timeout = HANDSHAKE if self._context else None
        handshake = asyncio.create_task(
            asyncio.get_running_loop().connect_accepted_socket(
                lambda: visitor,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=timeout,
            )
        )
        self._peers[visitor] = peer
        self._handshakes[visitor] = handshake
        handshake.add_done_callback(lambda _: self._shaken(visitor, connection, handshake))
        self._turn_out(self._register.arrive(visitor, peer), "too many have shown no token")

    def _shaken(
        self, visitor: Visitor, connection: socket.socket, handshake: asyncio.Task[Any]
    ) -> None:
        """Whoever does not get through the door leaves nothing behind."""
        self._handshakes.pop(visitor, None)
        error = None if handshake.cancelled() else handshake.exception()
        if error is not None:
            logger.info("%s did not get through its handshake: %s", self.peer(visitor), error)
        if error is not None or handshake.cancelled():
            connection.close()
            self.leave(visitor)
