"""Pods and nodes as the API server's documents tell of them, read into the values of `observed`.

What keeps a container from starting, how a pod ended and since when it has a node are spread over
many fields; here each is read once, and whoever decides never meets a dict.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from rekindle.api import LABEL_GENERATION, LABEL_INDEX, TRAINER_CONTAINER, Outcome
from rekindle.api.timestamps import parse_time
from rekindle_operator.observed import preemption_notices
from rekindle_operator.observed.containers import (
    LOG_CHARACTERS,
    Container,
    ContainerWaiting,
    Role,
    one_line,
    parse_containers,
)
from rekindle_operator.observed.observations import AVOIDS, DEFAULT_GRACE, LABEL_TEMPLATE, Node, Pod

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


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Read a pod; None when it is no pod of a TrainingJob (labels missing or not numbers)."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = meta.get("labels") or {}
    try:
        index, generation = int(labels[LABEL_INDEX]), int(labels[LABEL_GENERATION])
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
        index=index,
        generation=generation,
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
        avoids=frozenset(filter(None, (meta.get("annotations") or {}).get(AVOIDS, "").split(","))),
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


def _waiting(containers: tuple[Container, ...]) -> ContainerWaiting | None:
    """The first container that keeps the trainer from starting until somebody does something."""
    if any(
        one.role is Role.TRAINER and (one.running_since is not None or one.ended)
        for one in containers
    ):
        return None
    for one in containers:
        if one.waiting and one.waiting.reason in START_FAILURES:
            words = one.waiting.message or one.waiting.reason
            return ContainerWaiting(
                reason=one.waiting.reason, message=f"container {one.name}: {words}"
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


def parse_node(body: Mapping[str, Any], seen_at: float, before: Node | None = None) -> Node:
    """Read what matters of a node; ``before`` is what was known of it until now."""
    meta = body["metadata"]
    known = {sign.key: sign.at for sign in before.signs} if before else {}
    return Node(
        name=meta["name"],
        hostname=(meta.get("labels") or {}).get("kubernetes.io/hostname", meta["name"]),
        signs=preemption_notices.read(body, known, seen_at),
    )
