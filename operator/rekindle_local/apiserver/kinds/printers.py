"""What `kubectl get` shows of built-in kinds: the columns, and a function that fills them.

They are written as the real server writes them, because people and scripts read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.kinds.storage_kinds import is_default

Cells = Callable[[Json, float], list[Any]]


def age(timestamp: Any, now: float) -> str:
    """Return the time since a timestamp as kubectl writes ages: 5s, 3m10s, 4h, 12d."""
    if not timestamp:
        return "<unknown>"
    try:
        seconds = int(now - datetime.fromisoformat(str(timestamp)).timestamp())
    except ValueError:
        return "<invalid>"
    if seconds < -1:
        return "<invalid>"
    return duration(max(seconds, 0))


def duration(seconds: int) -> str:
    """Return a span of seconds in at most two units, coarser with its size."""
    if seconds < 120:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, rest = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{rest}m" if rest else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, rest = divmod(hours, 24)
    if days < 8:
        return f"{days}d{rest}h" if rest else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = divmod(days, 365)
    return f"{years}y{rest}d" if years < 8 and rest else f"{years}y"


@dataclass(frozen=True, kw_only=True)
class Printer:
    """The columns of a built-in kind after Name, and how to fill them."""

    columns: tuple[tuple[str, str, int], ...]
    """(name, type, priority); priority 1 shows with -o wide only."""
    cells: Cells


def _created(obj: Json, now: float) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _pod(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    sidecars = _sidecars(spec)
    own = [item for item in status.get("initContainerStatuses") or [] if item["name"] in sidecars]
    up = [item for item in own if item.get("started")]
    if _initializing(obj) is not None and not _initialized(status):
        counted = status.get("initContainerStatuses") or []
    else:
        counted = [*own, *(status.get("containerStatuses") or [])]
    ready = sum(bool(item.get("ready")) for item in (*up, *(status.get("containerStatuses") or [])))
    gates = spec.get("readinessGates") or []
    conditions = {item["type"]: item["status"] for item in status.get("conditions") or []}
    open_gates = sum(conditions.get(gate["conditionType"]) == "True" for gate in gates)
    return [
        f"{ready}/{len(spec.get('containers') or []) + len(sidecars)}",
        pod_status(obj),
        _restarts(counted, now),
        _created(obj, now),
        status.get("podIP") or "<none>",
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        "<none>" if not gates else f"{open_gates}/{len(gates)}",
    ]


def _restarts(statuses: list[Json], now: float) -> str:
    """Return how often containers were started again, and when the last one was."""
    count = sum(item.get("restartCount", 0) for item in statuses)
    ends = [
        ended["finishedAt"]
        for item in statuses
        if (ended := (item.get("lastState") or {}).get("terminated")) and ended.get("finishedAt")
    ]
    return f"{count} ({age(max(ends), now)} ago)" if count and ends else str(count)


def _sidecars(spec: Json) -> set[str]:
    return {
        item["name"]
        for item in spec.get("initContainers") or []
        if item.get("restartPolicy") == "Always"
    }


def _initialized(status: Json) -> bool:
    return any(
        item["type"] == "Initialized" and item["status"] == "True"
        for item in status.get("conditions") or []
    )


def _initializing(obj: Json) -> str | None:
    """Return which init container the pod is at and how it stands there; None when all are done."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    sidecars = _sidecars(spec)
    for at, item in enumerate(status.get("initContainerStatuses") or []):
        state = item.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended is not None and ended.get("exitCode") == 0:
            continue
        if item["name"] in sidecars and item.get("started"):
            continue
        if ended is not None:
            return f"Init:{ended.get('reason') or _exit(ended)}"
        if waiting is not None and waiting.get("reason") not in {None, "", "PodInitializing"}:
            return f"Init:{waiting['reason']}"
        return f"Init:{at}/{len(spec.get('initContainers') or [])}"
    return None


