"""What a sign on a node is worth: what it means, and by when what runs there must be gone.

Clouds and their controllers announce the end of a node by taints and conditions, each with a time
of its own, which is seldom the pod's terminationGracePeriodSeconds: GKE gives user pods 15 seconds
whatever the pod asks for, AWS two minutes, Azure half a minute; Karpenter and the cluster
autoscaler evict, so that the pod's own grace counts; and a rebalance recommendation of AWS is an
advice with no end. So a source is words and seconds, and three values have a meaning of their own:
0 is lost at once, nothing there can save any more; infinity is an advice, a replacement is made and
nobody is hurried; None is the pod's own grace.

A job may overrule each of them, and name signs of its platform that are not known here, by
``spec.capacity.notices``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rekindle.api.timestamps import parse_time

LOST = 0.0
"""Seconds of a source after which nothing on the node answers any more."""
ADVICE = math.inf
"""Seconds of a source that hurries nobody."""
NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
SHUTDOWN = "NodeShutdown"
"""Our name for what the kubelet says by Ready=False alone: it is shutting the machine down."""
SHUTDOWN_SECONDS = 15.0
"""What a kubelet leaves pods when its machine goes down; GKE's figure, the least of all."""
DOUBT = 5.0
"""Seconds after which who is still heard from a machine that is said to be gone is believed."""
PATIENCE = 30.0
"""Seconds for which a node may be not ready without being left: a kubelet that starts anew is."""


@dataclass(frozen=True, kw_only=True)
class NoticeSource:
    """One way to say that a node goes."""

    words: str
    seconds: float | None
    """From the sign to the end; see the module's docstring for 0, infinity and None."""


SOURCES: Mapping[str, NoticeSource] = {
    # Taints.
    UNREACHABLE: NoticeSource(words="node is unreachable", seconds=LOST),
    "node.kubernetes.io/out-of-service": NoticeSource(words="node is out of service", seconds=LOST),
    "node.cloudprovider.kubernetes.io/shutdown": NoticeSource(
        words="node's machine is stopped", seconds=LOST
    ),
    "ToBeDeletedByClusterAutoscaler": NoticeSource(
        words="cluster autoscaler removes the node", seconds=None
    ),
    "karpenter.sh/disrupted": NoticeSource(words="Karpenter removes the node", seconds=None),
    "karpenter.sh/disruption": NoticeSource(words="Karpenter removes the node", seconds=None),
    "cloud.google.com/impending-node-termination": NoticeSource(
        words="GKE terminates the node", seconds=15.0
    ),
    "aws-node-termination-handler/spot-itn": NoticeSource(
        words="AWS takes the spot instance back", seconds=120.0
    ),
    "aws-node-termination-handler/asg-lifecycle-termination": NoticeSource(
        words="AWS terminates the instance", seconds=None
    ),
    "aws-node-termination-handler/scheduled-maintenance": NoticeSource(
        words="AWS maintains the instance", seconds=None
    ),
    "aws-node-termination-handler/rebalance-recommendation": NoticeSource(
        words="AWS expects to take the spot instance back", seconds=ADVICE
    ),
    "remediator.kubernetes.azure.com/unschedulable": NoticeSource(
        words="Azure takes the machine back", seconds=30.0
    ),
    "remediator.aks.microsoft.com/unschedulable": NoticeSource(
        words="Azure takes the machine back", seconds=30.0
    ),
    # Conditions. The taint of a node that is not ready says the same as its condition.
    NOT_READY: NoticeSource(words="node is not ready", seconds=ADVICE),
    SHUTDOWN: NoticeSource(words="node shuts down", seconds=SHUTDOWN_SECONDS),
    "PreemptScheduled": NoticeSource(words="Azure takes the spot machine back", seconds=30.0),
    "TerminateScheduled": NoticeSource(words="Azure deletes the machine", seconds=300.0),
    "RedeployScheduled": NoticeSource(words="Azure moves the machine", seconds=600.0),
    "RebootScheduled": NoticeSource(words="Azure restarts the machine", seconds=900.0),
    "VMEventScheduled": NoticeSource(words="Azure has an event for the machine", seconds=ADVICE),
    "TerminationScheduled": NoticeSource(words="the node's end is scheduled", seconds=None),
}
"""By key of the taint, or type of the condition."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A taint, or a condition that holds, of a node."""

    key: str
    at: float
    """Unix seconds: when it was set as far as that is known, else when it was first seen."""


