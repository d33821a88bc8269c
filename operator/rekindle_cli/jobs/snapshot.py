"""What the API server says about one job at one moment, as values that the pure parts work on.

Documents of a cluster are not ours: fields may be missing (a job that no operator has seen has no
status at all), null, or of a newer version. So a snapshot is read leniently, once, here; the rest
of the package never touches a dict of the API.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from rekindle import api
from rekindle.api import RECOVERY_PHASES
from rekindle_cli.jobs.rounds import RoundView
from rekindle_cli.output.wording import parse_time

Document = Mapping[str, Any]
"""One Kubernetes object as JSON has it."""

FINAL_PHASES = ("Succeeded", "Failed")
"""Phases that never change again."""


def _section(document: object, *path: str) -> Document:
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def _items(document: Document, key: str) -> list[Any]:
    found = document.get(key)
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []


def _int(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One entry of status.conditions."""

    type: str
    status: str
    reason: str = ""
    message: str = ""

    @property
    def true(self) -> bool:
        """Whether it holds; Unknown does not."""
        return self.status == "True"


@dataclass(frozen=True, kw_only=True)
class IncidentView:
    """One entry of status.incidents; what is not known (yet) is None."""

    at: datetime | None
    round: int | None = None
    cause: str
    evidence: str = ""
    victims: tuple[str, ...] = ()
    collateral: tuple[str, ...] = ()
    step: int | None = None
    resumed_from: int | None = None
    steps_lost: int | None = None
    seconds_lost: float | None = None
    recovered_in: int | None = None
    """The round in which training went on."""
    action: str = ""
    recovery: tuple[tuple[str, float], ...] = ()
    """(phase, seconds) of the recovery in their order, without their sum."""
    restored: tuple[tuple[str, str], ...] = ()
    """(pod, where its state came from) in the round that went on."""
    stacks: str = ""
    """Of a hang: where the pod to blame stood."""

    @property
    def over(self) -> bool:
        """Whether training has gone on since; from which step may not be known."""
        return self.resumed_from is not None or self.recovered_in is not None

    @property
    def key(self) -> tuple[datetime | None, int | None, str]:
        """The same while an entry is being completed: only its cost and action are added later."""
        return (self.at, self.round, self.cause)

    @classmethod
    def read(cls, entry: object) -> Self:
        """From one entry of the list."""
        data = entry if isinstance(entry, Mapping) else {}
        return cls(
            at=parse_time(data.get("at")),
            round=_int(data.get("round")),
            cause=_text(data.get("cause")) or "Unknown",
            evidence=_text(data.get("evidence")),
            victims=tuple(str(name) for name in _items(data, "victims")),
            collateral=tuple(str(name) for name in _items(data, "collateral")),
            step=_int(data.get("step")),
            resumed_from=_int(data.get("resumedFrom")),
            steps_lost=_int(data.get("stepsLost")),
            seconds_lost=_float(data.get("secondsLost")),
            recovered_in=_int(data.get("recoveredInRound")),
            action=_text(data.get("action")),
            recovery=_phases(data.get("recovery")),
            restored=tuple(
                (_text(item.get("pod")), _text(item.get("source")))
                for item in _items(data, "restored")
                if isinstance(item, Mapping)
            ),
            stacks=_text(data.get("stacks")),
        )


