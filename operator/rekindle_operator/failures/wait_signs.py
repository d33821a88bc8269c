"""How it shows that a pod is held: each function recognises one way, and says what it was made of.

What holds a pod is in one of many places: a gate in its spec, the scheduler's sentence, a
container's state, an event of its kubelet, or the silence of its launcher. Here it is recognised;
what it is called and what is to do about it is the table in `pod_waits`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rekindle.api import AgentPhase, Round
from rekindle_operator.failures.scheduler_messages import scheduling_advice
from rekindle_operator.observed.containers import Container, PodEvent, Role, last_lines, one_line
from rekindle_operator.observed.documents import START_FAILURES
from rekindle_operator.observed.observations import OVERDUE, AgentState, Pod

DEFAULT_SCHEDULER = "default-scheduler"

Fields = Mapping[str, object]
"""What a message about a wait is made of."""


@dataclass(frozen=True, kw_only=True)
class WaitingPod:
    """One pod that should train, and what is known around it."""

    pod: Pod
    agent: AgentState | None = None
    listening_since: float = 0.0
    round: Round | None = None
    """The current round, if it is a member."""
    coordinator: str = ""
    """Where it is told to reach the operator."""
    pinned: str | None = None
    now: float = 0.0

    @property
    def joined(self) -> bool:
        """Whether its agent has begun the round that it is a member of."""
        known = self.agent.report.round if self.agent else None
        return bool(known and self.round and known.key == self.round.key)

    @property
    def node(self) -> str:
        """Its node, in words."""
        return f"node {self.pod.node}" if self.pod.node else "its node"

    @property
    def trainer_since(self) -> float | None:
        """Since when the container that trains has been running."""
        return self.pod.trainer.running_since if self.pod.trainer else None


def gates(held: WaitingPod) -> Fields | None:
    """Something has to be taken away before a scheduler looks at it."""
    gates = held.pod.gates
    return {"s": "s" * (len(gates) > 1), "gates": ", ".join(gates)} if gates else None


def unschedulable(held: WaitingPod) -> Fields | None:
    """No node can take it."""
    words = held.pod.unschedulable
    if not words:
        return None
    advice = scheduling_advice(words)
    return {"words": words, "advice": f"; {advice}" if advice else ""}


def no_scheduler(held: WaitingPod) -> Fields | None:
    """No scheduler has looked at it."""
    pod = held.pod
    if pod.phase != "Pending" or pod.node or pod.gates or "PodScheduled" in pod.conditions:
        return None
    name = pod.scheduler or DEFAULT_SCHEDULER
    return {"name": name, "since": pod.created_at}


def terminating(held: WaitingPod) -> Fields | None:
    """It should have ended."""
    pod = held.pod
    if not pod.deleting or held.now < pod.ends_at + OVERDUE:
        return None
    by = f"finalizers {', '.join(pod.finalizers)} hold it" if pod.finalizers else ""
    return {"by": by or f"the kubelet of {held.node} has not confirmed it"}


def image(held: WaitingPod) -> Fields | None:
    """An image cannot be had."""
    return _cannot_start(held, *IMAGE)


def config(held: WaitingPod) -> Fields | None:
    """What a container refers to is not there."""
    return _cannot_start(held, "CreateContainerConfigError")


def crash_loop(held: WaitingPod) -> Fields | None:
    """Only a native sidecar is started again; the trainer waits for it."""
    fields = _cannot_start(held, "CrashLoopBackOff")
    one = next((c for c in held.pod.containers if c.waiting and c.before), None)
    if fields is None or one is None or one.before is None:
        return fields
    words = f"exit code {one.before.code}, {one.before.reason}: {last_lines(one.before.message)}"
    return {**fields, "words": words.rstrip(": ")}


def created(held: WaitingPod) -> Fields | None:
    """A container cannot be created."""
    return _cannot_start(held, *sorted(START_FAILURES))


def _cannot_start(held: WaitingPod, *reasons: str) -> Fields | None:
    if held.pod.waiting is None or held.pod.waiting.reason not in reasons:
        return None
    for one in held.pod.containers:
        if one.waiting and one.waiting.reason in reasons:
            words = one_line(one.waiting.message, 600) or one.waiting.reason
            return {"container": one.label, "reason": one.waiting.reason, "words": words}
    return {"container": "container", "reason": held.pod.waiting.reason, "words": ""}


def not_taken(held: WaitingPod) -> Fields | None:
    """The kubelet of its node has not taken it."""
    pod = held.pod
    if pod.phase != "Pending" or not pod.node or pod.started_at is not None or pod.events:
        return None
    if any(one.waiting or one.running_since is not None or one.ended for one in pod.containers):
        return None
    said = "spec.template.spec.nodeName names it, past the scheduler; " if held.pinned else ""
    return {"node": held.node, "said": said}


def creating(held: WaitingPod) -> bool:
    """Whether its kubelet has it, and no container has got further than being created."""
    pod = held.pod
    if pod.phase != "Pending" or not pod.node or pod.waiting or pod.told:
        return False
    return not any(_running(one) for one in pod.containers)


def _running(one: Container) -> bool:
    return one.running_since is not None


def by_event(held: WaitingPod) -> Fields | None:
    """An event of its kubelet says what is in the way."""
    if not creating(held):
        return None
    event = _last_warning(held.pod.events)
    if event is None:
        return None
    todo = next((t for p, t in _EVENTS if re.search(p, event.reason, re.IGNORECASE)), "")
    words = one_line(event.message, 600)
    return {"reason": event.reason, "words": words, "todo": f"; {todo}" if todo else ""}


IMAGE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
_EVENTS = (
    (r"Mount|MapVolume", "create what is missing, or correct volumes in spec.template"),
    (r"AttachVolume", "see whether the volume is attached elsewhere, and to its storage driver"),
    (r"Sandbox|NetworkNotReady|CNI", "the node's network or runtimeClassName is not ready"),
)


def _last_warning(events: Iterable[PodEvent]) -> PodEvent | None:
    return next((event for event in reversed(tuple(events)) if event.warning), None)


def silent_kubelet(held: WaitingPod) -> Fields | None:
    """Its kubelet creates containers and says nothing more."""
    return {"node": held.node} if creating(held) else None


def initializing(held: WaitingPod) -> Fields | None:
    """An init container runs."""
    if held.pod.phase != "Pending":
        return None
    for one in held.pod.containers:
        if one.role is Role.INIT and one.running_since is not None:
            return {"container": one.label, "name": one.name, "since": one.running_since}
    return None


def sidecar_starting(held: WaitingPod) -> Fields | None:
    """A sidecar that comes first has not started yet."""
    if held.trainer_since is not None or held.pod.told:
        return None
    for one in held.pod.containers:
        if one.role is Role.NATIVE and one.running_since is not None and not one.started:
            return {"container": one.label, "since": one.running_since}
    return None


def agent_silent(held: WaitingPod) -> Fields | None:
    """Its launcher has never reached the operator."""
    since = held.trainer_since
    if held.agent is not None or since is None or held.pod.told or held.pod.deleting:
        return None
    return {"since": max(since, held.listening_since)}


def agent_lost(held: WaitingPod) -> Fields | None:
    """Its launcher has not been heard any more."""
    if held.agent is None or held.trainer_since is None or held.pod.told or held.pod.deleting:
        return None
    return {"since": held.agent.seen_at}


def warming(held: WaitingPod) -> Fields | None:
    """Its launcher imports what workers need."""
    agent = held.agent
    if agent is None or agent.report.phase is not AgentPhase.WARMING:
        return None
    return {"since": agent.phase_since}


def held_up(held: WaitingPod) -> Fields | None:
    """Its workers wait for what others have to give."""
    agent = held.agent
    if agent is None or not held.joined or agent.report.waits is None:
        return None
    return {"since": agent.phase_since, "words": agent.report.waits}


def not_joined(held: WaitingPod) -> Fields | None:
    """A round that it is in was formed, and it has not begun that: members find no way together."""
    if held.agent is None or held.round is None or held.joined or held.pod.told:
        return None
    if held.agent.report.phase in {AgentPhase.LEAVING, AgentPhase.DONE, AgentPhase.WARMING}:
        return None
    first = held.round.members[0]
    since = max(held.round.formed_at, held.listening_since)
    return {"since": since, "number": held.round.number, "first": first.pod, "at": first.address}


def no_step(held: WaitingPod) -> Fields | None:
    """Its workers run and have not done a first step in this round."""
    agent = held.agent
    if agent is None or not held.joined or agent.report.trains or held.round is None:
        return None
    if agent.report.phase is not AgentPhase.RUNNING:
        return None
    return {
        "since": agent.phase_since,
        "number": held.round.number,
        "all": len(held.round.members),
    }


def sidecar_failed(held: WaitingPod) -> Fields | None:
    """A container beside the trainer has failed."""
    if held.trainer_since is None:
        return None
    for one in held.pod.containers:
        if one.role not in {Role.NATIVE, Role.SIDECAR}:
            continue
        if one.waiting and one.waiting.reason in START_FAILURES and not one.before:
            words = one_line(one.waiting.message, 300)
            return {"container": one.label, "how": f"does not start: {one.waiting.reason}: {words}"}
        last = one.failed
        if last is not None and (one.ended or one.waiting):
            log = last_lines(last.message)
            how = f"has failed (exit code {last.code}, {last.reason})"
            return {"container": one.label, "how": f"{how}: {log}" if log else how}
    return None


def not_ready(held: WaitingPod) -> Fields | None:
    """A probe of the template has not succeeded."""
    trainer = held.pod.trainer
    if held.trainer_since is None or trainer is None or trainer.ready or held.pod.told:
        return None
    if not trainer.probes & {"readiness", "startup"} or held.round is None:
        return None
    which = "readiness" if trainer.started else "startup"
    return {"container": trainer.label, "which": which}
