"""What is there for one job: its pods, their nodes, and what their agents have last said.

All of it are small frozen values, read from the API server's documents (see `documents`) and from
agents' reports. Nothing here decides what to do; it only says what a pod's many fields, its node's
signs and its silence mean together: does it stay, was it told to go, is it lost, how did it end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from rekindle.api import (
    AgentPhase,
    AgentReport,
    ExitCode,
    Outcome,
    Round,
)
from rekindle_operator.observed import liveness, preemption_notices
from rekindle_operator.observed.containers import Container, ContainerWaiting, PodEvent, Role
from rekindle_operator.observed.liveness import Hearing, Silence
from rekindle_operator.observed.preemption_notices import ADVICE, LOST, PreemptionNotice, Sign
from rekindle_operator.observed.run_claims import Use

LABEL_TEMPLATE = "rekindle.dev/template"
"""On pods: hash of the template they were made from."""
AVOIDS = "rekindle.dev/avoids"
"""Annotation of pods: hosts that they must not be on, separated by commas."""
DEFAULT_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL of a pod that does not say."""
OVERDUE = 10.0
"""Seconds after a pod should have ended by which it counts as lost: its kubelet does not answer."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of the job."""

    name: str
    uid: str
    index: int
    generation: int
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
    avoids: frozenset[str] = frozenset()
    """Hosts that the operator keeps it away from."""
    gates: tuple[str, ...] = ()
    """What has to be taken away before the scheduler looks at it; a queue does so, for example."""
    scheduled_at: float | None = None
    """Since when it has a node."""
    waiting: ContainerWaiting | None = None
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
    gone_at: float = field(default=0.0, compare=False)
    """When that was seen."""


