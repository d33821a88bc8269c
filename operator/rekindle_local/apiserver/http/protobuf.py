"""Decode the protobuf bodies that kubectl sends for typed calls; answers are always JSON.

kubectl 1.32 and later writes `create namespace`, `create secret`, evictions, delete options and
access reviews in protobuf and does not fall back when that is refused. The envelope is four magic
bytes and an `Unknown` message with apiVersion, kind and the raw object.

The table below names, for each message that such a body can hold, the number, JSON name and type of
its fields. A field that is not in the table, or a kind that is not, is refused with 415: nothing is
dropped silently. Zero values are left out, as JSON encoding would, unless the field is a pointer
(marked `?`), where zero means something else than absent (`gracePeriodSeconds: 0`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

from rekindle_local.apiserver.errors import ApiError, Json, bad_request

PROTOBUF = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\0"

_TABLE = """
Namespace: 1 metadata ObjectMeta, 2 spec NamespaceSpec, 3 status Skipped
NamespaceSpec: 1 finalizers []text
Secret: 1 metadata ObjectMeta, 2 data {}bytes, 3 type text, 4 stringData {}text, 5 immutable
    bool?
ConfigMap: 1 metadata ObjectMeta, 2 data {}text, 3 binaryData {}bytes, 4 immutable bool?
ServiceAccount: 1 metadata ObjectMeta, 2 secrets []ObjectReference, 3 imagePullSecrets
    []LocalObjectReference, 4 automountServiceAccountToken bool?
ObjectReference: 1 kind text, 2 namespace text, 3 name text, 4 uid text, 5 apiVersion text, 6
    resourceVersion text, 7 fieldPath text
LocalObjectReference: 1 name text
Service: 1 metadata ObjectMeta, 2 spec ServiceSpec, 3 status Skipped
ServiceSpec: 1 ports []ServicePort, 2 selector {}text, 3 clusterIP text, 4 type text, 5
    externalIPs []text, 7 sessionAffinity text, 8 loadBalancerIP text, 9
    loadBalancerSourceRanges []text, 10 externalName text, 11 externalTrafficPolicy text, 12
    healthCheckNodePort int, 13 publishNotReadyAddresses bool, 17 ipFamilyPolicy text, 18
    clusterIPs []text, 19 ipFamilies []text, 20 allocateLoadBalancerNodePorts bool?, 21
    loadBalancerClass text, 22 internalTrafficPolicy text, 23 trafficDistribution text
ServicePort: 1 name text, 2 protocol text, 3 port int, 4 targetPort IntOrString, 5 nodePort int,
    6 appProtocol text
Eviction: 1 metadata ObjectMeta, 2 deleteOptions DeleteOptions
PodDisruptionBudget: 1 metadata ObjectMeta, 2 spec PodDisruptionBudgetSpec, 3 status Skipped
PodDisruptionBudgetSpec: 1 minAvailable IntOrString, 2 selector LabelSelector, 3 maxUnavailable
    IntOrString, 4 unhealthyPodEvictionPolicy text
Role: 1 metadata ObjectMeta, 2 rules []PolicyRule
RoleBinding: 1 metadata ObjectMeta, 2 subjects []Subject, 3 roleRef RoleRef
ClusterRole: 1 metadata ObjectMeta, 2 rules []PolicyRule, 3 aggregationRule AggregationRule
AggregationRule: 1 clusterRoleSelectors []LabelSelector
ClusterRoleBinding: 1 metadata ObjectMeta, 2 subjects []Subject, 3 roleRef RoleRef
PolicyRule: 1 verbs []text, 2 apiGroups []text, 3 resources []text, 4 resourceNames []text, 5
    nonResourceURLs []text
Subject: 1 kind text, 2 apiGroup text, 3 name text, 4 namespace text
RoleRef: 1 apiGroup text, 2 kind text, 3 name text
PriorityClass: 1 metadata ObjectMeta, 2 value int?, 3 globalDefault bool, 4 description text, 5
    preemptionPolicy text
SelfSubjectAccessReview: 1 metadata ObjectMeta, 2 spec SelfSubjectAccessReviewSpec, 3 status
    Skipped
SelfSubjectAccessReviewSpec: 1 resourceAttributes ResourceAttributes, 2 nonResourceAttributes
    NonResourceAttributes
ResourceAttributes: 1 namespace text, 2 verb text, 3 group text, 4 version text, 5 resource
    text, 6 subresource text, 7 name text
NonResourceAttributes: 1 path text, 2 verb text
SelfSubjectRulesReview: 1 metadata ObjectMeta, 2 spec SelfSubjectRulesReviewSpec, 3 status
    Skipped
SelfSubjectRulesReviewSpec: 1 namespace text
DeleteOptions: 1 gracePeriodSeconds int?, 2 preconditions Preconditions, 3 orphanDependents
    bool?, 4 propagationPolicy text, 5 dryRun []text, 6
    ignoreStoreReadErrorWithClusterBreakingPotential bool
