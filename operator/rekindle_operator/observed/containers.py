"""What a pod's containers say of themselves, parsed once into frozen values.

A pod has more containers than the one that trains, and any of them can end or hold it: an init
container runs before the trainer, a native sidecar (an init container with restartPolicy Always)
beside it and is ended with it, an ordinary sidecar beside it and is ended by nobody. What a
container printed last is the user's own output: it is kept short, and without control characters.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rekindle.api import TRAINER_CONTAINER
from rekindle.api.timestamps import parse_time

LOG_LINES = 10
"""Last lines of a container's log that are told."""
LOG_CHARACTERS = 1000
"""Most characters of them."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Role(StrEnum):
    """What a container is for. The value is how messages call it."""

    TRAINER = "container"
    INIT = "init container"
    NATIVE = "native sidecar"
    SIDECAR = "sidecar"


@dataclass(frozen=True, kw_only=True)
class ContainerWaiting:
    """Why a container does not start."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ContainerTerminated:
    """How a container ended."""

    code: int
    reason: str
    """The kubelet's word: Completed, Error, OOMKilled, StartError, ContainerStatusUnknown, ..."""
    message: str = ""
    """Its termination message, which may be the end of its log."""
    at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container of a pod."""

    name: str
    role: Role
    waiting: ContainerWaiting | None = None
    running_since: float | None = None
    ended: ContainerTerminated | None = None
    before: ContainerTerminated | None = None
    """How its run before this one ended."""
    restarts: int = 0
    ready: bool = False
    started: bool = True
    """False while its startup probe has not succeeded."""
    probes: frozenset[str] = frozenset()
    """Which probes its spec has: liveness, readiness, startup."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.role} {self.name}"

    @property
    def failed(self) -> ContainerTerminated | None:
        """Its end, when that was not a good one; also of a run that another one follows."""
        last = self.ended or self.before
        return last if last is not None and last.code != 0 else None


@dataclass(frozen=True, kw_only=True)
class PodEvent:
    """An event about a pod, as ``kubectl describe pod`` shows it."""

    reason: str
    message: str
    warning: bool = True
    at: float = 0.0


def parse_containers(body: Mapping[str, Any]) -> tuple[Container, ...]:
    """The containers of a pod in the order in which they start: those of its spec, and their state.

    A status can name a container that the spec does not hold only in tests; it counts as an
    ordinary one.
    """
    return tuple(_containers(body.get("spec") or {}, body.get("status") or {}))


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Container]:
    for kind, key in (
        ("initContainers", "initContainerStatuses"),
        ("containers", "containerStatuses"),
    ):
        specs = {one["name"]: one for one in spec.get(kind) or ()}
        states = {one["name"]: one for one in status.get(key) or ()}
        for name in dict.fromkeys((*specs, *states)):
            given = specs.get(name, {})
            native = given.get("restartPolicy") == "Always"
            role = Role.NATIVE if native else Role.INIT
            if kind == "containers":
                role = Role.TRAINER if name == TRAINER_CONTAINER else Role.SIDECAR
            yield _container(name, role, given, states.get(name) or {})


def _container(
    name: str, role: Role, given: Mapping[str, Any], status: Mapping[str, Any]
) -> Container:
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    running = state.get("running")
    return Container(
        name=name,
        role=role,
        waiting=ContainerWaiting(reason=waiting["reason"], message=waiting.get("message") or "")
        if waiting.get("reason")
        else None,
        running_since=None if running is None else parse_time(running.get("startedAt")) or 0.0,
        ended=_ended(state.get("terminated")),
        before=_ended((status.get("lastState") or {}).get("terminated")),
        restarts=status.get("restartCount") or 0,
        ready=bool(status.get("ready")),
        started=status.get("started") is not False,
        probes=frozenset(
            kind for kind in ("liveness", "readiness", "startup") if given.get(f"{kind}Probe")
        ),
    )


def _ended(state: Mapping[str, Any] | None) -> ContainerTerminated | None:
    if not state:
        return None
    return ContainerTerminated(
        code=int(state.get("exitCode") or 0),
        reason=state.get("reason") or "",
        message=(state.get("message") or "")[-4000:],
        at=parse_time(state.get("finishedAt")),
    )


def parse_event(body: Mapping[str, Any]) -> PodEvent:
    """An event; its time is that of the last of several equal ones."""
    series = body.get("series") or {}
    at = (
        parse_time(series.get("lastObservedTime"))
        or parse_time(body.get("lastTimestamp"))
        or parse_time(body.get("eventTime"))
        or parse_time((body.get("metadata") or {}).get("creationTimestamp"))
    )
    return PodEvent(
        reason=body.get("reason") or "",
        message=one_line(body.get("message") or "", LOG_CHARACTERS),
        warning=body.get("type") == "Warning",
        at=at or 0.0,
    )


def printable(text: str) -> str:
    """Text without control characters and terminal escapes, its line ends apart."""
    return _CONTROL.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text: str, most: int) -> str:
    """Text in one line, without control characters; its beginning, when it is too long."""
    plain = " ".join(printable(text).split())
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def last_lines(text: str) -> str:
    """The end of a log in one line, short enough for a message."""
    lines = [line.strip() for line in printable(text).splitlines() if line.strip()]
    told = " | ".join(lines[-LOG_LINES:])
    return told if len(told) <= LOG_CHARACTERS else f"...{told[3 - LOG_CHARACTERS :]}"


def of_role(containers: Sequence[Container], *roles: Role) -> Iterable[Container]:
    """The containers that are for this."""
    return (one for one in containers if one.role in roles)
