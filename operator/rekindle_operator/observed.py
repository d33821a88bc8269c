"""What is there for one job: its pods, their nodes, and what their agents have last said.

Everything here is parsed from the API server's or an agent's documents into small frozen values,
so that the decisions further up never meet a dict. Nothing here decides; it only names what a
pod's many fields mean together: does it stay, was it told to go, is it gone, and how did it end.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from rekindle.contract import (
    LABEL_INCARNATION,
    LABEL_SLOT,
    TRAINER_CONTAINER,
    AgentReport,
    Outcome,
    Round,
)

LABEL_TEMPLATE = "rekindle.dev/template"
"""On pods: hash of the template they were made from."""

GOING_TAINTS = {
    "node.kubernetes.io/unreachable": "node is unreachable",
    "node.kubernetes.io/not-ready": "node is not ready",
    "node.kubernetes.io/out-of-service": "node is out of service",
    "ToBeDeletedByClusterAutoscaler": "cluster autoscaler removes the node",
    "karpenter.sh/disrupted": "Karpenter removes the node",
    "karpenter.sh/disruption": "Karpenter removes the node",
    "cloud.google.com/impending-node-termination": "GKE terminates the node",
    "aws-node-termination-handler/spot-itn": "AWS takes the spot instance back",
    "aws-node-termination-handler/asg-lifecycle-termination": "AWS terminates the instance",
    "aws-node-termination-handler/scheduled-maintenance": "AWS maintains the instance",
}
"""Taints that say that what runs on the node has to go, in words."""
LOST_TAINTS = {"node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service"}
"""Those of them after which nothing on the node can be expected to save any more."""

START_FAILURES = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
}
"""Reasons of a waiting container that need somebody's hand."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a container does not start."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of the job."""

    name: str
    uid: str
    slot: int
    incarnation: int
    template: str
    phase: str
    created_at: float
    deleting: bool = False
    forced: bool = False
    """Deleted with no time to end (kubectl delete --force): it is gone, whatever still runs."""
    node: str | None = None
    ready: bool = False
    unschedulable: str | None = None
    waiting: Waiting | None = None
    disruption: str | None = None
    """Reason and message of the DisruptionTarget condition."""
    exit_code: int | None = None
    exit_reason: str | None = None
    """The kubelet's word for the end of the container: Error, OOMKilled, StartError, ..."""
    exit_message: str = ""
    outcome: Outcome | None = None
    """The termination message, when the agent wrote one."""
    finished_at: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it is through: with a sidecar, the container that trains may be so alone."""
        return self.phase in {"Succeeded", "Failed"} or self.exit_code is not None

    @property
    def succeeded(self) -> bool:
        """Whether it is through and its training is complete."""
        return self.phase == "Succeeded" or (self.phase != "Failed" and self.exit_code == 0)

    @property
    def failed(self) -> bool:
        """Whether it is through in any other way."""
        return self.finished and not self.succeeded

    @property
    def lingers(self) -> bool:
        """Whether other containers still run although training in it has ended."""
        return self.finished and self.phase not in {"Succeeded", "Failed"}

    @property
    def alive(self) -> bool:
        """Whether it may still run something."""
        return not self.finished


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that carries a pod of the job."""

    name: str
    going: str | None = None
    """In words, why what runs there has to go."""
    lost: bool = False
    """Nothing there can be expected to answer any more."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """The newest report of one pod's agent."""

    report: AgentReport
    seen_at: float
    phase_since: float
    hang_since: float | None = None
    """Since when it says that a worker hangs."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything that a decision about one job may look at, besides its spec and status."""

    pods: tuple[Pod, ...] = ()
    nodes: Mapping[str, Node] | None = None
    """By name; None when this operator may not watch nodes."""
    agents: Mapping[str, Agent] = field(default_factory=dict)
    """By uid of the pod."""
    round: Round | None = None
    """The current round, as this operator published it or as agents have told."""
    retired: frozenset[str] = frozenset()
    """Uids of pods that the operator itself has asked to go: no incident."""
    has_secret: bool = False
    has_service: bool = False
    listening_since: float = 0.0
    """Since when agents can have reported to this operator process."""
    refused: str | None = None
    """What the API server answered when it last refused a pod of this job."""
    hindered: str | None = None
    """What keeps a child from being created for now: a quota that is used up, for example."""

    def pod(self, uid: str) -> Pod | None:
        """The pod with this uid, if it still is an object."""
        return self._by_uid.get(uid)

    @cached_property
    def _by_uid(self) -> dict[str, Pod]:
        return {pod.uid: pod for pod in self.pods}

    @cached_property
    def _by_slot(self) -> dict[int, list[Pod]]:
        slots: dict[int, list[Pod]] = {}
        for pod in self.pods:
            slots.setdefault(pod.slot, []).append(pod)
        return slots

    def of_slot(self, slot: int) -> list[Pod]:
        """The pods that hold or held a slot."""
        return self._by_slot.get(slot, [])

    def node_of(self, pod: Pod) -> Node | None:
        """The node that a pod is on, as far as it is known.

        A node that has not been seen says nothing: pods and nodes are watched separately, and the
        pod on a new node may come first. A node that was deleted is known as ``gone``.
        """
        if pod.node is None or self.nodes is None:
            return None
        return self.nodes.get(pod.node)

    def going(self, pod: Pod) -> str | None:
        """In words, why an alive pod has to go; None when it stays."""
        agent = self.agents.get(pod.uid)
        node = self.node_of(pod)
        if pod.disruption:
            return pod.disruption
        if node and node.going:
            return f"node {node.name}: {node.going}"
        if pod.deleting:
            return "pod is being deleted"
        if agent and agent.report.notice:
            return f"agent was told to go: {agent.report.notice}"
        return None

    def stays(self, pod: Pod) -> bool:
        """Whether a pod is alive and nothing has told it to go."""
        return pod.alive and self.going(pod) is None


