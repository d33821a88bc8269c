"""What the server itself knows about built-in kinds: defaults, first status, and refusals.

Structure (types, unknown and required fields) comes from the Kubernetes schemas; here is only what
those do not say. The aim is that a manifest which a real cluster refuses is refused here too, and
that an accepted pod reads back with the fields a real one has, because operators compare them.

Not here: what admission adds by policy (`admission`).
"""

from __future__ import annotations

import base64
import binascii
import copy
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

from rekindle_local.apiserver import names
from rekindle_local.apiserver.errors import (
    Json,
    StatusCause,
    bad_value,
    duplicate,
    forbidden_field,
    not_supported,
    required,
)
from rekindle_local.apiserver.kinds import autoscaling, storage_kinds
from rekindle_local.apiserver.kinds.admission import default_limits
from rekindle_local.apiserver.kinds.pod_specs import (
    check_pod_spec,
    check_pod_update,
    default_pod_spec,
    one_of,
    qos_class,
)
from rekindle_local.apiserver.schemas.rules import is_quantity, parse_quantity

NameRule = Callable[[str], list[str]]

_NAME_RULES: dict[str, NameRule] = {
    "Namespace": names.dns_label,
    "Service": names.dns_1035_label,
    "Role": names.path_segment,
    "RoleBinding": names.path_segment,
    "ClusterRole": names.path_segment,
    "ClusterRoleBinding": names.path_segment,
}

_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")


def name_rule(kind: str) -> NameRule:
    """Return what names of a kind must look like."""
    return _NAME_RULES.get(kind, names.dns_subdomain)


# --- defaults -----------------------------------------------------------------------------------


