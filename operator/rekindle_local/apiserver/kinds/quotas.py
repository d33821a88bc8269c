"""Resource quotas: what a namespace uses, whether a new object fits, and the status of a quota.

Usage is counted from the objects at the moment it is needed, so two creates can never both take the
last place; the status is kept up to date for those who read it. Creates are held to quotas; a claim
that grows is not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rekindle_local.apiserver import errors
from rekindle_local.apiserver.errors import Json, qualified
from rekindle_local.apiserver.kinds.pod_specs import qos_class
from rekindle_local.apiserver.storage import Change, ObjectTable
from rekindle_local.quantity import canonical, parse_quantity
from rekindle_local.scheduling import demands

QUOTAS = "resourcequotas"
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_LEGACY = {
    "configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas",
    "secrets", "services",
}  # fmt: skip

Usage = Mapping[str, Fraction]


def usage(plural: str, group: str, obj: Json) -> Usage:
    """Return what one object uses of each thing that a quota can limit."""
    used: dict[str, Fraction] = {f"count/{qualified(plural, group)}": Fraction(1)}
    if group == "" and plural in _LEGACY:
        used[plural] = Fraction(1)
    if (plural, group) == ("persistentvolumeclaims", ""):
        spec = obj.get("spec") or {}
        size = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "0")
        used["requests.storage"] = parse_quantity(size)
        if name := spec.get("storageClassName"):
            prefix = f"{name}.storageclass.storage.k8s.io"
            used[f"{prefix}/requests.storage"] = parse_quantity(size)
            used[f"{prefix}/persistentvolumeclaims"] = Fraction(1)
    if (plural, group) == ("pods", "") and not _is_over(obj):
        used |= _pod(obj.get("spec") or {})
    return used


def _is_over(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _pod(spec: Json) -> dict[str, Fraction]:
    used = {"pods": Fraction(1)}
    for name, amount in demands.total(spec, demands.requested).items():
        used[f"requests.{name}"] = amount
        if name in _COMPUTE:
            used[name] = amount
    for name, amount in demands.total(spec, demands.limited).items():
        used[f"limits.{name}"] = amount
    return used


def covers(quota: Json, plural: str, group: str, obj: Json) -> bool:
    """Tell whether an object is in the scopes of a quota; other than pods none is in any scope."""
    spec = quota.get("spec") or {}
    scopes: list[Json] = [{"scopeName": name} for name in spec.get("scopes") or []]
    scopes += (spec.get("scopeSelector") or {}).get("matchExpressions") or []
    if scopes and (plural, group) != ("pods", ""):
        return False
    return all(_in_scope(scope, obj) for scope in scopes)


def _in_scope(scope: Json, pod: Json) -> bool:
    spec = pod.get("spec") or {}
    match scope["scopeName"]:
        case "Terminating":
            return spec.get("activeDeadlineSeconds") is not None
        case "NotTerminating":
            return spec.get("activeDeadlineSeconds") is None
        case "BestEffort":
            return qos_class(spec) == "BestEffort"
        case "NotBestEffort":
            return qos_class(spec) != "BestEffort"
        case "PriorityClass":
            name, values = spec.get("priorityClassName"), scope.get("values") or []
            return {
                "In": name in values,
                "NotIn": name not in values,
                "DoesNotExist": not name,
            }.get(scope.get("operator", "Exists"), bool(name))
    return False


def used_of(store: ObjectTable, quota: Json) -> dict[str, Fraction]:
    """Return what is used now of each thing that a quota limits."""
    hard = (quota.get("spec") or {}).get("hard") or {}
    namespace = quota["metadata"]["namespace"]
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for plural, group in _limited(hard):
        for obj in store.select(qualified(plural, group), namespace):
            if covers(quota, plural, group, obj):
                for name, amount in usage(plural, group, obj).items():
                    sums[name] += amount
    return {name: sums[name] for name in hard}


def _limited(hard: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the (plural, group) of the kinds that a quota counts."""
    kinds = set()
    for name in hard:
        if name.startswith("count/"):
            plural, _, group = name.removeprefix("count/").partition(".")
            kinds.add((plural, group))
        elif name in _LEGACY:
            kinds.add((name, ""))
        elif name == "requests.storage" or ".storageclass." in name:
            kinds.add(("persistentvolumeclaims", ""))
        else:
            kinds.add(("pods", ""))
    return kinds


