"""The node life cycle: the three things a controller manager does about nodes.

- A node whose lease is not renewed for the grace period becomes Ready=Unknown and is tainted
  `unreachable` (NoSchedule and NoExecute); its pods are marked not ready. What counts is when a
  renewal was *seen* here, so clocks need not agree.
- A NoExecute taint deletes the pods that do not tolerate it, after the toleration's seconds, with
  the condition DisruptionTarget (DeletionByTaintManager). Pods that say nothing about not-ready
  and unreachable nodes tolerate them for a default time, as an admission plugin adds it elsewhere.
  On a dead node such a pod stays Terminating: nobody can confirm its end.
- A pod bound to a node that does not exist any more is failed and removed (DeletionByPodGC).

One tick does all of it from the reflectors' copies; `judge` and `deadline` are pure.
"""

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import (
    STRATEGIC,
    CollectionReflector,
    KubeClient,
    Manifest,
    RequestError,
    node_path,
    pod_path,
)
from rekindle_local.events import EventRecorder
from rekindle_local.kubelet.agent import LEASES
from rekindle_local.scheduling import constraints

_TICK = 0.25
_ADMISSION_SECONDS = 300
_log = logging.getLogger(__name__)
_MANAGED = (constraints.NOT_READY, constraints.UNREACHABLE, constraints.UNSCHEDULABLE)


@dataclass(frozen=True, kw_only=True)
class LifecycleTimings:
    """Seconds; a real cluster waits ten times longer."""

    node_grace: float = 4.0
    """Without a heartbeat until the node counts as gone (40 s in a real cluster)."""
    default_toleration: float = 30.0
    """A pod stays bound to a node that is gone (300 s in a real cluster). Admission writes 300 s
    into every pod that says nothing itself, so exactly that number is read as this one."""


AS_IN_A_CLUSTER = LifecycleTimings(node_grace=40.0, default_toleration=300.0)
"""What a controller manager does unless it is told otherwise."""


def managed_taints(node: Manifest, *, alive: bool) -> list[Manifest]:
    """The taints the node should carry: foreign ones as they are, ours as its state asks."""
    spec = node.get("spec") or {}
    before = list(spec.get("taints") or ())
    taints = [one for one in before if one["key"] not in _MANAGED]
    own: list[tuple[str, str]] = []
    if spec.get("unschedulable"):
        own.append((constraints.UNSCHEDULABLE, "NoSchedule"))
    if not alive:
        own += [(constraints.UNREACHABLE, "NoSchedule"), (constraints.UNREACHABLE, "NoExecute")]
    elif not constraints.is_ready(node):
        own += [(constraints.NOT_READY, "NoSchedule"), (constraints.NOT_READY, "NoExecute")]
    for key, effect in own:
        same = [one for one in before if one["key"] == key and one["effect"] == effect]
        fresh = {"key": key, "effect": effect}
        if effect == "NoExecute":
            fresh["timeAdded"] = timestamps.seconds(timestamps.now())
        taints.append(same[0] if same else fresh)
    return taints


def toleration_seconds(pod: Manifest, taint: Manifest, default: float) -> float | None:
    """How long the pod bears a NoExecute taint; None is for ever."""
    found = [
        one for one in pod["spec"].get("tolerations") or () if constraints.tolerates(one, taint)
    ]
    shared = taint["key"] in (constraints.NOT_READY, constraints.UNREACHABLE)
    if not found:
        return default if shared else 0.0
    bounded = [
        default if shared and limit == _ADMISSION_SECONDS else float(limit)
        for limit in (one.get("tolerationSeconds") for one in found)
        if limit is not None
    ]
    return min(bounded) if bounded else None


