"""How the end of a pod shows: each function recognises one way, and says what it was made of.

A pod's status has one word for the pod as a whole, one state for each container, and conditions
that others write; what several of them mean together is decided here, and what follows from that in
`pod_endings`. Where the status leaves open why (a container that a probe has ended looks like one
that got a signal) the kubelet's events tell; `needs_events` and `needs_log` say when to read them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rekindle.api import TRAINER_CONTAINER, Cause, ExitCode, Outcome
from rekindle_operator.observed.containers import (
    Container,
    ContainerTerminated,
    Role,
    last_lines,
    one_line,
)
from rekindle_operator.observed.observations import Pod

AT_ONCE = 1.0
"""activeDeadlineSeconds by which the operator ends what is left in a pod that is through."""

Fields = Mapping[str, object]
"""What a message about a pod's end is made of."""
Sign = Callable[["Look"], Fields | None]
"""Recognises one way to end; None when it was not that."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the rows look at: one pod that has ended or is about to, and what surrounds it."""

    pod: Pod
    going: str | None = None
    """In words, why it has to go, while it is not through."""
    notice: str | None = None
    """What its agent says that told it to go."""
    node_going: str | None = None
    node_lost: bool = False
    silent: str | None = None
    """In words, why it counts as lost although nobody has told of its end."""
    pinned: str | None = None
    """spec.template.spec.nodeName: no scheduler has chosen the node."""
    now: float = 0.0

    @property
    def trainer(self) -> Container | None:
        """The container that trains."""
        return self.pod.trainer

    @property
    def told_to_go(self) -> bool:
        """Whether SIGTERM has come, as far as anybody has said."""
        saved = self.pod.outcome is not None and self.pod.outcome.code in _TOLD
        return bool(self.pod.deleting or saved or self.notice)


_TOLD = {ExitCode.SAVED, ExitCode.PREEMPTED}
REJECTED = {
    "NodeAffinity",
    "NodeName",
    "NodePorts",
    "NodeResourcesFit",
    "TaintToleration",
    "UnexpectedAdmissionError",
    "TopologyAffinityError",
    "AdmissionFailed",
    "InvalidNodeInfo",
    "PodFeatureUnsupported",
    "VolumeRestrictions",
}
"""A kubelet's reasons not to take a pod that another node, or this one later, may take."""
FORBIDDEN = {
    "SysctlForbidden",
    "ForbiddenSysctl",
    "AppArmor",
    "Seccomp",
    "ProcMount",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "UnsupportedByThisNode",
    "InitContainerRestartPolicyForbidden",
    "SupplementalGroupsPolicyNotSupported",
    "PodLevelResourcesNotSupported",
}
"""A kubelet's reasons not to take a pod for what its manifest asks for."""
GRACEFUL = {"Terminated", "Shutdown", "NodeShutdown"}
_OWN_LIMIT = re.compile(
    r"exceeds the (total )?limit|exceeded its local ephemeral storage limit|"
    r"ephemeral local storage usage exceeds"
)
_PROBE = re.compile(r"[Cc]ontainer (?P<name>\S+) failed (?P<kind>liveness|startup) probe")
_STOPPED = re.compile(r"^Stopping container (?P<name>\S+)$")
_UNHEALTHY = re.compile(r"(Liveness|Startup) probe failed")
_NEVER_STARTS = re.compile(
    r"not found|no such file|permission denied|(not|is) a directory|exec format error",
    re.IGNORECASE,
)
"""What a runtime says of a command that no node can start; other words may be of its own."""
_LIKE_A_SIGNAL = 128


def needs_events(pod: Pod, notice: str | None) -> bool:
    """Whether only the events of a pod can tell why it ended, or was told to go.

    The status of a container that a probe has ended is that of one that got a signal, and a pod
    that never had a container may have no reason at all.
    """
    if pod.deleting or pod.disruption or pod.reason:
        return False
    trainer = pod.trainer
    if trainer is not None and trainer.probes & {"liveness", "startup"}:
        return (trainer.ended.code != 0) if trainer.ended else notice == "SIGTERM"
    return pod.phase == "Failed" and not any(one.failed for one in pod.containers)


def needs_log(pod: Pod) -> str | None:
    """The container whose log has to be read to tell why the pod failed; None if none has to."""
    if pod.phase != "Failed" or pod.deleting or pod.reason:
        return None
    broken = next((one for one in pod.containers if one.failed), None)
    if broken is None or broken.failed is None or broken.name in pod.logs:
        return None
    quiet = not broken.failed.message.strip() and broken.failed.reason == "Error"
    killed = broken.role is Role.TRAINER and broken.failed.code > _LIKE_A_SIGNAL
    return broken.name if quiet and not killed else None


def _end_of(look: Look, *roles: Role) -> tuple[Container, ContainerTerminated] | None:
    """The first of these containers that has failed."""
    for one in look.pod.containers:
        if one.role in roles and one.failed is not None:
            return one, one.failed
    return None


