"""The embedded cluster as one object: API server, scheduler, node life cycle, nodes, object store.

`Cluster` runs in the current event loop; `ClusterThread` runs one in a thread of its own and offers
the same as plain calls, for test fixtures and scripts. Whatever starts is stopped in the opposite
order: nodes first, so that no process is left, the API server last, so that everything can still
say goodbye. With a temporary state directory nothing remains on disk.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from rekindle_local import provisioner
from rekindle_local.apiserver.http.server import ApiServer
from rekindle_local.client import KubeClient, RequestError
from rekindle_local.images import Image
from rekindle_local.kubelet import hostsfile
from rekindle_local.kubelet.agent import Kubelet, KubeletConfig
from rekindle_local.kubelet.host import KubeletTimings
from rekindle_local.network import certificates
from rekindle_local.network.addresses import ClusterAddresses
from rekindle_local.network.dns import NameTable
from rekindle_local.nodes.node_lifecycle import LifecycleTimings, NodeLifecycle
from rekindle_local.nodes.nodes import SPOT_TAINT, EmbeddedNode
from rekindle_local.objectstore.server import ObjectStore
from rekindle_local.provisioner import Provisioner
from rekindle_local.scheduling.constraints import is_ready
from rekindle_local.scheduling.scheduler import Scheduler
from rekindle_local.state_lock import StateLock

_START_SECONDS = 60.0
_TEMPORARY = re.compile(r"embedded-(\d+)-\w{8}")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What to start."""

    nodes: int = 3
    host: str = "127.0.0.1"
    port: int = 0
    """Of the API server; 0 takes a free one."""
    token: str | None = None
    """The bearer token that clients have to send; None makes a new one."""
    state_dir: Path | None = None
    """Where pods' files and the kubeconfig live; None is a temporary one, removed at the end."""
    kubeconfig: Path | None = None
    """Where to write the kubeconfig; None is `kubeconfig` in the state directory."""
    images: Mapping[str, Image] = field(default_factory=dict)
    """Patterns of image names to images; any other name fails as a pull fails."""
    s3: bool = True
    buckets: tuple[str, ...] = ("rekindle",)
    s3_deny: tuple[str, ...] = ()
    """Buckets and prefixes that are refused with AccessDenied."""
    crds: tuple[dict[str, Any], ...] = ()
    """CustomResourceDefinitions to create before anything else happens."""
    node_labels: tuple[Mapping[str, str], ...] = ()
    """Labels of the first nodes, in order."""
    node_capacity: Mapping[str, str] = field(default_factory=dict)
    """Overrides of what each node offers: cpu, memory, pods."""
    gpus_per_node: int = 0
    """Accelerators per node, numbered through over the nodes as CUDA numbers them."""
    kubelet: KubeletTimings = field(default_factory=KubeletTimings)
    lifecycle: LifecycleTimings = field(default_factory=LifecycleTimings)


