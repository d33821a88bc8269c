"""Horizontal pod autoscalers: stored in autoscaling/v2, served in v1 too, and never acted upon.

There is no metrics server here, so nothing could be computed, and the condition ScalingActive says
so from the beginning. The scale subresource of what they point to works for any other controller.
"""

from __future__ import annotations

import json

from rekindle_local.apiserver.errors import Json, StatusCause, bad_value, required

_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_NO_METRICS = (
    "the HPA was unable to compute the replica count: this cluster has no metrics server; set the "
    "number with kubectl scale"
)


def fill_defaults(spec: Json) -> None:
    """Fill the defaults of a v2 spec in place."""
    spec.setdefault("minReplicas", 1)
    if not spec.get("metrics"):
        spec["metrics"] = [_cpu(80)]


def _cpu(percent: int) -> Json:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def start(hpa: Json, now: str) -> Json:
    """Return a new autoscaler with the status that it keeps."""
    condition = {
        "type": "ScalingActive",
        "status": "False",
        "reason": "FailedGetResourceMetric",
        "message": _NO_METRICS,
        "lastTransitionTime": now,
    }
    status = {"currentReplicas": 0, "desiredReplicas": 0, "conditions": [condition]}
    return {**hpa, "status": status}


def check(spec: Json) -> list[StatusCause]:
    """Return the causes in a v2 spec."""
    causes: list[StatusCause] = []
    least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if least < 1:
        causes.append(bad_value("spec.minReplicas", least, "must be greater than or equal to 1"))
    if most < 1:
        causes.append(bad_value("spec.maxReplicas", most, "must be greater than 0"))
    elif most < least:
        text = "must be greater than or equal to `minReplicas`"
        causes.append(bad_value("spec.maxReplicas", most, text))
    for key in ("kind", "name"):
        if not (spec.get("scaleTargetRef") or {}).get(key):
            causes.append(required(f"spec.scaleTargetRef.{key}"))
    return causes


def to_v2(hpa: Json) -> Json:
    """Return a v1 autoscaler as v2."""
    spec = dict(hpa.get("spec") or {})
    metadata = dict(hpa["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    others = json.loads(annotations.pop(_METRICS, "[]"))
    annotations.pop(_CONDITIONS, None)
    metrics = [*([_cpu(percent)] if percent is not None else []), *others]
    if metrics:
        spec["metrics"] = metrics
    _set_annotations(metadata, annotations)
    return {**hpa, "apiVersion": "autoscaling/v2", "metadata": metadata, "spec": spec}


def to_v1(hpa: Json) -> Json:
    """Return a v2 autoscaler as v1; what v1 has no field for is in annotations."""
    spec, status = dict(hpa.get("spec") or {}), dict(hpa.get("status") or {})
    metadata = dict(hpa["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    others = []
    for metric in spec.pop("metrics", None) or []:
        resource = metric.get("resource") or {}
        percent = (resource.get("target") or {}).get("averageUtilization")
        first = "targetCPUUtilizationPercentage" not in spec
        if resource.get("name") == "cpu" and percent is not None and first:
            spec["targetCPUUtilizationPercentage"] = percent
        else:
            others.append(metric)
    spec.pop("behavior", None)
    if others:
        annotations[_METRICS] = json.dumps(others)
    if conditions := status.pop("conditions", None):
        annotations[_CONDITIONS] = json.dumps(conditions)
    status.pop("currentMetrics", None)
    _set_annotations(metadata, annotations)
    made = {**hpa, "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec}
    return {**made, "status": status} if "status" in hpa else made


def _set_annotations(metadata: Json, annotations: Json) -> None:
    if annotations:
        metadata["annotations"] = annotations
    else:
        metadata.pop("annotations", None)
