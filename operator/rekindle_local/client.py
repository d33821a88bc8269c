"""The embedded cluster's own client of a Kubernetes API: requests, watches, reflectors.

Scheduler, kubelet and controllers are written against HTTP, as in a real cluster, so that they can
serve any API server and cannot reach into the embedded one. A `CollectionReflector` is the usual
list then watch: it keeps a copy of one collection, tells a callback what changed, and starts again
from a list when the server has forgotten its place (410) or the connection is gone. What
disappeared meanwhile is told as DELETED, so a callback never misses an end.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

Manifest = dict[str, Any]
"""One Kubernetes object as JSON has it."""

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10)
_WATCH_SECONDS = 240
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=_WATCH_SECONDS + 15)
_log = logging.getLogger(__name__)


class RequestError(Exception):
    """An answer of the API server that is not a success; carries its code, reason and message."""

    def __init__(self, code: int, reason: str, message: str, request: str) -> None:
        super().__init__(f"{request}: {code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class KubeClient:
    """A thin asynchronous client; one is shared by everything that runs in a loop."""

    def __init__(self, url: str, token: str | None = None, authority: str | None = None) -> None:
        """``authority``: the certificate (PEM) by which the server is known."""
        self.url = url.rstrip("/")
        self.token = token
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self.online = asyncio.Event()
        """While this is not set, calls wait: whoever makes them is cut off from the network."""
        self.online.set()
        trusted = ssl.create_default_context(cadata=authority) if authority else True
        # No limit: each watch holds a connection for as long as it runs.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted), headers=headers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; running watches end with an error."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """One call; raises ApiError for an answer of 400 and above, aiohttp.ClientError else."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": content_type}
        await self.online.wait()
        async with self._session.request(
            method,
            self.url + path,
            data=data,
            params=params,
            headers=headers,
            timeout=_REQUEST_TIMEOUT,
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise _error(response.status, text, f"{method} {path}")
            answer: Manifest = json.loads(text) if text else {}
            return answer

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Manifest:
        """GET one object or list."""
        return await self.request("GET", path, params=params)

    async def find(self, path: str) -> Manifest | None:
        """GET one object; None when it does not exist."""
        try:
            return await self.get(path)
        except RequestError as error:
            if error.code == 404:
                return None
            raise

    async def create(self, path: str, body: Manifest) -> Manifest:
        """POST to a collection or to a subresource such as `binding`."""
        return await self.request("POST", path, body=body)

    async def patch(self, path: str, body: object, content_type: str = MERGE) -> Manifest:
        """PATCH with one of MERGE, STRATEGIC and JSON_PATCH."""
        return await self.request("PATCH", path, body=body, content_type=content_type)

    async def delete(
        self, path: str, *, grace: int | None = None, uid: str | None = None
    ) -> Manifest | None:
        """DELETE; None when it is gone already or another object has its name."""
        options: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            return await self.request("DELETE", path, body=options)
        except RequestError as error:
            if error.code == 404 or (error.code == 409 and uid is not None):
                return None
            raise

    async def watch(
        self, path: str, params: Mapping[str, str], resource_version: str
    ) -> AsyncIterator[Manifest]:
        """The events after `resource_version`; ends when the server ends the watch."""
        query = {
            **params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        await self.online.wait()
        async with self._session.get(
            self.url + path, params=query, timeout=_WATCH_TIMEOUT
        ) as response:
            if response.status >= 400:
                raise _error(response.status, await response.text(), f"WATCH {path}")
            buffer = b""
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield json.loads(line)


def _error(code: int, text: str, request: str) -> RequestError:
    try:
        status = json.loads(text)
        return RequestError(code, status.get("reason", ""), status.get("message", text), request)
    except (ValueError, AttributeError):
        return RequestError(code, "", text[:500], request)


class CollectionReflector:
    """A copy of one collection, kept up to date; `items` is keyed by uid."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        on_event: Callable[[str, Manifest], None],
        params: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self._params = dict(params or {})
        self._on_event = on_event
        self.items: dict[str, Manifest] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Follow the collection until cancelled."""
        delay = 0.1
        while True:
            try:
                version = await self._relist()
                delay = 0.1
                await self._follow(version)
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                _log.debug("watch of %s starts again in %.1f s: %s", self._path, delay, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _relist(self) -> str:
        answer = await self._client.get(self._path, self._params)
        kind = str(answer.get("kind", "List")).removesuffix("List")
        fresh = {item["metadata"]["uid"]: item for item in answer.get("items") or ()}
        for uid in [uid for uid in self.items if uid not in fresh]:
            self._emit("DELETED", self.items[uid])
        for item in fresh.values():
            item.setdefault("kind", kind)
            self._emit("MODIFIED" if item["metadata"]["uid"] in self.items else "ADDED", item)
        self.synced.set()
        return str(answer["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> None:
        while True:
            async for event in self._client.watch(self._path, self._params, version):
                item = event["object"]
                if event["type"] == "ERROR":
                    raise RequestError(
                        int(item.get("code", 500)),
                        item.get("reason", ""),
                        item.get("message", ""),
                        f"WATCH {self._path}",
                    )
                version = str(item["metadata"]["resourceVersion"])
                if event["type"] != "BOOKMARK":
                    self._emit(event["type"], item)

    def _emit(self, kind: str, item: Manifest) -> None:
        if kind == "DELETED":
            self.items.pop(item["metadata"]["uid"], None)
        else:
            self.items[item["metadata"]["uid"]] = item
        try:
            self._on_event(kind, item)
        except Exception:
            _log.exception("handling %s of %s failed", kind, item["metadata"].get("name"))


def pod_path(namespace: str, name: str, subresource: str = "") -> str:
    """The path of a pod or of one of its subresources."""
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    return f"{path}/{subresource}" if subresource else path


def node_path(name: str, subresource: str = "") -> str:
    """The path of a node or of one of its subresources."""
    return f"/api/v1/nodes/{name}" + (f"/{subresource}" if subresource else "")
