"""The objects, one global revision counter, and a bounded history for watches. No HTTP, no loop.

Objects are immutable by agreement: a write stores a new dict, so readers, watchers and the history
may keep references without copying. Every write takes the next revision, stamps it into the object
as `resourceVersion`, appends a `Change` to the bucket's history and calls the subscribers, all in
one synchronous step: there is no moment in which a list and a watch disagree.

History is capped by count per bucket. A watch from a revision that has fallen out of it (or that
this server never reached, as after a restart with an empty memory) has to list again: `Expired`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rekindle_local.apiserver.errors import Json

Key = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster-scoped kinds."""

Subscriber = Callable[["Change"], None]


class Expired(Exception):
    """The history no longer reaches back to the revision that was asked for."""

    def __init__(self, wanted: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {wanted} ({oldest})")
        self.oldest = oldest


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """One write: what happened, at which revision, and the object before and after it."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    revision: int
    bucket: str
    object: Json
    """After the write; for DELETED the last state, with the revision of the deletion."""
    previous: Json | None
    encoded: dict[str, bytes] = field(default_factory=dict)
    """Watch frames by API version: many watchers, one serialisation."""


@dataclass(kw_only=True)
class _Bucket:
    objects: dict[Key, Json] = field(default_factory=dict)
    history: deque[Change] = field(default_factory=deque)
    forgotten: int = 0
    """The newest revision that has left the history."""
    subscribers: list[Subscriber] = field(default_factory=list)


class ObjectTable:
    """All objects of the server, by bucket (`plural.group`) and key."""

    def __init__(self, *, history: int = 2048) -> None:
        self.revision = 0
        self._history = history
        self._buckets: dict[str, _Bucket] = {}
        self._uids: dict[str, tuple[str, Key]] = {}
        self._dependents: dict[str, set[tuple[str, Key]]] = {}
        self._observers: list[Subscriber] = []

    def get(self, bucket: str, key: Key) -> Json | None:
        """Return the stored object or None; the caller must not change it."""
        found = self._buckets.get(bucket)
        return found.objects.get(key) if found else None

    def select(self, bucket: str, namespace: str = "") -> list[Json]:
        """Return the objects in key order, all namespaces when none is named."""
        found = self._buckets.get(bucket)
        if found is None:
            return []
        keys = [key for key in found.objects if not namespace or key[0] == namespace]
        return [found.objects[key] for key in sorted(keys)]

    def count(self, bucket: str) -> int:
        """Return how many objects a bucket holds."""
        found = self._buckets.get(bucket)
        return len(found.objects) if found else 0

    def buckets(self) -> list[str]:
        """Return the names of all buckets that ever held an object."""
        return list(self._buckets)

    def find_uid(self, uid: str) -> Json | None:
        """Return the object with a uid."""
        place = self._uids.get(uid)
        return self.get(*place) if place else None

    def dependents(self, uid: str) -> list[tuple[str, Json]]:
        """Return (bucket, object) for all that name a uid among their owners."""
        places = sorted(self._dependents.get(uid, ()))
        found = [(bucket, self.get(bucket, key)) for bucket, key in places]
        return [(bucket, obj) for bucket, obj in found if obj is not None]

    def put(self, bucket: str, obj: Json) -> Json:
        """Create or replace an object and return what is stored, with its new revision."""
        home = self._buckets.setdefault(bucket, _Bucket())
        key = key_of(obj)
        previous = home.objects.get(key)
        stored = self._stamped(obj)
        home.objects[key] = stored
        if previous is not None:
            self._unindex(bucket, key, previous)
        self._index(bucket, key, stored)
        self._record(home, "MODIFIED" if previous else "ADDED", bucket, stored, previous)
        return stored

    def remove(self, bucket: str, key: Key, *, last: Json | None = None) -> Json:
        """Delete an object and return its last state; `last` replaces that state in the event."""
        home = self._buckets[bucket]
        previous = home.objects.pop(key)
        self._unindex(bucket, key, previous)
        final = self._stamped(last or previous)
        self._record(home, "DELETED", bucket, final, previous)
        return final

    def since(self, bucket: str, revision: int) -> list[Change]:
        """Return the changes after a revision; raises `Expired` when some are forgotten."""
        home = self._buckets.setdefault(bucket, _Bucket())
        if revision < home.forgotten:
            raise Expired(revision, home.forgotten)
        if revision > self.revision:
            raise Expired(revision, self.revision)
        changes: list[Change] = []
        for change in reversed(home.history):
            if change.revision <= revision:
                break
            changes.append(change)
        changes.reverse()
        return changes

    def subscribe(self, bucket: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` for each later change of a bucket; returns how to stop."""
        subscribers = self._buckets.setdefault(bucket, _Bucket()).subscribers
        subscribers.append(subscriber)
        return lambda: subscribers.remove(subscriber) if subscriber in subscribers else None

    def observe(self, observer: Subscriber) -> None:
        """Call `observer` for every later change of every bucket, for the store's lifetime."""
        self._observers.append(observer)

    def _stamped(self, obj: Json) -> Json:
        self.revision += 1
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}}

    def _record(
        self,
        home: _Bucket,
        kind: Literal["ADDED", "MODIFIED", "DELETED"],
        bucket: str,
        obj: Json,
        previous: Json | None,
    ) -> None:
        change = Change(
            type=kind, revision=self.revision, bucket=bucket, object=obj, previous=previous
        )
        home.history.append(change)
        if len(home.history) > self._history:
            home.forgotten = home.history.popleft().revision
        for subscriber in [*home.subscribers, *self._observers]:
            subscriber(change)

    def _index(self, bucket: str, key: Key, obj: Json) -> None:
        self._uids[obj["metadata"]["uid"]] = (bucket, key)
        for uid in owners(obj):
            self._dependents.setdefault(uid, set()).add((bucket, key))

    def _unindex(self, bucket: str, key: Key, obj: Json) -> None:
        self._uids.pop(obj["metadata"]["uid"], None)
        for uid in owners(obj):
            places = self._dependents.get(uid)
            if places is not None:
                places.discard((bucket, key))
                if not places:
                    del self._dependents[uid]


def key_of(obj: Json) -> Key:
    """Return the key an object is stored under."""
    metadata = obj["metadata"]
    return (metadata.get("namespace") or "", metadata["name"])


def owners(obj: Json) -> Iterator[str]:
    """Yield the uids of an object's owners."""
    for owner in obj["metadata"].get("ownerReferences") or []:
        yield owner["uid"]
