"""Everything that holds a pod, or a part of it: what it is called, what to do.

A pod that does not start, does not report or is not whole has a reason, which is in one of many
places: a gate in its spec, the scheduler's sentence, a container's state, an event of its kubelet,
the API server's answer to its creation, or the silence of its launcher. `ROWS` is one table of all
of them; the first row that fits a pod is what holds it. Some take a while before they mean
something (``after``), some are what a pod waits for in good order and need nobody's hand
(``attention``), and some hold a part of a pod that trains all the same (``blocks``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from rekindle.api.timestamps import clock
from rekindle_operator.failures import wait_signs as signs
from rekindle_operator.failures.scheduler_messages import of_refusal
from rekindle_operator.failures.wait_signs import Fields, WaitingPod
from rekindle_operator.observed.observations import Observed, Pod
from rekindle_operator.observed.run_claims import IN_USE

QUIET = 20.0
"""Seconds without a word after which a pod's events are read."""
LOOKS = 3
"""Pods of one job whose events are read: what holds one of them mostly holds all."""


@dataclass(frozen=True, kw_only=True)
class PodWaitRow:
    """One way in which a pod is held."""

    reason: str
    """For conditions; a row whose ``fits`` gives a reason has many."""
    fits: Callable[[WaitingPod], Fields | None]
    says: str
    todo: str = ""
    after: float = 0.0
    """Seconds from ``since`` (in the fields; else from when the pod had a node) until it counts."""
    attention: bool = True
    blocks: bool = True
    timed: bool = True
    """False where ``since`` moves all the time: a job's regular look is often enough for it."""


@dataclass(frozen=True, kw_only=True)
class PodWait:
    """What holds one pod, or keeps one from being made."""

    reason: str
    message: str
    pod: str = ""
    attention: bool = True
    blocks: bool = True


ROWS: tuple[PodWaitRow, ...] = (
    PodWaitRow(
        reason="Terminating",
        fits=signs.terminating,
        says="pod {pod} should have ended: {by}",
        todo="it is replaced all the same",
    ),
    PodWaitRow(
        reason="SchedulingGated",
        fits=signs.gates,
        says="pod {pod} is held by scheduling gate{s} {gates}",
        todo="who set that has to take it away",
        attention=False,
    ),
    PodWaitRow(
        reason="Unschedulable",
        fits=signs.unschedulable,
        says="no node can take pod {pod}: {words}{advice}",
    ),
    PodWaitRow(
        reason="NotScheduled",
        fits=signs.no_scheduler,
        says="no scheduler has looked at pod {pod} since {time}: it is for {name}",
        todo="start that, or correct schedulerName in spec.template",
        after=30.0,
    ),
    PodWaitRow(
        reason="ImagePull",
        fits=signs.image,
        says="pod {pod} cannot start: {container}: {words}",
        todo="correct image, imagePullSecrets or imagePullPolicy in spec.template",
    ),
    PodWaitRow(
        reason="CreateContainerConfigError",
        fits=signs.config,
        says="pod {pod} cannot start: {container}: {words}",
        todo="create the Secret, ConfigMap or key that it names, or correct spec.template",
    ),
    PodWaitRow(
        reason="CrashLoopBackOff",
        fits=signs.crash_loop,
        says="pod {pod} cannot start: {container} fails again and again ({words})",
        todo="correct it in spec.template; the trainer starts after it",
    ),
    PodWaitRow(
        reason="CreateContainerError",
        fits=signs.created,
        says="pod {pod} cannot start: {container}: {words}",
        todo="correct command, mounts or securityContext in spec.template",
    ),
    PodWaitRow(
        reason="Initializing",
        fits=signs.initializing,
        says="pod {pod} waits for its {container}, which has been running since {time}",
        todo="see kubectl logs {pod} -c {name}",
        after=60.0,
        attention=False,
    ),
    PodWaitRow(
        reason="SidecarStarting",
        fits=signs.sidecar_starting,
        says="pod {pod} waits for its {container}, whose startup probe has not succeeded yet",
        todo="correct the sidecar or its startupProbe in spec.template",
        after=60.0,
    ),
    PodWaitRow(
        reason="KubeletSilent",
        fits=signs.not_taken,
        says="pod {pod} is for {node}, whose kubelet has not taken it",
        todo="{said}see kubectl get node",
        after=QUIET,
    ),
    PodWaitRow(
        reason="ContainerCreating",
        fits=signs.by_event,
        says="pod {pod} cannot start: {reason}: {words}{todo}",
    ),
    PodWaitRow(
        reason="ContainerCreating",
        fits=signs.silent_kubelet,
        says="the kubelet of {node} creates the containers of pod {pod} and says nothing more",
        todo="a large image takes minutes; see kubectl describe pod {pod}",
        after=120.0,
        attention=False,
    ),
    PodWaitRow(
        reason="AgentSilent",
        fits=signs.agent_silent,
        says="pod {pod} has been running since {time} and its launcher has not reached the "
        "operator at {coordinator}",
        todo="see kubectl logs {pod}, and whether the pod resolves and reaches that address: DNS, "
        "a NetworkPolicy or a proxy between it and the operator's service, kube-proxy of {node}",
        after=60.0,
    ),
    PodWaitRow(
        reason="AgentSilent",
        fits=signs.agent_lost,
        says="the operator has not heard from the launcher of pod {pod} since {time}",
        todo="see kubectl logs {pod}, and whether its node and the network between are well",
        after=60.0,
        timed=False,
    ),
    PodWaitRow(
        reason="Warming",
        fits=signs.warming,
        says="pod {pod} has been importing what its workers need since {time}",
        todo="see kubectl logs {pod}; a slow file system makes imports slow",
        after=120.0,
        attention=False,
    ),
    PodWaitRow(
        reason="SidecarFailed",
        fits=signs.sidecar_failed,
        says="{container} of pod {pod} {how}; training goes on without it",
        blocks=False,
    ),
    PodWaitRow(
        reason=IN_USE,
        fits=signs.held_up,
        says="pod {pod} waits: {words}",
        todo="it looks every two seconds and begins when that one has ended or is silent for a "
        "minute; end that one, or create the job with a spec.checkpoint.uri of its own",
        after=30.0,
    ),
    PodWaitRow(
        reason="NotJoined",
        fits=signs.not_joined,
        says="pod {pod} has not begun round {number}, which it is a member of",
        todo="see kubectl logs {pod}, and whether it reaches pod {first} at {at}: a NetworkPolicy "
        "between the job's pods, or the network of {node}",
        after=60.0,
    ),
    PodWaitRow(
        reason="FirstStep",
        fits=signs.no_step,
        says="round {number} of {all} pods starts and pod {pod} has not done its first step",
        todo="see kubectl logs {pod}; opening data, compiling or restoring may take long",
        after=60.0,
        attention=False,
    ),
    PodWaitRow(
        reason="NotReady",
        fits=signs.not_ready,
        says="pod {pod} trains, but its {which} probe has not succeeded",
        todo="correct or leave out that probe of {container} in spec.template",
        after=300.0,
        blocks=False,
    ),
)
"""In the order in which they are tried."""
_TIMED = tuple(row for row in ROWS if row.after and row.timed)


