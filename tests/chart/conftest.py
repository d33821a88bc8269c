"""A real Helm, and an API server that it can install into."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle_local.apiserver.http.server import ApiServer

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "rekindle"

Document = dict[str, Any]


class HelmRefusedError(Exception):
    """What Helm would have printed before it exits with 1."""


@dataclass(kw_only=True)
class Helm:
    """One Helm process, the API server that it talks to, and names that nobody else uses."""

    worker: subprocess.Popen[str]
    cluster: "Cluster"
    refused: type[Exception] = HelmRefusedError
    numbers: Iterator[int] = field(default_factory=count)

    def call(self, action: str, **request: Any) -> Any:
        request |= {"action": action, "chart": str(CHART), "kubeconfig": self.cluster.kubeconfig}
        assert self.worker.stdin
        assert self.worker.stdout
        self.worker.stdin.write(json.dumps(request) + "\n")
        self.worker.stdin.flush()
        reply = json.loads(self.worker.stdout.readline())
        if "refused" in reply:
            raise self.refused(reply["refused"])
        return reply["result"]

    def namespace(self) -> str:
        """A namespace that did not exist before."""
        name = f"team-{next(self.numbers)}"
        self.cluster.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def render(self, values: Document | None = None, release: str = "rk") -> list[Document]:
        """What an install with these values applies; it is gone again afterwards."""
        namespace = self.namespace()
        release_info = self.call(
            "install", release=release, namespace=namespace, options={"values": values or {}}
        )
        self.call("uninstall", release=release, namespace=namespace)
        documents = yaml.safe_load_all(release_info["manifest"])
        return [document for document in documents if document]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The embedded API server, spoken to without any client of ours."""

    url: str
    kubeconfig: str

    def _call(self, method: str, path: str, body: Document | None = None) -> Document:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: Document = json.load(response)
            return answer

    def get(self, path: str) -> Document:
        return self._call("GET", path)

    def create(self, path: str, body: Document) -> Document:
        return self._call("POST", path, body)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One API server for all tests of the chart, in a thread: they keep apart by namespace."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="apiserver")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=30)

    server = ApiServer()
    url = run(server.start())
    kubeconfig = tmp_path_factory.mktemp("kube") / "config"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "embedded", "cluster": {"server": url}}],
                "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": ""}}],
                "current-context": "embedded",
            }
        )
    )
    yield Cluster(url=url, kubeconfig=str(kubeconfig))
    run(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=30)
    loop.close()


@pytest.fixture(scope="session")
def helm(cluster: Cluster) -> Iterator[Helm]:
    if importlib.util.find_spec("helm_sdkpy") is None:
        pytest.skip("needs Helm: pip install --ignore-requires-python helm-sdkpy==0.1.32")
    command = [sys.executable, str(Path(__file__).with_name("helm_worker.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as worker:
        yield Helm(worker=worker, cluster=cluster)
        worker.kill()


@pytest.fixture(scope="session")
def prometheus_operator(cluster: Cluster) -> None:
    """The kinds that monitoring needs, as far as the chart uses them; all else is refused."""
    text = {"type": "string"}
    labels = {"type": "object", "additionalProperties": text}
    selector = {"type": "object", "properties": {"matchLabels": labels}}
    namespaces = {"any": {"type": "boolean"}, "matchNames": {"type": "array", "items": text}}
    endpoint = {"port": text, "path": text, "interval": text}
    spec = {
        "selector": selector,
        "namespaceSelector": {"type": "object", "properties": namespaces},
        "podTargetLabels": {"type": "array", "items": text},
        "podMetricsEndpoints": {
            "type": "array",
            "items": {"type": "object", "properties": endpoint},
        },
    }
    kinds = {
        "PodMonitor": {"type": "object", "required": ["selector"], "properties": spec},
        "PrometheusRule": {
            "type": "object",
            "required": ["groups"],
            "x-kubernetes-preserve-unknown-fields": True,
        },
    }
    for kind, schema in kinds.items():
        plural, group = f"{kind.lower()}s", "monitoring.coreos.com"
        body = {"type": "object", "properties": {"spec": schema}}
        version = {
            "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": body},
        }  # fmt: skip
        names = {"kind": kind, "plural": plural}
        cluster.create(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group, "scope": "Namespaced", "names": names, "versions": [version],
                },
            },
        )  # fmt: skip
