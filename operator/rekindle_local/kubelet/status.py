"""A pod's status, built from what its containers are doing. Pure.

The rules are the real kubelet's: the phase follows from the container states and the restart
policy, the conditions from the phase and readiness, a condition's transition time moves only when
its status does. What others write (DisruptionTarget by an eviction, PodScheduled by the
scheduler) is left out of the patch and so survives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rekindle_local import timestamps
from rekindle_local.client import Manifest


@dataclass(frozen=True, kw_only=True)
class WaitingState:
    """Not started; `reason` is one of Kubernetes' words (ContainerCreating, ErrImagePull ...)."""

    reason: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Running:
    """PID 1 is alive."""

    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class Terminated:
    """PID 1 and all it started have ended."""

    exit_code: int
    signal: int
    reason: str
    message: str
    started_at: datetime
    finished_at: datetime
    container_id: str


State = WaitingState | Running | Terminated


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """Everything the status says about one container."""

    name: str
    image: str
    state: State
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    sidecar: bool = False
    """An init container with restartPolicy Always: it counts by having started, not by its end."""

    @property
    def done(self) -> bool:
        """Whether, as an init container, it no longer holds the ones after it."""
        if self.sidecar and self.started:
            return True
        return isinstance(self.state, Terminated) and self.state.exit_code == 0


@dataclass(frozen=True, kw_only=True)
class PodState:
    """Everything the status says about one pod; `phase` overrides what the containers say."""

    init: Sequence[ContainerState]
    containers: Sequence[ContainerState]
    pod_ip: str
    host_ip: str
    started_at: datetime
    phase: str | None = None
    reason: str = ""
    message: str = ""
    disruption: tuple[str, str] | None = None
    """(reason, message) of DisruptionTarget when this node ends the pod."""


def phase(policy: str, init: Sequence[ContainerState], containers: Sequence[ContainerState]) -> str:
    """The phase that container states amount to under a restart policy.

    Once a regular container has run, a sidecar that is started again no longer counts; how sidecars
    end never does. They only hold a final phase back until they have ended, too.
    """
    for one in init if not _has_run(containers) else ():
        if not one.done:
            failed = isinstance(one.state, Terminated) and policy == "Never" and not one.sidecar
            return "Failed" if failed and not _any_running(init) else "Pending"
    ended = [one.state for one in containers if isinstance(one.state, Terminated)]
    if any(isinstance(one.state, Running) for one in containers):
        return "Running"
    if any(isinstance(one.state, WaitingState) and one.last is None for one in containers):
        return "Pending"
    if len(ended) < len(containers) or policy == "Always" or _any_running(init):
        return "Running"
    if all(state.exit_code == 0 for state in ended):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _has_run(containers: Sequence[ContainerState]) -> bool:
    return any(
        not isinstance(one.state, WaitingState) or one.last is not None for one in containers
    )


def _any_running(containers: Sequence[ContainerState]) -> bool:
    return any(isinstance(one.state, Running) for one in containers)


def qos_class(spec: Manifest) -> str:
    """Guaranteed, Burstable or BestEffort, from requests and limits."""
    everything = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    guaranteed, anything = bool(everything), False
    for container in everything:
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in ("cpu", "memory"):
            anything = anything or name in limits or name in requests
            same = name in limits and requests.get(name, limits[name]) == limits[name]
            guaranteed = guaranteed and same
    return "Guaranteed" if guaranteed else "Burstable" if anything else "BestEffort"


def build(pod: Manifest, state: PodState, now: datetime) -> Manifest:
    """The status to write, without what other components own."""
    policy = pod["spec"].get("restartPolicy") or "Always"
    current = state.phase or phase(policy, state.init, state.containers)
    status: Manifest = {
        "phase": current,
        "hostIP": state.host_ip,
        "hostIPs": [{"ip": state.host_ip}],
        "podIP": state.pod_ip,
        "podIPs": [{"ip": state.pod_ip}],
        "startTime": timestamps.seconds(state.started_at),
        "qosClass": qos_class(pod["spec"]),
        "conditions": _conditions(pod, state, current, now),
        "containerStatuses": [_container(one) for one in state.containers],
    }
    if state.init:
        status["initContainerStatuses"] = [_container(one) for one in state.init]
    if state.reason:
        status["reason"] = state.reason
    if state.message:
        status["message"] = state.message
    return status