def row_of(held: WaitingPod) -> tuple[PodWaitRow, Fields] | None:
    """The row that a pod is held by, and what its message is made of."""
    for row in ROWS:
        fields = row.fits(held)
        if fields is not None and held.now >= _since(fields, held) + row.after:
            return row, fields
    return None


def of_pod(held: WaitingPod) -> PodWait | None:
    """What holds a pod; None when nothing does, or nothing that means something yet."""
    found = row_of(held)
    if found is None:
        return None
    row, fields = found
    # When it began, not for how long it has lasted: that would be another message at each look.
    known = {
        "pod": held.pod.name,
        "node": held.node,
        "coordinator": held.coordinator,
        "time": clock(_since(fields, held)),
    }
    everything = {**known, **fields}
    words, todo = row.says.format_map(everything), row.todo.format_map(everything)
    return PodWait(
        reason=str(fields.get("reason", row.reason)),
        message=f"{words}; {todo}" if todo else words,
        pod=held.pod.name,
        attention=row.attention,
        blocks=row.blocks,
    )


def kind(reason: str) -> str:
    """One word for the reasons between which a pod goes to and fro while one thing holds it."""
    return "ImagePull" if reason in signs.IMAGE else reason


def _since(fields: Fields, held: WaitingPod) -> float:
    since = fields.get("since")
    if isinstance(since, float | int):
        return float(since)
    trained = held.trainer_since
    return trained or held.pod.scheduled_at or held.pod.created_at


def changes_at(held: WaitingPod) -> float | None:
    """When time alone makes something of what a pod shows now; None if it does not."""
    times = [
        _since(fields, held) + row.after for row in _TIMED if (fields := row.fits(held)) is not None
    ]
    return min((at for at in times if at > held.now), default=None)


def waits(
    observed: Observed, pods: Iterable[Pod], pinned: str | None = None
) -> tuple[PodWait, ...]:
    """What holds these pods, first what needs somebody's hand; pods held alike are told as one."""
    found: dict[tuple[bool, bool, str], list[PodWait]] = {}
    if observed.hindered:
        reason, words = of_refusal(observed.hindered)
        found[False, False, ""] = [PodWait(reason=reason, message=words)]
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


def held_of(observed: Observed, pod: Pod, pinned: str | None = None) -> WaitingPod:
    """A pod and what is known around it."""
    return WaitingPod(
        pod=pod,
        agent=observed.agents.get(pod.uid),
        listening_since=observed.listening_since,
        round=observed.round if pod.uid in observed.inside else None,
        coordinator=observed.coordinator,
        pinned=pinned,
        now=observed.now,
    )


def needs_events(held: WaitingPod) -> bool:
    """Whether a pod's events have to be read to tell what holds it."""
    since = held.pod.scheduled_at or held.pod.created_at
    return signs.creating(held) and held.now >= since + QUIET
