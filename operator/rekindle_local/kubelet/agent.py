"""The kubelet of one node: registers it, keeps it alive, runs the pods bound to it.

Several kubelets live in one event loop, one per node. The node is a Node object with a lease in
`kube-node-lease`; renewing the lease is the heartbeat that the node life cycle watches. `stop` ends
a node in order. `crash` kills everything on it at once: the kernel is still there to close the
connections, which tells the other ends. `cut` is what a machine looks like from outside that has
lost its power or its network: every process is stopped, nothing is closed or refused, and its
kubelet reaches the API server no more, until `mend`.
"""

import asyncio
import contextlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from rekindle_local import timestamps
from rekindle_local.client import (
    MERGE,
    STRATEGIC,
    CollectionReflector,
    KubeClient,
    Manifest,
    RequestError,
    node_path,
)
from rekindle_local.events import EventRecorder
from rekindle_local.images import Image
from rekindle_local.kubelet import volumes
from rekindle_local.kubelet.containers import processes
from rekindle_local.kubelet.host import Host, KubeletTimings, stale_memory, tmp_root
from rekindle_local.kubelet.logserver import LogServer
from rekindle_local.kubelet.pod import PodWorker
from rekindle_local.network.addresses import NodeAddresses
from rekindle_local.network.dns import NameTable
from rekindle_local.quantity import canonical

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
VERSION = "v1.33.0+process"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KubeletConfig:
    """What makes one node."""

    node_name: str
    state_dir: Path
    addresses: NodeAddresses
    images: Mapping[str, Image]
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, str] = field(default_factory=dict)
    """Overrides what the machine has: cpu, memory, pods, ephemeral-storage."""
    gpus: tuple[str, ...] = ()
    """Accelerators this node may hand out, as CUDA_VISIBLE_DEVICES names them."""
    timings: KubeletTimings = field(default_factory=KubeletTimings)
    names: NameTable | None = None
    """What the cluster's names resolve to; None where containers cannot be told."""
    names_problem: str = ""
    """Why they cannot."""