def _container(one: ContainerState) -> Manifest:
    status: Manifest = {
        "name": one.name,
        "image": one.image,
        "imageID": one.image if one.container_id else "",
        "state": _state(one.state),
        "lastState": _state(one.last) if one.last else {},
        "ready": one.ready,
        "started": one.started,
        "restartCount": one.restarts,
    }
    if one.container_id:
        status["containerID"] = f"process://{one.container_id}"
    return status


def _state(state: State) -> Manifest:
    if isinstance(state, WaitingState):
        waiting = {"reason": state.reason}
        return {"waiting": waiting | ({"message": state.message} if state.message else {})}
    if isinstance(state, Running):
        return {"running": {"startedAt": timestamps.seconds(state.started_at)}}
    body: Manifest = {
        "exitCode": state.exit_code,
        "reason": state.reason,
        "startedAt": timestamps.seconds(state.started_at),
        "finishedAt": timestamps.seconds(state.finished_at),
        "containerID": f"process://{state.container_id}",
    }
    if state.signal:
        body["signal"] = state.signal
    if state.message:
        body["message"] = state.message
    return {"terminated": body}


def _conditions(pod: Manifest, state: PodState, current: str, now: datetime) -> list[Manifest]:
    before = {one["type"]: one for one in (pod.get("status") or {}).get("conditions") or ()}
    pending = [one.name for one in state.init if not one.done]
    unready = [
        one.name
        for one in (*(one for one in state.init if one.sidecar), *state.containers)
        if not one.ready
    ]
    wanted: dict[str, Mapping[str, str]] = {}
    if pending and not _has_run(state.containers):
        message = f"containers with incomplete status: [{' '.join(pending)}]"
        wanted["Initialized"] = _condition(False, "ContainersNotInitialized", message)
    else:
        wanted["Initialized"] = _condition(True, "", "")
    if current in ("Succeeded", "Failed"):
        reason = "PodCompleted" if current == "Succeeded" else "PodFailed"
        not_ready = _condition(False, reason, "")
    elif unready:
        names = " ".join(unready)
        message = f"containers with unready status: [{names}]"
        not_ready = _condition(False, "ContainersNotReady", message)
    else:
        not_ready = _condition(True, "", "")
    wanted["ContainersReady"] = wanted["Ready"] = not_ready
    if not_ready["status"] == "True" and (message := _closed_gates(pod["spec"], before)):
        wanted["Ready"] = _condition(False, "ReadinessGatesNotReady", message)
    wanted["PodScheduled"] = _condition(True, "", "")
    if state.disruption:
        wanted["DisruptionTarget"] = _condition(True, *state.disruption)
    stamp = timestamps.seconds(now)
    out = []
    for kind, fields in wanted.items():
        old = before.get(kind) or {}
        same = old.get("status") == fields["status"]
        moved = old.get("lastTransitionTime") if same else None
        # null clears the words of an earlier state in a merge patch.
        words = {
            name: fields[name] or None
            for name in ("reason", "message")
            if fields[name] or old.get(name)
        }
        out.append(
            {
                "type": kind,
                "status": fields["status"],
                "lastTransitionTime": moved or stamp,
                **words,
            }
        )
    return out


def _closed_gates(spec: Manifest, conditions: Mapping[str, Manifest]) -> str:
    """What is missing of the conditions that somebody else sets and the pod waits for."""
    texts = []
    for gate in spec.get("readinessGates") or ():
        name = gate["conditionType"]
        if name not in conditions:
            texts.append(f'corresponding condition of pod readiness gate "{name}" does not exist.')
        elif conditions[name].get("status") != "True":
            texts.append(f'the status of pod readiness gate "{name}" is not "True", but False')
    return ", ".join(texts)


def _condition(holds: bool, reason: str, message: str) -> Mapping[str, str]:
    return {"status": "True" if holds else "False", "reason": reason, "message": message}
