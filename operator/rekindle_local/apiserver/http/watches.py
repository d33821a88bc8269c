"""Watch streams: replay, then live changes, bookmarks and a bounded queue.

A watcher subscribes to the store before it reads anything else, so no change can fall between the
initial state and the stream. Its queue is bounded: one that does not read is dropped (its
connection is cut), and reconnects from the last revision that it saw, which the history serves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json, gone
from rekindle_local.apiserver.kinds.builtins import to_api_version
from rekindle_local.apiserver.registry import Resource
from rekindle_local.apiserver.selectors import Predicate
from rekindle_local.apiserver.storage import Change, Expired, ObjectTable

QUEUE = 4096
"""Changes that may wait for one watcher."""

INITIAL_EVENTS_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What a watch request asks for."""

    namespace: str
    name: str = ""
    """The one object of interest, which a selector on metadata.name names; empty for all."""
    revision: int | None
    """The revision to continue from; None for the present state first."""
    bookmarks: bool
    initial_events: bool | None
    timeout: float
    bookmark_seconds: float


Form = Callable[[Json, bool], Any]
"""Shapes an object for the client (as it is, as a table, metadata only); the flag is `first`."""


def encode(kind: str, obj: Any) -> bytes:
    """Return one frame of the stream."""
    return json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"


class WatchStream:
    """One watcher: its subscription, its queue, and the frames that it is sent."""

    def __init__(
        self,
        store: ObjectTable,
        resource: Resource,
        matches: Predicate,
        options: WatchOptions,
        form: Form | None,
        on_drop: Callable[[], None],
    ) -> None:
        self._store = store
        self._resource = resource
        self._matches = matches
        self._options = options
        self._form = form
        self._on_drop = on_drop
        self._queue: asyncio.Queue[Change | None] = asyncio.Queue(maxsize=QUEUE)
        self._ended = False
        self._first = True

    def close(self) -> None:
        """End the stream after what is queued, from outside."""
        self._ended = True
        if not self._queue.full():
            self._queue.put_nowait(None)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the frames until the time is over, `close` is called, or the watcher is dropped.

        Raises a 410 before the first frame when the history no longer reaches back far enough.
        """
        unsubscribe = self._store.subscribe(self._resource.store, self._receive)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.timeout
        try:
            for frame in self._begin():
                yield frame
            while not self._ended and (left := deadline - loop.time()) > 0:
                pause = min(left, self._options.bookmark_seconds)
                try:
                    change = await asyncio.wait_for(self._queue.get(), pause)
                except TimeoutError:
                    if self._options.bookmarks and self._queue.empty():
                        yield bookmark(self._resource, self._store.revision, self._form)
                    continue
                live = None if change is None else self._frame(change)
                if live is not None:
                    yield live
        finally:
            unsubscribe()

    def _receive(self, change: Change) -> None:
        if self._ended or not _concerns(change, self._options):
            return
        try:
            self._queue.put_nowait(change)
        except asyncio.QueueFull:
            self._ended = True
            self._on_drop()

    def _begin(self) -> Iterator[bytes]:
        """Yield the present state, or what has happened since the revision that was asked for."""
        options, resource = self._options, self._resource
        # Changes of the pauses between these frames are queued already: what is shown here ends at
        # one revision, and the queue goes on from it.
        revision = self._store.revision
        if options.revision is None or options.initial_events:
            present = [] if options.initial_events is False else self._present()
            for obj in present:
                yield encode("ADDED", self._form(obj, self._first) if self._form else obj)
                self._first = False
            if options.initial_events and options.bookmarks:
                yield bookmark(resource, revision, self._form, end=True)
            return
        try:
            past = self._store.since(resource.store, options.revision)
        except Expired as error:
            raise gone(str(error)) from error
        for change in past:
            frame = self._frame(change) if _concerns(change, options) else None
            if frame is not None:
                yield frame

    def _present(self) -> list[Json]:
        options, version = self._options, self._resource.api_version
        found = (
            to_api_version(obj, version)
            for obj in self._store.select(self._resource.store, options.namespace)
            if not options.name or obj["metadata"]["name"] == options.name
        )
        return [obj for obj in found if self._matches(obj)]

    def _frame(self, change: Change) -> bytes | None:
        """Return the frame of a change as this watcher sees it, None when it is not selected."""
        version = self._resource.api_version
        obj = to_api_version(change.object, version)
        before = None if change.previous is None else to_api_version(change.previous, version)
        was = before is not None and self._matches(before)
        now = change.type != "DELETED" and self._matches(obj)
        if not now and not was:
            return None
        kind = "MODIFIED" if now and was else "ADDED" if now else "DELETED"
        first, self._first = self._first, False
        if self._form is not None:
            return encode(kind, self._form(obj, first))
        key = f"{kind} {version}"
        frame = change.encoded.get(key)
        if frame is None:
            frame = change.encoded[key] = encode(kind, obj)
        return frame


def _concerns(change: Change, options: WatchOptions) -> bool:
    metadata = change.object["metadata"]
    if options.namespace and metadata.get("namespace") != options.namespace:
        return False
    return not options.name or metadata["name"] == options.name


def bookmark(resource: Resource, revision: int, form: Form | None, *, end: bool = False) -> bytes:
    """Return the frame that says how far a watcher is, or that it has the initial state."""
    metadata: Json = {"resourceVersion": str(revision), "creationTimestamp": None}
    if end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    obj: Json = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    if form is not None:
        obj["metadata"]["name"] = ""
        return encode("BOOKMARK", form(obj, False))
    return encode("BOOKMARK", obj)


def error_frame(error: ApiError) -> bytes:
    """Return the frame that ends a stream with an error."""
    return encode("ERROR", error.status())