@dataclass(frozen=True, kw_only=True)
class PreemptionNotice:
    """Something has told a pod to go."""

    source: str
    """Key of the sign, or deletion, eviction, agent."""
    words: str
    at: float
    seconds: float
    """From ``at`` to the end; 0 and infinity as for a source."""

    @property
    def deadline(self) -> float:
        """Unix seconds of the end; infinity for an advice."""
        return self.at + self.seconds

    @property
    def lost(self) -> bool:
        """Whether nothing can be saved there any more."""
        return self.seconds == LOST

    @property
    def advice(self) -> bool:
        """Whether nobody is hurried."""
        return self.seconds == ADVICE


def read(body: Mapping[str, Any], before: Mapping[str, float], seen_at: float) -> tuple[Sign, ...]:
    """The signs of a node.

    ``before`` has the times of signs that were seen earlier: most taints do not say since when
    they are there. ``seen_at`` is the time for those that are new.
    """
    found: dict[str, float] = {}

    def note(key: str, at: float | None) -> None:
        if at is None:
            at = before.get(key, seen_at)
        found[key] = min(at, found.get(key, at))

    for taint in (body.get("spec") or {}).get("taints") or ():
        note(taint["key"], _when(taint))
    for condition in (body.get("status") or {}).get("conditions") or ():
        kind, value = condition["type"], condition.get("status")
        since = parse_time(condition.get("lastTransitionTime"))
        if kind != "Ready" and value == "True":
            note(kind, since)
        elif kind == "Ready" and value == "Unknown":
            note(UNREACHABLE, since)
        elif kind == "Ready" and value == "False":
            down = "shutting down" in (condition.get("message") or "")
            note(SHUTDOWN if down else NOT_READY, since)
    return tuple(Sign(key=key, at=at) for key, at in sorted(found.items()))


def _when(taint: Mapping[str, Any]) -> float | None:
    """When a taint was set; the cluster autoscaler says it in the value."""
    value = str(taint.get("value") or "")
    if taint["key"] == "ToBeDeletedByClusterAutoscaler" and value.isdecimal():
        return float(value)
    return parse_time(taint.get("timeAdded"))


def of_node(
    signs: tuple[Sign, ...], *, grace: float, own: Mapping[str, float], now: float
) -> tuple[PreemptionNotice, ...]:
    """The notices that a node's signs are for a pod with this grace; the most urgent first.

    ``own`` is what the job says about sources: it overrules what is known here, and adds to it.
    """
    found = []
    for sign in signs:
        source = SOURCES.get(sign.key)
        if sign.key in own:
            seconds = own[sign.key]
        elif source is None:
            continue
        else:
            seconds = grace if source.seconds is None else source.seconds
        if sign.key == NOT_READY and now < sign.at + PATIENCE:
            continue
        words = source.words if source else f"{sign.key} is set"
        found.append(PreemptionNotice(source=sign.key, words=words, at=sign.at, seconds=seconds))
    return tuple(sorted(found, key=lambda notice: (not notice.lost, notice.deadline)))


def contradicted(
    told: tuple[PreemptionNotice, ...], grace: float, now: float
) -> tuple[PreemptionNotice, ...]:
    """The notices of a node for a pod that is not lost, whatever they say.

    That a node is unreachable means that its kubelet, or the API server, is away: nothing is going
    to end there before the pod is evicted, which is a notice of its own. Whoever says that the
    machine is gone will delete the pod: it has to move while it can, if it is still heard when its
    silence would have been noticed.
    """
    found = []
    for notice in told:
        if not notice.lost:
            found.append(notice)
        elif notice.source != UNREACHABLE and now >= notice.at + DOUBT:
            found.append(replace(notice, at=notice.at + DOUBT, seconds=grace))
    return tuple(sorted(found, key=lambda notice: notice.deadline))


def patience_ends(signs: tuple[Sign, ...], now: float) -> float | None:
    """When a node that is not ready will have been so for too long; None if that is not to come."""
    ends = [sign.at + PATIENCE for sign in signs if sign.key == NOT_READY]
    return ends[0] if ends and ends[0] > now else None


def lead(seconds: float) -> float:
    """How long before the end a notice of so many seconds is followed by a save.

    A replacement gets half of the time to come, and the save the other half; a minute is enough
    for a save, since nobody knows how long one takes that has to go to a store under load.
    """
    return min(seconds / 2, 60.0)
