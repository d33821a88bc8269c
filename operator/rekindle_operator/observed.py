"""What is there for one job: its pods, their nodes, and what their agents have last said.

Everything here is parsed from the API server's or an agent's documents into small frozen values,
so that the decisions further up never meet a dict. Nothing here decides; it only names what a
pod's many fields mean together: does it stay, was it told to go, is it gone, and how did it end.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rekindle.contract import (
    LABEL_INCARNATION,
    LABEL_SLOT,
    TRAINER_CONTAINER,
    AgentReport,
    ExitCode,
    Outcome,
    Round,
)
from rekindle_operator import notices
from rekindle_operator.containers import (
    LOG_CHARACTERS,
    Container,
    PodEvent,
    Role,
    Waiting,
    one_line,
    parse_containers,
)
from rekindle_operator.notices import ADVICE, LOST, Notice, Sign
from rekindle_operator.timestamps import parse_time

LABEL_TEMPLATE = "rekindle.dev/template"
"""On pods: hash of the template they were made from."""
DEFAULT_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL of a pod that does not say."""
OVERDUE = 10.0
"""Seconds after a pod should have ended by which it counts as lost: its kubelet does not answer."""

START_FAILURES = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
    "RunContainerError",
    "CrashLoopBackOff",
}
"""Reasons of a waiting container that need somebody's hand."""


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
    grace: float = DEFAULT_GRACE
    """What it has between SIGTERM and SIGKILL unless somebody says otherwise."""
    deleted_at: float = 0.0
    ends_at: float = math.inf
    """When the kubelet kills it, once it is being deleted."""
    node: str | None = None
    ready: bool = False
    unschedulable: str | None = None
    gates: tuple[str, ...] = ()
    """What has to be taken away before the scheduler looks at it; a queue does so, for example."""
    scheduled_at: float | None = None
    """Since when it has a node."""
    waiting: Waiting | None = None
    disruption: str | None = None
    """Reason and message of the DisruptionTarget condition."""
    disrupted_at: float = 0.0
    exit_code: int | None = None
    exit_reason: str | None = None
    """The kubelet's word for the end of the container: Error, OOMKilled, StartError, ..."""
    exit_message: str = ""
    outcome: Outcome | None = None
    """The termination message, when the agent wrote one."""
    finished_at: float | None = None
    vanished_at: float | None = None
    """When its lifeline broke, of which the kubelet may tell later or never."""
    stranger: bool = False
    """It ended with 0 and was in no round (see rounds.with_strangers)."""
    containers: tuple[Container, ...] = ()
    """In the order in which they start."""
    reason: str = ""
    """The kubelet's word for the end of the pod as a whole: Evicted, DeadlineExceeded, ..."""
    message: str = ""
    started_at: float | None = None
    """When its kubelet took it."""
    deadline: float | None = None
    """Its activeDeadlineSeconds, which count from then."""
    scheduler: str = ""
    """Name of the scheduler that it is for."""
    conditions: frozenset[str] = frozenset()
    """Types of the conditions that somebody has written, whatever they say."""
    finalizers: tuple[str, ...] = ()
    events: tuple[PodEvent, ...] = ()
    """What has been read of its events, the newest last: only where its status leaves open why."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """By container, the end of a log that had to be read: its termination message was empty."""

    @property
    def trainer(self) -> Container | None:
        """The container that trains."""
        return next((one for one in self.containers if one.role is Role.TRAINER), None)

    @property
    def told(self) -> bool:
        """Whether the kubelet has said that it is through."""
        return self.phase in {"Succeeded", "Failed"} or self.exit_code is not None

    @property
    def finished(self) -> bool:
        """Whether it is through: with a sidecar, the container that trains may be so alone."""
        return self.told or self.vanished_at is not None

    @property
    def succeeded(self) -> bool:
        """Whether its training is complete, however its other containers ended.

        A shell around the launcher may end with 0 although the launcher's own words say otherwise.
        """
        if self.stranger or (self.outcome is not None and self.outcome.code != ExitCode.DONE):
            return False
        return self.phase == "Succeeded" or self.exit_code == 0

    @property
    def failed(self) -> bool:
        """Whether it is through in any other way."""
        return self.finished and not self.succeeded

    @property
    def lingers(self) -> bool:
        """Whether other containers still run although training in it has ended."""
        return self.told and self.phase not in {"Succeeded", "Failed"}

    @property
    def alive(self) -> bool:
        """Whether it may still run something."""
        return not self.finished


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that carries a pod of the job."""

    name: str
    hostname: str
    """Value of the label kubernetes.io/hostname, which pods can be kept away from."""
    signs: tuple[Sign, ...] = ()
    gone: bool = False
    """The object was there and is no more."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """The newest report of one pod's agent."""

    report: AgentReport
    seen_at: float
    phase_since: float
    hang_since: float | None = None
    """Since when it says that a worker hangs."""
    leaves_at: float | None = None
    """When its pod ends, once that was told to go: the earliest time that it has told."""
    noticed_at: float | None = None
    """Since when it says that its pod was told to go."""


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
    now: float = 0.0
    """When this was observed."""
    notice_seconds: Mapping[str, float] = field(default_factory=dict)
    """What the job says about notices (see rekindle_operator.notices)."""
    slow: Mapping[str, str] = field(default_factory=dict)
    """By uid of the pod, in words: pods that are to move because they hold up the others."""

    def pod(self, uid: str) -> Pod | None:
        """The pod with this uid, if it still is an object."""
        return self._by_uid.get(uid)

    @cached_property
    def _by_uid(self) -> dict[str, Pod]:
        return {pod.uid: pod for pod in self.pods}

    @cached_property
    def inside(self) -> frozenset[str]:
        """Uids of the members of the current round."""
        return frozenset(m.uid for m in self.round.members) if self.round else frozenset()

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

    @cached_property
    def _node_notices(self) -> dict[tuple[str, float], tuple[Notice, ...]]:
        return {}

    def node_notices(self, pod: Pod) -> tuple[Notice, ...]:
        """The notices that the pod's node gives, the most urgent first."""
        node = self.node_of(pod)
        if node is None:
            return ()
        if node.gone:
            return (Notice(source="node", words="node is gone", at=self.now, seconds=LOST),)
        key = (node.name, pod.grace)
        if key not in self._node_notices:
            self._node_notices[key] = notices.of_node(
                node.signs, grace=pod.grace, own=self.notice_seconds, now=self.now
            )
        return self._node_notices[key]

    @cached_property
    def _notices(self) -> dict[str, tuple[Notice, ...]]:
        return {}

    def notices_of(self, pod: Pod) -> tuple[Notice, ...]:
        """All that has told a pod to go; the first is the best explanation.

        One decision asks for it some forty times a pod.
        """
        found = self._notices.get(pod.uid)
        if found is None:
            found = self._notices[pod.uid] = self._read_notices(pod)
        return found

    def _read_notices(self, pod: Pod) -> tuple[Notice, ...]:
        agent, found = self.agents.get(pod.uid), []
        if pod.disruption:
            found.append(
                Notice(
                    source="eviction",
                    words=pod.disruption,
                    at=pod.disrupted_at or self.now,
                    seconds=pod.grace,
                )
            )
        for notice in self.node_notices(pod):
            found.append(replace(notice, words=f"node {pod.node}: {notice.words}"))
        if pod.deleting:
            found.append(
                Notice(
                    source="deletion",
                    words="pod is being deleted",
                    at=pod.deleted_at,
                    seconds=pod.ends_at - pod.deleted_at,
                )
            )
        if agent and agent.report.notice:
            found.append(self._told(pod, agent))
        if pod.uid in self.slow:
            found.append(
                Notice(source="slow", words=self.slow[pod.uid], at=self.now, seconds=ADVICE)
            )
        return tuple(found)

    def _told(self, pod: Pod, agent: Agent) -> Notice:
        """What an agent says of its pod's end.

        A SIGTERM to a pod that nobody deletes comes from a machine that shuts down, which gives
        pods less than they ask for, and does not say how much.
        """
        at = agent.seen_at if agent.noticed_at is None else agent.noticed_at
        seconds = pod.grace if agent.leaves_at is None else max(agent.leaves_at - at, 0.1)
        signal = agent.report.notice == "SIGTERM" and "SIGTERM" not in self.notice_seconds
        if signal and not pod.deleting:
            seconds = min(seconds, notices.SHUTDOWN_SECONDS)
        words = f"agent was told to go: {agent.report.notice}"
        return Notice(source="agent", words=words, at=at, seconds=seconds)

    def going(self, pod: Pod) -> str | None:
        """In words, why an alive pod has to go; None when it stays."""
        found = self.notices_of(pod)
        return found[0].words if found else None

    def node_going(self, pod: Pod) -> str | None:
        """In words, why what runs on the pod's node has to go."""
        found = self.node_notices(pod)
        return f"node {pod.node}: {found[0].words}" if found else None

    def node_lost(self, pod: Pod) -> bool:
        """Whether nothing on the pod's node can be expected to answer any more."""
        return any(notice.lost for notice in self.node_notices(pod))

    def lost(self, pod: Pod) -> bool:
        """Whether an alive pod can be expected to do anything any more.

        One that should have ended some time ago, and that says nothing, is on a node of which
        nobody has told yet that it is dead.
        """
        agent = self.agents.get(pod.uid)
        silent = agent is None or self.now - agent.seen_at > OVERDUE
        return self.node_lost(pod) or (silent and self.now > pod.ends_at + OVERDUE)

    def stays(self, pod: Pod) -> bool:
        """Whether a pod is alive and nothing has told it to go."""
        return pod.alive and not self.notices_of(pod)

    def may_stay(self, pod: Pod) -> bool:
        """Whether a pod is alive and nothing but an advice has told it to go."""
        return pod.alive and all(notice.advice for notice in self.notices_of(pod))

    def wakes_at(self) -> float:
        """When time alone will change what this means; infinity if it will not."""
        times = [pod.ends_at + OVERDUE for pod in self.pods if pod.alive and pod.deleting]
        for node in {pod.node: self.node_of(pod) for pod in self.pods if pod.alive}.values():
            ends = notices.patience_ends(node.signs, self.now) if node else None
            times.extend([ends] if ends is not None else [])
        return min((at for at in times if at > self.now), default=math.inf)