class Cluster:
    """An embedded cluster in the current event loop; an asynchronous context manager."""

    def __init__(self, config: ClusterConfig | None = None) -> None:
        self.config = config or ClusterConfig()
        self.url = ""
        """Of the API server."""
        self.token = self.config.token or secrets.token_urlsafe(32)
        """What clients have to send: the kubeconfig has it, and only its owner may read that."""
        self.authority = ""
        """The certificate (PEM) by which clients know the API server."""
        self.s3_endpoint = ""
        """Of the object store, if any."""
        self.s3_credentials = ("", "")
        """Access key and secret."""
        self.store: ObjectStore | None = None
        """The object store: create buckets, change what is denied."""
        self.names_problem = ""
        """Why names of services and pods do not resolve in pods here; empty when they do."""
        self._names: NameTable | None = None
        self._nodes: dict[str, EmbeddedNode] = {}
        self._serial = 0
        self._cleanup = contextlib.AsyncExitStack()
        self._state_dir = Path()
        self._addresses: ClusterAddresses | None = None
        self._client: KubeClient | None = None
        self._server: ApiServer | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def nodes(self) -> Mapping[str, EmbeddedNode]:
        """The nodes that have not been removed, by name."""
        return {name: node for name, node in self._nodes.items() if not node.gone}

    @property
    def kubeconfig(self) -> Path:
        """The file to give to kubectl; only its owner can read it."""
        return self.config.kubeconfig or self._state_dir / "kubeconfig"

    @property
    def client(self) -> KubeClient:
        """A client of the API server, for use in the cluster's event loop."""
        if self._client is None:
            raise RuntimeError("the cluster is not running: call start() first")
        return self._client

    @property
    def state_dir(self) -> Path:
        """Where the nodes keep their pods' files."""
        return self._state_dir

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything and wait until the nodes are ready; on failure nothing is left."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        if config.state_dir is None:
            await asyncio.to_thread(remove_stale, Path(tempfile.gettempdir()))
            # Short, because programs put Unix sockets below it, whose paths end at 108 bytes.
            self._state_dir = Path(tempfile.mkdtemp(prefix=f"embedded-{os.getpid()}-"))
            self._cleanup.callback(shutil.rmtree, self._state_dir, ignore_errors=True)
        else:
            self._state_dir = config.state_dir.resolve()
            self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = StateLock(self._state_dir)
            lock.take()
            self._cleanup.callback(lock.release)
        self._addresses = ClusterAddresses()
        self._cleanup.callback(self._addresses.close)
        store = asyncio.create_task(self._start_store()) if config.s3 else None
        trial = asyncio.create_task(hostsfile.problem(self._state_dir))
        try:
            await self._start_control_plane()
            self.names_problem = await trial
            if not self.names_problem:
                self._names = NameTable(self.client)
                self._run(self._names.run())
            for labels in (config.node_labels + ({},) * config.nodes)[: config.nodes]:
                await self.add_node(**labels)
            await self._wait_ready()
        finally:
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)  # it ends its process
            if store is not None:
                await store

    async def _start_store(self) -> None:
        self.store = ObjectStore(host=self.config.host, deny=self.config.s3_deny)
        self._cleanup.push_async_callback(self.store.stop)
        self.s3_endpoint = await self.store.start()
        self.s3_credentials = self.store.credentials
        for bucket in self.config.buckets:
            await self.store.create_bucket(bucket)

    async def _start_control_plane(self) -> None:
        tls, self.authority = certificates.serve([self.config.host], self._state_dir)
        server = ApiServer(host=self.config.host, port=self.config.port, token=self.token, tls=tls)
        self.url = await server.start()
        self._server = server
        self._cleanup.push_async_callback(server.stop)
        self._client = KubeClient(self.url, self.token, self.authority)
        self._cleanup.push_async_callback(self._client.close)
        await self._create_namespace("kube-node-lease")
        for crd in self.config.crds:
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            await self._client.create(path, crd)
        self._write_kubeconfig()
        await self._client.create(provisioner.CLASSES, provisioner.STANDARD)
        self._run(Scheduler(self._client).run())
        self._run(Provisioner(self._client, self._state_dir / "volumes").run())
        self._run(NodeLifecycle(self._client, self.config.lifecycle).run())
        self._cleanup.push_async_callback(self._stop_nodes)

    async def _create_namespace(self, name: str) -> None:
        assert self._client is not None
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        try:
            await self._client.create("/api/v1/namespaces", body)
        except RequestError as error:
            if error.code != 409:
                raise

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                _log.error("a part of the cluster failed", exc_info=task.exception())

        async def cancel() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        task.add_done_callback(ended)
        self._cleanup.push_async_callback(cancel)

    async def stop(self) -> None:
        """Stop everything; no process, port or temporary file of it is left."""
        await self._cleanup.aclose()

    async def _stop_nodes(self) -> None:
        await asyncio.gather(*(node.stop() for node in self._nodes.values()))

    async def stop_api_server(self) -> None:
        """Let nobody reach the API server; what it holds stays."""
        if self._server is not None:
            await self._server.stop()

    async def start_api_server(self) -> None:
        """Serve again, at the same place."""
        if self._server is not None:
            await self._server.start()

    # --- nodes -------------------------------------------------------------------------------

    async def add_node(self, **labels: str) -> EmbeddedNode:
        """Add one more node and wait until it is registered.

        Labels whose keys are no Python names go in as `**{"topology.kubernetes.io/zone": "a"}`.
        """
        if self._client is None or self._addresses is None:
            raise RuntimeError("the cluster is not running: call start() first")
        number = self._serial
        self._serial += 1
        per_node = self.config.gpus_per_node
        name = f"node-{number}"
        # One of its own: it can be cut off from the API server without anybody else.
        kubelet = Kubelet(
            KubeClient(self.url, self.token, self.authority),
            KubeletConfig(
                node_name=name,
                state_dir=self._state_dir / name,
                addresses=self._addresses.node(),
                images=self.config.images,
                labels=labels,
                capacity=self.config.node_capacity,
                gpus=tuple(str(number * per_node + index) for index in range(per_node)),
                timings=self.config.kubelet,
                names=self._names,
                names_problem=self.names_problem,
            ),
        )
        node = EmbeddedNode(self._client, kubelet)
        self._nodes[name] = node
        await kubelet.start()
        return node

    def node_of(self, namespace: str, pod: str) -> EmbeddedNode:
        """The node a pod's containers run on; raises LookupError when they run nowhere."""
        for node in self.nodes.values():
            if node.pids(namespace, pod):
                return node
        raise LookupError(f"pod {namespace}/{pod} runs on no node of this cluster")

    async def kill_pod(self, namespace: str, name: str) -> None:
        """SIGKILL PID 1 of each container of a pod, wherever it runs."""
        await self.node_of(namespace, name).kill_pod(namespace, name)

    def signal_pod(self, namespace: str, name: str, number: int) -> None:
        """Send a signal to PID 1 of each container of a pod, wherever it runs."""
        self.node_of(namespace, name).signal_pod(namespace, name, number)

    async def _wait_ready(self) -> None:
        assert self._client is not None
        async with asyncio.timeout(_START_SECONDS):
            while True:
                nodes = (await self._client.get("/api/v1/nodes")).get("items") or ()
                if sum(is_ready(node) for node in nodes) >= len(self._nodes):
                    return
                await asyncio.sleep(0.05)

    def _write_kubeconfig(self) -> None:
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        # By its path: of data in a kubeconfig clients make temporary files, and some are killed.
        authority = (self.state_dir / "ca.crt").absolute()
        authority.write_text(self.authority)
        fresh = self.kubeconfig.with_name(f".{self.kubeconfig.name}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(kubeconfig_text(self.url, self.token, authority))
        os.replace(fresh, self.kubeconfig)


def remove_stale(directory: Path) -> None:
    """Remove the temporary state directories of clusters whose process was killed."""
    for path in directory.glob("embedded-*-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)  # another user's stays


def kubeconfig_text(url: str, token: str, authority: Path) -> str:
    """A kubeconfig with one context, `embedded`."""
    return (
        "apiVersion: v1\n"
        "kind: Config\n"
        "current-context: embedded\n"
        "clusters:\n"
        "- name: embedded\n"
        f"  cluster: {{server: '{url}', certificate-authority: '{authority}'}}\n"
        "users:\n"
        f"- name: embedded\n  user: {{token: '{token}'}}\n"
        "contexts:\n"
        "- name: embedded\n"
        "  context: {cluster: embedded, user: embedded, namespace: default}\n"
    )


class ClusterThread:
    """A `Cluster` in a thread with its own event loop; a context manager with plain calls."""

    def __init__(self, config: ClusterConfig | None = None) -> None:
        self.cluster = Cluster(config)
        """The cluster itself: read its attributes, run its coroutines through `call`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._end: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the cluster and return when it is ready; raises what its start raised."""
        self._thread = threading.Thread(target=self._main, name="embedded cluster", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        async with self.cluster:
            self._started.set()
            await self._end.wait()

    def stop(self) -> None:
        """Stop the cluster and wait until nothing of it is left; raises what its end raised."""
        if self._thread is None or not self._thread.is_alive():
            return
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def call(self, work: Callable[[Cluster], Awaitable[_T]], timeout: float = 60.0) -> _T:
        """Run `await work(cluster)` in the cluster's loop: `call(lambda c: c.add_node())`."""
        if self._loop is None:
            raise RuntimeError("the cluster is not running: call start() first")

        async def run() -> _T:
            return await work(self.cluster)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout)

    # --- the same as on the cluster ----------------------------------------------------------

    @property
    def url(self) -> str:
        """Of the API server."""
        return self.cluster.url

    @property
    def token(self) -> str:
        """What clients have to send."""
        return self.cluster.token

    @property
    def kubeconfig(self) -> Path:
        """The file to give to kubectl."""
        return self.cluster.kubeconfig

    @property
    def s3_endpoint(self) -> str:
        """Of the object store."""
        return self.cluster.s3_endpoint

    @property
    def s3_credentials(self) -> tuple[str, str]:
        """Access key and secret."""
        return self.cluster.s3_credentials

    def node_names(self) -> list[str]:
        """The nodes that have not been removed."""
        return list(self.cluster.nodes)

    def add_node(self, **labels: str) -> str:
        """Add one more node; its name."""
        return self.call(lambda cluster: cluster.add_node(**labels)).name

    def node_of(self, namespace: str, pod: str) -> str:
        """The name of the node a pod's containers run on."""

        async def find(cluster: Cluster) -> str:
            return cluster.node_of(namespace, pod).name

        return self.call(find)

    def kill_pod(self, namespace: str, name: str) -> None:
        """SIGKILL PID 1 of each container of a pod, wherever it runs."""
        self.call(lambda cluster: cluster.kill_pod(namespace, name))

    def signal_pod(self, namespace: str, name: str, number: int) -> None:
        """Send a signal to PID 1 of each container of a pod, wherever it runs."""

        async def send(cluster: Cluster) -> None:
            cluster.signal_pod(namespace, name, number)

        self.call(send)

    def pids(self, namespace: str, name: str) -> list[int]:
        """The processes of a pod; raises LookupError when it runs nowhere."""

        async def find(cluster: Cluster) -> list[int]:
            return cluster.node_of(namespace, name).pids(namespace, name)

        return self.call(find)

    def reclaim(
        self,
        node: str,
        notice_seconds: float,
        *,
        taint: tuple[str, str, str] = SPOT_TAINT,
        drain_after: float = 0.0,
    ) -> None:
        """Announce that a node goes; returns at once, see `EmbeddedNode.reclaim`."""
        self.call(
            lambda cluster: cluster.nodes[node].reclaim(
                notice_seconds, taint=taint, drain_after=drain_after
            )
        )

    def fail(self, node: str) -> None:
        """Let a node die without notice."""
        self.call(lambda cluster: cluster.nodes[node].fail())

    def power_loss(self, node: str) -> None:
        """Let a node lose its power: nothing on it is heard any more, and nothing is closed."""
        self.call(lambda cluster: cluster.nodes[node].power_loss())

    def pause(self, node: str) -> None:
        """Let a node stand still until `resume`."""
        self.call(lambda cluster: cluster.nodes[node].pause())

    def stop_kubelet(self, node: str) -> None:
        """Let only the kubelet of a node be away until `resume`."""
        self.call(lambda cluster: cluster.nodes[node].stop_kubelet())

    def resume(self, node: str) -> None:
        """Let a node that stood still, or its kubelet, go on."""
        self.call(lambda cluster: cluster.nodes[node].resume())

    def stop_api_server(self) -> None:
        """Let the API server be away; what it holds stays."""
        self.call(lambda cluster: cluster.stop_api_server())

    def start_api_server(self) -> None:
        """Let the API server be there again, at the same place."""
        self.call(lambda cluster: cluster.start_api_server())

    def remove(self, node: str) -> None:
        """Let a node die and its Node object be deleted."""
        self.call(lambda cluster: cluster.nodes[node].remove())

    def taint(self, node: str, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        """Add a taint to a node."""
        self.call(lambda cluster: cluster.nodes[node].taint(key, value, effect))

    def untaint(self, node: str, key: str) -> None:
        """Take a taint from a node."""
        self.call(lambda cluster: cluster.nodes[node].untaint(key))

    def cordon(self, node: str) -> None:
        """Let nothing more be scheduled on a node."""
        self.call(lambda cluster: cluster.nodes[node].cordon())

    def set_s3_deny(self, deny: tuple[str, ...]) -> None:
        """Refuse these buckets and prefixes from now on."""

        async def change(cluster: Cluster) -> None:
            if cluster.store is None:
                raise RuntimeError("this cluster has no object store: ClusterConfig(s3=True)")
            await cluster.store.set_deny(deny)

        self.call(change)