class Kubelet:
    """One node; the client is its own, and closed with it."""

    def __init__(self, client: KubeClient, config: KubeletConfig) -> None:
        self._client = client
        self._config = config
        self._free_gpus = list(config.gpus)
        self._workers: dict[str, PodWorker] = {}
        self._over: set[str] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self._host: Host | None = None
        self._logs = LogServer(self.find, client.token)
        self._running = False
        self._cut = False
        self.name = config.node_name

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Clear what an earlier kubelet left, register the node, begin to watch."""
        config = self._config
        # Resolved: it marks processes, and two spellings would be two nodes.
        state_dir = config.state_dir.resolve()
        await asyncio.to_thread(_clear, state_dir)
        await self._logs.start(config.addresses.node_ip)
        self._host = Host(
            node_name=self.name,
            addresses=config.addresses,
            state_dir=state_dir,
            images=config.images,
            timings=config.timings,
            allocatable=self.capacity(),
            client=self._client,
            session=aiohttp.ClientSession(),
            events=EventRecorder(self._client, "kubelet", self.name),
            names=config.names,
            names_problem=config.names_problem,
            take_gpus=self._take_gpus,
            give_gpus=self._free_gpus.extend,
        )
        self._running = True
        await self._register()
        self._work(self._host)

    def _work(self, host: Host) -> None:
        """Watch, say that the node is well, enforce limits."""
        pods = CollectionReflector(
            self._client,
            "/api/v1/pods",
            self._on_pod,
            {"fieldSelector": f"spec.nodeName={self.name}"},
        )
        pods.items = {worker.uid: worker.pod for worker in self._workers.values()}
        self._spawn(pods.run())
        self._spawn(host.events.run())
        self._spawn(self._heartbeats())
        self._spawn(self._enforce_limits())

    async def stop(self) -> None:
        """End the node in order: its processes first, then its watches and its port."""
        await self._end()

    async def crash(self) -> None:
        """Kill every process: no status, no further heartbeat."""
        await self._end()

    async def cut(self, *, pods: bool = True) -> None:
        """Let the kubelet, and its pods, too, be heard no more; nobody is told."""
        if not self._running or self._cut:
            return
        self._cut = True
        self._client.online.clear()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if pods:
            await asyncio.to_thread(self._freeze)

    async def mend(self) -> None:
        """Let everything go on from where it was cut off."""
        if not self._running or not self._cut or self._host is None:
            return
        self._cut = False
        await asyncio.to_thread(self._thaw, all_of_it=True)
        self._client.online.set()
        self._work(self._host)

    def _freeze(self) -> None:
        for process in self._processes():
            process.freeze()

    def _thaw(self, *, all_of_it: bool) -> None:
        for process in self._processes():
            process.thaw(all_of_it=all_of_it)

    def _processes(self) -> list[processes.ContainerProcess]:
        """What runs on this node, or ran last."""
        workers = list(self._workers.values())
        found = [runner.latest for worker in workers for runner in worker.runners]
        return [process for process in found if process is not None]

    async def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        workers = list(self._workers.values())
        started = self._processes()
        if self._cut:
            await asyncio.to_thread(self._thaw, all_of_it=False)
        for worker in workers:
            worker.kill()
        tasks = [*self._tasks, *(worker.task for worker in workers)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                await asyncio.gather(*(process.wait() for process in started))
        await self._logs.stop()
        await self._client.close()
        if self._host is not None:
            await self._host.session.close()
            await asyncio.to_thread(_remove, self._host.state_dir)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    # --- the node ----------------------------------------------------------------------------

    def capacity(self) -> dict[str, str]:
        """What the node offers; every node offers the whole machine unless told otherwise."""
        machine = {
            "cpu": str(os.cpu_count() or 1),
            "memory": f"{psutil.virtual_memory().total // 1024}Ki",
            "ephemeral-storage": "100Gi",
            "pods": "110",
        }
        gpus = {"nvidia.com/gpu": str(len(self._config.gpus))} if self._config.gpus else {}
        return {**machine, **gpus, **self._config.capacity}

    def _node(self) -> Manifest:
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(
            platform.machine(), platform.machine()
        )
        system = "linux" if sys.platform.startswith("linux") else sys.platform
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": system,
            "kubernetes.io/arch": architecture,
            "node.kubernetes.io/instance-type": "process",
            **self._config.labels,
        }
        spec = {"podCIDR": self._config.addresses.cidr} if self._config.addresses.cidr else {}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": spec,
            "status": self._node_status(),
        }

    def _node_status(self) -> Manifest:
        stamp = timestamps.seconds(timestamps.now())
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
            "lastHeartbeatTime": stamp,
            "lastTransitionTime": stamp,
        }
        return {
            "capacity": self.capacity(),
            "allocatable": self.capacity(),
            "conditions": [ready],
            "addresses": [
                {"type": "InternalIP", "address": self._config.addresses.node_ip},
                {"type": "Hostname", "address": self.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._logs.port}},
            "nodeInfo": {
                "architecture": platform.machine(),
                "bootID": "",
                "containerRuntimeVersion": "process://1",
                "kernelVersion": platform.release(),
                "kubeProxyVersion": "",
                "kubeletVersion": VERSION,
                "machineID": "",
                "operatingSystem": sys.platform,
                "osImage": platform.platform(),
                "systemUUID": "",
            },
        }

    async def _register(self) -> None:
        node = self._node()
        try:
            await self._client.create("/api/v1/nodes", node)
        except RequestError as error:
            if error.code != 409:
                raise
            labels = {"metadata": {"labels": node["metadata"]["labels"]}}
            await self._client.patch(node_path(self.name), labels, MERGE)
        await self._client.patch(
            node_path(self.name, "status"), {"status": node["status"]}, STRATEGIC
        )
        await self._renew()

    async def _renew(self) -> None:
        stamp = timestamps.micros(timestamps.now())
        spec = {
            "holderIdentity": self.name,
            "leaseDurationSeconds": max(1, round(self._config.timings.heartbeat * 4)),
            "renewTime": stamp,
        }
        try:
            await self._client.patch(f"{LEASES}/{self.name}", {"spec": spec}, MERGE)
        except RequestError as error:
            if error.code != 404:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": "kube-node-lease"},
                "spec": spec,
            }
            await self._client.create(LEASES, lease)

    async def _heartbeats(self) -> None:
        """Renew the lease; say Ready again when somebody has doubted it."""
        while True:
            await asyncio.sleep(self._config.timings.heartbeat)
            try:
                await self._renew()
                node = await self._client.find(node_path(self.name))
                conditions = ((node or {}).get("status") or {}).get("conditions") or ()
                ready = any(
                    one["type"] == "Ready" and one["status"] == "True" for one in conditions
                )
                if node is not None and not ready:
                    await self._client.patch(
                        node_path(self.name, "status"), {"status": self._node_status()}, STRATEGIC
                    )
                    for worker in self._workers.values():
                        worker.rewrite()  # the pods were marked not ready meanwhile
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                _log.debug("heartbeat of %s failed: %s", self.name, error)

    # --- pods --------------------------------------------------------------------------------

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The pod of that name on this node; the newest when an older one is still ending."""
        found = [
            worker
            for worker in self._workers.values()
            if worker.namespace == namespace and worker.name == name
        ]
        return found[-1] if found else None

    def pids(self, namespace: str, name: str) -> list[int]:
        """The processes of a pod, each container's PID 1 before its children."""
        worker = self.find(namespace, name)
        if worker is None:
            return []
        return [
            pid
            for runner in worker.runners
            if runner.process is not None
            for pid in runner.process.tree()
        ]

    def kill_main(self, namespace: str, name: str, number: int) -> int:
        """Send a signal to PID 1 of every running container of a pod; says how many there were."""
        worker = self.find(namespace, name)
        running = [one.process for one in worker.runners if one.process] if worker else []
        for process in running:
            process.signal(number)
        return len(running)

    def _on_pod(self, kind: str, pod: Manifest) -> None:
        if pod["spec"].get("nodeName") != self.name or not self._running or self._host is None:
            return
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if kind == "DELETED":
            self._over.discard(uid)
        if worker is None:
            if kind == "DELETED" or uid in self._over:
                return
            self._workers[uid] = PodWorker(self._host, pod, partial(self._forget, uid))
        elif kind == "DELETED":
            worker.removed()
        else:
            worker.update(pod)

    def _forget(self, uid: str, *, removed: bool) -> None:
        self._workers.pop(uid, None)
        if not removed:
            self._over.add(uid)  # events from before its end may still be on their way

    def _take_gpus(self, count: int) -> tuple[str, ...]:
        if count > len(self._free_gpus):
            raise RuntimeError(
                f"{count} of nvidia.com/gpu wanted, {len(self._free_gpus)} free on {self.name}"
            )
        taken = tuple(self._free_gpus[:count])
        del self._free_gpus[:count]
        return taken

    # --- limits ------------------------------------------------------------------------------

    async def _enforce_limits(self) -> None:
        """Kill containers over their memory limit, evict pods over a volume's size."""
        while True:
            await asyncio.sleep(self._config.timings.resource_poll)
            for worker in list(self._workers.values()):
                await self._enforce_memory(worker)
                await self._enforce_volumes(worker)

    async def _enforce_memory(self, worker: PodWorker) -> None:
        for runner in worker.runners:
            limit, process = runner.memory_limit, runner.process
            if limit is None or process is None:
                continue
            if await asyncio.to_thread(_exceeds, process, limit) and runner.process is process:
                runner.out_of_memory()

    async def _enforce_volumes(self, worker: PodWorker) -> None:
        for name, (path, limit, text) in worker.place.volumes.limits().items():
            if await asyncio.to_thread(volumes.used_bytes, path) > limit:
                worker.evict(f'Usage of EmptyDir volume "{name}" exceeds the limit "{text}". ')
        whole = worker.storage_limit
        if whole is not None and await asyncio.to_thread(worker.stored_bytes) > whole:
            text = canonical(f"{whole // 1024}Ki")
            worker.evict(
                f"Pod ephemeral local storage usage exceeds the total limit of containers {text}. "
            )


def _exceeds(process: processes.ContainerProcess, limit: int) -> bool:
    pids = process.tree()
    # The exact measure costs milliseconds per process, the rough one bounds it from above.
    return processes.resident(pids) > limit and processes.memory(pids) > limit


def _clear(state_dir: Path) -> None:
    """End processes and remove files of an earlier kubelet on this directory."""
    if state_dir.exists():
        processes.kill_marked(processes.ROOT_VARIABLE, str(state_dir))
    _remove(state_dir)
    for path in (state_dir, tmp_root(state_dir)):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            # What pods find there is run by them: it must not be of another user's making.
            raise PermissionError(f"{path} belongs to another user: remove it")


def _remove(state_dir: Path) -> None:
    """Remove what pods left on disk and in memory; their processes have ended."""
    for part in (state_dir / "pods", state_dir / "logs", tmp_root(state_dir)):
        shutil.rmtree(part, ignore_errors=True)
    if os.access(volumes.SHM, os.W_OK):
        for left in stale_memory(state_dir, volumes.SHM):
            shutil.rmtree(left, ignore_errors=True)