def check(store: ObjectTable, plural: str, group: str, obj: Json) -> None:
    """Raise the 403 when a new object does not fit into a quota of its namespace."""
    metadata = obj["metadata"]
    for quota in store.select(QUOTAS, metadata.get("namespace") or ""):
        if not covers(quota, plural, group, obj):
            continue
        hard = (quota.get("spec") or {}).get("hard") or {}
        name = quota["metadata"]["name"]
        if (plural, group) == ("pods", "") and (missing := _unspecified(obj, hard)):
            text = f"failed quota: {name}: must specify {missing}"
            raise errors.forbidden(plural, group, metadata["name"], text)
        asked = {key: amount for key, amount in usage(plural, group, obj).items() if key in hard}
        if not asked:
            continue
        used = used_of(store, quota)
        over = sorted(
            key for key, amount in asked.items() if used[key] + amount > parse_quantity(hard[key])
        )
        if over:
            parts = (
                ("requested", {key: shown(asked[key], key) for key in over}),
                ("used", {key: shown(used[key], key) for key in over}),
                ("limited", {key: hard[key] for key in over}),
            )
            text = ", ".join(
                f"{word}: {','.join(f'{key}={value}' for key, value in values.items())}"
                for word, values in parts
            )
            text = f"exceeded quota: {name}, {text}"
            raise errors.forbidden(plural, group, metadata["name"], text)


def _unspecified(pod: Json, hard: Mapping[str, Any]) -> str:
    spec = pod.get("spec") or {}
    texts = []
    for key in sorted(hard):
        group, _, name = key.rpartition(".")
        if name not in _COMPUTE[:2] or group not in {"", "requests", "limits"}:
            continue
        of = demands.limited if group == "limits" else demands.requested
        lacking = [
            one["name"]
            for one in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
            if name not in of(one)
        ]
        if lacking:
            texts.append(f"{key} for: {','.join(lacking)}")
    return "; ".join(texts)


def shown(amount: Fraction, name: str) -> str:
    """Return an amount as a quantity, of memory and storage in powers of two."""
    kind = name.rpartition(".")[2]
    if kind in {"memory", "storage", "ephemeral-storage"} and amount and amount % 1024 == 0:
        return canonical(f"{amount // 1024}Ki")
    return canonical(f"{-((-amount * 10**9) // 1)}n")


class Quotas:
    """Keeps the status of quotas."""

    def __init__(self, store: ObjectTable) -> None:
        self._store = store
        self._dirty: OrderedDict[str, None] = OrderedDict()
        self._wake = asyncio.Event()
        store.observe(self._mark)

    async def run(self) -> None:
        """Keep the status of quotas until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                self.refresh(self._dirty.popitem(last=False)[0])
                await asyncio.sleep(0)

    def refresh(self, namespace: str) -> None:
        """Write the status of every quota of a namespace that is not up to date."""
        for quota in self._store.select(QUOTAS, namespace):
            hard = dict((quota.get("spec") or {}).get("hard") or {})
            used = {key: shown(value, key) for key, value in used_of(self._store, quota).items()}
            status = {"hard": hard, "used": used}
            if status != quota.get("status"):
                self._store.put(QUOTAS, {**quota, "status": status})

    def _mark(self, change: Change) -> None:
        namespace = change.object["metadata"].get("namespace") or ""
        if namespace and self._store.select(QUOTAS, namespace):
            self._dirty[namespace] = None
            self._wake.set()