def _fields(look: Look, container: Container, ended: ContainerTerminated) -> dict[str, object]:
    """What is told of a container's end: name, exit code, the kubelet's word, last lines."""
    log = last_lines(ended.message or look.pod.logs.get(container.name, ""))
    return {
        "container": container.label,
        "name": container.name,
        "code": ended.code,
        "why": ended.reason or "no reason given",
        "log": log or "it has printed nothing",
    }


def says(*names: str) -> Sign:
    """The kubelet's word for the whole pod."""

    def fits(look: Look) -> Fields | None:
        pod = look.pod
        return {"why": pod.reason, "words": pod.message} if pod.reason in names else None

    return fits


def evicted(own: bool) -> Sign:
    """Evicted: for what it used beyond its own limits, or for what its node lacked."""

    def fits(look: Look) -> Fields | None:
        pod = look.pod
        words = pod.message if pod.reason == "Evicted" else ""
        if not words and (pod.disruption or "").startswith("TerminationByKubelet"):
            _, _, words = (pod.disruption or "").partition(": ")
            if "low on resource" not in words and not _OWN_LIMIT.search(words):
                return None  # a node that shuts down
        elif pod.reason != "Evicted":
            return None
        return {"words": words} if bool(_OWN_LIMIT.search(words)) is own else None

    return fits


def past_its_deadline(look: Look) -> Fields | None:
    """Its own activeDeadlineSeconds have passed, and it did not end by itself before."""
    pod = look.pod
    if pod.deadline is None or pod.deadline <= AT_ONCE or pod.deleting:
        return None
    due = None if pod.started_at is None else pod.started_at + pod.deadline
    ended = look.trainer.ended if look.trainer else None
    if ended and ended.at is not None and due is not None and ended.at < due - 1.0:
        return None
    passed = due is not None and look.now >= due - 1.0
    sigterm = look.notice == "SIGTERM" or (pod.outcome is not None and pod.outcome.code in _TOLD)
    if pod.reason != "DeadlineExceeded" and not (passed and sigterm and not look.node_lost):
        return None
    return {"deadline": f"{pod.deadline:g}"}


def rejected(look: Look) -> Fields | None:
    """A kubelet did not take it, for what its node had to give at that moment."""
    pod = look.pod
    if pod.reason in REJECTED or pod.reason.startswith("OutOf"):
        return {"why": pod.reason, "words": pod.message, "node": pod.node or "its node"}
    return None


def rejected_where_pinned(look: Look) -> Fields | None:
    """The same of a pod that no scheduler has put there."""
    return rejected(look) if look.pinned else None


def pinned_to_no_node(look: Look) -> Fields | None:
    """Its template names a node that is not there."""
    gone = look.node_lost or (look.pod.disruption or "").startswith("DeletionByPodGC")
    return {"node": look.pinned} if look.pinned and gone else None


def ended_by_a_probe(look: Look) -> Fields | None:
    """A probe's kill: the status shows a signal only, so the kubelet's events have to tell.

    Where other containers stay, the event of the kill names the probe. With the last one of a pod
    that never restarts the kubelet ends the pod, and says no more than of any container that it
    stops; nobody else stops one in a pod that is neither deleted nor evicted, so that the probe
    which had failed before is why.
    """
    for event in reversed(look.pod.events):
        found = (
            (_PROBE.search(event.message) or _STOPPED.search(event.message))
            if (event.reason == "Killing")
            else None
        )
        if found is None:
            continue
        name, kind = found["name"], found.groupdict().get("kind")
        if look.trainer is None or name != look.trainer.name:
            continue
        for other in reversed(look.pod.events):
            failed = _UNHEALTHY.match(other.message) if other.reason == "Unhealthy" else None
            if failed and kind in {None, failed[1].lower()}:
                detail = one_line(other.message, 300)
                return {"name": name, "kind": failed[1].lower(), "detail": detail}
        if kind:
            return {"name": name, "kind": kind, "detail": f"{kind} probe failed"}
    return None


def disrupted(look: Look) -> Fields | None:
    """Somebody has said by the condition DisruptionTarget that it has to go."""
    return {"words": look.pod.disruption} if look.pod.disruption else None


def node_lost(look: Look) -> Fields | None:
    """Nothing on its node answers any more."""
    return {"words": look.silent or look.node_going} if look.node_lost else None


def deleted_by_force(look: Look) -> Fields | None:
    """Deleted without time to end."""
    return {} if look.pod.forced and not look.pod.told else None


def told_why(look: Look) -> Fields | None:
    """It has to go, for a reason that has been told."""
    return {"words": look.going} if look.going else None


def told_to_go(look: Look) -> Fields | None:
    """It got SIGTERM, of which nobody has told why."""
    code = look.pod.exit_code
    return {"code": "" if code is None else f", exit code {code}"} if look.told_to_go else None