class NodeLifecycle:
    """Runs beside the API server, once per cluster."""

    def __init__(self, client: KubeClient, timings: LifecycleTimings) -> None:
        self._client = client
        self._timings = timings
        self._nodes = CollectionReflector(client, "/api/v1/nodes", self._on_node)
        self._pods = CollectionReflector(client, "/api/v1/pods", self._on_change)
        self._leases = CollectionReflector(client, LEASES, self._on_lease)
        self._events = EventRecorder(client, "node-controller")
        self._wake = asyncio.Event()
        self._seen: dict[str, float] = {}
        self._tainted: dict[tuple[str, str], float] = {}
        self._told = ""
        """The trouble that was logged last."""

    async def run(self) -> None:
        """Watch over the nodes until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in (self._nodes, self._pods, self._leases):
                group.create_task(reflector.run())
            group.create_task(self._events.run())
            group.create_task(self._loop())

    def _on_node(self, kind: str, node: Manifest) -> None:
        name = node["metadata"]["name"]
        if kind == "DELETED":
            self._seen.pop(name, None)
        else:
            self._seen.setdefault(name, asyncio.get_running_loop().time())
        self._wake.set()

    def _on_change(self, _kind: str, _item: Manifest) -> None:
        self._wake.set()

    def _on_lease(self, kind: str, lease: Manifest) -> None:
        if kind != "DELETED":
            self._seen[lease["metadata"]["name"]] = asyncio.get_running_loop().time()

    async def _loop(self) -> None:
        for reflector in (self._nodes, self._pods, self._leases):
            await reflector.synced.wait()
        last = asyncio.get_running_loop().time()
        while True:
            now = asyncio.get_running_loop().time()
            if now - last > 4 * _TICK:
                # This loop itself was held up, and the heartbeats of this time with it.
                self._seen = {name: seen + now - last for name, seen in self._seen.items()}
            last = now
            await self._tick()
            try:
                async with asyncio.timeout(_TICK):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                # Several changes at once are one tick.
                await asyncio.sleep(0.02)
            self._wake.clear()

    async def _tick(self) -> None:
        nodes = {node["metadata"]["name"]: node for node in list(self._nodes.items.values())}
        for node in nodes.values():
            await self._attempt(self._judge(node))
        self._note_taints(nodes)
        for pod in list(self._pods.items.values()):
            name = pod["spec"].get("nodeName")
            if name and name not in nodes:
                await self._attempt(self._collect(pod))
            elif name:
                await self._attempt(self._evict_if_due(pod, nodes[name]))

    async def _attempt(self, work: Awaitable[None]) -> None:
        """Do one thing; what fails is tried again with the next tick and stops nothing else.

        It is said once, not for each node and tick as long as the API server is away.
        """
        try:
            await work
        except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
            # Gone or changed meanwhile: the watch will tell.
            gone = isinstance(error, RequestError) and error.code in (404, 409)
            if not gone and self._told != str(error):
                self._told = str(error)
                _log.warning("node life cycle: %s", error)
        else:
            self._told = ""

    # --- nodes -------------------------------------------------------------------------------

    async def _judge(self, node: Manifest) -> None:
        name = node["metadata"]["name"]
        silent = asyncio.get_running_loop().time() - self._seen.get(name, 0.0)
        alive = silent < self._timings.node_grace
        if not alive and _ready_status(node) != "Unknown":
            await self._mark_unknown(node)
        wanted = managed_taints(node, alive=alive)
        if wanted != list((node.get("spec") or {}).get("taints") or ()):
            version = node["metadata"]["resourceVersion"]  # a lost race is a 409: next tick
            body = {"metadata": {"resourceVersion": version}, "spec": {"taints": wanted or None}}
            answer = await self._client.patch(node_path(name), body)
            self._nodes.items[answer["metadata"]["uid"]] = answer

    async def _mark_unknown(self, node: Manifest) -> None:
        name = node["metadata"]["name"]
        stamp = timestamps.seconds(timestamps.now())
        condition = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastTransitionTime": stamp,
        }
        # Before their node: a kubelet that is there after all writes its pods' readiness anew when
        # it finds that its node was doubted, and must have the last word.
        for pod in list(self._pods.items.values()):
            if pod["spec"].get("nodeName") == name:
                await self._mark_not_ready(pod, stamp)
        await self._client.patch(
            node_path(name, "status"), {"status": {"conditions": [condition]}}, STRATEGIC
        )
        self._events.record(
            node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady"
        )

    async def _mark_not_ready(self, pod: Manifest, stamp: str) -> None:
        condition = {"type": "Ready", "status": "False", "lastTransitionTime": stamp}
        meta = pod["metadata"]
        path = pod_path(meta["namespace"], meta["name"], "status")
        try:
            await self._client.patch(path, {"status": {"conditions": [condition]}}, STRATEGIC)
        except RequestError as error:
            if error.code not in (404, 409):
                raise

    # --- pods --------------------------------------------------------------------------------

    def _note_taints(self, nodes: dict[str, Manifest]) -> None:
        """Remember since when each node carries each NoExecute taint."""
        now = asyncio.get_running_loop().time()
        present = {
            (name, _taint_key(taint)): now
            for name, node in nodes.items()
            for taint in (node.get("spec") or {}).get("taints") or ()
            if taint["effect"] == "NoExecute"
        }
        self._tainted = {key: self._tainted.get(key, now) for key in present}

    async def _evict_if_due(self, pod: Manifest, node: Manifest) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            return
        now = asyncio.get_running_loop().time()
        for taint in (node.get("spec") or {}).get("taints") or ():
            if taint["effect"] != "NoExecute":
                continue
            since = self._tainted.get((node["metadata"]["name"], _taint_key(taint)), now)
            bears = toleration_seconds(pod, taint, self._timings.default_toleration)
            if bears is not None and now - since >= bears:
                message = "Taint manager: deleting due to NoExecute taint"
                await disrupt(self._client, pod, "DeletionByTaintManager", message)
                self._events.record(
                    pod, "Normal", "TaintManagerEviction", "Marking for deletion Pod "
                    f"{meta['namespace']}/{meta['name']}",
                )  # fmt: skip
                await self._client.delete(
                    pod_path(meta["namespace"], meta["name"]), uid=meta["uid"]
                )
                return

    async def _collect(self, pod: Manifest) -> None:
        meta = pod["metadata"]
        if await self._client.find(node_path(pod["spec"]["nodeName"])) is not None:
            return  # a new node that this watch has not told of yet
        phase = (pod.get("status") or {}).get("phase")
        if phase not in ("Succeeded", "Failed"):
            message = "PodGC: node no longer exists"
            await disrupt(self._client, pod, "DeletionByPodGC", message, phase="Failed")
        await self._client.delete(
            pod_path(meta["namespace"], meta["name"]), grace=0, uid=meta["uid"]
        )


def _taint_key(taint: Manifest) -> str:
    return f"{taint['key']}={taint.get('value') or ''}"


def _ready_status(node: Manifest) -> str:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return next((str(one["status"]) for one in conditions if one["type"] == "Ready"), "Unknown")


async def disrupt(
    client: KubeClient, pod: Manifest, reason: str, message: str, *, phase: str | None = None
) -> None:
    """Write the DisruptionTarget condition that says why a pod is about to be deleted."""
    meta = pod["metadata"]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": timestamps.seconds(timestamps.now()),
    }
    status: Manifest = {"conditions": [condition]}
    if phase:
        status["phase"] = phase
    path = pod_path(meta["namespace"], meta["name"], "status")
    await client.patch(path, {"status": status}, STRATEGIC)
