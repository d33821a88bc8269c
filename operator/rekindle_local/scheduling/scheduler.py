"""The scheduler's loop: binds pods that have no node, as `placement.decide` says.

Woken by every change of a pod or node, it goes over the pending pods, highest priority and oldest
first. A pod just bound counts as placed before its watch event arrives, else two pods would take
the same room. A pod that fits nowhere is told so once per reason (condition PodScheduled=False and
an event) and is looked at again with the next change.
"""

import asyncio
import logging

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import (
    STRATEGIC,
    CollectionReflector,
    KubeClient,
    Manifest,
    RequestError,
    pod_path,
)
from rekindle_local.events import EventRecorder
from rekindle_local.scheduling.placement import Bind, ClusterSnapshot, decide, is_over

NAME = "default-scheduler"
_log = logging.getLogger(__name__)


class Scheduler:
    """One scheduler for the whole cluster."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._wake = asyncio.Event()
        self._pods = CollectionReflector(client, "/api/v1/pods", self._on_change)
        self._nodes = CollectionReflector(client, "/api/v1/nodes", self._on_change)
        self._claims = CollectionReflector(
            client, "/api/v1/persistentvolumeclaims", self._on_change
        )
        self._volumes = CollectionReflector(client, "/api/v1/persistentvolumes", self._on_change)
        self._events = EventRecorder(client, NAME)
        self._assumed: dict[str, str] = {}
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Schedule until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in (self._pods, self._nodes, self._claims, self._volumes):
                group.create_task(reflector.run())
            group.create_task(self._events.run())
            group.create_task(self._loop())

    def _on_change(self, kind: str, item: Manifest) -> None:
        uid = item["metadata"]["uid"]
        if kind == "DELETED":
            self._told.pop(uid, None)
        if kind == "DELETED" or (item.get("spec") or {}).get("nodeName"):
            self._assumed.pop(uid, None)
        self._wake.set()

    async def _loop(self) -> None:
        for reflector in (self._pods, self._nodes, self._claims, self._volumes):
            await reflector.synced.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending = self._pending()
            cluster = ClusterSnapshot(
                list(self._nodes.items.values()),
                self._placed(),
                claims=self._claims.items.values(),
                volumes=self._volumes.items.values(),
            )
            for pod in pending:
                try:
                    await self._schedule(pod, cluster)
                except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                    if isinstance(error, RequestError) and error.code in (404, 409):
                        continue  # gone or bound by somebody else: the watch will say
                    _log.warning("scheduling %s failed: %s", pod["metadata"]["name"], error)
                    asyncio.get_running_loop().call_later(1.0, self._wake.set)

    def _pending(self) -> list[Manifest]:
        found = [
            pod
            for pod in self._pods.items.values()
            if not pod["spec"].get("nodeName")
            and pod["metadata"]["uid"] not in self._assumed
            and not pod["metadata"].get("deletionTimestamp")
            and (pod["spec"].get("schedulerName") or NAME) == NAME
            and not is_over(pod)
        ]
        return sorted(
            found,
            key=lambda pod: (
                -int(pod["spec"].get("priority") or 0),
                pod["metadata"].get("creationTimestamp", ""),
                pod["metadata"]["name"],
            ),
        )

    async def _schedule(self, pod: Manifest, cluster: ClusterSnapshot) -> None:
        if gates := pod["spec"].get("schedulingGates"):
            names = ", ".join(gate["name"] for gate in gates)
            text = f"Scheduling is blocked due to non-empty scheduling gates: {names}"
            await self._tell(pod, "SchedulingGated", text)
            return
        decision = decide(pod, cluster)
        if isinstance(decision, Bind):
            await self._bind(pod, decision.node)
            cluster.add(pod, decision.node)
        else:
            await self._tell(pod, "Unschedulable", decision.message)

    def _placed(self) -> list[Manifest]:
        """All pods, with those counted as bound whose binding has not come back yet."""
        pods = []
        for uid, pod in self._pods.items.items():
            node = self._assumed.get(uid)
            pods.append({**pod, "spec": {**pod["spec"], "nodeName": node}} if node else pod)
        return pods

    async def _bind(self, pod: Manifest, node: str) -> None:
        meta = pod["metadata"]
        self._assumed[meta["uid"]] = node
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self._client.create(pod_path(meta["namespace"], meta["name"], "binding"), binding)
        except BaseException:
            self._assumed.pop(meta["uid"], None)
            raise
        self._told.pop(meta["uid"], None)
        where = f"{meta['namespace']}/{meta['name']}"
        text = f"Successfully assigned {where} to {node}"
        self._events.record(pod, "Normal", "Scheduled", text)

    async def _tell(self, pod: Manifest, reason: str, message: str) -> None:
        meta = pod["metadata"]
        if self._told.get(meta["uid"]) == f"{reason} {message}":
            return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamps.seconds(timestamps.now()),
        }
        path = pod_path(meta["namespace"], meta["name"], "status")
        await self._client.patch(path, {"status": {"conditions": [condition]}}, STRATEGIC)
        self._told[meta["uid"]] = f"{reason} {message}"
        if reason == "Unschedulable":
            self._events.record(pod, "Warning", "FailedScheduling", message)
