"""Background deletion: what follows from an owner, a namespace or a CRD going away.

One worker drains a set of dirty things; every store change marks what it may concern. Marking is
cheap and repeated marks collapse, so a burst of changes costs one pass, and a pass that finds
nothing to do is harmless: the collector looks at the state, never at the event.

An owner that is not found counts as absent only if its kind is served here, or if this collector
saw it go; a dependent of a kind this server does not know is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime

from rekindle_local.apiserver.errors import ApiError, Json
from rekindle_local.apiserver.registry import Resource
from rekindle_local.apiserver.storage import Change, key_of, owners
from rekindle_local.apiserver.writes.crds import CLEANUP
from rekindle_local.apiserver.writes.operations import FOREGROUND, ORPHAN, ApiOperations
from rekindle_local.apiserver.writes.options import DeleteOptions

_LOG = logging.getLogger(__name__)

EVENT_TTL = 3600.0
"""Seconds that an event is kept after it was last seen."""

EVENT_LIMIT = 5000
"""Events that are kept in all; the oldest fifth goes when there are more."""

_REMEMBERED = 20_000
"""How many uids of deleted owners are remembered."""


class Collector:
    """The garbage collector, the namespace controller and the CRD finalizer in one worker."""

    def __init__(self, objects: ApiOperations, *, sweep_seconds: float = 60.0) -> None:
        self._objects = objects
        self._sweep_seconds = sweep_seconds
        self._items: OrderedDict[str, None] = OrderedDict()
        self._owners: OrderedDict[str, None] = OrderedDict()
        self._namespaces: OrderedDict[str, None] = OrderedDict()
        self._crds: OrderedDict[str, None] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._crowded = False
        self._wake = asyncio.Event()
        objects.store.observe(self._mark)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            tasks.create_task(self._drain())

    async def _drain(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._busy():
                self.step()
                await asyncio.sleep(0)

    def _busy(self) -> bool:
        return bool(self._items or self._owners or self._namespaces or self._crds or self._crowded)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            self.expire_events()

    def _mark(self, change: Change) -> None:
        obj, uid = change.object, change.object["metadata"]["uid"]
        metadata = obj["metadata"]
        if change.type == "DELETED":
            self._gone[uid] = None
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)
            if self._objects.store.dependents(uid):
                self._owners[uid] = None
            for owner in owners(obj):
                self._owners[owner] = None
            self._mark_containers(change.bucket, metadata.get("namespace") or "")
        else:
            if change.type == "ADDED" and change.bucket == "events":
                self._crowded = self._objects.store.count("events") > EVENT_LIMIT
            if metadata.get("ownerReferences") and (
                change.previous is None
                or change.previous["metadata"].get("ownerReferences") != metadata["ownerReferences"]
            ):
                self._items[uid] = None
            if metadata.get("deletionTimestamp"):
                if {FOREGROUND, ORPHAN} & set(metadata.get("finalizers") or []):
                    self._owners[uid] = None
                if change.bucket == "namespaces":
                    self._namespaces[metadata["name"]] = None
                if change.bucket == "customresourcedefinitions.apiextensions.k8s.io":
                    self._crds[metadata["name"]] = None
        if self._busy():
            self._wake.set()

    def _mark_containers(self, bucket: str, namespace: str) -> None:
        home = self._objects.store.get("namespaces", ("", namespace)) if namespace else None
        if home is not None and home["metadata"].get("deletionTimestamp"):
            self._namespaces[namespace] = None
        crd = self._objects.store.get(
            "customresourcedefinitions.apiextensions.k8s.io", ("", bucket)
        )
        if crd is not None and crd["metadata"].get("deletionTimestamp"):
            self._crds[bucket] = None

    def step(self) -> None:
        """Do one piece of work; what fails is logged and dropped, the next change marks it "
        "again."""
        try:
            if self._owners:
                self._owner(self._owners.popitem(last=False)[0])
            elif self._items:
                self._item(self._items.popitem(last=False)[0])
            elif self._crds:
                self._crd(self._crds.popitem(last=False)[0])
            elif self._namespaces:
                self._namespace(self._namespaces.popitem(last=False)[0])
            elif self._crowded:
                self._crowded = False
                self._thin_events()
        except ApiError as error:
            _LOG.warning("garbage collection skipped an object: %s", error.message)

    def _owner(self, uid: str) -> None:
        obj = self._objects.store.find_uid(uid)
        if obj is None:
            for _, dependent in self._objects.store.dependents(uid):
                self._items[dependent["metadata"]["uid"]] = None
            return
        if not obj["metadata"].get("deletionTimestamp"):
            return
        finalizers = obj["metadata"].get("finalizers") or []
        dependents = self._objects.store.dependents(uid)
        if ORPHAN in finalizers:
            for bucket, dependent in dependents:
                self._keep_owners(bucket, dependent, lambda owner: owner["uid"] != uid)
            self._without_finalizer(obj, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = False
            for _, dependent in dependents:
                references = dependent["metadata"].get("ownerReferences") or []
                blocking |= any(
                    owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in references
                )
                if not dependent["metadata"].get("deletionTimestamp"):
                    self._items[dependent["metadata"]["uid"]] = None
            if not blocking:
                self._without_finalizer(obj, FOREGROUND)

    def _item(self, uid: str) -> None:
        obj = self._objects.store.find_uid(uid)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            return
        references = obj["metadata"].get("ownerReferences") or []
        namespace = obj["metadata"].get("namespace") or ""
        states = {owner["uid"]: self._state(owner, namespace) for owner in references}
        if not states or "unknown" in states.values():
            return
        resource = self._resource_of(obj)
        if resource is None:
            return
        if "solid" in states.values():
            if set(states.values()) != {"solid"}:
                self._keep_owners(
                    resource.store, obj, lambda owner: states[owner["uid"]] == "solid"
                )
            return
        waited_for = "waiting" in states.values() and bool(self._objects.store.dependents(uid))
        finalizers = obj["metadata"].get("finalizers") or []
        policy = "Foreground" if waited_for or FOREGROUND in finalizers else "Background"
        if ORPHAN in finalizers:
            policy = "Orphan"
        self._objects.delete(
            resource,
            namespace,
            obj["metadata"]["name"],
            DeleteOptions(uid=uid, propagation=policy),
        )

    def _state(self, owner: Json, namespace: str) -> str:
        """Return whether an owner is solid, absent, waiting for its dependents, or unknown."""
        found = self._objects.store.find_uid(owner["uid"])
        if found is not None and (found["metadata"].get("namespace") or "") in {"", namespace}:
            metadata = found["metadata"]
            deleting = metadata.get("deletionTimestamp")
            waiting = deleting and FOREGROUND in (metadata.get("finalizers") or [])
            return "waiting" if waiting else "solid"
        if owner["uid"] in self._gone or found is not None:
            return "absent"
        served = self._objects.registry.find_kind(owner["apiVersion"], owner["kind"])
        return "absent" if served is not None else "unknown"

    def _resource_of(self, obj: Json) -> Resource | None:
        return self._objects.registry.find_kind(obj["apiVersion"], obj["kind"])

    def _keep_owners(self, bucket: str, obj: Json, keep: object) -> None:
        assert callable(keep)
        metadata = dict(obj["metadata"])
        kept = [owner for owner in metadata.get("ownerReferences") or [] if keep(owner)]
        metadata.pop("ownerReferences", None)
        if kept:
            metadata["ownerReferences"] = kept
        self._objects.store.put(bucket, {**obj, "metadata": metadata})

    def _without_finalizer(self, obj: Json, name: str) -> None:
        resource = self._resource_of(obj)
        if resource is None:
            return
        metadata = dict(obj["metadata"])
        metadata["finalizers"] = [item for item in metadata.get("finalizers") or [] if item != name]
        if not metadata["finalizers"]:
            del metadata["finalizers"]
        self._objects.commit(resource, {**obj, "metadata": metadata})

    def _namespace(self, name: str) -> None:
        objects = self._objects
        home = objects.store.get("namespaces", ("", name))
        if home is None or not home["metadata"].get("deletionTimestamp"):
            return
        left = 0
        for bucket in objects.store.buckets():
            resource = objects.registry.by_bucket(bucket)
            if resource is None or not resource.namespaced:
                continue
            for obj in objects.store.select(bucket, name):
                if not obj["metadata"].get("deletionTimestamp"):
                    objects.delete(
                        resource,
                        name,
                        obj["metadata"]["name"],
                        DeleteOptions(propagation="Background"),
                    )
            left += len(objects.store.select(bucket, name))
        resource = objects.registry.find("", "v1", "namespaces")
        assert resource is not None
        if not left:
            objects.commit(resource, {**home, "spec": {**home.get("spec", {}), "finalizers": []}})

    def _crd(self, name: str) -> None:
        objects = self._objects
        bucket = "customresourcedefinitions.apiextensions.k8s.io"
        crd = objects.store.get(bucket, ("", name))
        if crd is None or CLEANUP not in (crd["metadata"].get("finalizers") or []):
            return
        for resource in objects.registry.custom(name)[:1]:
            for obj in objects.store.select(resource.store):
                metadata = obj["metadata"]
                if not metadata.get("deletionTimestamp"):
                    objects.delete(
                        resource, metadata.get("namespace") or "", metadata["name"], DeleteOptions()
                    )
        if not objects.store.count(name):
            self._without_finalizer(crd, CLEANUP)

    def expire_events(self) -> None:
        """Remove the events that were last seen longer ago than their time to live."""
        now = self._objects.clock()
        for event in self._objects.store.select("events"):
            if now - _last_seen(event) > EVENT_TTL:
                self._objects.store.remove("events", key_of(event))

    def _thin_events(self) -> None:
        events = sorted(self._objects.store.select("events"), key=_last_seen)
        for event in events[: EVENT_LIMIT // 5]:
            self._objects.store.remove("events", key_of(event))


def _last_seen(event: Json) -> float:
    created = event["metadata"]["creationTimestamp"]
    seen = (
        (event.get("series") or {}).get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or created
    )
    try:
        return datetime.fromisoformat(seen).timestamp()
    except ValueError:
        return datetime.fromisoformat(created).timestamp()
