"""Admission: fills in what the namespace of a new object says, and refuses what it may not be.

In the order of a real server's plugins: limit ranges, the service account, the priority class, and
last the quotas. There is no other policy here; webhooks are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from rekindle_local.apiserver import errors
from rekindle_local.apiserver.errors import Json
from rekindle_local.apiserver.kinds import quotas
from rekindle_local.apiserver.kinds.storage_kinds import start_claim
from rekindle_local.apiserver.storage import ObjectTable
from rekindle_local.quantity import parse_quantity
from rekindle_local.scheduling import demands

_SYSTEM_CLASSES = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}


def system_classes() -> list[Json]:
    """Return the priority classes that every cluster has."""
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": "Used for system critical pods.",
        }
        for name, value in _SYSTEM_CLASSES.items()
    ]


def admit(store: ObjectTable, plural: str, group: str, obj: Json) -> Json:
    """Return a new object as it is stored; raises the 403 of the plugin that refuses it."""
    match (plural, group):
        case ("pods", ""):
            obj = _limit_pod(store, obj)
            _check_account(store, obj)
            obj = {**obj, "spec": {**obj["spec"], **_priority(store, obj)}}
        case ("persistentvolumeclaims", ""):
            obj = start_claim(obj, store.select("storageclasses.storage.k8s.io"))
            _limit_claim(store, obj)
    quotas.check(store, plural, group, obj)
    return obj


# --- limit ranges -------------------------------------------------------------------------------


def default_limits(item: Json) -> None:
    """Fill in place what the limits of a range say about each other."""
    if item.get("type") != "Container":
        return
    default = {**(item.get("max") or {}), **(item.get("default") or {})}
    request = {**(item.get("min") or {}), **default, **(item.get("defaultRequest") or {})}
    if default:
        item["default"] = default
    if request:
        item["defaultRequest"] = request


def _ranges(store: ObjectTable, obj: Json, kind: str) -> Iterator[Json]:
    for found in store.select("limitranges", obj["metadata"].get("namespace") or ""):
        for item in (found.get("spec") or {}).get("limits") or []:
            if item.get("type") == kind:
                yield item


def _limit_pod(store: ObjectTable, pod: Json) -> Json:
    ranges = list(_ranges(store, pod, "Container"))
    wholes = list(_ranges(store, pod, "Pod"))
    if not ranges and not wholes:
        return pod
    spec = dict(pod["spec"])
    for group in ("containers", "initContainers"):
        if spec.get(group):
            spec[group] = [_with_defaults(one, ranges) for one in spec[group]]
    problems = [
        text
        for item in ranges
        for one in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))
        for text in _outside(item, demands.requested(one), demands.limited(one))
    ]
    whole = (demands.total(spec, demands.requested), demands.total(spec, demands.limited))
    problems += [text for item in wholes for text in _outside(item, *whole)]
    _refuse("pods", pod, problems)
    return {**pod, "spec": spec}


def _with_defaults(container: Json, ranges: list[Json]) -> Json:
    resources = dict(container.get("resources") or {})
    for item in ranges:
        for group, source in (("limits", "default"), ("requests", "defaultRequest")):
            merged = {**(item.get(source) or {}), **(resources.get(group) or {})}
            if merged:
                resources[group] = merged
    return {**container, "resources": resources}


def _outside(
    item: Json, requests: dict[str, Fraction], limits: dict[str, Fraction]
) -> Iterator[str]:
    kind = item["type"]
    for name, text in sorted((item.get("min") or {}).items()):
        bound = parse_quantity(text)
        head = f"minimum {name} usage per {kind} is {text}"
        if name not in requests:
            yield f"{head}.  No request is specified"
        elif requests[name] < bound:
            yield f"{head}, but request is {quotas.shown(requests[name], name)}"
        elif limits.get(name, bound) < bound:
            yield f"{head}, but limit is {quotas.shown(limits[name], name)}"
    for name, text in sorted((item.get("max") or {}).items()):
        bound = parse_quantity(text)
        head = f"maximum {name} usage per {kind} is {text}"
        if name not in limits and kind != "PersistentVolumeClaim":
            yield f"{head}.  No limit is specified"
        elif limits.get(name, bound) > bound:
            yield f"{head}, but limit is {quotas.shown(limits[name], name)}"
        elif requests.get(name, bound) > bound:
            yield f"{head}, but request is {quotas.shown(requests[name], name)}"
    for name, text in sorted((item.get("maxLimitRequestRatio") or {}).items()):
        if not requests.get(name) or name not in limits:
            yield f"{name} max limit to request ratio per {kind} is {text}, but no ratio is given"
        elif limits[name] / requests[name] > parse_quantity(text):
            ratio = float(limits[name] / requests[name])
            yield (
                f"{name} max limit to request ratio per {kind} is {text}, but provided ratio is "
                f"{ratio:f}"
            )


def _limit_claim(store: ObjectTable, claim: Json) -> None:
    spec = claim.get("spec") or {}
    requests = demands.requested({"resources": spec.get("resources")})
    problems = [
        text
        for item in _ranges(store, claim, "PersistentVolumeClaim")
        for text in _outside(item, requests, {})
    ]
    _refuse("persistentvolumeclaims", claim, problems)


def _refuse(plural: str, obj: Json, problems: list[str]) -> None:
    if problems:
        text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        raise errors.forbidden(plural, "", obj["metadata"]["name"], text)


# --- accounts and priorities --------------------------------------------------------------------


def _check_account(store: ObjectTable, pod: Json) -> None:
    namespace = pod["metadata"].get("namespace") or ""
    name = pod["spec"]["serviceAccountName"]
    # A controller makes `default` in every namespace, and makes it again.
    if name != "default" and store.get("serviceaccounts", (namespace, name)) is None:
        text = (
            f"error looking up service account {namespace}/{name}: "
            f'serviceaccount "{name}" not found'
        )
        raise errors.forbidden("pods", "", pod["metadata"]["name"], text)


def _priority(store: ObjectTable, pod: Json) -> Json:
    name = pod["spec"].get("priorityClassName")
    if name in _SYSTEM_CLASSES:
        return {"priority": _SYSTEM_CLASSES[name], "preemptionPolicy": "PreemptLowerPriority"}
    wanted: Callable[[Json], bool] = (
        (lambda one: bool(one["metadata"]["name"] == name))
        if name
        else (lambda one: bool(one.get("globalDefault")))
    )
    found = [one for one in store.select("priorityclasses.scheduling.k8s.io") if wanted(one)]
    if name and not found:
        text = f"no PriorityClass with name {name} was found"
        raise errors.forbidden("pods", "", pod["metadata"]["name"], text)
    if not found:
        return {"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}
    return {
        "priorityClassName": found[0]["metadata"]["name"],
        "priority": found[0].get("value", 0),
        "preemptionPolicy": found[0].get("preemptionPolicy", "PreemptLowerPriority"),
    }