Preconditions: 1 uid text, 2 resourceVersion text
ObjectMeta: 1 name text, 2 generateName text, 3 namespace text, 4 selfLink text, 5 uid text, 6
    resourceVersion text, 7 generation int, 8 creationTimestamp Time, 9 deletionTimestamp Time,
    10 deletionGracePeriodSeconds int?, 11 labels {}text, 12 annotations {}text, 13
    ownerReferences []OwnerReference, 14 finalizers []text
OwnerReference: 1 kind text, 3 name text, 4 uid text, 5 apiVersion text, 6 controller bool?, 7
    blockOwnerDeletion bool?
LabelSelector: 1 matchLabels {}text, 2 matchExpressions []LabelSelectorRequirement
LabelSelectorRequirement: 1 key text, 2 operator text, 3 values []text
Deployment: 1 metadata ObjectMeta, 2 spec DeploymentSpec, 3 status Skipped
DeploymentSpec: 1 replicas int?, 2 selector LabelSelector, 3 template PodTemplateSpec, 4
    strategy DeploymentStrategy, 5 minReadySeconds int, 6 revisionHistoryLimit int?, 7 paused
    bool, 9 progressDeadlineSeconds int?
DeploymentStrategy: 1 type text, 2 rollingUpdate RollingUpdateDeployment
RollingUpdateDeployment: 1 maxUnavailable IntOrString, 2 maxSurge IntOrString
PodTemplateSpec: 1 metadata ObjectMeta, 2 spec PodSpec
PodSpec: 2 containers []Container, 3 restartPolicy text, 4 terminationGracePeriodSeconds int?, 5
    activeDeadlineSeconds int?, 6 dnsPolicy text, 7 nodeSelector {}text, 8 serviceAccountName
    text, 9 serviceAccount text, 10 nodeName text, 11 hostNetwork bool, 12 hostPID bool, 13
    hostIPC bool, 16 hostname text, 17 subdomain text, 19 schedulerName text, 20 initContainers
    []Container, 21 automountServiceAccountToken bool?, 24 priorityClassName text, 25 priority
    int?, 27 shareProcessNamespace bool?, 29 runtimeClassName text, 30 enableServiceLinks bool?,
    31 preemptionPolicy text, 35 setHostnameAsFQDN bool?, 37 hostUsers bool?, 41
    hostnameOverride text
Container: 1 name text, 2 image text, 3 command []text, 4 args []text, 5 workingDir text, 6
    ports []ContainerPort, 7 env []EnvVar, 8 resources ResourceRequirements, 13
    terminationMessagePath text, 14 imagePullPolicy text, 16 stdin bool, 17 stdinOnce bool, 18
    tty bool, 20 terminationMessagePolicy text, 24 restartPolicy text
ContainerPort: 1 name text, 2 hostPort int, 3 containerPort int, 4 protocol text, 5 hostIP text
EnvVar: 1 name text, 2 value text
ResourceRequirements: 1 limits {}Quantity, 2 requests {}Quantity
ResourceQuota: 1 metadata ObjectMeta, 2 spec ResourceQuotaSpec, 3 status Skipped
ResourceQuotaSpec: 1 hard {}Quantity, 2 scopes []text, 3 scopeSelector ScopeSelector
ScopeSelector: 1 matchExpressions []ScopedResourceSelectorRequirement
ScopedResourceSelectorRequirement: 1 scopeName text, 2 operator text, 3 values []text
HorizontalPodAutoscaler: 1 metadata ObjectMeta, 2 spec HorizontalPodAutoscalerSpec, 3 status
    Skipped
HorizontalPodAutoscalerSpec: 1 scaleTargetRef CrossVersionObjectReference, 2 minReplicas int?, 3
    maxReplicas int, 4 targetCPUUtilizationPercentage int?
CrossVersionObjectReference: 1 kind text, 2 name text, 3 apiVersion text
HorizontalPodAutoscalerV2: 1 metadata ObjectMeta, 2 spec HorizontalPodAutoscalerSpecV2, 3 status
    Skipped
HorizontalPodAutoscalerSpecV2: 1 scaleTargetRef CrossVersionObjectReference, 2 minReplicas int?,
    3 maxReplicas int, 4 metrics []MetricSpec
MetricSpec: 1 type text, 4 resource ResourceMetricSource
ResourceMetricSource: 1 name text, 2 target MetricTarget
MetricTarget: 1 type text, 2 value Quantity, 3 averageValue Quantity, 4 averageUtilization int?
"""

_MESSAGES = {("autoscaling/v2", "HorizontalPodAutoscaler"): "HorizontalPodAutoscalerV2"}
"""Messages whose name is not their kind's: a kind that has another form in each version."""