def gone(name: str) -> Node:
    """A node that was there and is no object any more."""
    return Node(name=name, going="node is gone", lost=True)


def parse_time(text: str | None) -> float | None:
    """Unix seconds of a Kubernetes timestamp."""
    if not text:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Read a pod; None when it is no pod of a TrainingJob (labels missing or not numbers)."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = meta.get("labels") or {}
    try:
        slot, incarnation = int(labels[LABEL_SLOT]), int(labels[LABEL_INCARNATION])
    except (KeyError, ValueError):
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    statuses = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    trainer: Mapping[str, Any] = next((c for c in statuses if c["name"] == TRAINER_CONTAINER), {})
    ended = (trainer.get("state") or {}).get("terminated") or {}
    scheduled = conditions.get("PodScheduled", {})
    disrupted = conditions.get("DisruptionTarget", {})
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        slot=slot,
        incarnation=incarnation,
        template=labels.get(LABEL_TEMPLATE, ""),
        phase=status.get("phase") or "Pending",
        created_at=parse_time(meta.get("creationTimestamp")) or 0.0,
        deleting=bool(meta.get("deletionTimestamp")),
        forced=bool(meta.get("deletionTimestamp")) and meta.get("deletionGracePeriodSeconds") == 0,
        node=spec.get("nodeName"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        unschedulable=_words(scheduled) if scheduled.get("reason") == "Unschedulable" else None,
        waiting=_waiting(statuses),
        disruption=_words(disrupted) if disrupted.get("status") == "True" else None,
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason") or status.get("reason"),
        exit_message=(ended.get("message") or status.get("message") or "")[:2000],
        outcome=_outcome(ended.get("message")),
        finished_at=parse_time(ended.get("finishedAt")),
    )


def _words(condition: Mapping[str, Any]) -> str:
    """Reason and message of a condition in one line."""
    reason, message = condition.get("reason") or "", condition.get("message") or ""
    return f"{reason}: {message}" if reason and message else reason or message


def _waiting(statuses: list[Mapping[str, Any]]) -> Waiting | None:
    """The first container that waits for a reason that needs somebody's hand."""
    for container in statuses:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in START_FAILURES:
            words = waiting.get("message") or waiting["reason"]
            return Waiting(
                reason=waiting["reason"], message=f"container {container['name']}: {words}"
            )
    return None


def _outcome(message: str | None) -> Outcome | None:
    """A termination message of ours; None for anybody else's text."""
    if not message or not message.lstrip().startswith("{"):
        return None
    try:
        return Outcome.from_json(json.loads(message))
    except ValueError:
        return None


def parse_node(body: Mapping[str, Any]) -> Node:
    """Read what matters of a node: must what runs there go, and can it still answer."""
    taints = {t["key"]: t for t in (body.get("spec") or {}).get("taints") or ()}
    conditions = {c["type"]: c for c in (body.get("status") or {}).get("conditions") or ()}
    words = [text for key, text in GOING_TAINTS.items() if key in taints]
    ready = conditions.get("Ready", {}).get("status", "Unknown")
    lost = bool(LOST_TAINTS & taints.keys()) or (ready == "Unknown" and "Ready" in conditions)
    if lost and not words:
        words.append("node is unreachable")
    return Node(name=body["metadata"]["name"], going=words[0] if words else None, lost=lost)
