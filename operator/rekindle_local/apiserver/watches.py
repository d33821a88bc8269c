"""Watch streams: replay, then live changes, bookmarks and a bounded queue.

A watcher subscribes to the store before it reads anything else, so no change can fall between the
initial state and the stream. Its queue is bounded: one that does not read is dropped (its
connection is cut), and reconnects from the last revision that it saw, which the history serves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from rekindle_local.apiserver.builtins import to_api_version
from rekindle_local.apiserver.errors import ApiError, Json, gone
from rekindle_local.apiserver.registry import Resource
from rekindle_local.apiserver.selectors import Predicate
from rekindle_local.apiserver.storage import Change, Expired, Store

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


async def stream(
    store: Store,
    resource: Resource,
    matches: Predicate,
    options: WatchOptions,
    form: Form | None,
    on_drop: Callable[[], None],
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a watch until it times out, or is dropped for being slow.

    Raises a 410 before the first frame when the history no longer reaches back far enough.
    """
    queue: asyncio.Queue[Change] = asyncio.Queue(maxsize=QUEUE)
    dropped = False

    def receive(change: Change) -> None:
        nonlocal dropped
        if dropped or not _concerns(change, options):
            return
        try:
            queue.put_nowait(change)
        except asyncio.QueueFull:
            dropped = True
            on_drop()

    unsubscribe = store.subscribe(resource.store, receive)
    first = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.timeout
    try:
        revision = store.revision
        if options.revision is None or options.initial_events:
            present = (
                []
                if options.initial_events is False
                else _present(store, resource, options, matches)
            )
            for obj in present:
                yield encode("ADDED", form(obj, first) if form else obj)
                first = False
            if options.initial_events and options.bookmarks:
                yield bookmark(resource, revision, form, end=True)
        else:
            try:
                past = store.since(resource.store, options.revision)
            except Expired as error:
                raise gone(str(error)) from error
            for change in past:
                if change.revision <= revision and _concerns(change, options):
                    frame = _frame(change, resource, matches, form, first)
                    if frame is not None:
                        first = False
                        yield frame
        while not dropped and (left := deadline - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(queue.get(), min(left, options.bookmark_seconds))
            except TimeoutError:
                if options.bookmarks and queue.empty():
                    yield bookmark(resource, store.revision, form)
                continue
            frame = _frame(change, resource, matches, form, first)
            if frame is not None:
                first = False
                yield frame
    finally:
        unsubscribe()


def _concerns(change: Change, options: WatchOptions) -> bool:
    metadata = change.object["metadata"]
    if options.namespace and metadata.get("namespace") != options.namespace:
        return False
    return not options.name or metadata["name"] == options.name


def _present(
    store: Store, resource: Resource, options: WatchOptions, matches: Predicate
) -> list[Json]:
    found = (
        to_api_version(obj, resource.api_version)
        for obj in store.select(resource.store, options.namespace)
        if not options.name or obj["metadata"]["name"] == options.name
    )
    return [obj for obj in found if matches(obj)]


def _frame(
    change: Change, resource: Resource, matches: Predicate, form: Form | None, first: bool
) -> bytes | None:
    """Return the frame of a change as one watcher sees it, None when it is not selected."""
    obj = to_api_version(change.object, resource.api_version)
    kind: str = change.type
    if kind == "DELETED":
        before = (
            obj
            if change.previous is None
            else to_api_version(change.previous, resource.api_version)
        )
        if not matches(before):
            return None
    else:
        now = matches(obj)
        was = change.previous is not None and matches(
            to_api_version(change.previous, resource.api_version)
        )
        if not now and not was:
            return None
        kind = "MODIFIED" if now and was else "ADDED" if now else "DELETED"
    if form is not None:
        return encode(kind, form(obj, first))
    key = f"{kind} {resource.api_version}"
    frame = change.encoded.get(key)
    if frame is None:
        frame = change.encoded[key] = encode(kind, obj)
    return frame


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
