"""Pod specs as the server knows them: defaults, and what it refuses in a pod or a pod template.

Structure (types, unknown and required fields) comes from the Kubernetes schemas; here is only what
those do not say.
"""

from __future__ import annotations

import re
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
from rekindle_local.apiserver.kinds.storage_kinds import check_claim
from rekindle_local.apiserver.schemas.rules import is_quantity, parse_quantity

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_ENV_NAME = re.compile(r"[^=\x00-\x1f\x7f-\uffff]+")


def default_pod_spec(spec: Json) -> None:
    """Fill the defaults of a pod spec in place."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("enableServiceLinks", True)
    if spec.get("serviceAccount") and not spec.get("serviceAccountName"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        _default_container(container)
        for port in (container.get("ports") or []) if spec.get("hostNetwork") else []:
            port.setdefault("hostPort", port.get("containerPort"))
    for volume in spec.get("volumes") or []:
        sources = [key for key in volume if key != "name"]
        if not sources:
            volume["emptyDir"] = {}
        for source in ("secret", "configMap", "projected", "downwardAPI"):
            if source in volume:
                volume[source].setdefault("defaultMode", 0o644)


def _default_container(container: Json) -> None:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = "@" not in image and tag in {"", "latest"}
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    if limits := resources.get("limits"):
        resources["requests"] = {**limits, **(resources.get("requests") or {})}
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
    for item in container.get("env") or []:
        if "fieldRef" in (item.get("valueFrom") or {}):
            item["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")
    for probe in _PROBES:
        if probe in container:
            _default_probe(container[probe])


def _default_probe(probe: Json) -> None:
    for key, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        probe.setdefault(key, value)
    if "httpGet" in probe:
        probe["httpGet"].setdefault("path", "/")
        probe["httpGet"].setdefault("scheme", "HTTP")


def qos_class(spec: Json) -> str:
    """Return a pod's quality-of-service class from its requests and limits."""
    resources = [
        container.get("resources") or {}
        for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    ]
    if not any(item.get("requests") or item.get("limits") for item in resources):
        return "BestEffort"
    for item in resources:
        limits, requests = item.get("limits") or {}, item.get("requests") or {}
        for name in ("cpu", "memory"):
            if name not in limits or not _equal(requests.get(name, limits[name]), limits[name]):
                return "Burstable"
    return "Guaranteed"


def _equal(one: Any, other: Any) -> bool:
    # Validation, which refuses what is no quantity, comes later.
    if not is_quantity(one) or not is_quantity(other):
        return False
    return parse_quantity(str(one)) == parse_quantity(str(other))


def check_pod_spec(spec: Json, path: str) -> list[StatusCause]:
    """Return the causes in a pod spec."""
    causes: list[StatusCause] = []
    if not spec.get("containers"):
        causes.append(required(f"{path}.containers"))
    volumes: list[str] = []
    for at, volume in enumerate(spec.get("volumes") or []):
        causes += _check_volume(volume, f"{path}.volumes[{at}]", volumes)
    seen: list[str] = []
    for group in ("initContainers", "containers"):
        for at, container in enumerate(spec.get(group) or []):
            where = f"{path}.{group}[{at}]"
            causes += _check_container(container, where, seen, volumes)
            causes += _check_role(container, where, init=group == "initContainers")
    causes += _check_host_ports(spec, path)
    causes += one_of(spec, path, "restartPolicy", ("Always", "OnFailure", "Never"))
    causes += one_of(
        spec, path, "dnsPolicy", ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
    )
    for key in ("terminationGracePeriodSeconds", "activeDeadlineSeconds"):
        low = 0 if key.startswith("t") else 1
        if spec.get(key) is not None and spec[key] < low:
            causes.append(
                bad_value(f"{path}.{key}", spec[key], f"must be greater than or equal to {low}")
            )
    for key in ("nodeName", "serviceAccountName", "hostname", "subdomain"):
        rule = names.dns_label if key in {"hostname", "subdomain"} else names.dns_subdomain
        if spec.get(key):
            causes += [bad_value(f"{path}.{key}", spec[key], text) for text in rule(spec[key])]
    causes += names.check_labels(spec.get("nodeSelector"), f"{path}.nodeSelector")
    for at, toleration in enumerate(spec.get("tolerations") or []):
        causes += _check_toleration(toleration, f"{path}.tolerations[{at}]")
    return causes


