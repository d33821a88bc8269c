"""Everything that holds a pod, or a part of it: how it shows, what it is called, what to do.

A pod that does not start, does not report or is not whole has a reason, which is in one of many
places: a gate in its spec, the scheduler's sentence, a container's state, an event of its kubelet,
the API server's answer to its creation, or the silence of its launcher. `ROWS` is one table of all
of them; the first row that fits a pod is what holds it. Some take a while before they mean
something (``after``), some are what a pod waits for in good order and need nobody's hand
(``attention``), and some hold a part of a pod that trains all the same (``blocks``).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from rekindle.contract import AgentPhase
from rekindle_operator.containers import Container, PodEvent, Role, last_lines, one_line
from rekindle_operator.documents import START_FAILURES
from rekindle_operator.observed import OVERDUE, Agent, Observed, Pod
from rekindle_operator.sentences import of_refusal, scheduling_advice
from rekindle_operator.timestamps import clock

QUIET = 20.0
"""Seconds without a word after which a pod's events are read."""
LOOKS = 3
"""Pods of one job whose events are read: what holds one of them mostly holds all."""
DEFAULT_SCHEDULER = "default-scheduler"

Fields = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Held:
    """One pod that should train, and what is known around it."""

    pod: Pod
    agent: Agent | None = None
    listening_since: float = 0.0
    member: bool = False
    """Whether it is in the current round."""
    pinned: str | None = None
    now: float = 0.0

    @property
    def node(self) -> str:
        """Its node, in words."""
        return f"node {self.pod.node}" if self.pod.node else "its node"

    @property
    def trainer_since(self) -> float | None:
        """Since when the container that trains has been running."""
        return self.pod.trainer.running_since if self.pod.trainer else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way in which a pod is held."""

    reason: str
    """For conditions; a row whose ``fits`` gives a reason has many."""
    fits: Callable[[Held], Fields | None]
    says: str
    todo: str = ""
    after: float = 0.0
    """Seconds from ``since`` (in the fields; else from when the pod had a node) until it counts."""
    attention: bool = True
    blocks: bool = True
    timed: bool = True
    """False where ``since`` moves all the time: a job's regular look is often enough for it."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What holds one pod, or keeps one from being made."""

    reason: str
    message: str
    pod: str = ""
    attention: bool = True
    blocks: bool = True


# What a pod is held by.


def _gates(held: Held) -> Fields | None:
    gates = held.pod.gates
    return {"s": "s" * (len(gates) > 1), "gates": ", ".join(gates)} if gates else None


def _unschedulable(held: Held) -> Fields | None:
    words = held.pod.unschedulable
    if not words:
        return None
    advice = scheduling_advice(words)
    return {"words": words, "advice": f"; {advice}" if advice else ""}


def _no_scheduler(held: Held) -> Fields | None:
    pod = held.pod
    if pod.phase != "Pending" or pod.node or pod.gates or "PodScheduled" in pod.conditions:
        return None
    name = pod.scheduler or DEFAULT_SCHEDULER
    return {"name": name, "since": pod.created_at}


def _terminating(held: Held) -> Fields | None:
    pod = held.pod
    if not pod.deleting or held.now < pod.ends_at + OVERDUE:
        return None
    by = f"finalizers {', '.join(pod.finalizers)} hold it" if pod.finalizers else ""
    return {"by": by or f"the kubelet of {held.node} has not confirmed it"}


def _image(held: Held) -> Fields | None:
    return _cannot_start(held, *_IMAGE)


def _config(held: Held) -> Fields | None:
    return _cannot_start(held, "CreateContainerConfigError")


def _crash_loop(held: Held) -> Fields | None:
    """Only a native sidecar is started again; the trainer waits for it."""
    fields = _cannot_start(held, "CrashLoopBackOff")
    one = next((c for c in held.pod.containers if c.waiting and c.before), None)
    if fields is None or one is None or one.before is None:
        return fields
    words = f"exit code {one.before.code}, {one.before.reason}: {last_lines(one.before.message)}"
    return {**fields, "words": words.rstrip(": ")}


def _created(held: Held) -> Fields | None:
    return _cannot_start(held, *sorted(START_FAILURES))


def _cannot_start(held: Held, *reasons: str) -> Fields | None:
    if held.pod.waiting is None or held.pod.waiting.reason not in reasons:
        return None
    for one in held.pod.containers:
        if one.waiting and one.waiting.reason in reasons:
            words = one_line(one.waiting.message, 600) or one.waiting.reason
            return {"container": one.label, "reason": one.waiting.reason, "words": words}
    return {"container": "container", "reason": held.pod.waiting.reason, "words": ""}


def _not_taken(held: Held) -> Fields | None:
    pod = held.pod
    if pod.phase != "Pending" or not pod.node or pod.started_at is not None or pod.events:
        return None
    if any(one.waiting or one.running_since is not None or one.ended for one in pod.containers):
        return None
    said = "spec.template.spec.nodeName names it, past the scheduler; " if held.pinned else ""
    return {"node": held.node, "said": said}


