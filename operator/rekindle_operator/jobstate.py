"""What this process knows of one job: its newest form, its pods, and what has been written.

Two forms of the status are kept apart. `status` is what this operator has decided, and what it goes
on from, since there is one writer. `served` is what the API server holds as far as is known:
patches are made from it, so that what somebody else has written over is put right with the next.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle_operator.faults import Fault, fault_of
from rekindle_operator.inquiries import Inquiries
from rekindle_operator.observed import Pod, parse_pod

TOLD_MOST = 50
"""Different faults of one job of which events are posted."""


@dataclass
class JobState:
    """One job."""

    body: dict[str, Any]
    status: dict[str, Any]
    """As this process last decided it, or as it was when first seen."""
    served: dict[str, Any] = field(default_factory=dict)
    """The status that the API server has, as of `version`."""
    version: int = -1
    """resourceVersion of the newest form of the job that has been seen."""
    writing: bool = False
    """Whether a write of ours is under way, which the watch may tell of before its answer."""
    futile: dict[str, Any] = field(default_factory=dict)
    """What the API server has dropped of the last patch: an older CRD does not know the field."""
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    parsed: dict[str, Pod] = field(default_factory=dict)
    """By uid, both."""
    heard: dict[str, dict[str, Any] | None] | None = None
    """While a list of pods is under way: what the watch tells, None for a pod that is gone."""
    token: str | None = None
    has_service: bool = False
    has_secret: bool = False
    retired: set[str] = field(default_factory=set)
    inquiries: Inquiries = field(default_factory=Inquiries)
    refused: str | None = None
    hindered: str | None = None
    """What kept the last child from being created; it is tried again."""
    create_at: float = 0.0
    """time.monotonic() before which no child is created, after one could not be."""
    create_pause: float = 0.0
    fault: Fault | None = None
    """Why the last reconcile failed."""
    complaints: dict[str, Fault] = field(default_factory=dict)
    """What could not be understood, by what it is about; the job goes on without it."""
    told: set[str] = field(default_factory=set)
    """Messages of faults of which an event was posted."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    edited: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a new version of the spec: what failed before may succeed now."""
    due: float = 0.0
    """time.monotonic() of the next reconcile."""
    synced_at: float = 0.0
    wrote_at: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def uid(self) -> str:
        """Of the job."""
        return str(self.body["metadata"]["uid"])

    @property
    def trouble(self) -> Fault | None:
        """The worst that is to be told."""
        return self.fault or next(iter(self.complaints.values()), None)

    def is_news(self, fault: Fault) -> bool:
        """Whether an event of a fault is due: one for each that is different, not for each try."""
        return fault.message not in self.told and len(self.told) < TOLD_MOST

    def note_body(self, body: Mapping[str, Any]) -> bool:
        """Take over a newer form of the job; whether anything but the status is new in it."""
        plain: dict[str, Any] = {"metadata": dict(body["metadata"]), "spec": body.get("spec")}
        if _asks(plain) == _asks(self.body):
            return False
        if plain["metadata"].get("generation") != self.body["metadata"].get("generation"):
            self.refused = None
            self.edited.set()
        self.body = plain
        return True

    def note_status(self, body: Mapping[str, Any]) -> bool:
        """See what the API server holds; whether somebody else has written into the status."""
        version = _version(body)
        if version is None or version <= self.version:
            return False
        self.version, self.served = version, dict(body.get("status") or {})
        theirs, ours = self.served.get("round", 0), self.status.get("round", 0)
        if isinstance(theirs, int) and theirs > ours:
            # Another process of the operator may have used it; a number is never used twice.
            self.status = {**self.status, "round": theirs}
        return self.served != self.status

    def note_written(self, body: Mapping[str, Any]) -> None:
        """See what a write of ours has made of the status."""
        version = _version(body)
        if version is None or version > self.version:
            self.served = dict(body.get("status") or {})
            self.version = self.version if version is None else version

    def note_pod(self, body: Mapping[str, Any]) -> bool:
        """Take a pod into the cache; whether anything about it is new.

        One that cannot be understood is a complaint, and is what it was before.
        """
        meta = body["metadata"]
        about = f"pod {meta['name']}"
        try:
            owners = {o["uid"] for o in meta.get("ownerReferences") or ()}
            pod = parse_pod(body)
        except Exception as error:
            return self.complain(about, error)
        settled = self.complaints.pop(about, None) is not None
        if pod is None or self.uid not in owners:
            return False
        news = settled or self.parsed.get(pod.uid) != pod
        self.pods[pod.uid], self.parsed[pod.uid] = dict(body), pod
        return news

    def drop_pod(self, uid: str, name: str) -> None:
        """A pod is gone."""
        self.pods.pop(uid, None)
        self.parsed.pop(uid, None)
        self.complaints.pop(f"pod {name}", None)

    def complain(self, about: str, error: BaseException) -> bool:
        """Note what could not be understood; whether that is new."""
        fault = fault_of(error, [self.token])
        fault = Fault(reason=fault.reason, message=f"{about}: {fault.message}")
        news = self.complaints.get(about) != fault
        self.complaints[about] = fault
        return news


def _version(body: Mapping[str, Any]) -> int | None:
    """The resourceVersion; those of one kind grow."""
    text = str(body["metadata"].get("resourceVersion"))
    return int(text) if text.isdecimal() else None


def _asks(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a new form of a job may ask for."""
    meta = body["metadata"]
    return (
        meta.get("generation"),
        meta.get("annotations"),
        meta.get("deletionTimestamp"),
        meta.get("finalizers"),
    )
