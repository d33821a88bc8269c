"""The cluster as a whole: it starts, can be used with kubectl, and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest

from rekindle_local.__main__ import parse
from rekindle_local.cluster import (
    Cluster,
    ClusterConfig,
    ClusterThread,
    remove_stale,
)

pytestmark = pytest.mark.processes


def listens(url):
    with socket.socket() as probe:
        parts = urlsplit(url)
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_nothing_is_left_of_a_stopped_cluster(own_cluster):
    threads = set(threading.enumerate())
    bench = own_cluster(nodes=1, s3=True)
    bench.pod("a", "trap '' TERM; setsid sleep 60 & sleep 60")
    bench.running("a")
    cluster = bench.cluster
    pids = cluster.pids(bench.namespace, "a")
    state, kubeconfig = cluster.cluster.state_dir, cluster.kubeconfig
    assert len(pids) >= 2
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
    urls = [cluster.url, cluster.s3_endpoint]
    assert all(listens(url) for url in urls)
    begun = time.monotonic()
    cluster.stop()
    assert time.monotonic() - begun < 25, "it has waited for the grace of 30 s"
    assert not any(alive(pid) for pid in pids)
    assert not any(listens(url) for url in urls)
    assert not state.exists()
    assert set(threading.enumerate()) <= threads


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(own_cluster):
    port = urlsplit(own_cluster(nodes=0).cluster.url).port
    with pytest.raises(OSError, match="in use"):
        ClusterThread(ClusterConfig(nodes=0, s3=False, port=port)).start()


def test_it_runs_in_the_callers_event_loop_too():
    async def run():
        async with Cluster(ClusterConfig(nodes=1, s3=False)) as cluster:
            node = await cluster.add_node(disk="ssd")
            assert list(cluster.nodes) == ["node-0", "node-1"]
            return await cluster.client.get(f"/api/v1/nodes/{node.name}")

    assert asyncio.run(run())["metadata"]["labels"]["disk"] == "ssd"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kubectl_works_with_the_kubeconfig(bench):
    def kubectl(*words):
        command = ["kubectl", f"--kubeconfig={bench.cluster.kubeconfig}", "-n", bench.namespace]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout

    bench.run("a", "echo hello from the pod")
    assert "node-0   Ready" in kubectl("get", "nodes")
    assert kubectl("logs", "a") == "hello from the pod\n"
    assert "Successfully assigned" in kubectl("describe", "pod", "a")
    assert 'pod "a" deleted' in kubectl("delete", "pod", "a")
    bench.pod("b", "echo one; sleep 0.4; echo two; sleep 0.4; echo three")
    bench.running("b")
    assert kubectl("logs", "-f", "b") == "one\ntwo\nthree\n"


OPERATOR = Path(__file__).parents[2] / "operator"


@pytest.fixture
def foreground(tmp_path):
    """`python -m rekindle_local` with its kubeconfig in a known place."""
    command = [sys.executable, "-m", "rekindle_local", "--nodes", "1"]
    process = subprocess.Popen(
        [*command, "--kubeconfig", str(tmp_path / "kubeconfig")],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(OPERATOR),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(tmp_path),
        },
    )
    with process:
        yield process
        process.kill()


def test_the_foreground_command_prints_its_kubeconfig_and_ends_on_ctrl_c(foreground, tmp_path):
    assert foreground.stdout.readline() == f"export KUBECONFIG={tmp_path / 'kubeconfig'}\n"
    assert "AWS_ENDPOINT_URL=http://127.0.0.1:" in foreground.stdout.readline()
    assert "AWS_SECRET_ACCESS_KEY=" in foreground.stdout.readline()
    assert "1 nodes at https://127.0.0.1:" in foreground.stdout.readline()
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(60) == 0


def test_the_object_store_does_not_outlive_a_killed_cluster(foreground):
    foreground.stdout.readline()
    endpoint = foreground.stdout.readline().partition("=")[2].strip()
    assert listens(endpoint)
    foreground.kill()
    deadline = time.monotonic() + 5
    while listens(endpoint):
        assert time.monotonic() < deadline


def test_importing_the_cluster_loads_no_s3_library_and_none_of_the_other_packages():
    heavy = "{'boto3', 'botocore', 'moto', 'torch', 'kopf', 'rekindle_operator', 'rekindle_cli'}"
    program = f"import rekindle_local.cluster, sys; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(OPERATOR)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout == "[]\n"


def test_images_on_the_command_line_need_an_existing_directory(capsys):
    with pytest.raises(SystemExit):
        parse(["--image", "a=/no/such/directory"])
    assert "must be PATTERN=DIRECTORY" in capsys.readouterr().err


def test_state_of_killed_clusters_is_removed_and_nothing_else(tmp_path):
    dead = 2**22 + 1  # above the largest process number Linux gives
    names = [f"embedded-{dead}-abcdefgh", f"embedded-{os.getpid()}-abcdefgh", "embedded-x-y"]
    for name in names:
        (tmp_path / name / "node-0").mkdir(parents=True)
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


PATHS = [
    ("GET", "/api/v1/pods"),
    ("POST", "/api/v1/namespaces/default/pods"),
    ("GET", "/apis"),
    ("GET", "/openapi/v2"),
    ("GET", "/nothing/here"),
]


def test_no_port_of_a_cluster_answers_who_shows_no_credential(own_cluster):
    """Pods are processes of its owner, and other users of the machine reach loopback as well."""
    bench = own_cluster(nodes=1)
    bench.run("a", "echo one")
    cluster = bench.cluster.cluster
    node = bench.find("/api/v1/nodes/node-0")["status"]
    port = node["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    logs = f"http://{node['addresses'][0]['address']}:{port}/containerLogs/{bench.namespace}/a/main"
    asked = [("GET", logs), *((method, cluster.url + path) for method, path in PATHS)]
    trusted = ssl.create_default_context(cadata=cluster.authority)
    for shown in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}):
        for method, url in asked:
            request = Request(url, method=method, headers=shown, data=b"{}" * (method == "POST"))
            with pytest.raises(HTTPError) as refused:
                urlopen(request, timeout=60, context=trusted if url.startswith("https") else None)
            refused.value.close()
            assert refused.value.code == 401, url
    assert cluster.url.startswith("https://")
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urlopen(cluster.url, timeout=60, context=ssl.create_default_context())
    assert cluster.token in cluster.kubeconfig.read_text()
    assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
    assert not list(cluster.state_dir.glob(".server-*")), "the key of the server is on no disk"
    assert bench.logs("a") == "one\n"
