"""One embedded cluster for all tests of this folder, and a namespace of its own for each test."""

import contextlib
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from rekindle_local.client import RequestError, node_path, pod_path
from rekindle_local.cluster import ClusterConfig, ClusterThread
from rekindle_local.images import python_image
from rekindle_local.kubelet.host import KubeletTimings
from rekindle_local.nodes.node_lifecycle import LifecycleTimings


def config(**options):
    """Everything as usual, only faster."""
    defaults = {
        "nodes": 2,
        "s3": False,
        "images": {"py:*": python_image(Path("/"))},
        "kubelet": KubeletTimings(
            heartbeat=0.3,
            restart_backoff=0.2,
            restart_backoff_cap=1.0,
            config_retry=0.1,
            resource_poll=0.1,
        ),
        "lifecycle": LifecycleTimings(node_grace=1.5, default_toleration=0.5),
    }
    return ClusterConfig(**{**defaults, **options})


class Workbench:
    """What a test does to a cluster, in a namespace of its own."""

    def __init__(self, cluster, namespace):
        self.cluster = cluster
        self.namespace = namespace
        self.request("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})

    def request(self, method, path, **options):
        async def send(cluster):
            return await cluster.client.request(method, path, **options)

        return self.cluster.call(send)

    def find(self, path):
        async def send(cluster):
            return await cluster.client.find(path)

        return self.cluster.call(send)

    def create(self, plural, name, **body):
        path = f"/api/v1/namespaces/{self.namespace}/{plural}"
        return self.request("POST", path, body={"metadata": {"name": name}, **body})

    def pod(self, name, script="sleep 60", *, container=None, labels=None, **spec):
        """A pod with one container `main` that runs a shell script."""
        main = {"name": "main", "image": "py:1", "command": ["sh", "-c", script]}
        body = {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{**main, **(container or {})}],
                **spec,
            },
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return self.request("POST", path, body=body)

    def get(self, name):
        return self.find(pod_path(self.namespace, name))

    def pods(self):
        return self.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]

    def node(self, name):
        return self.find(node_path(name))

    def delete(self, name, grace=None):
        path = pod_path(self.namespace, name)
        body = {} if grace is None else {"gracePeriodSeconds": grace}
        return self.request("DELETE", path, body=body)

    def wait(self, name, condition, seconds=60.0):
        """The pod as soon as `condition(pod)` holds; pod is None when it does not exist."""
        return self.wait_for(lambda: self.get(name), condition, seconds)

    def wait_node(self, name, condition, seconds=60.0):
        """The node as soon as `condition(node)` holds; node is None when it does not exist."""
        return self.wait_for(lambda: self.node(name), condition, seconds)

    @staticmethod
    def wait_for(look, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while True:
            seen = look()
            if condition(seen):
                return seen
            assert time.monotonic() < deadline, f"not in time: {seen}"
            time.sleep(0.02)  # between two looks, not instead of them

    def ended(self, name):
        return self.wait(name, lambda pod: pod["status"].get("phase") in ("Succeeded", "Failed"))

    def running(self, name):
        return self.wait(name, lambda pod: pod["status"].get("phase") == "Running")

    def gone(self, name):
        self.wait(name, lambda pod: pod is None)

    def run(self, name, script, **options):
        self.pod(name, script, **options)
        return self.ended(name)

    def logs(self, name, **query):
        """The log as the node serves it."""

        status = self.find(f"/api/v1/nodes/{self.get(name)['spec']['nodeName']}")["status"]
        port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        path = f"/containerLogs/{self.namespace}/{name}/main?{urlencode(query)}"
        url = f"http://{status['addresses'][0]['address']}:{port}{path}"
        shown = {"Authorization": f"Bearer {self.cluster.token}"}
        with urlopen(Request(url, headers=shown), timeout=60) as answer:
            return answer.read().decode()


@pytest.fixture(scope="session")
def shared_cluster():
    with ClusterThread(config()) as cluster:
        yield cluster


@pytest.fixture
def bench(shared_cluster):
    """The shared cluster; the pods of the test are removed at its end."""
    workbench = Workbench(shared_cluster, f"t{uuid.uuid4().hex[:10]}")
    yield workbench
    for pod in workbench.pods():
        with contextlib.suppress(RequestError):
            workbench.delete(pod["metadata"]["name"], grace=0)


@pytest.fixture
def own_cluster():
    """Starts clusters that a test may damage: `own_cluster(nodes=1)` gives a Workbench."""
    started = []

    def start(**options):
        cluster = ClusterThread(config(**options))
        cluster.start()
        started.append(cluster)
        return Workbench(cluster, "own")

    yield start
    for cluster in started:
        cluster.stop()
