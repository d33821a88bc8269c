"""Events about objects, as `kubectl describe` shows them.

An event is news, not state: it is written from a bounded queue beside the work it reports, and
when the queue is full or the server away it is dropped. The same news again raises the count of
the first event instead of adding one, so a pod that cannot start does not fill the store.
"""

import asyncio
import logging
from typing import Any

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import KubeClient, Manifest, RequestError

_QUEUE = 512
_REMEMBERED = 1024
_log = logging.getLogger(__name__)


class EventRecorder:
    """Writes core/v1 Events in the name of one component (and, for a kubelet, one node)."""

    def __init__(self, client: KubeClient, component: str, host: str | None = None) -> None:
        self._client = client
        self._source = {"component": component} | ({"host": host} if host else {})
        self._queue: asyncio.Queue[tuple[Manifest, str, str, str, str]] = asyncio.Queue(_QUEUE)
        self._seen: dict[tuple[str, str, str, str], tuple[str, str, int]] = {}
        self._serial = 0

    def record(
        self, subject: Manifest, kind: str, reason: str, message: str, *, field: str = ""
    ) -> None:
        """Queue one event about `subject`, or the part of it that `field` names.

        `kind` is Normal or Warning.
        """
        try:
            self._queue.put_nowait((subject, kind, reason, message, field))
        except asyncio.QueueFull:
            _log.debug("event dropped: %s %s", reason, message)

    async def run(self) -> None:
        """Write what is queued until cancelled."""
        while True:
            subject, kind, reason, message, field = await self._queue.get()
            try:
                await self._write(subject, kind, reason, message, field)
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                _log.debug("event %s not written: %s", reason, error)

    async def _write(
        self, subject: Manifest, kind: str, reason: str, message: str, field: str
    ) -> None:
        meta = subject["metadata"]
        namespace = meta.get("namespace") or "default"
        stamp = timestamps.seconds(timestamps.now())
        key = (meta.get("uid", meta["name"]), field, reason, message)
        base = f"/api/v1/namespaces/{namespace}/events"
        if key in self._seen:
            name, first, count = self._seen[key]
            try:
                await self._client.patch(
                    f"{base}/{name}", {"count": count + 1, "lastTimestamp": stamp}
                )
            except RequestError as error:
                if error.code != 404:
                    raise
            else:
                self._seen[key] = (name, first, count + 1)
                return
        self._serial += 1
        name = f"{meta['name'][:200]}.{id(self):x}{self._serial:x}"
        involved: dict[str, Any] = {
            "apiVersion": subject.get("apiVersion", "v1"),
            "kind": subject.get("kind", "Pod"),
            "name": meta["name"],
            "uid": meta.get("uid", ""),
        }
        if meta.get("namespace"):
            involved["namespace"] = namespace
        if field:
            involved["fieldPath"] = field
        await self._client.create(
            base,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": involved,
                "type": kind,
                "reason": reason,
                "message": message[:1024],
                "source": self._source,
                "reportingComponent": self._source["component"],
                "firstTimestamp": stamp,
                "lastTimestamp": stamp,
                "count": 1,
            },
        )
        if len(self._seen) >= _REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = (name, stamp, 1)