def fill_defaults(kind: str, obj: Json) -> Json:
    """Return an object with the defaults of its kind; the argument is not changed."""
    obj = copy.deepcopy(obj)
    match kind:
        case "Pod":
            default_pod_spec(obj.setdefault("spec", {}))
        case "Deployment":
            _default_deployment(obj.setdefault("spec", {}))
        case "Service":
            _default_service(obj.setdefault("spec", {}))
        case "Secret":
            obj.setdefault("type", "Opaque")
            if text := obj.pop("stringData", None):
                encoded = {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}
                obj["data"] = {**(obj.get("data") or {}), **encoded}
        case "Namespace":
            obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            labels = obj["metadata"].setdefault("labels", {})
            if obj["metadata"].get("name"):
                labels["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        case "NetworkPolicy":
            spec = obj.setdefault("spec", {})
            spec.setdefault("podSelector", {})
            spec.setdefault(
                "policyTypes", ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
            )
        case "PriorityClass":
            obj.setdefault("preemptionPolicy", "PreemptLowerPriority")
        case "RoleBinding" | "ClusterRoleBinding":
            obj.get("roleRef", {}).setdefault("apiGroup", "rbac.authorization.k8s.io")
            for subject in obj.get("subjects") or []:
                if subject.get("kind") in {"User", "Group"}:
                    subject.setdefault("apiGroup", "rbac.authorization.k8s.io")
        case "PersistentVolumeClaim" | "PersistentVolume" | "StorageClass":
            storage_kinds.fill_defaults(kind, obj)
        case "HorizontalPodAutoscaler":
            autoscaling.fill_defaults(obj.setdefault("spec", {}))
        case "LimitRange":
            for item in (obj.get("spec") or {}).get("limits") or []:
                default_limits(item)
        case "Event":
            obj.setdefault("involvedObject", {})
            obj.setdefault("reportingComponent", "")
            obj.setdefault("reportingInstance", "")
            obj.setdefault("source", {})
        case "Node":
            obj.setdefault("spec", {})
        case "CustomResourceDefinition":
            _default_crd(obj.setdefault("spec", {}))
    return obj


def _default_deployment(spec: Json) -> None:
    spec.setdefault("replicas", 1)
    strategy = spec.setdefault("strategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    default_pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))


def _default_service(spec: Json) -> None:
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")


def _default_crd(spec: Json) -> None:
    spec.setdefault("conversion", {"strategy": "None"})
    crd_names = spec.setdefault("names", {})
    kind = str(crd_names.get("kind", ""))
    crd_names.setdefault("singular", kind.lower())
    crd_names.setdefault("listKind", f"{kind}List")


# --- what a new object starts with --------------------------------------------------------------

_TOLERATED = (
    ("node.kubernetes.io/not-ready", 300),
    ("node.kubernetes.io/unreachable", 300),
)


def start(kind: str, obj: Json, now: str) -> Json:
    """Return a new object with the first status the server gives its kind."""
    match kind:
        case "Pod":
            spec = obj["spec"]
            tolerations = list(spec.get("tolerations") or [])
            for key, seconds in _TOLERATED:
                if not any(
                    item.get("key") in {key, None} and item.get("effect") in {"NoExecute", None}
                    for item in tolerations
                ):
                    tolerations.append(
                        {
                            "key": key,
                            "operator": "Exists",
                            "effect": "NoExecute",
                            "tolerationSeconds": seconds,
                        }
                    )
            spec = {**spec, "tolerations": tolerations}
            spec.setdefault("serviceAccountName", "default")
            spec["serviceAccount"] = spec["serviceAccountName"]
            return {
                **obj,
                "spec": spec,
                "status": {"phase": "Pending", "qosClass": qos_class(spec)},
            }
        case "Namespace":
            return {**obj, "status": {"phase": "Active"}}
        case "Deployment":
            return {**obj, "status": {}}
        case "Service":
            return {**obj, "status": {"loadBalancer": {}}}
        case "PersistentVolume":
            return {**obj, "status": {"phase": "Pending"}}
        case "HorizontalPodAutoscaler":
            return autoscaling.start(obj, now)
        case "ResourceQuota":
            return {**obj, "status": {}}
        case "Ingress":
            return {**obj, "status": {"loadBalancer": {}}}
        case "PodDisruptionBudget":
            zero = {
                "currentHealthy": 0,
                "desiredHealthy": 0,
                "disruptionsAllowed": 0,
                "expectedPods": 0,
            }
            return {**obj, "status": zero}
        case "CustomResourceDefinition":
            return {key: value for key, value in obj.items() if key != "status"}
    return obj


# --- refusals -----------------------------------------------------------------------------------


def check(kind: str, obj: Json, old: Json | None) -> list[StatusCause]:
    """Return the causes for a built-in object that may not be stored; `old` is None on create."""
    match kind:
        case "Pod":
            causes = check_pod_spec(obj.get("spec") or {}, "spec")
            return causes + (check_pod_update(obj, old) if old is not None else [])
        case "Deployment":
            return _check_deployment(obj.get("spec") or {}, old)
        case "Service":
            return _check_service(obj.get("spec") or {}, old)
        case "Secret":
            return [*_check_keys(obj, ("data",)), *_check_immutable(obj, old, ("data", "type"))]
        case "ConfigMap":
            return [
                *_check_keys(obj, ("data", "binaryData")),
                *_check_immutable(obj, old, ("data", "binaryData")),
            ]
        case "Lease":
            return _check_lease(obj.get("spec") or {})
        case "Event":
            return _check_event(obj)
        case "PodDisruptionBudget":
            return _check_budget(obj.get("spec") or {})
        case "Node":
            return _check_taints(obj.get("spec") or {})
        case "PriorityClass":
            return _check_priority_class(obj, old)
        case "HorizontalPodAutoscaler":
            return autoscaling.check(obj.get("spec") or {})
        case "ResourceQuota":
            return _check_amounts((obj.get("spec") or {}).get("hard") or {}, "spec.hard")
        case "PersistentVolumeClaim":
            return storage_kinds.check_claim(obj.get("spec") or {}, old)
        case "PersistentVolume":
            return storage_kinds.check_volume(obj.get("spec") or {})
        case "StorageClass":
            return storage_kinds.check_class(obj)
        case "RoleBinding" | "ClusterRoleBinding":
            if old is not None and old.get("roleRef") != obj.get("roleRef"):
                return [bad_value("roleRef", obj.get("roleRef"), "cannot change roleRef")]
    return []


def _check_deployment(spec: Json, old: Json | None) -> list[StatusCause]:
    causes: list[StatusCause] = []
    selector = spec.get("selector")
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    if not selector:
        causes.append(required("spec.selector"))
    else:
        matched = selector.get("matchLabels") or {}
        if any(labels.get(key) != value for key, value in matched.items()):
            causes.append(
                bad_value(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                )
            )
        if old is not None and (old.get("spec") or {}).get("selector") != selector:
            causes.append(bad_value("spec.selector", selector, "field is immutable"))
    if spec.get("replicas", 1) < 0:
        causes.append(
            bad_value("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
        )
    strategy = spec.get("strategy") or {}
    causes += one_of(strategy, "spec.strategy", "type", ("Recreate", "RollingUpdate"))
    if strategy.get("type") == "Recreate" and strategy.get("rollingUpdate"):
        causes.append(
            forbidden_field(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            )
        )
    causes += names.check_labels(labels, "spec.template.metadata.labels")
    causes += check_pod_spec(template.get("spec") or {}, "spec.template.spec")
    if (template.get("spec") or {}).get("restartPolicy") != "Always":
        causes.append(
            not_supported(
                "spec.template.spec.restartPolicy",
                template["spec"].get("restartPolicy"),
                ("Always",),
            )
        )
    return causes


def _check_service(spec: Json, old: Json | None) -> list[StatusCause]:
    causes = one_of(spec, "spec", "type", ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"))
    headless = spec.get("clusterIP") == "None"
    if not spec.get("ports") and not headless and spec.get("type") != "ExternalName":
        causes.append(required("spec.ports"))
    ports = spec.get("ports") or []
    seen: list[Any] = []
    for at, port in enumerate(ports):
        where = f"spec.ports[{at}]"
        number = port.get("port")
        if number is None or not 1 <= number <= 65535:
            causes.append(
                bad_value(f"{where}.port", number, "must be between 1 and 65535, inclusive")
            )
        if len(ports) > 1 and not port.get("name"):
            causes.append(required(f"{where}.name"))
        key = (number, port.get("protocol"))
        if key in seen:
            causes.append(duplicate(where, {"port": number, "protocol": port.get("protocol")}))
        seen.append(key)
    causes += names.check_labels(spec.get("selector"), "spec.selector")
    was = ((old or {}).get("spec") or {}).get("clusterIP")
    if was and spec.get("clusterIP") != was and spec.get("type") != "ExternalName":
        causes.append(
            bad_value("spec.clusterIPs[0]", spec.get("clusterIP"), "may not change once set")
        )
    if spec.get("clusterIP") not in (None, "", "None"):
        try:
            ipaddress.ip_address(spec["clusterIP"])
        except ValueError:
            causes.append(
                bad_value(
                    "spec.clusterIP",
                    spec["clusterIP"],
                    "must be empty, 'None', or a valid IP address",
                )
            )
    return causes


def _check_keys(obj: Json, fields: Iterable[str]) -> list[StatusCause]:
    causes: list[StatusCause] = []
    size = 0
    for field in fields:
        for key, value in (obj.get(field) or {}).items():
            if not _CONFIG_KEY.fullmatch(key) or len(key) > 253 or key in {".", ".."}:
                causes.append(
                    bad_value(
                        f"{field}[{key}]",
                        key,
                        "a valid config key must consist of alphanumeric characters, '-', '_' "
                        "or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name')",
                    )
                )
            size += len(value)
            if field == "binaryData" or (field == "data" and obj.get("kind") == "Secret"):
                try:
                    base64.b64decode(value, validate=True)
                except (ValueError, binascii.Error):
                    causes.append(
                        bad_value(
                            f"{field}[{key}]",
                            value[:16],
                            "must be base64; use stringData for plain text in a Secret",
                        )
                    )
    if size > 1536 * 1024:
        causes.append(
            StatusCause(
                field="data",
                reason="FieldValueTooLong",
                message="Too long: may not be more than 1048576 bytes",
            )
        )
    return causes


def _check_immutable(obj: Json, old: Json | None, fields: Iterable[str]) -> list[StatusCause]:
    if old is None:
        return []
    causes = []
    if old.get("immutable"):
        if not obj.get("immutable"):
            causes.append(
                forbidden_field("immutable", "field is immutable when `immutable` is set")
            )
        causes += [
            forbidden_field(field, "field is immutable when `immutable` is set")
            for field in fields
            if field != "type" and (obj.get(field) or {}) != (old.get(field) or {})
        ]
    if "type" in fields and obj.get("type") != old.get("type"):
        causes.append(bad_value("type", obj.get("type"), "field is immutable"))
    return causes


def _check_amounts(amounts: Json, path: str) -> list[StatusCause]:
    return [
        bad_value(f"{path}[{name}]", value, "must be a quantity that is not negative")
        for name, value in amounts.items()
        if not is_quantity(value) or parse_quantity(str(value)) < 0
    ]


def _check_lease(spec: Json) -> list[StatusCause]:
    causes = []
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        causes.append(
            bad_value(
                "spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0"
            )
        )
    if spec.get("leaseTransitions") is not None and spec["leaseTransitions"] < 0:
        causes.append(
            bad_value(
                "spec.leaseTransitions",
                spec["leaseTransitions"],
                "must be greater than or equal to 0",
            )
        )
    return causes


def _check_event(obj: Json) -> list[StatusCause]:
    about = (obj.get("involvedObject") or {}).get("namespace") or "default"
    if about != obj["metadata"].get("namespace"):
        return [bad_value("involvedObject.namespace", about, "does not match event.namespace")]
    return []


def _check_budget(spec: Json) -> list[StatusCause]:
    causes = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        causes.append(
            bad_value("spec", "object", "minAvailable and maxUnavailable cannot be both set")
        )
    for key in ("minAvailable", "maxUnavailable"):
        value = spec.get(key)
        if isinstance(value, str) and not re.fullmatch(r"\d{1,3}%", value):
            causes.append(
                bad_value(
                    f"spec.{key}",
                    value,
                    "a valid percent string must be a numeric string followed by an ending '%' "
                    "(e.g. '1%')",
                )
            )
        elif isinstance(value, int) and value < 0:
            causes.append(bad_value(f"spec.{key}", value, "must be greater than or equal to 0"))
    return causes


def _check_taints(spec: Json) -> list[StatusCause]:
    causes: list[StatusCause] = []
    seen = []
    for at, taint in enumerate(spec.get("taints") or []):
        where = f"spec.taints[{at}]"
        causes += [
            bad_value(f"{where}.key", taint.get("key", ""), text)
            for text in names.qualified_name(taint.get("key") or "")
        ]
        causes += [
            bad_value(f"{where}.value", taint["value"], text)
            for text in names.label_value(taint.get("value") or "")
        ]
        if taint.get("effect") not in {"NoSchedule", "PreferNoSchedule", "NoExecute"}:
            causes.append(
                not_supported(
                    f"{where}.effect",
                    taint.get("effect", ""),
                    ("NoSchedule", "PreferNoSchedule", "NoExecute"),
                )
            )
        if (taint.get("key"), taint.get("effect")) in seen:
            causes.append(duplicate(where, taint))
        seen.append((taint.get("key"), taint.get("effect")))
    return causes


def _check_priority_class(obj: Json, old: Json | None) -> list[StatusCause]:
    value = obj.get("value", 0)
    causes = []
    if value > 1_000_000_000 and not obj["metadata"].get("name", "").startswith("system-"):
        causes.append(
            forbidden_field(
                "value", "maximum allowed value of a user defined priority is 1000000000"
            )
        )
    if old is not None and old.get("value", 0) != value:
        causes.append(forbidden_field("value", "may not be changed in an update."))
    return causes


# --- kinds in two forms -------------------------------------------------------------------------

STORED = {"Event": "v1", "HorizontalPodAutoscaler": "autoscaling/v2"}
"""The version that is stored of each kind that is served in several."""

_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_EVENT_NAMES_BACK = {new: old for old, new in _EVENT_NAMES.items()}


def to_api_version(obj: Json, api_version: str) -> Json:
    """Return an object in another served version of its kind.

    Only events (core/v1 and events.k8s.io/v1) and autoscalers differ in more than its name.
    """
    if obj["apiVersion"] == api_version:
        return obj
    if obj["kind"] == "HorizontalPodAutoscaler":
        return autoscaling.to_v2(obj) if api_version.endswith("v2") else autoscaling.to_v1(obj)
    if obj["kind"] == "Event":
        table = _EVENT_NAMES if api_version == "events.k8s.io/v1" else _EVENT_NAMES_BACK
        obj = {table.get(key, key): value for key, value in obj.items()}
    return {**obj, "apiVersion": api_version}