@dataclass(frozen=True, kw_only=True)
class AgentState:
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
    agents: Mapping[str, AgentState] = field(default_factory=dict)
    """By uid of the pod."""
    heard: Mapping[str, float] = field(default_factory=dict)
    """By uid of the pod: when it was heard last, by a report or an answer to a probe."""
    lifelines: frozenset[str] = frozenset()
    """Uids of pods that hold their lifeline open, whether or not they answer on it."""
    hearing: Hearing = field(default_factory=Hearing)
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
    """What the job says about notices (see rekindle_operator.observed.preemption_notices)."""
    holder: Use | None = None
    """Another job that uses the run that this one is about to go on with."""
    slow: Mapping[str, str] = field(default_factory=dict)
    """By uid of the pod, in words: pods that are to move because they hold up the others."""
    gone: tuple[Pod, ...] = ()
    """Pods whose objects have gone in one go since the last decision, as they were last seen."""
    coordinator: str = ""
    """Where pods are told to reach the operator."""

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
    def _by_index(self) -> dict[int, list[Pod]]:
        indexes: dict[int, list[Pod]] = {}
        for pod in self.pods:
            indexes.setdefault(pod.index, []).append(pod)
        return indexes

    def of_index(self, index: int) -> list[Pod]:
        """The pods that hold or held a index."""
        return self._by_index.get(index, [])

    def node_of(self, pod: Pod) -> Node | None:
        """The node that a pod is on, as far as it is known.

        A node that has not been seen says nothing: pods and nodes are watched separately, and the
        pod on a new node may come first. A node that was deleted is known as ``gone``.
        """
        if pod.node is None or self.nodes is None:
            return None
        return self.nodes.get(pod.node)

    @cached_property
    def _node_says(self) -> dict[tuple[str, float], tuple[PreemptionNotice, ...]]:
        return {}

    def node_says(self, pod: Pod) -> tuple[PreemptionNotice, ...]:
        """What Kubernetes says of the pod's node, right or wrong; the most urgent first."""
        node = self.node_of(pod)
        if node is None:
            return ()
        if node.gone:
            return (
                PreemptionNotice(
                    source="node", words="node is gone", at=node.gone_at, seconds=LOST
                ),
            )
        key = (node.name, pod.grace)
        if key not in self._node_says:
            self._node_says[key] = preemption_notices.of_node(
                node.signs, grace=pod.grace, own=self.notice_seconds, now=self.now
            )
        return self._node_says[key]

    def node_notices(self, pod: Pod) -> tuple[PreemptionNotice, ...]:
        """The notices that the pod's node gives, the most urgent first.

        That all is lost there is one for a pod only that is lost as far as can be told from here.
        """
        told = self.node_says(pod)
        if any(notice.lost for notice in told) and not self.lost(pod):
            return preemption_notices.contradicted(told, pod.grace, self.now)
        return told

    @cached_property
    def _notices(self) -> dict[str, tuple[PreemptionNotice, ...]]:
        return {}

    def notices_of(self, pod: Pod) -> tuple[PreemptionNotice, ...]:
        """All that has told a pod to go; the first is the best explanation.

        One decision asks for it some forty times a pod.
        """
        found = self._notices.get(pod.uid)
        if found is None:
            found = self._notices[pod.uid] = self._read_notices(pod)
        return found

    def _read_notices(self, pod: Pod) -> tuple[PreemptionNotice, ...]:
        agent, found = self.agents.get(pod.uid), []
        if pod.disruption:
            found.append(
                PreemptionNotice(
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
                PreemptionNotice(
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
                PreemptionNotice(
                    source="slow", words=self.slow[pod.uid], at=self.now, seconds=ADVICE
                )
            )
        return tuple(found)

    def _told(self, pod: Pod, agent: AgentState) -> PreemptionNotice:
        """What an agent says of its pod's end.

        A SIGTERM to a pod that nobody deletes comes from a machine that shuts down, which gives
        pods less than they ask for, and does not say how much.
        """
        at = agent.seen_at if agent.noticed_at is None else agent.noticed_at
        seconds = pod.grace if agent.leaves_at is None else max(agent.leaves_at - at, 0.1)
        signal = agent.report.notice == "SIGTERM" and "SIGTERM" not in self.notice_seconds
        if signal and not pod.deleting:
            seconds = min(seconds, preemption_notices.SHUTDOWN_SECONDS)
        words = f"agent was told to go: {agent.report.notice}"
        return PreemptionNotice(source="agent", words=words, at=at, seconds=seconds)

    def going(self, pod: Pod) -> str | None:
        """In words, why an alive pod has to go; None when it stays."""
        found = self.notices_of(pod)
        return found[0].words if found else None

    def node_going(self, pod: Pod) -> str | None:
        """In words, why what runs on the pod's node has to go."""
        found = self.node_notices(pod)
        return f"node {pod.node}: {found[0].words}" if found else None

    def heard_at(self, pod: Pod) -> float | None:
        """When this operator process last heard a pod; None if it never has."""
        agent, at = self.agents.get(pod.uid), self.heard.get(pod.uid)
        told = agent.seen_at if agent else None
        return max((each for each in (told, at) if each is not None), default=None)

    def hears(self, pod: Pod) -> bool:
        """Whether a pod is heard: it is alive then, whatever anybody says of it."""
        at = self.heard_at(pod)
        return at is not None and self.now - at <= liveness.SILENT

    @cached_property
    def _company(self) -> frozenset[str]:
        """Uids of the pods that are heard."""
        return frozenset(pod.uid for pod in self.pods if self.hears(pod))

    def silence(self, pod: Pod) -> float:
        """Seconds for which a pod could have been heard and was not."""
        at = self.heard_at(pod)
        if at is not None:
            return self.hearing.silence(at, self.now)
        if pod.created_at >= self.listening_since:
            return math.inf  # nobody has expected a word of it yet
        begun = self.hearing.silence(self.listening_since, self.now)
        return max(0.0, begun - liveness.REANNOUNCE + liveness.SILENT)

    def loss(self, pod: Pod) -> str | None:
        """In words, why an alive pod cannot be expected to do anything any more; else None."""
        if pod.uid not in self._losses:
            self._losses[pod.uid] = self._own_loss(pod) or self._shared_loss(pod)
        return self._losses[pod.uid]

    @cached_property
    def _losses(self) -> dict[str, str | None]:
        return {}

    def _own_loss(self, pod: Pod) -> str | None:
        """Why it is lost by what is known of itself."""
        at, agent = self.heard_at(pod), self.agents.get(pod.uid)
        late = at is None or self.now - at > OVERDUE
        if late and self.now > pod.ends_at + OVERDUE:
            return f"it should have ended {self.now - pod.ends_at:.0f} s ago, and is not heard"
        if pod.uid in self._company or agent and agent.report.phase is AgentPhase.DONE:
            return None  # if it is done, its share is complete whatever has become of it since
        return liveness.loss(
            Silence(
                seconds=self.silence(pod),
                spoke=at is not None,
                lifeline=pod.uid in self.lifelines,
                company=bool(self._company),
                peers=self._accused.get(pod.uid, ()),
                node=next(
                    (f"node {pod.node}: {n.words}" for n in self.node_says(pod) if n.lost), None
                ),
                unready=pod.phase == "Running" and not pod.ready,
            )
        )

    def _shared_loss(self, pod: Pod) -> str | None:
        """Why it is lost with another pod on its node: they do not fall silent to the second."""
        if pod.node is None or self.heard_at(pod) is None or self.silence(pod) <= liveness.QUIET:
            return None
        others = (p for p in self.pods if p.node == pod.node and p.uid != pod.uid and p.alive)
        lost = next((p for p in others if self.heard_at(p) is not None and self._own_loss(p)), None)
        return liveness.loss(
            Silence(seconds=self.silence(pod), neighbour=lost.name if lost else None)
        )

    @cached_property
    def _accused(self) -> dict[str, tuple[str, ...]]:
        """By uid: the names of pods that are heard and cannot reach it."""
        found: dict[str, tuple[str, ...]] = {}
        for uid, agent in self.agents.items():
            for other in agent.report.unreachable if uid in self._company else ():
                found[other] = tuple(sorted((*found.get(other, ()), agent.report.pod)))
        return found

    def node_lost(self, pod: Pod) -> bool:
        """Whether the pod's node is known to be gone, and with it all that ran there."""
        return any(notice.lost for notice in self.node_notices(pod))

    def lost(self, pod: Pod) -> bool:
        """Whether an alive pod cannot be expected to do anything any more."""
        return self.loss(pod) is not None

    def stays(self, pod: Pod) -> bool:
        """Whether a pod is alive and nothing has told it to go."""
        return pod.alive and not self.notices_of(pod) and not self.lost(pod)

    def may_stay(self, pod: Pod) -> bool:
        """Whether a pod is alive and nothing but an advice has told it to go."""
        advised = all(notice.advice for notice in self.notices_of(pod))
        return pod.alive and advised and not self.lost(pod)

    def wakes_at(self) -> float:
        """When time alone will change what this means; infinity if it will not."""
        times = [pod.ends_at + OVERDUE for pod in self.pods if pod.alive and pod.deleting]
        for pod in self.pods:
            at = self.heard_at(pod)
            if pod.alive and at is not None and not self.hears(pod):
                since = max(at, self.hearing.since)
                times.extend(since + seconds for seconds in (liveness.SILENT, liveness.ALONE))
            if pod.alive:
                times.extend(n.at + preemption_notices.DOUBT for n in self.node_says(pod) if n.lost)
        for node in {pod.node: self.node_of(pod) for pod in self.pods if pod.alive}.values():
            ends = preemption_notices.patience_ends(node.signs, self.now) if node else None
            times.extend([ends] if ends is not None else [])
        return min((at for at in times if at > self.now), default=math.inf)


def gone(name: str, at: float = 0.0) -> Node:
    """A node that was there and is no object any more; ``at`` is when that was seen."""
    return Node(name=name, hostname=name, gone=True, gone_at=at)