def gone(name: str) -> Node:
    """A node that was there and is no object any more."""
    return Node(name=name, hostname=name, gone=True)


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Read a pod; None when it is no pod of a TrainingJob (labels missing or not numbers)."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = meta.get("labels") or {}
    try:
        slot, incarnation = int(labels[LABEL_SLOT]), int(labels[LABEL_INCARNATION])
    except (KeyError, ValueError):
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    statuses = status.get("containerStatuses") or ()
    trainer: Mapping[str, Any] = next((c for c in statuses if c["name"] == TRAINER_CONTAINER), {})
    ended = (trainer.get("state") or {}).get("terminated") or {}
    containers = parse_containers(body)
    scheduled = conditions.get("PodScheduled", {})
    disrupted = conditions.get("DisruptionTarget", {})
    ends_at = parse_time(meta.get("deletionTimestamp"))
    left = float(meta.get("deletionGracePeriodSeconds") or 0)
    given = spec.get("terminationGracePeriodSeconds")
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        slot=slot,
        incarnation=incarnation,
        template=labels.get(LABEL_TEMPLATE, ""),
        phase=status.get("phase") or "Pending",
        created_at=parse_time(meta.get("creationTimestamp")) or 0.0,
        deleting=ends_at is not None,
        forced=ends_at is not None and meta.get("deletionGracePeriodSeconds") == 0,
        grace=DEFAULT_GRACE if given is None else float(given),
        deleted_at=0.0 if ends_at is None else ends_at - left,
        ends_at=math.inf if ends_at is None else ends_at,
        node=spec.get("nodeName"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        unschedulable=_words(scheduled) if scheduled.get("reason") == "Unschedulable" else None,
        gates=tuple(str(gate.get("name")) for gate in spec.get("schedulingGates") or ()),
        scheduled_at=_scheduled_at(meta, spec, scheduled),
        waiting=_waiting(containers),
        disruption=_words(disrupted) if disrupted.get("status") == "True" else None,
        disrupted_at=parse_time(disrupted.get("lastTransitionTime")) or 0.0,
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason") or status.get("reason"),
        exit_message=(ended.get("message") or status.get("message") or "")[:2000],
        outcome=_outcome(ended.get("message")),
        finished_at=parse_time(ended.get("finishedAt")),
        containers=containers,
        reason=status.get("reason") or "",
        message=one_line(status.get("message") or "", LOG_CHARACTERS),
        started_at=parse_time(status.get("startTime")),
        deadline=spec.get("activeDeadlineSeconds"),
        scheduler=spec.get("schedulerName") or "",
        conditions=frozenset(conditions),
        finalizers=tuple(meta.get("finalizers") or ()),
    )


