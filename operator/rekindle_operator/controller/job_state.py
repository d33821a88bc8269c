"""What this process knows of one job: its newest form, its pods, and what has been written.

Two forms of the status are kept apart. `status` is what this operator has decided, and what it goes
on from, since there is one writer. `served` is what the API server holds as far as is known:
patches are made from it, so that what somebody else has written over is put right with the next.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle.api.changes import Effect, between
from rekindle.api.spec import TrainingJob
from rekindle_operator.controller.operator_faults import Fault, fault_of
from rekindle_operator.controller.pod_lookups import Inquiries
from rekindle_operator.observed.documents import parse_pod
from rekindle_operator.observed.observations import Pod
from rekindle_operator.observed.run_claims import Use, use_of
from rekindle_operator.pods.manifests import owner_reference
from rekindle_operator.pods.ownership import Claim, as_made, claim
from rekindle_operator.reconcile import rerun
from rekindle_operator.status import status

OVERLAP = 600.0
"""Seconds for which a token that was replaced still counts: kubelets take a while to tell pods."""
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
    """Of each pod its metadata; the rest is in `parsed`."""
    parsed: dict[str, Pod] = field(default_factory=dict)
    """By uid, both."""
    bereft: bool = False
    """Whether what goes with the job has vanished: the job may have, too, unseen."""
    token: str | None = None
    former: tuple[str, float] | None = None
    """The token before, and until when (monotonic) it counts, too."""
    has_service: bool = False
    has_secret: bool = False
    looked_at: float = -math.inf
    """time.monotonic() of when secret and service were last read."""
    retired: set[str] = field(default_factory=set)
    inquiries: Inquiries = field(default_factory=Inquiries)
    refused: str | None = None
    hindered: str | None = None
    """What kept the last child from being created; it is tried again."""
    mends: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """By uid: name of a pod of ours that somebody has edited, and the patch that puts it right."""
    strays: dict[str, str] = field(default_factory=dict)
    """By uid: names of pods that an earlier job of this name has left over."""
    vanished: dict[str, Pod] = field(default_factory=dict)
    """By uid: pods that went without having been told to, as after `kubectl delete --force`, until
    a plan was made with that in view."""
    suspects: dict[str, str] = field(default_factory=dict)
    """By uid: names of pods that the watch calls deleted, and that may only have lost labels."""
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
    edits: dict[str, Effect] = field(default_factory=dict)
    """Fields of the spec that have changed and of which nobody was told yet."""
    due: float = 0.0
    """time.monotonic() of the next reconcile."""
    wrote_at: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def uid(self) -> str:
        """Of the job."""
        return str(self.body["metadata"]["uid"])

    @property
    def owner(self) -> dict[str, Any]:
        """The job as its children name it."""
        return owner_reference(str(self.body["metadata"]["name"]), self.uid)

    def use(self, job: TrainingJob) -> Use | None:
        """What the job uses of where its checkpoints lie, by what was last decided."""
        record = status.read(self.status)
        pods = [pod.created_at for pod in self.parsed.values() if pod.alive]
        ended = record.phase in status.TERMINAL and not pods
        placed = rerun.placed(job, record)
        return use_of(placed, record, ended=ended, first_pod=min(pods, default=None))

    @property
    def trouble(self) -> Fault | None:
        """The worst that is to be told."""
        return self.fault or next(iter(self.complaints.values()), None)

    def is_news(self, fault: Fault) -> bool:
        """Whether an event of a fault is due: one for each that is different, not for each try."""
        return fault.message not in self.told and len(self.told) < TOLD_MOST

    def tokens(self, now: float) -> tuple[str, ...]:
        """The tokens that pods may show."""
        former = self.former[0] if self.former and now < self.former[1] else None
        return tuple(token for token in (self.token, former) if token)

    def retire_token(self, now: float) -> None:
        """The secret is gone: the next one holds another token, and pods get it in a minute or two.

        Until then they show the one that they have.
        """
        if self.token is not None:
            self.former = (self.token, now + OVERLAP)
            self.token = None

    def note_body(self, body: Mapping[str, Any]) -> bool:
        """Take over a newer form of the job; whether anything but the status is new in it."""
        plain: dict[str, Any] = {"metadata": dict(body["metadata"]), "spec": body.get("spec")}
        if older(plain, self.body) or _asks(plain) == _asks(self.body):
            return False
        if plain["metadata"].get("generation") != self.body["metadata"].get("generation"):
            self.refused = None
            self.edited.set()
            old, new = self.body.get("spec"), plain.get("spec")
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                self.edits |= between(old, new)
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
        about, uid = f"pod {meta['name']}", str(meta["uid"])
        if older(body, self.pods.get(uid)):
            return False
        try:
            owners = meta.get("ownerReferences") or ()
            if not any(owner["uid"] == self.uid for owner in owners) and uid not in self.pods:
                news = uid not in self.strays and self._left_over(meta)
                if news:
                    self.strays[uid] = meta["name"]
                return news
            body, patch = as_made(body, self.pods.get(uid), self.owner)
            pod = parse_pod(body)
        except Exception as error:
            return self.complain(about, error)
        news = self.complaints.pop(about, None) is not None
        if pod is None:
            return news
        if patch:
            news, self.mends[uid] = True, (pod.name, patch)
        news = news or self.parsed.get(uid) != pod
        self.pods[uid], self.parsed[uid] = {"metadata": body["metadata"]}, pod
        return news

    def _left_over(self, meta: Mapping[str, Any]) -> bool:
        """Whether a pod that is not ours is of an earlier job of this name, and of nobody now."""
        found = {"metadata": meta}
        wanted = {"metadata": {"ownerReferences": [self.owner]}}
        return claim(found, wanted) is Claim.ORPHAN

    def lose_pod(self, body: Mapping[str, Any]) -> None:
        """The watch calls a pod deleted.

        It does so for a pod, too, that has lost the labels by which it is watched. One that nobody
        has told to go is looked for before it counts as gone.
        """
        meta = body["metadata"]
        pod = self.parsed.get(meta["uid"])
        if pod and pod.alive and not pod.deleting and not meta.get("deletionTimestamp"):
            self.suspects[pod.uid] = pod.name
        else:
            self.drop_pod(meta["uid"], meta["name"])

    def drop_pod(self, uid: str, name: str) -> None:
        """A pod is gone."""
        pod = self.parsed.get(uid)
        if pod and pod.alive and not pod.deleting:
            self.vanished[uid] = pod
        for known in (self.pods, self.parsed, self.mends, self.strays, self.suspects):
            known.pop(uid, None)
        self.complaints.pop(f"pod {name}", None)

    def complain(self, about: str, error: BaseException) -> bool:
        """Note what could not be understood; whether that is new."""
        fault = fault_of(error, self.tokens(time.monotonic()))
        fault = Fault(reason=fault.reason, message=f"{about}: {fault.message}")
        news = self.complaints.get(about) != fault
        self.complaints[about] = fault
        return news


def _version(body: Mapping[str, Any]) -> int | None:
    """The resourceVersion; those of one kind grow."""
    text = str(body["metadata"].get("resourceVersion"))
    return int(text) if text.isdecimal() else None


def older(body: Mapping[str, Any], known: Mapping[str, Any] | None) -> bool:
    """Whether an object is in a form of before what is known of it: a list may be late."""
    version, newest = _version(body), _version(known) if known else None
    return version is not None and newest is not None and version < newest


def _asks(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a new form of a job may ask for."""
    meta = body["metadata"]
    return (
        meta.get("generation"),
        meta.get("annotations"),
        meta.get("deletionTimestamp"),
        meta.get("finalizers"),
    )