def one_of(spec: Json, path: str, key: str, allowed: tuple[str, ...]) -> list[StatusCause]:
    """Return a cause when a field has a value that is not one of the allowed ones."""
    if spec.get(key) in (None, *allowed):
        return []
    return [not_supported(f"{path}.{key}", spec[key], allowed)]


def _check_container(
    container: Json, path: str, seen: list[str], volumes: list[str]
) -> list[StatusCause]:
    causes: list[StatusCause] = []
    name = container.get("name") or ""
    if not name:
        causes.append(required(f"{path}.name"))
    else:
        causes += [bad_value(f"{path}.name", name, text) for text in names.dns_label(name)]
        if name in seen:
            causes.append(duplicate(f"{path}.name", name))
        seen.append(name)
    image = container.get("image") or ""
    if not image:
        causes.append(required(f"{path}.image"))
    elif image != image.strip():
        causes.append(
            bad_value(f"{path}.image", image, "must not have leading or trailing whitespace")
        )
    causes += one_of(container, path, "imagePullPolicy", ("Always", "IfNotPresent", "Never"))
    causes += one_of(container, path, "terminationMessagePolicy", ("FallbackToLogsOnError", "File"))
    for at, item in enumerate(container.get("env") or []):
        where = f"{path}.env[{at}]"
        if not item.get("name"):
            causes.append(required(f"{where}.name"))
        elif not _ENV_NAME.fullmatch(item["name"]):
            causes.append(
                bad_value(
                    f"{where}.name", item["name"], "must consist of printable ASCII other than '='"
                )
            )
        source = item.get("valueFrom")
        if source is not None and item.get("value"):
            causes.append(
                bad_value(
                    f"{where}.valueFrom", "", "may not be specified when `value` is not empty"
                )
            )
        if source is not None and len(source) != 1:
            text = "may not have more than one field specified at a time"
            if not source:
                text = (
                    "must specify one of: fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef"
                )
            causes.append(bad_value(f"{where}.valueFrom", "", text))
    ports: list[str] = []
    for at, port in enumerate(container.get("ports") or []):
        where = f"{path}.ports[{at}]"
        number = port.get("containerPort")
        if number is None:
            causes.append(required(f"{where}.containerPort"))
        elif not 1 <= number <= 65535:
            causes.append(
                bad_value(
                    f"{where}.containerPort", number, "must be between 1 and 65535, inclusive"
                )
            )
        causes += one_of(port, where, "protocol", ("SCTP", "TCP", "UDP"))
        if port.get("name"):
            if len(port["name"]) > 15:
                causes.append(
                    bad_value(f"{where}.name", port["name"], "must be no more than 15 characters")
                )
            if port["name"] in ports:
                causes.append(duplicate(f"{where}.name", port["name"]))
            ports.append(port["name"])
    mounts: list[str] = []
    for at, mount in enumerate(container.get("volumeMounts") or []):
        where = f"{path}.volumeMounts[{at}]"
        if not mount.get("name"):
            causes.append(required(f"{where}.name"))
        elif mount["name"] not in volumes:
            causes.append(
                StatusCause(
                    field=f"{where}.name",
                    reason="FieldValueNotFound",
                    message=f'Not found: "{mount["name"]}"',
                )
            )
        if not mount.get("mountPath"):
            causes.append(required(f"{where}.mountPath"))
        elif mount["mountPath"] in mounts:
            causes.append(bad_value(f"{where}.mountPath", mount["mountPath"], "must be unique"))
        mounts.append(mount.get("mountPath", ""))
    causes += _check_resources(container.get("resources") or {}, f"{path}.resources")
    return causes