def node_going(look: Look) -> Fields | None:
    """Its node goes."""
    return {"words": look.node_going} if look.node_going else None


def vanished(look: Look) -> Fields | None:
    """Its lifeline broke, and the kubelet has not said anything yet."""
    return {} if not look.pod.told and look.pod.vanished_at is not None else None


def not_heard(look: Look) -> Fields | None:
    """It has fallen silent, and somebody who is heard bears that out."""
    return {"words": look.silent} if look.silent and not look.pod.told else None


def out_of_memory(look: Look) -> Fields | None:
    """The trainer used more memory than its limit."""
    found = _end_of(look, Role.TRAINER)
    if found and found[1].reason == "OOMKilled":
        return _fields(look, *found)
    return {} if look.pod.exit_reason == "OOMKilled" else None


def in_no_round(look: Look) -> Fields | None:
    """Its trainer ended well and has trained with nobody."""
    return {"name": TRAINER_CONTAINER} if look.pod.stranger else None


def init_failed(oom: bool) -> Sign:
    """An init container that failed: with restartPolicy Never the pod is over with it."""

    def fits(look: Look) -> Fields | None:
        found = _end_of(look, Role.INIT)
        if found is None or look.pod.exit_code is not None:
            return None
        return _fields(look, *found) if (found[1].reason == "OOMKilled") is oom else None

    return fits


def outcome(look: Look) -> Fields | None:
    """The agent has written down how it ended."""
    outcome = look.pod.outcome
    if outcome is None:
        return None
    cause, evidence, reason = of_outcome(outcome)
    return {"cause": cause, "words": evidence, "code_of_outcome": reason}


def not_started(*codes: int, reasons: tuple[str, ...] = ()) -> Sign:
    """A runtime did not start the container, or a shell did not find what it was to start."""

    def fits(look: Look) -> Fields | None:
        pod = look.pod
        if pod.exit_reason not in reasons and pod.exit_code not in codes:
            return None
        words = last_lines(pod.exit_message) or f"exit code {pod.exit_code}"
        return {"words": words, "retry": bool(reasons) and not _NEVER_STARTS.search(words)}

    return fits


def status_unknown(look: Look) -> Fields | None:
    """The kubelet found the container gone."""
    found = _end_of(look, Role.TRAINER)
    if found is None or found[1].reason != "ContainerStatusUnknown":
        return None
    return {"words": one_line(found[1].message, 300)}


def killed(look: Look) -> Fields | None:
    """The trainer ended by a signal."""
    code = look.pod.exit_code
    if code is None or 0 <= code <= _LIKE_A_SIGNAL:
        return None
    return {"code": code, "beside": _beside(look)}


def exited(look: Look) -> Fields | None:
    """The trainer ended by itself."""
    pod = look.pod
    if pod.exit_code is None:
        return None
    text = pod.exit_message.strip() or pod.logs.get("trainer", "")
    tail = last_lines("\n".join(text.splitlines()[-1:])) or "see its log"
    return {"code": pod.exit_code, "tail": tail, "beside": _beside(look)}


def _beside(look: Look) -> str:
    """Names a sidecar that had failed before the trainer did: it may be why."""
    found = _end_of(look, Role.SIDECAR, Role.NATIVE)
    trainer = look.trainer
    if found is None or trainer is None or trainer.ended is None:
        return ""
    one, ended = found
    if ended.at is not None and trainer.ended.at is not None and ended.at > trainer.ended.at:
        return ""
    return f"; {one.label} had failed before (exit code {ended.code}, {ended.reason})"


def sidecar_failed(look: Look) -> Fields | None:
    """Nothing is said of the trainer, and another container has failed."""
    found = _end_of(look, Role.NATIVE, Role.SIDECAR)
    return _fields(look, *found) if found and look.pod.exit_code is None else None


def some_reason(look: Look) -> Fields | None:
    """The kubelet gives a word that no other row knows."""
    pod = look.pod
    return {"why": pod.exit_reason, "words": pod.exit_message} if pod.exit_reason else None


def by_event(look: Look) -> Fields | None:
    """Nothing but a warning about the pod says why."""
    warning = next((e for e in reversed(look.pod.events) if e.warning), None)
    return {"why": warning.reason, "words": warning.message} if warning else None


def anything(_: Look) -> Fields | None:
    """Whatever is left."""
    return {}


def of_outcome(outcome: Outcome) -> tuple[Cause, str, str | None]:
    """Cause, evidence and stable code of what an agent has written down."""
    try:
        cause = Cause(outcome.cause)
    except ValueError:
        cause = Cause.USER_ERROR
    where = f"rank {outcome.rank}" if outcome.rank is not None else ""
    if outcome.step is not None:
        where += f" after step {outcome.step}"
    said = f"{where.strip()}: {outcome.message}" if where else outcome.message
    return cause, said, outcome.reason