def pod_status(obj: Json) -> str:
    """Return the word in a pod's Status column: the phase, or why it is not what it should be."""
    status = obj.get("status") or {}
    phase = status.get("phase")
    reason = status.get("reason") or phase or "Unknown"
    gone = status.get("reason") == "NodeLost"
    for item in status.get("conditions") or []:
        if item["type"] == "PodScheduled" and item.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    initializing = _initializing(obj)
    if initializing is not None and not _initialized(status):
        reason = initializing
    else:
        running = False
        for item in reversed(status.get("containerStatuses") or []):
            state = item.get("state") or {}
            waiting, ended = state.get("waiting"), state.get("terminated")
            if waiting and waiting.get("reason"):
                reason = waiting["reason"]
            elif ended:
                reason = ended.get("reason") or _exit(ended)
            elif item.get("ready") and state.get("running"):
                running = True
        if reason == "Completed" and running:
            reason = "Running"
    if obj["metadata"].get("deletionTimestamp") and (gone or phase not in {"Succeeded", "Failed"}):
        return "Unknown" if gone else "Terminating"
    return str(reason)


def _exit(ended: Json) -> str:
    return (
        f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode')}"
    )


def _node(obj: Json, now: float) -> list[Any]:
    status = obj.get("status") or {}
    ready = next((c for c in status.get("conditions") or [] if c.get("type") == "Ready"), None)
    words = ["Unknown" if ready is None else "Ready" if ready["status"] == "True" else "NotReady"]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    prefix = "node-role.kubernetes.io/"
    roles = sorted(
        key.removeprefix(prefix)
        for key in obj["metadata"].get("labels") or {}
        if key.startswith(prefix)
    )
    info = status.get("nodeInfo") or {}
    addresses = {item["type"]: item["address"] for item in status.get("addresses") or []}
    return [
        ",".join(words),
        ",".join(roles) or "<none>",
        _created(obj, now),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _service(obj: Json, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    ports = [f"{item['port']}/{item.get('protocol', 'TCP')}" for item in spec.get("ports") or []]
    return [
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or "<none>",
        spec.get("externalName") or "<none>",
        ",".join(ports) or "<none>",
        _created(obj, now),
        _pairs(spec.get("selector")),
    ]


def event_cells(obj: Json, now: float) -> list[Any]:
    """Return the cells of an event, in either of its two forms."""
    core = "involvedObject" in obj
    about = obj.get("involvedObject" if core else "regarding") or {}
    source = obj.get("source" if core else "deprecatedSource") or {}
    count = obj.get("count" if core else "deprecatedCount") or 1
    first = obj.get("firstTimestamp" if core else "deprecatedFirstTimestamp") or obj.get(
        "eventTime"
    )
    last = obj.get("lastTimestamp" if core else "deprecatedLastTimestamp")
    series = obj.get("series") or {}
    last = (
        series.get("lastObservedTime") or last or first or obj["metadata"].get("creationTimestamp")
    )
    component = (
        source.get("component") or obj.get("reportingComponent") or obj.get("reportingController")
    )
    target = about.get("kind", "").lower()
    return [
        age(last, now),
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{target}/{about.get('name', '')}",
        about.get("fieldPath", ""),
        ", ".join(text for text in (component, source.get("host")) if text),
        (obj.get("message" if core else "note") or "").strip(),
        age(first or last, now),
        series.get("count") or count,
        obj["metadata"]["name"],
    ]


def _pairs(labels: Json | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or "<none>"


def _deployment(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    containers = ((spec.get("template") or {}).get("spec") or {}).get("containers") or []
    return [
        f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _created(obj, now),
        ",".join(item["name"] for item in containers),
        ",".join(item["image"] for item in containers),
        _pairs((spec.get("selector") or {}).get("matchLabels")),
    ]


def _budget(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return [
        str(spec.get("minAvailable", "N/A")),
        str(spec.get("maxUnavailable", "N/A")),
        status.get("disruptionsAllowed", 0),
        _created(obj, now),
    ]


def _policy(obj: Json, now: float) -> list[Any]:
    selector = (obj.get("spec") or {}).get("podSelector") or {}
    return [_pairs(selector.get("matchLabels")), _created(obj, now)]


def _binding(obj: Json, now: float) -> list[Any]:
    role = obj.get("roleRef") or {}
    return [f"{role.get('kind')}/{role.get('name')}", _created(obj, now)]


_SHORT_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _modes(modes: list[str] | None) -> str:
    return ",".join(_SHORT_MODES.get(mode, mode) for mode in modes or [])


def _claim(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    going = obj["metadata"].get("deletionTimestamp")
    bound = bool(spec.get("volumeName"))
    return [
        "Terminating" if going else status.get("phase", ""),
        spec.get("volumeName", ""),
        (status.get("capacity") or {}).get("storage", "") if bound else "",
        _modes(status.get("accessModes")) if bound else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        _created(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _volume(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef") or {}
    going = obj["metadata"].get("deletionTimestamp")
    return [
        (spec.get("capacity") or {}).get("storage", ""),
        _modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        "Terminating" if going else status.get("phase", ""),
        f"{claim.get('namespace')}/{claim.get('name')}" if claim else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        status.get("reason", ""),
        _created(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _class(obj: Json, now: float) -> list[Any]:
    return [
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy", ""),
        obj.get("volumeBindingMode", ""),
        bool(obj.get("allowVolumeExpansion")),
        _created(obj, now),
    ]


def _quota(obj: Json, now: float) -> list[Any]:
    status = obj.get("status") or {}
    hard = status.get("hard") or (obj.get("spec") or {}).get("hard") or {}
    used = status.get("used") or {}
    lines = {name: f"{name}: {used.get(name, '0')}/{hard[name]}" for name in sorted(hard)}
    limits = [text for name, text in lines.items() if name.startswith("limits.")]
    others = [text for name, text in lines.items() if not name.startswith("limits.")]
    return [", ".join(others), ", ".join(limits), _created(obj, now)]


def _autoscaler(obj: Json, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    ref = spec.get("scaleTargetRef") or {}
    targets = [
        f"{resource['name']}: <unknown>/{resource['target'].get('averageUtilization')}%"
        for metric in spec.get("metrics") or []
        if (resource := metric.get("resource")) and resource.get("target")
    ]
    if percent := spec.get("targetCPUUtilizationPercentage"):
        targets.append(f"<unknown>/{percent}%")
    return [
        f"{ref.get('kind')}/{ref.get('name')}",
        ", ".join(targets) or "<none>",
        str(spec.get("minReplicas", "<unset>")),
        spec.get("maxReplicas", 0),
        status.get("currentReplicas", 0),
        _created(obj, now),
    ]


def _ingress(obj: Json, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    hosts = [rule["host"] for rule in spec.get("rules") or [] if rule.get("host")]
    ports = "80, 443" if spec.get("tls") else "80"
    return [
        spec.get("ingressClassName") or "<none>",
        ",".join(hosts) or "*",
        "",
        ports,
        _created(obj, now),
    ]


def name_cell(obj: Json) -> str:
    """Return the cell of the name; of the default storage class it says so."""
    name = str(obj["metadata"]["name"])
    default = obj.get("kind") == "StorageClass" and is_default(obj)
    return f"{name} (default)" if default else name


def _creation_time(obj: Json, now: float) -> list[Any]:
    return [obj["metadata"].get("creationTimestamp", "")]


_AGE = ("Age", "string", 0)

PRINTERS: dict[str, Printer] = {
    "Pod": Printer(
        columns=(
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            _AGE,
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ),
        cells=_pod,
    ),
    "Node": Printer(
        columns=(
            ("Status", "string", 0),
            ("Roles", "string", 0),
            _AGE,
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ),
        cells=_node,
    ),
    "Service": Printer(
        columns=(
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            _AGE,
            ("Selector", "string", 1),
        ),
        cells=_service,
    ),
    "Namespace": Printer(
        columns=(("Status", "string", 0), _AGE),
        cells=lambda obj, now: [(obj.get("status") or {}).get("phase", ""), _created(obj, now)],
    ),
    "Secret": Printer(
        columns=(("Type", "string", 0), ("Data", "integer", 0), _AGE),
        cells=lambda obj, now: [
            obj.get("type", ""),
            len(obj.get("data") or {}),
            _created(obj, now),
        ],
    ),
    "ConfigMap": Printer(
        columns=(("Data", "integer", 0), _AGE),
        cells=lambda obj, now: [
            len(obj.get("data") or {}) + len(obj.get("binaryData") or {}),
            _created(obj, now),
        ],
    ),
    "ServiceAccount": Printer(
        columns=(("Secrets", "integer", 0), _AGE),
        cells=lambda obj, now: [len(obj.get("secrets") or []), _created(obj, now)],
    ),
    "Lease": Printer(
        columns=(("Holder", "string", 0), _AGE),
        cells=lambda obj, now: [
            (obj.get("spec") or {}).get("holderIdentity", ""),
            _created(obj, now),
        ],
    ),
    "Deployment": Printer(
        columns=(
            ("Ready", "string", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            _AGE,
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ),
        cells=_deployment,
    ),
    "PodDisruptionBudget": Printer(
        columns=(
            ("Min Available", "string", 0),
            ("Max Unavailable", "string", 0),
            ("Allowed Disruptions", "integer", 0),
            _AGE,
        ),
        cells=_budget,
    ),
    "PersistentVolumeClaim": Printer(
        columns=(
            ("Status", "string", 0),
            ("Volume", "string", 0),
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("StorageClass", "string", 0),
            ("VolumeAttributesClass", "string", 0),
            _AGE,
            ("VolumeMode", "string", 1),
        ),
        cells=_claim,
    ),
    "PersistentVolume": Printer(
        columns=(
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("Reclaim Policy", "string", 0),
            ("Status", "string", 0),
            ("Claim", "string", 0),
            ("StorageClass", "string", 0),
            ("VolumeAttributesClass", "string", 0),
            ("Reason", "string", 0),
            _AGE,
            ("VolumeMode", "string", 1),
        ),
        cells=_volume,
    ),
    "StorageClass": Printer(
        columns=(
            ("Provisioner", "string", 0),
            ("ReclaimPolicy", "string", 0),
            ("VolumeBindingMode", "string", 0),
            ("AllowVolumeExpansion", "boolean", 0),
            _AGE,
        ),
        cells=_class,
    ),
    "ResourceQuota": Printer(
        columns=(("Request", "string", 0), ("Limit", "string", 0), _AGE), cells=_quota
    ),
    "HorizontalPodAutoscaler": Printer(
        columns=(
            ("Reference", "string", 0),
            ("Targets", "string", 0),
            ("MinPods", "string", 0),
            ("MaxPods", "integer", 0),
            ("Replicas", "integer", 0),
            _AGE,
        ),
        cells=_autoscaler,
    ),
    "Ingress": Printer(
        columns=(
            ("Class", "string", 0),
            ("Hosts", "string", 0),
            ("Address", "string", 0),
            ("Ports", "string", 0),
            _AGE,
        ),
        cells=_ingress,
    ),
    "NetworkPolicy": Printer(columns=(("Pod-Selector", "string", 0), _AGE), cells=_policy),
    "PriorityClass": Printer(
        columns=(("Value", "integer", 0), ("Global-Default", "boolean", 0), _AGE),
        cells=lambda obj, now: [
            obj.get("value", 0),
            bool(obj.get("globalDefault")),
            _created(obj, now),
        ],
    ),
    "RoleBinding": Printer(columns=(("Role", "string", 0), _AGE), cells=_binding),
    "ClusterRoleBinding": Printer(columns=(("Role", "string", 0), _AGE), cells=_binding),
    "Role": Printer(columns=(("Created At", "date", 0),), cells=_creation_time),
    "ClusterRole": Printer(columns=(("Created At", "date", 0),), cells=_creation_time),
    "CustomResourceDefinition": Printer(columns=(("Created At", "date", 0),), cells=_creation_time),
}
EVENT_COLUMNS = (
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Subobject", "string", 1),
    ("Source", "string", 1),
    ("Message", "string", 0),
    ("First Seen", "string", 1),
    ("Count", "integer", 1),
    ("Name", "string", 1),
)
PLAIN = Printer(columns=(_AGE,), cells=lambda obj, now: [_created(obj, now)])