def _scheduled_at(
    meta: Mapping[str, Any], spec: Mapping[str, Any], condition: Mapping[str, Any]
) -> float | None:
    """Since when a pod has a node; one that names its node itself has it from the beginning."""
    if not spec.get("nodeName"):
        return None
    at = parse_time(condition.get("lastTransitionTime")) if condition else None
    return parse_time(meta.get("creationTimestamp")) if at is None else at


def _words(condition: Mapping[str, Any]) -> str:
    """Reason and message of a condition in one line."""
    reason, message = condition.get("reason") or "", condition.get("message") or ""
    return f"{reason}: {message}" if reason and message else reason or message


def _waiting(containers: tuple[Container, ...]) -> Waiting | None:
    """The first container that keeps the trainer from starting until somebody does something."""
    if any(
        one.role is Role.TRAINER and (one.running_since is not None or one.ended)
        for one in containers
    ):
        return None
    for one in containers:
        if one.waiting and one.waiting.reason in START_FAILURES:
            words = one.waiting.message or one.waiting.reason
            return Waiting(reason=one.waiting.reason, message=f"container {one.name}: {words}")
    return None


def _outcome(message: str | None) -> Outcome | None:
    """A termination message of ours; None for anybody else's text."""
    if not message or not message.lstrip().startswith("{"):
        return None
    try:
        return Outcome.from_json(json.loads(message))
    except ValueError:
        return None


def parse_node(body: Mapping[str, Any], seen_at: float, before: Node | None = None) -> Node:
    """Read what matters of a node; ``before`` is what was known of it until now."""
    meta = body["metadata"]
    known = {sign.key: sign.at for sign in before.signs} if before else {}
    return Node(
        name=meta["name"],
        hostname=(meta.get("labels") or {}).get("kubernetes.io/hostname", meta["name"]),
        signs=notices.read(body, known, seen_at),
    )