def _phases(data: object) -> tuple[tuple[str, float], ...]:
    found = data if isinstance(data, Mapping) else {}
    amounts = ((name, _float(found.get(name))) for name in RECOVERY_PHASES)
    return tuple((name, amount) for name, amount in amounts if amount is not None)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A TrainingJob, as far as this command talks about it."""

    name: str
    namespace: str
    uid: str = ""
    created: datetime | None = None
    deleting: bool = False
    generation: int | None = None
    observed_generation: int | None = None
    replicas: int = 1
    min_replicas: int = 1
    suspend: bool = False
    checkpoint_root: str = ""
    phase: str = ""
    """Empty until an operator has looked at the job."""
    message: str = ""
    ready: str = ""
    round: int | None = None
    started: datetime | None = None
    completed: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    samples: int | None = None
    samples_per_second: float | None = None
    eta: datetime | None = None
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None
    checkpoint_uri: str = ""
    restarts: tuple[tuple[str, int], ...] = ()
    """Incidents by class, without the total."""
    goodput: float | None = None
    goodput_unknown: bool = False
    """It trains, and nobody counts what of that is productive."""
    productive_seconds: float | None = None
    lost_seconds: tuple[tuple[str, float], ...] = ()
    incidents: tuple[IncidentView, ...] = ()
    """Newest last."""

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in FINAL_PHASES

    @property
    def seen(self) -> bool:
        """Whether an operator has looked at it, whatever came of that."""
        return bool(self.phase or self.conditions)

    @property
    def steps_unknown(self) -> bool:
        """Whether it trains or has trained, and nobody counts the steps."""
        return self.goodput_unknown and self.step is None

    @property
    def fraction(self) -> float | None:
        """Share of the steps that are done, 0 to 1; None while the total is unknown."""
        if self.step is None or not self.total_steps:
            return None
        return min(1.0, self.step / self.total_steps)

    @property
    def validation(self) -> tuple[tuple[str, float], ...]:
        """The metrics that are not of training, whose loss is shown anyway; else all."""
        found = tuple(entry for entry in self.metrics if not entry[0].startswith("train"))
        return found or self.metrics

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type, if the job has it."""
        return next((entry for entry in self.conditions if entry.type == kind), None)

    def holds(self, kind: str) -> Condition | None:
        """The condition of this type, if it is True."""
        found = self.condition(kind)
        return found if found is not None and found.true else None

    @classmethod
    def read(cls, document: Document) -> Self:
        """From the object as the API server gives it."""
        metadata, spec = _section(document, "metadata"), _section(document, "spec")
        status = _section(document, "status")
        progress, checkpoint = _section(status, "progress"), _section(status, "checkpoint")
        restarts, goodput = _section(status, "restarts"), _section(status, "goodput")
        return cls(
            name=_text(metadata.get("name")),
            namespace=_text(metadata.get("namespace")),
            uid=_text(metadata.get("uid")),
            created=parse_time(metadata.get("creationTimestamp")),
            deleting=bool(metadata.get("deletionTimestamp")),
            generation=_int(metadata.get("generation")),
            observed_generation=_int(status.get("observedGeneration")),
            replicas=_int(spec.get("replicas")) or 1,
            min_replicas=_int(_section(spec, "elastic").get("minReplicas")) or 1,
            suspend=spec.get("suspend") is True,
            checkpoint_root=_text(_section(spec, "checkpoint").get("uri")),
            phase=_text(status.get("phase")),
            message=_text(status.get("message")),
            ready=_text(status.get("ready")),
            round=_int(status.get("round")),
            started=parse_time(status.get("startTime")),
            completed=parse_time(status.get("completionTime")),
            conditions=tuple(
                Condition(
                    type=_text(entry.get("type")),
                    status=_text(entry.get("status")),
                    reason=_text(entry.get("reason")),
                    message=_text(entry.get("message")),
                )
                for entry in _items(status, "conditions")
                if isinstance(entry, Mapping)
            ),
            step=_int(progress.get("step")),
            total_steps=_int(progress.get("totalSteps")),
            epoch=_int(progress.get("epoch")),
            loss=_float(progress.get("loss")),
            metrics=_figures(_section(progress, "metrics")),
            samples=_int(progress.get("samples")),
            samples_per_second=_float(progress.get("samplesPerSecond")),
            eta=parse_time(progress.get("eta")),
            checkpoint_step=_int(checkpoint.get("step")),
            checkpoint_at=parse_time(checkpoint.get("committedAt")),
            checkpoint_uri=_text(checkpoint.get("uri")),
            restarts=tuple(
                (kind, number)
                for kind in ("preemption", "infrastructure", "user")
                if (number := _int(restarts.get(kind)))
            ),
            goodput=_float(goodput.get("ratio")),
            goodput_unknown=goodput.get("percent") == "unknown",
            productive_seconds=_float(goodput.get("productiveSeconds")),
            lost_seconds=_figures(_section(goodput, "lost")),
            incidents=tuple(IncidentView.read(entry) for entry in _items(status, "incidents")),
        )