def _creating(held: Held) -> bool:
    """Whether its kubelet has it, and no container has got further than being created."""
    pod = held.pod
    if pod.phase != "Pending" or not pod.node or pod.waiting or pod.told:
        return False
    return not any(_running(one) for one in pod.containers)


def _running(one: Container) -> bool:
    return one.running_since is not None


def _by_event(held: Held) -> Fields | None:
    if not _creating(held):
        return None
    event = _last_warning(held.pod.events)
    if event is None:
        return None
    todo = next((t for p, t in _EVENTS if re.search(p, event.reason, re.IGNORECASE)), "")
    words = one_line(event.message, 600)
    return {"reason": event.reason, "words": words, "todo": f"; {todo}" if todo else ""}


_IMAGE = (
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


def _silent_kubelet(held: Held) -> Fields | None:
    return {"node": held.node} if _creating(held) else None


def _initializing(held: Held) -> Fields | None:
    if held.pod.phase != "Pending":
        return None
    for one in held.pod.containers:
        if one.role is Role.INIT and one.running_since is not None:
            return {"container": one.label, "name": one.name, "since": one.running_since}
    return None


def _sidecar_starting(held: Held) -> Fields | None:
    if held.trainer_since is not None or held.pod.told:
        return None
    for one in held.pod.containers:
        if one.role is Role.NATIVE and one.running_since is not None and not one.started:
            return {"container": one.label, "since": one.running_since}
    return None


def _agent_silent(held: Held) -> Fields | None:
    since = held.trainer_since
    if held.agent is not None or since is None or held.pod.told or held.pod.deleting:
        return None
    return {"since": max(since, held.listening_since)}


def _agent_lost(held: Held) -> Fields | None:
    if held.agent is None or held.trainer_since is None or held.pod.told or held.pod.deleting:
        return None
    return {"since": held.agent.seen_at}


def _warming(held: Held) -> Fields | None:
    agent = held.agent
    if agent is None or agent.report.phase is not AgentPhase.WARMING:
        return None
    return {"since": agent.phase_since}


def _sidecar_failed(held: Held) -> Fields | None:
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


def _not_ready(held: Held) -> Fields | None:
    trainer = held.pod.trainer
    if held.trainer_since is None or trainer is None or trainer.ready or held.pod.told:
        return None
    if not trainer.probes & {"readiness", "startup"} or not held.member:
        return None
    which = "readiness" if trainer.started else "startup"
    return {"container": trainer.label, "which": which}


ROWS: tuple[Row, ...] = (
    Row(
        reason="Terminating",
        fits=_terminating,
        says="pod {pod} should have ended: {by}",
        todo="it is replaced all the same",
    ),
    Row(
        reason="SchedulingGated",
        fits=_gates,
        says="pod {pod} is held by scheduling gate{s} {gates}",
        todo="who set that has to take it away",
        attention=False,
    ),
    Row(
        reason="Unschedulable",
        fits=_unschedulable,
        says="no node can take pod {pod}: {words}{advice}",
    ),
    Row(
        reason="NotScheduled",
        fits=_no_scheduler,
        says="no scheduler has looked at pod {pod} since {time}: it is for {name}",
        todo="start that, or correct schedulerName in spec.template",
        after=30.0,
    ),
    Row(
        reason="ImagePull",
        fits=_image,
        says="pod {pod} cannot start: {container}: {words}",
        todo="correct image, imagePullSecrets or imagePullPolicy in spec.template",
    ),
    Row(
        reason="CreateContainerConfigError",
        fits=_config,
        says="pod {pod} cannot start: {container}: {words}",
        todo="create the Secret, ConfigMap or key that it names, or correct spec.template",
    ),
    Row(
        reason="CrashLoopBackOff",
        fits=_crash_loop,
        says="pod {pod} cannot start: {container} fails again and again ({words})",
        todo="correct it in spec.template; the trainer starts after it",
    ),
    Row(
        reason="CreateContainerError",
        fits=_created,
        says="pod {pod} cannot start: {container}: {words}",
        todo="correct command, mounts or securityContext in spec.template",
    ),
    Row(
        reason="Initializing",
        fits=_initializing,
        says="pod {pod} waits for its {container}, which has been running since {time}",
        todo="see kubectl logs {pod} -c {name}",
        after=60.0,
        attention=False,
    ),
    Row(
        reason="SidecarStarting",
        fits=_sidecar_starting,
        says="pod {pod} waits for its {container}, whose startup probe has not succeeded yet",
        todo="correct the sidecar or its startupProbe in spec.template",
        after=60.0,
    ),
    Row(
        reason="KubeletSilent",
        fits=_not_taken,
        says="pod {pod} is for {node}, whose kubelet has not taken it",
        todo="{said}see kubectl get node",
        after=QUIET,
    ),
    Row(
        reason="ContainerCreating",
        fits=_by_event,
        says="pod {pod} cannot start: {reason}: {words}{todo}",
    ),
    Row(
        reason="ContainerCreating",
        fits=_silent_kubelet,
        says="the kubelet of {node} creates the containers of pod {pod} and says nothing more",
        todo="a large image takes minutes; see kubectl describe pod {pod}",
        after=120.0,
        attention=False,
    ),
    Row(
        reason="AgentSilent",
        fits=_agent_silent,
        says="pod {pod} has been running since {time} and its launcher has not reached the "
        "operator",
        todo="see kubectl logs {pod}, and whether a NetworkPolicy or a proxy is between the pod "
        "and the operator's service",
        after=60.0,
    ),
    Row(
        reason="AgentSilent",
        fits=_agent_lost,
        says="the operator has not heard from the launcher of pod {pod} since {time}",
        todo="see kubectl logs {pod}, and whether its node and the network between are well",
        after=60.0,
        timed=False,
    ),
    Row(
        reason="Warming",
        fits=_warming,
        says="pod {pod} has been importing what its workers need since {time}",
        todo="see kubectl logs {pod}; a slow file system makes imports slow",
        after=120.0,
        attention=False,
    ),
    Row(
        reason="SidecarFailed",
        fits=_sidecar_failed,
        says="{container} of pod {pod} {how}; training goes on without it",
        blocks=False,
    ),
    Row(
        reason="NotReady",
        fits=_not_ready,
        says="pod {pod} trains, but its {which} probe has not succeeded",
        todo="correct or leave out that probe of {container} in spec.template",
        after=300.0,
        blocks=False,
    ),
)
"""In the order in which they are tried."""
_TIMED = tuple(row for row in ROWS if row.after and row.timed)


def row_of(held: Held) -> tuple[Row, Fields] | None:
    """The row that a pod is held by, and what its message is made of."""
    for row in ROWS:
        fields = row.fits(held)
        if fields is not None and held.now >= _since(fields, held) + row.after:
            return row, fields
    return None


def of_pod(held: Held) -> Wait | None:
    """What holds a pod; None when nothing does, or nothing that means something yet."""
    found = row_of(held)
    if found is None:
        return None
    row, fields = found
    # When it began, not for how long it has lasted: that would be another message at each look.
    everything = {"pod": held.pod.name, "time": clock(_since(fields, held)), **fields}
    words, todo = row.says.format_map(everything), row.todo.format_map(everything)
    return Wait(
        reason=str(fields.get("reason", row.reason)),
        message=f"{words}; {todo}" if todo else words,
        pod=held.pod.name,
        attention=row.attention,
        blocks=row.blocks,
    )


def kind(reason: str) -> str:
    """One word for the reasons between which a pod goes to and fro while one thing holds it."""
    return "ImagePull" if reason in _IMAGE else reason


def _since(fields: Fields, held: Held) -> float:
    since = fields.get("since")
    if isinstance(since, float | int):
        return float(since)
    trained = held.trainer_since
    return trained or held.pod.scheduled_at or held.pod.created_at


def changes_at(held: Held) -> float | None:
    """When time alone makes something of what a pod shows now; None if it does not."""
    times = [
        _since(fields, held) + row.after for row in _TIMED if (fields := row.fits(held)) is not None
    ]
    return min((at for at in times if at > held.now), default=None)


def waits(observed: Observed, pods: Iterable[Pod], pinned: str | None = None) -> tuple[Wait, ...]:
    """What holds these pods, first what needs somebody's hand; pods held alike are told as one."""
    found: dict[tuple[bool, bool, str], list[Wait]] = {}
    if observed.hindered:
        reason, words = of_refusal(observed.hindered)
        found[False, False, ""] = [Wait(reason=reason, message=words)]
    for pod in pods:
        wait = of_pod(held_of(observed, pod, pinned))
        if wait is not None:
            key = not wait.blocks, not wait.attention, wait.reason
            found.setdefault(key, []).append(wait)
    result = []
    for key in sorted(found, key=lambda key: key[:2]):
        first, *others = found[key]
        if others:
            more = f" ({len(others)} other pod{'s' * (len(others) > 1)} likewise)"
            first = replace(first, message=first.message + more)
        result.append(first)
    return tuple(result)


def held_of(observed: Observed, pod: Pod, pinned: str | None = None) -> Held:
    """A pod and what is known around it."""
    return Held(
        pod=pod,
        agent=observed.agents.get(pod.uid),
        listening_since=observed.listening_since,
        member=pod.uid in observed.inside,
        pinned=pinned,
        now=observed.now,
    )


def needs_events(held: Held) -> bool:
    """Whether a pod's events have to be read to tell what holds it."""
    since = held.pod.scheduled_at or held.pod.created_at
    return _creating(held) and held.now >= since + QUIET
