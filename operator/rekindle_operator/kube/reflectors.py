"""What there is in the cluster, told as events: one list and one watch for each kind, for all jobs.

A reflector lists its kind once and follows the watch from there, so that nobody has to list again
to be sure. When a connection ends, the next watch goes on from the newest version that was seen.
Only when the API server has forgotten that, or is another one, the reflector lists anew, and what
has gone meanwhile is told as deleted: whoever listens never misses an end.

Events come in the order in which things happened, and lists come between them from the same
reflector, so that none can take back what a newer event has told.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rekindle_operator.kube.cluster import TROUBLE, KubernetesApi, KubernetesError

logger = logging.getLogger(__name__)

RETRY_LEAST, RETRY_MOST = 0.1, 10.0
"""Seconds before a watch that broke is begun anew, doubling."""

Body = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told about one kind."""

    kind: str
    take: Callable[[str | None, Body], None]
    """Gets ADDED, MODIFIED, DELETED or, for what a list holds, None; and the object."""
    key: Callable[[Body], str]
    """What tells objects of the kind apart."""
    known: Callable[[], Mapping[str, Body]]
    """By key, what has been told of and not of its end; gives at least the metadata."""
    trouble: Callable[[str, Exception | None], None]
    """Gets the kind and what keeps it from being listed or watched; None: it can be again."""


class Reflector:
    """Follows one kind, in one namespace or in all."""

    def __init__(self, cluster: KubernetesApi, listener: Listener, namespace: str = "") -> None:
        self._cluster = cluster
        self._listener = listener
        self._namespace = namespace
        self.listed = asyncio.Event()
        """Whether everything that there is was told once."""

    async def run(self) -> None:
        """Follow until cancelled."""
        pause, version = RETRY_LEAST, ""
        while True:
            try:
                if not version:
                    version = await self._list()
                    self._listener.trouble(self._listener.kind, None)
                began = version
                async for kind, body in self._cluster.watch(
                    self._listener.kind, self._namespace, version
                ):
                    version, pause = body["metadata"]["resourceVersion"], RETRY_LEAST
                    if kind != "BOOKMARK":
                        self._tell(kind, body)
                if version == began:  # a server that ends a watch at once is not asked in a loop
                    await asyncio.sleep(RETRY_LEAST)
            except KubernetesError as error:
                # It has forgotten the version, or has never had it: what is there is asked anew.
                version = ""
                await self._wait(error, pause)
                pause = min(2 * pause, RETRY_MOST)
            except (*TROUBLE, ValueError, KeyError) as error:
                await self._wait(error, pause)
                pause = min(2 * pause, RETRY_MOST)

    async def _wait(self, error: Exception, pause: float) -> None:
        if not (isinstance(error, KubernetesError) and error.status == 410):
            self._listener.trouble(self._listener.kind, error)
        log = logger.debug if pause < 1 else logger.warning
        text = "%ss cannot be watched: %s: %s; again in %.1f s"
        log(text, self._listener.kind.lower(), type(error).__name__, error, pause)
        await asyncio.sleep(pause)

    async def _list(self) -> str:
        # Known before it is asked for: what is not in the answer has gone.
        before = {
            key: body
            for key, body in self._listener.known().items()
            if self._namespace in {"", body["metadata"].get("namespace")}
        }
        found, version = await self._cluster.list_all(self._listener.kind, self._namespace)
        there = {self._listener.key(body) for body in found}
        for key in before.keys() - there:
            self._tell("DELETED", before[key])
        for body in found:
            self._tell(None, body)
        self.listed.set()
        return version

    def _tell(self, kind: str | None, body: Body) -> None:
        # Who wrote which field takes half of an object, and nobody here asks for it.
        meta = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
        self._listener.take(kind, {**body, "metadata": meta})