def _figures(section: Document) -> tuple[tuple[str, float], ...]:
    found = ((str(name), _float(value)) for name, value in section.items())
    return tuple((name, value) for name, value in found if value is not None)


@dataclass(frozen=True, kw_only=True)
class PodView:
    """A pod of the job."""

    name: str
    uid: str
    index: int | None = None
    generation: int = 0
    node: str = ""
    phase: str = "Pending"
    ready: bool = False
    deleting: bool = False
    waiting: str = ""
    """Why its container does not start, if it says so: ``ErrImagePull: ...``."""
    exit_code: int | None = None
    ended_by: str = ""
    """The container runtime's word for the end: Completed, Error, OOMKilled."""
    outcome: api.Outcome | None = None
    """The termination message, where the launcher could write one."""

    @classmethod
    def read(cls, document: Document) -> Self:
        """From the object as the API server gives it."""
        metadata, status = _section(document, "metadata"), _section(document, "status")
        labels = _section(metadata, "labels")
        trainer: Document = next(
            (
                entry
                for entry in _items(status, "containerStatuses")
                if isinstance(entry, Mapping) and entry.get("name") == api.TRAINER_CONTAINER
            ),
            {},
        )
        waiting = _section(trainer, "state", "waiting")
        ended = _section(trainer, "state", "terminated")
        reason = _text(waiting.get("reason"))
        trouble = "" if reason in {"", "ContainerCreating", "PodInitializing"} else reason
        if not trouble:
            trouble = _unschedulable(status)
        elif waiting.get("message"):
            trouble = f"{trouble}: {_text(waiting.get('message'))}"
        return cls(
            name=_text(metadata.get("name")),
            uid=_text(metadata.get("uid")),
            index=_label(labels, api.LABEL_INDEX),
            generation=_label(labels, api.LABEL_GENERATION) or 0,
            node=_text(_section(document, "spec").get("nodeName")),
            phase=_text(status.get("phase")) or "Pending",
            ready=any(
                isinstance(entry, Mapping)
                and entry.get("type") == "Ready"
                and entry.get("status") == "True"
                for entry in _items(status, "conditions")
            ),
            deleting=bool(metadata.get("deletionTimestamp")),
            waiting=trouble,
            exit_code=_int(ended.get("exitCode")),
            ended_by=_text(ended.get("reason")),
            outcome=_outcome(ended.get("message")),
        )


def _label(labels: Document, name: str) -> int | None:
    text = _text(labels.get(name))
    return int(text) if text.isdigit() else None


def _unschedulable(status: Document) -> str:
    for entry in _items(status, "conditions"):
        if (
            isinstance(entry, Mapping)
            and entry.get("type") == "PodScheduled"
            and entry.get("status") == "False"
        ):
            return f"{_text(entry.get('reason'))}: {_text(entry.get('message'))}".strip(": ")
    return ""


def _outcome(message: object) -> api.Outcome | None:
    """The launcher's own account, or None: programs may write anything there."""
    try:
        return api.Outcome.from_json(json.loads(_text(message)))
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job and its pods at one moment."""

    at: datetime
    job: JobView | None
    """None once the job is gone."""
    pods: tuple[PodView, ...] = ()
    """In the order of indexes."""
    gone: tuple[PodView, ...] = ()
    """Pods that were deleted since the snapshot before, as they were at their end."""
    rounds: tuple[RoundView, ...] = ()
    """As far as known, oldest first."""

    @classmethod
    def read(
        cls,
        *,
        at: datetime,
        job: Document | None,
        pods: Iterable[Document] = (),
        gone: Iterable[Document] = (),
        rounds: tuple[RoundView, ...] = (),
    ) -> Self:
        """From the objects as the API server gives them."""
        found = [PodView.read(document) for document in pods]
        found.sort(
            key=lambda pod: (-1 if pod.index is None else pod.index, pod.generation, pod.name)
        )
        return cls(
            at=at,
            job=None if job is None else JobView.read(job),
            pods=tuple(found),
            gone=tuple(PodView.read(document) for document in gone),
            rounds=rounds,
        )