_ROOTS = {
    ("v1", "Namespace"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("v1", "Service"),
    ("v1", "ResourceQuota"),
    ("apps/v1", "Deployment"),
    ("autoscaling/v1", "HorizontalPodAutoscaler"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "Eviction"),
    ("policy/v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("scheduling.k8s.io/v1", "PriorityClass"),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Field = tuple[str, str]
"""JSON name and type of a field."""


@cache
def _messages() -> dict[str, dict[int, _Field]]:
    messages: dict[str, dict[int, _Field]] = {}
    text = _TABLE.strip().replace("\n    ", " ")
    for line in text.splitlines():
        name, _, rest = line.partition(": ")
        fields = (item.split() for item in rest.split(", "))
        messages[name] = {int(number): (json_name, kind) for number, json_name, kind in fields}
    return messages


def _refused(what: str) -> ApiError:
    return ApiError(
        415,
        "UnsupportedMediaType",
        f"the body is protobuf and {what} is not understood in that form: send application/json",
    )


def decode_body(raw: bytes) -> Json:
    """Return the object in a body; raises 415 for what the table does not hold, 400 for garbage."""
    if not raw.startswith(_MAGIC):
        raise bad_request("the body is no Kubernetes protobuf: it lacks the prefix k8s\\0")
    api_version = kind = ""
    inner = b""
    for number, _, value in _fields(raw[len(_MAGIC) :]):
        if number == 1:
            for part, _, text in _fields(_as_bytes(value)):
                if part == 1:
                    api_version = _as_text(text)
                elif part == 2:
                    kind = _as_text(text)
        elif number == 2:
            inner = _as_bytes(value)
    # Delete options are sent in the group of whatever is deleted.
    if kind != "DeleteOptions" and (api_version, kind) not in _ROOTS:
        raise _refused(f"{kind} of {api_version}")
    message = _MESSAGES.get((api_version, kind), kind)
    return {"apiVersion": api_version, "kind": kind, **_message(message, inner)}


def _message(name: str, raw: bytes) -> Json:
    fields = _messages()[name]
    result: Json = {}
    for number, wire, value in _fields(raw):
        if number not in fields:
            raise _refused(f"field {number} of {name}")
        json_name, kind = fields[number]
        pointer, kind = kind.endswith("?"), kind.removesuffix("?")
        if kind == "Skipped":
            # A status: empty in what a client creates, and not the client's to set.
            continue
        if kind.startswith("{}"):
            key, item = _entry(_as_bytes(value), kind[2:])
            result.setdefault(json_name, {})[key] = item
        elif kind.startswith("[]"):
            result.setdefault(json_name, []).append(_value(kind[2:], wire, value))
        else:
            made = _value(kind, wire, value)
            if made is not None and (pointer or made not in ("", 0, False)):
                result[json_name] = made
    return result


def _entry(raw: bytes, kind: str) -> tuple[str, Any]:
    key, item = "", _value(kind, _BYTES, b"")
    for number, wire, value in _fields(raw):
        if number == 1:
            key = _as_text(value)
        elif number == 2:
            item = _value(kind, wire, value)
    return key, item


def _value(kind: str, wire: int, value: int | bytes) -> Any:
    match kind:
        case "int":
            number = value if isinstance(value, int) else 0
            return number - (1 << 64) if number >= 1 << 63 else number
        case "bool":
            return bool(value)
        case "text":
            return _as_text(value)
        case "bytes":
            return base64.b64encode(_as_bytes(value)).decode()
        case "Quantity":
            return next((_as_text(text) for _, _, text in _fields(_as_bytes(value))), "0")
        case "Time":
            seconds = next((item for part, _, item in _fields(_as_bytes(value)) if part == 1), None)
            if not isinstance(seconds, int):
                return None
            return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case "IntOrString":
            parts = {part: item for part, _, item in _fields(_as_bytes(value))}
            if parts.get(1):
                return _as_text(parts.get(3, b""))
            return _value("int", _VARINT, parts.get(2, 0))
    return _message(kind, _as_bytes(value))


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise bad_request("the protobuf body is malformed: a number where a text belongs")
    return value


def _as_text(value: int | bytes) -> str:
    try:
        return _as_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise bad_request(f"the protobuf body is malformed: {error}") from error


def _fields(raw: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (field number, wire type, value) of a message; raises 400 when it is cut short."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        wire = tag & 7
        if wire == _VARINT:
            number, at = _varint(raw, at)
            yield tag >> 3, wire, number
            continue
        if wire == _BYTES:
            size, at = _varint(raw, at)
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise bad_request(f"the protobuf body is malformed: wire type {wire}")
        if at + size > len(raw):
            raise bad_request("the protobuf body is malformed: it ends within a field")
        yield tag >> 3, wire, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise bad_request("the protobuf body is malformed: a number does not end")
        byte = raw[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return result, at
        shift += 7