def _check_role(container: Json, path: str, *, init: bool) -> list[StatusCause]:
    """What only some containers may have: restartPolicy, probes, hooks."""
    policy = container.get("restartPolicy")
    causes: list[StatusCause] = []
    if policy and not init:
        causes.append(
            forbidden_field(f"{path}.restartPolicy", "may not be set for non-init containers")
        )
    elif policy:
        causes += one_of(container, path, "restartPolicy", ("Always",))
    if init and policy != "Always":
        causes += [
            forbidden_field(
                f"{path}.{key}", "may not be set for init containers without restartPolicy=Always"
            )
            for key in ("lifecycle", *_PROBES)
            if container.get(key)
        ]
        return causes
    for probe in _PROBES:
        if container.get(probe):
            causes += _check_probe(container[probe], f"{path}.{probe}", lasting="read" not in probe)
    for hook, handler in (container.get("lifecycle") or {}).items():
        if isinstance(handler, dict):
            causes += _check_handler(handler, f"{path}.lifecycle.{hook}")
    return causes


def _check_probe(probe: Json, path: str, *, lasting: bool) -> list[StatusCause]:
    causes = _check_handler(probe, path)
    for key in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold"):
        if probe.get(key, 0) < 0:
            causes.append(
                bad_value(f"{path}.{key}", probe[key], "must be greater than or equal to 0")
            )
    if lasting and probe.get("successThreshold", 1) != 1:
        causes.append(bad_value(f"{path}.successThreshold", probe["successThreshold"], "must be 1"))
    return causes


def _check_handler(handler: Json, path: str) -> list[StatusCause]:
    given = [key for key in _HANDLERS if handler.get(key)]
    if not given:
        return [required(path, "must specify a handler type")]
    causes = [
        forbidden_field(f"{path}.{key}", "may not specify more than 1 handler type")
        for key in given[1:]
    ]
    if "exec" in given and not handler["exec"].get("command"):
        causes.append(required(f"{path}.exec.command"))
    for key in ("httpGet", "tcpSocket", "grpc"):
        port = (handler.get(key) or {}).get("port")
        if isinstance(port, int) and not 1 <= port <= 65535:
            causes.append(
                bad_value(f"{path}.{key}.port", port, "must be between 1 and 65535, inclusive")
            )
    return causes


def _check_host_ports(spec: Json, path: str) -> list[StatusCause]:
    causes: list[StatusCause] = []
    taken: list[str] = []
    for at, container in enumerate(spec.get("containers") or []):
        for index, port in enumerate(container.get("ports") or []):
            where, number = f"{path}.containers[{at}].ports[{index}]", port.get("hostPort")
            if spec.get("hostNetwork") and number != port.get("containerPort"):
                causes.append(
                    bad_value(
                        f"{where}.containerPort",
                        port.get("containerPort"),
                        "must match `hostPort` when `hostNetwork` is true",
                    )
                )
            if not number:
                continue
            key = f"{port.get('protocol', 'TCP')}/{port.get('hostIP') or ''}/{number}"
            if key in taken:
                causes.append(duplicate(f"{where}.hostPort", key))
            taken.append(key)
    return causes


def _check_resources(resources: Json, path: str) -> list[StatusCause]:
    causes: list[StatusCause] = []
    for group in ("limits", "requests"):
        for name, value in (resources.get(group) or {}).items():
            where = f"{path}.{group}[{name}]"
            if not is_quantity(value):
                causes.append(bad_value(where, value, "must be a quantity such as 500m, 2 or 1Gi"))
            elif parse_quantity(str(value)) < 0:
                causes.append(bad_value(where, value, "must be greater than or equal to 0"))
    limits = resources.get("limits") or {}
    for name, value in (resources.get("requests") or {}).items():
        if name in limits and is_quantity(value) and is_quantity(limits[name]):
            if parse_quantity(str(value)) > parse_quantity(str(limits[name])):
                causes.append(
                    bad_value(
                        f"{path}.requests",
                        value,
                        f"must be less than or equal to {name} limit of {limits[name]}",
                    )
                )
            elif "/" in name and parse_quantity(str(value)) != parse_quantity(str(limits[name])):
                causes.append(
                    bad_value(
                        f"{path}.requests",
                        value,
                        f"must be equal to {name} limit of {limits[name]}",
                    )
                )
    return causes


