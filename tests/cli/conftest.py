"""Literal documents of a cluster: one job that was preempted once and finished."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

Document = dict[str, Any]

JOB: Document = {
    "apiVersion": "rekindle.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {
        "name": "digits",
        "namespace": "default",
        "uid": "job-uid",
        "generation": 1,
        "creationTimestamp": "2026-11-20T12:00:00Z",
    },
    "spec": {
        "replicas": 2,
        "elastic": {"minReplicas": 1},
        "checkpoint": {"uri": "s3://rekindle/digits"},
        "template": {"spec": {"containers": [{"name": "trainer", "image": "rekindle/runtime"}]}},
    },
}

STATUS: Document = {
    "observedGeneration": 1,
    "phase": "Running",
    "message": "training on 2 pods, 2 workers",
    "ready": "2/2",
    "round": 3,
    "startTime": "2026-11-20T12:00:01Z",
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Training", "message": "training"},
        {"type": "Degraded", "status": "False", "reason": "AsExpected", "message": "nothing"},
    ],
    "progress": {"step": 150, "totalSteps": 300, "epoch": 4, "loss": 0.25, "samples": 9600},
    "checkpoint": {"step": 120, "committedAt": "2026-11-20T12:00:20Z", "uri": "s3://x"},
    "restarts": {"user": 0, "infrastructure": 0, "preemption": 1, "total": 1},
    "goodput": {
        "ratio": 0.8,
        "percent": "80%",
        "productiveSeconds": 40.0,
        "lost": {"pending": 6.0, "restart": 4.0, "rework": 0.0, "stall": 0.5},
    },
    "incidents": [
        {
            "at": "2026-11-20T12:00:18.500Z",
            "round": 1,
            "cause": "Preempted",
            "evidence": "digits-1: node node-1: taint aws-node-termination-handler/spot-itn",
            "victims": ["digits-1"],
            "collateral": [],
            "step": 120,
            "resumedFrom": 120,
            "stepsLost": 0,
            "secondsLost": 4.0,
            "action": "go on from the newest state",
        }
    ],
}


def merged(base: Document, changes: Document) -> Document:
    """`base` with `changes` merged in; None removes a field, lists are replaced."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = copy.deepcopy(value)
    return result


@pytest.fixture
def job() -> Callable[..., Document]:
    """Make a job document; keywords change its status."""

    def make(*, unseen: bool = False, spec: Document | None = None, **status: Any) -> Document:
        document = merged(JOB, {"spec": spec or {}})
        if not unseen:
            document["status"] = merged(STATUS, status)
        return document

    return make


@pytest.fixture
def pod() -> Callable[..., Document]:
    """Make a pod document."""

    def make(
        name: str = "digits-0",
        *,
        phase: str = "Running",
        node: str = "node-0",
        ready: bool = True,
        generation: int = 0,
        state: Document | None = None,
        deleting: bool = False,
        conditions: list[Document] | None = None,
    ) -> Document:
        metadata: Document = {
            "name": name,
            "uid": f"{name}-{generation}",
            "labels": {
                "rekindle.dev/job": "digits",
                "rekindle.dev/index": name.split("-")[1],
                "rekindle.dev/generation": str(generation),
            },
        }
        if deleting:
            metadata["deletionTimestamp"] = "2026-11-20T12:00:19Z"
        return {
            "metadata": metadata,
            "spec": {"nodeName": node} if node else {},
            "status": {
                "phase": phase,
                "conditions": conditions
                or [{"type": "Ready", "status": "True" if ready else "False"}],
                "containerStatuses": [{"name": "trainer", "state": state or {}}],
            },
        }

    return make
