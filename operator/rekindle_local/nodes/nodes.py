"""Nodes that can be tainted and taken away.

An `EmbeddedNode` is one node of the cluster with the things that happen to nodes: administrators
taint and cordon them, clouds reclaim them with a notice, machines die without one. Each ends in
what a real cluster would show (taints, evictions, a missing heartbeat, a deleted Node object);
nothing is told to the operator by a side door.
"""

import asyncio
import logging
import signal
from collections.abc import Callable

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import KubeClient, Manifest, RequestError, node_path, pod_path
from rekindle_local.kubelet.agent import LEASES, Kubelet
from rekindle_local.nodes.node_lifecycle import disrupt

SPOT_TAINT = ("aws-node-termination-handler/spot-itn", "", "NoSchedule")
"""Key, value and effect of the taint that announces a spot interruption on AWS."""

_ERRORS = (RequestError, aiohttp.ClientError, TimeoutError, OSError)
_log = logging.getLogger(__name__)


class EmbeddedNode:
    """One node; made by `Cluster.add_node`."""

    def __init__(self, client: KubeClient, kubelet: Kubelet) -> None:
        self._client = client
        self._kubelet = kubelet
        self._reclaim: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self.name = kubelet.name
        """The name of the Node object."""

    # --- what administrators do --------------------------------------------------------------

    async def taint(self, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        """Add a taint, or change its value; NoExecute makes the pods that do not bear it go."""
        fresh = {"key": key, "value": value, "effect": effect}
        if effect == "NoExecute":
            fresh["timeAdded"] = timestamps.seconds(timestamps.now())

        def change(taints: list[Manifest]) -> list[Manifest]:
            others = [one for one in taints if (one["key"], one["effect"]) != (key, effect)]
            return [*others, fresh]

        await self._change_taints(change)

    async def untaint(self, key: str) -> None:
        """Take every taint with this key away."""
        await self._change_taints(lambda taints: [one for one in taints if one["key"] != key])

    async def cordon(self) -> None:
        """Let nothing more be scheduled here."""
        await self._client.patch(node_path(self.name), {"spec": {"unschedulable": True}})

    async def uncordon(self) -> None:
        """Take pods again."""
        await self._client.patch(node_path(self.name), {"spec": {"unschedulable": None}})

    async def _change_taints(self, change: Callable[[list[Manifest]], list[Manifest]]) -> None:
        for attempt in range(10):
            node = await self._client.get(node_path(self.name))
            taints = change(list((node.get("spec") or {}).get("taints") or ()))
            version = node["metadata"]["resourceVersion"]
            body = {"metadata": {"resourceVersion": version}, "spec": {"taints": taints or None}}
            try:
                await self._client.patch(node_path(self.name), body)
            except RequestError as error:
                if error.code != 409 or attempt == 9:
                    raise
                await asyncio.sleep(0.02 * (attempt + 1))
            else:
                return

    # --- what happens to machines ------------------------------------------------------------

    async def reclaim(
        self,
        notice_seconds: float,
        *,
        taint: tuple[str, str, str] = SPOT_TAINT,
        drain_after: float = 0.0,
    ) -> None:
        """A spot reclaim: taint and cordon now, evict the pods, be gone when the notice is over.

        Returns when the notice is out; `wait_gone` waits for the end. Pods are evicted
        `drain_after` seconds into the notice with at most the rest of it as grace; when it is as
        long as the notice they are not evicted and simply die with the node.
        """
        if self._reclaim is not None or self._gone.is_set():
            raise RuntimeError(f"node {self.name} is already being taken away")
        deadline = asyncio.get_running_loop().time() + notice_seconds
        await self.taint(*taint)
        await self.cordon()
        self._reclaim = asyncio.create_task(self._run_out(deadline, drain_after))

    async def _run_out(self, deadline: float, drain_after: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(min(drain_after, max(0.0, deadline - loop.time())))
        while deadline - loop.time() > 0.05:
            waiting = await self._evict_all(deadline - loop.time())
            await asyncio.sleep(min(0.5 if waiting else 1.0, max(0.0, deadline - loop.time())))
        await self.remove()

    async def _evict_all(self, left: float) -> bool:
        """Ask for the eviction of every pod; True when a disruption budget held one back."""
        params = {"fieldSelector": f"spec.nodeName={self.name}"}
        held = False
        try:
            pods = (await self._client.get("/api/v1/pods", params)).get("items") or ()
        except _ERRORS as error:
            _log.warning("draining %s: %s", self.name, error)
            return True
        for pod in pods:
            meta = pod["metadata"]
            if pod["spec"].get("nodeName") != self.name or meta.get("deletionTimestamp"):
                continue
            own = int(pod["spec"].get("terminationGracePeriodSeconds") or 30)
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
                "deleteOptions": {"gracePeriodSeconds": max(1, min(own, int(left)))},
            }
            path = pod_path(meta["namespace"], meta["name"], "eviction")
            try:
                # Said before the deletion, as a real eviction does, so that nobody who sees the
                # deletion takes it for a user's. True even when a budget holds it back for now.
                await disrupt(self._client, pod, "EvictionByEvictionAPI", "Eviction API: evicting")
                await self._client.create(path, eviction)
            except _ERRORS as error:
                held = held or not (isinstance(error, RequestError) and error.code == 404)
                _log.info("eviction of %s: %s", meta["name"], error)
        return held

    async def fail(self) -> None:
        """The machine dies: every process at once, no notice, no further heartbeat.

        The Node object stays and becomes NotReady; its pods stay until they are evicted, and then
        stay Terminating, because nobody can say that they have ended. Connections are closed by
        the kernel, which a machine without power has not: see `power_loss`.
        """
        await self._kubelet.crash()

    async def power_loss(self) -> None:
        """The machine loses its power: it answers nothing, and no connection to it is closed.

        To Kubernetes it is the same as `fail`; to whoever talks to its pods it is silence. There
        is no way back but to `remove` it.
        """
        await self._kubelet.cut()

    async def pause(self) -> None:
        """The machine stands still, as a virtual one that is moved; `resume` lets it go on.

        For everybody else it is the same as one whose network is away.
        """
        await self._kubelet.cut()

    async def resume(self) -> None:
        """The machine, or its kubelet, goes on where it was stopped."""
        await self._kubelet.mend()

    async def stop_kubelet(self) -> None:
        """The kubelet is away until `resume`; what runs here runs on."""
        await self._kubelet.cut(pods=False)

    async def remove(self) -> None:
        """The machine is gone and the cloud says so: processes killed, Node object deleted."""
        await self._kubelet.crash()
        for path in (node_path(self.name), f"{LEASES}/{self.name}"):
            try:
                await self._client.delete(path)
            except _ERRORS as error:
                _log.warning("removing %s: %s", path, error)
        self._gone.set()

    async def wait_gone(self) -> None:
        """Wait until the node has been removed."""
        await self._gone.wait()

    @property
    def gone(self) -> bool:
        """Whether the node has been removed."""
        return self._gone.is_set()

    # --- what happens to processes -----------------------------------------------------------

    async def kill_pod(self, namespace: str, name: str) -> None:
        """SIGKILL PID 1 of each container of a pod; raises LookupError when none runs here."""
        self.signal_pod(namespace, name, signal.SIGKILL)

    def signal_pod(self, namespace: str, name: str, number: int) -> None:
        """Send a signal to PID 1 of each container; raises LookupError when none runs here."""
        if not self._kubelet.kill_main(namespace, name, number):
            raise LookupError(f"pod {namespace}/{name} has no running container on {self.name}")

    def pids(self, namespace: str, name: str) -> list[int]:
        """The processes of a pod on this machine, each container's PID 1 before its children."""
        return self._kubelet.pids(namespace, name)

    async def stop(self) -> None:
        """End the node in order, with the cluster."""
        if self._reclaim is not None:
            self._reclaim.cancel()
            await asyncio.gather(self._reclaim, return_exceptions=True)
        await self._kubelet.stop()
