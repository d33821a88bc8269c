"""Pod disruption budgets: their status, and whether a pod may be evicted now.

The numbers are computed from the pods at the moment they are needed, so an eviction can never act
on a stale status; the status in the object is kept up to date for those who read it. The number of
pods a percentage or `maxUnavailable` refers to is, as on a real server, what the pods' controller
wants (its scale subresource), and the pods that exist where that cannot be found out.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass

from rekindle_local.apiserver.errors import ApiError, Json, too_many_requests
from rekindle_local.apiserver.selectors import matches_selector
from rekindle_local.apiserver.storage import Change
from rekindle_local.apiserver.writes.operations import ApiOperations

BUDGETS = "poddisruptionbudgets.policy"


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """What a budget allows at one moment."""

    expected: int
    healthy: int
    wanted: int
    allowed: int


def headroom(budget: Json, pods: list[Json], expected: int) -> Headroom:
    """Return what a budget allows, given the pods it covers and how many there should be."""
    spec = budget.get("spec") or {}
    healthy = sum(is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in pods)
    if spec.get("maxUnavailable") is not None:
        wanted = max(0, expected - _scaled(spec["maxUnavailable"], expected))
    else:
        least = spec.get("minAvailable", 1)
        wanted = _scaled(least, expected)
        if isinstance(least, int):
            expected = len(pods)
    return Headroom(
        expected=expected, healthy=healthy, wanted=wanted, allowed=max(0, healthy - wanted)
    )


def _scaled(value: int | str, whole: int) -> int:
    """Return a number or a percentage of a whole, rounded up."""
    if isinstance(value, int):
        return value
    return math.ceil(int(value.rstrip("%")) * whole / 100)


def is_ready(pod: Json) -> bool:
    """Tell whether a pod's Ready condition is true."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


class Budgets:
    """Answers evictions and keeps the status of budgets."""

    def __init__(self, objects: ApiOperations) -> None:
        self._objects = objects
        self._dirty: OrderedDict[str, None] = OrderedDict()
        self._wake = asyncio.Event()
        objects.store.observe(self._mark)

    def check(self, pod: Json) -> None:
        """Raise the 429 when evicting a pod would break a budget, the 500 when two cover it.

        Pods that have ended, or are not ready while their budget is met, do not count against it.
        """
        if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed", "Pending"}:
            return
        if pod["metadata"].get("deletionTimestamp"):
            return
        found = [
            budget
            for budget in self._objects.store.select(BUDGETS, pod["metadata"]["namespace"])
            if _covers(budget, pod)
        ]
        if not found:
            return
        if len(found) > 1:
            raise ApiError(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource "
                "does not support.",
            )
        budget = found[0]
        room = self._headroom(budget)
        always = (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow"
        if not is_ready(pod) and (always or room.healthy >= room.wanted > 0):
            return
        if room.allowed <= 0:
            name = budget["metadata"]["name"]
            raise too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                [
                    {
                        "reason": "DisruptionBudget",
                        "message": f"The disruption budget {name} needs {room.wanted} healthy pods "
                        f"and has {room.healthy} currently",
                    }
                ],
            )

    async def run(self) -> None:
        """Keep the status of budgets until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                self.refresh(self._dirty.popitem(last=False)[0])
                await asyncio.sleep(0)

    def refresh(self, namespace: str) -> None:
        """Write the status of every budget in a namespace that is not up to date."""
        for budget in self._objects.store.select(BUDGETS, namespace):
            room = self._headroom(budget)
            old = budget.get("status") or {}
            enough = room.allowed > 0
            status = {
                "observedGeneration": budget["metadata"].get("generation", 1),
                "expectedPods": room.expected,
                "currentHealthy": room.healthy,
                "desiredHealthy": room.wanted,
                "disruptionsAllowed": room.allowed,
            }
            if all(old.get(key) == value for key, value in status.items()):
                continue
            was: Json = next(iter(old.get("conditions") or []), {})
            word = "True" if enough else "False"
            status["conditions"] = [
                {
                    "type": "DisruptionAllowed",
                    "status": word,
                    "reason": "SufficientPods" if enough else "InsufficientPods",
                    "message": "",
                    "observedGeneration": budget["metadata"].get("generation", 1),
                    "lastTransitionTime": was.get("lastTransitionTime")
                    if was.get("status") == word
                    else self._objects.now(),
                }
            ]
            self._objects.store.put(BUDGETS, {**budget, "status": status})

    def _mark(self, change: Change) -> None:
        if change.bucket not in {"pods", BUDGETS}:
            return
        namespace = change.object["metadata"]["namespace"]
        if self._objects.store.select(BUDGETS, namespace):
            self._dirty[namespace] = None
            self._wake.set()

    def _headroom(self, budget: Json) -> Headroom:
        pods = [
            pod
            for pod in self._objects.store.select("pods", budget["metadata"]["namespace"])
            if _covers(budget, pod)
            and (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}
        ]
        return headroom(budget, pods, self._expected(pods))

    def _expected(self, pods: list[Json]) -> int:
        """Return how many pods their controllers want in all."""
        wanted, loose = 0, 0
        seen = set()
        for pod in pods:
            owner = next(
                (o for o in pod["metadata"].get("ownerReferences") or [] if o.get("controller")),
                None,
            )
            found = self._objects.store.find_uid(owner["uid"]) if owner else None
            resource = (
                self._objects.registry.find_kind(found["apiVersion"], found["kind"])
                if found
                else None
            )
            if found is None or resource is None or "scale" not in resource.subresources:
                loose += 1
            elif found["metadata"]["uid"] not in seen:
                seen.add(found["metadata"]["uid"])
                metadata = found["metadata"]
                scale = self._objects.scale(
                    resource, metadata.get("namespace") or "", metadata["name"]
                )
                wanted += int(scale["spec"].get("replicas", 0))
        return wanted + loose


def _covers(budget: Json, pod: Json) -> bool:
    selector = (budget.get("spec") or {}).get("selector")
    return matches_selector(selector, pod["metadata"].get("labels") or {})