def _check_volume(volume: Json, path: str, seen: list[str]) -> list[StatusCause]:
    causes: list[StatusCause] = []
    name = volume.get("name") or ""
    if not name:
        causes.append(required(f"{path}.name"))
    else:
        causes += [bad_value(f"{path}.name", name, text) for text in names.dns_label(name)]
        if name in seen:
            causes.append(duplicate(f"{path}.name", name))
        seen.append(name)
    sources = [key for key in volume if key != "name"]
    if len(sources) > 1:
        causes.append(
            forbidden_field(f"{path}.{sources[1]}", "may not specify more than 1 volume type")
        )
    if "secret" in volume and not volume["secret"].get("secretName"):
        causes.append(required(f"{path}.secret.secretName"))
    if "configMap" in volume and not volume["configMap"].get("name"):
        causes.append(required(f"{path}.configMap.name"))
    claim = volume.get("persistentVolumeClaim")
    if claim is not None and not claim.get("claimName"):
        causes.append(required(f"{path}.persistentVolumeClaim.claimName"))
    template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if "ephemeral" in volume:
        where = f"{path}.ephemeral.volumeClaimTemplate"
        inner = (template or {}).get("spec") or {}
        causes += check_claim(inner, None, f"{where}.spec") if template else [required(where)]
    if "hostPath" in volume and not volume["hostPath"].get("path"):
        causes.append(required(f"{path}.hostPath.path"))
    if "emptyDir" in volume:
        causes += one_of(
            volume["emptyDir"], f"{path}.emptyDir", "medium", ("", "Memory", "HugePages")
        )
        limit = volume["emptyDir"].get("sizeLimit")
        if limit is not None and not is_quantity(limit):
            causes.append(
                bad_value(f"{path}.emptyDir.sizeLimit", limit, "must be a quantity such as 1Gi")
            )
    return causes


def _check_toleration(toleration: Json, path: str) -> list[StatusCause]:
    causes = one_of(toleration, path, "operator", ("", "Equal", "Exists"))
    causes += one_of(
        toleration, path, "effect", ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
    )
    if not toleration.get("key") and toleration.get("operator") != "Exists":
        causes.append(
            bad_value(
                f"{path}.operator",
                toleration.get("operator", ""),
                'operator must be Exists when `key` is empty, which means "match all values '
                'and all keys"',
            )
        )
    if toleration.get("operator") == "Exists" and toleration.get("value"):
        causes.append(
            bad_value(
                f"{path}.operator",
                toleration["value"],
                "value must be empty when `operator` is 'Exists'",
            )
        )
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        causes.append(
            bad_value(
                f"{path}.effect",
                toleration.get("effect", ""),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            )
        )
    return causes


_UPDATABLE = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
    "`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def check_pod_update(obj: Json, old: Json) -> list[StatusCause]:
    """Return the causes in a change of a pod: most of its spec may not change."""
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    causes: list[StatusCause] = []
    before, after = old_spec.get("activeDeadlineSeconds"), new_spec.get("activeDeadlineSeconds")
    if before is not None and (after is None or after > before):
        causes.append(
            bad_value(
                "spec.activeDeadlineSeconds",
                after,
                f"must be less than or equal to previous value {before}",
            )
        )
    kept = [
        item
        for item in old_spec.get("tolerations") or []
        if item not in (new_spec.get("tolerations") or [])
    ]
    if kept:
        causes.append(
            forbidden_field(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            )
        )
    gates, before_gates = (
        [one.get("name") for one in spec.get("schedulingGates") or []]
        for spec in (new_spec, old_spec)
    )
    causes += [
        forbidden_field(
            "spec.schedulingGates",
            f"only deletion is allowed, but found new scheduling gate '{name}'",
        )
        for name in gates
        if name not in before_gates
    ]
    if _fixed_part(new_spec, gated=before_gates) != _fixed_part(old_spec, gated=before_gates):
        causes.append(
            forbidden_field("spec", f"pod updates may not change fields other than {_UPDATABLE}")
        )
    return causes


def _fixed_part(spec: Json, *, gated: list[Any]) -> Json:
    """What may not change; a gated pod may still be told where to go."""
    free = {"activeDeadlineSeconds", "tolerations", "schedulingGates"}
    free |= {"nodeSelector", "affinity"} if gated else set()
    fixed = {
        key: value for key, value in spec.items() if key not in free and value not in (None, [], {})
    }
    for group in ("containers", "initContainers"):
        if group in fixed:
            fixed[group] = [
                {k: v for k, v in item.items() if k != "image"} for item in fixed[group]
            ]
    return fixed
