"""Names of services and pods: which there are, and that programs in pods can use them."""

import asyncio
import os
import shutil
import socket
import sys
from pathlib import Path

import psutil
import pytest

from rekindle_local.kubelet import hostsfile
from rekindle_local.kubelet.containers.processes import (
    ID_VARIABLE,
    ContainerCommand,
    ContainerProcess,
)
from rekindle_local.network.dns import NameTable, hosts_lines, records

READY = [{"type": "Ready", "status": "True"}]


def service(name="s", *, ip="None", **spec):
    meta = {"name": name, "namespace": "d"}
    return {"metadata": meta, "spec": {"clusterIP": ip, "selector": {"a": "b"}, **spec}}


def pod(name="p", *, ip="127.0.1.2", ready=True, phase="Running", labels=None, **spec):
    return {
        "metadata": {"name": name, "namespace": "d", "labels": labels or {"a": "b"}},
        "spec": spec,
        "status": {"podIP": ip, "phase": phase, "conditions": READY if ready else []},
    }


NAMED = {"hostname": "p-0", "subdomain": "s"}


@pytest.mark.parametrize(
    ("services", "pods", "names"),
    [
        ([service()], [pod()], ["s"]),
        ([service()], [pod(**NAMED)], ["p-0.s", "s"]),
        # A subdomain is a name below a service of that name, and of no other.
        ([service("t")], [pod(**NAMED)], ["t"]),
        ([service()], [pod(labels={"a": "c"}, **NAMED)], []),
        ([service()], [pod(ready=False)], []),
        ([service(publishNotReadyAddresses=True)], [pod(ready=False)], ["s"]),
        ([service()], [pod(phase="Failed")], []),
        ([service()], [pod(ip="")], []),
        ([service()], [pod("p"), pod("q", ip="127.0.1.3")], ["s", "s"]),
        # An address of its own stands for one pod.
        ([service(ip="10.96.0.1")], [pod("p"), pod("q", ip="127.0.1.3")], ["s"]),
        ([service(selector=None)], [pod()], []),
    ],
)
def test_names_are_those_that_a_clusters_dns_has(services, pods, names):
    assert [name for _, name, _ in records(services, pods)] == names


def test_a_name_may_be_short_in_its_own_namespace_only():
    found = records([service()], [pod()])
    assert hosts_lines(found, "d") == "127.0.1.2\ts.d.svc.cluster.local s.d.svc s.d s\n"
    assert hosts_lines(found, "e") == "127.0.1.2\ts.d.svc.cluster.local s.d.svc s.d\n"


def test_a_pod_knows_itself_and_its_aliases():
    alias = [{"ip": "10.0.0.9", "hostnames": ["x", "y"]}]
    named = {**pod(hostAliases=alias, **NAMED)}
    assert hostsfile.head(named, "127.0.1.2", "127.0.0.1 localhost\n") == (
        "127.0.0.1 localhost\n127.0.1.2\tp-0.s.d.svc.cluster.local p-0\n10.0.0.9\tx y\n"
    )
    named["spec"]["setHostnameAsFQDN"] = True
    assert hostsfile.host_name(named) == "p-0.s.d.svc.cluster.local"


class Table(NameTable):
    """Names that the test changes."""

    def __init__(self):
        super().__init__(None)  # nobody is asked

    def change(self, name):
        self._services.items = {name: service(name)}
        self._pods.items = {name: pod(**NAMED)}
        self._wake.set()


def test_a_pod_whose_folder_is_gone_ends_the_names_of_nobody_else(tmp_path):
    async def run():
        table = Table()
        files = [
            hostsfile.HostsFile(pod(**NAMED), "127.0.1.2", tmp_path / name / "hosts", table)
            for name in "ab"
        ]
        for file in files:
            file.open()
        shutil.rmtree(tmp_path / "a")
        table.subscribe(told.pop)  # and another one that fails
        loop = asyncio.create_task(table._loop())
        for name in ("s1", "s2"):
            table.change(name)
            while f"{name}.d.svc" not in files[1].path.read_text():
                await asyncio.sleep(0.01)
        loop.cancel()

    told = []
    asyncio.run(asyncio.wait_for(run(), 30))
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def own_names(tmp_path_factory):
    problem = asyncio.run(hostsfile.problem(tmp_path_factory.mktemp("trial")))
    if problem:
        pytest.skip(f"no names of its own for a process here: {problem}")


def resolve(name):
    return f"import socket; print(socket.gethostbyname({name!r}), socket.gethostname(), end='')"


@pytest.mark.processes
@pytest.mark.usefixtures("own_names")
def test_a_container_with_its_own_names_dies_with_its_shim_and_can_be_measured(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.9.9.9\tthe-peer\n")
    script = f'{sys.executable} -c "{resolve("the-peer")}" > said; exec sleep 60'
    env = {"PATH": os.environ["PATH"], ID_VARIABLE: f"names-{os.getpid()}"}
    command = ContainerCommand(
        argv=("sh", "-c", script), env=env, cwd=tmp_path, log=tmp_path / "log",
        hosts=hosts, hostname="me",
    )  # fmt: skip

    async def run():
        process = await ContainerProcess.start(command)
        assert process.names_problem == ""
        said = tmp_path / "said"
        while not (said.exists() and said.read_text()):
            await asyncio.sleep(0.02)
        main = psutil.Process(process.pid)
        assert main.environ()[ID_VARIABLE] == env[ID_VARIABLE]
        main.parent().kill()
        await process.wait()
        main.wait(60)
        return said.read_text()

    assert asyncio.run(asyncio.wait_for(run(), 30)) == "127.9.9.9 me"
    assert socket.gethostname() != "me"


@pytest.mark.processes
@pytest.mark.usefixtures("own_names")
def test_pods_find_each_other_by_name_as_they_come_and_go(bench):
    spec = {"clusterIP": "None", "selector": {"job": "x"}}
    bench.create("services", "peers", spec=spec)
    own = {"labels": {"job": "x"}, "subdomain": "peers"}
    program = (
        "import socket, time, sys\n"
        "def find():\n"
        "    try: return socket.gethostbyname('x-1.peers')\n"
        "    except OSError: return None\n"
        "while not (ip := find()): time.sleep(0.05)\n"
        "full = socket.gethostbyname(f'x-1.peers.{sys.argv[1]}.svc.cluster.local')\n"
        "open('/dev/termination-log', 'w').write(' '.join(\n"
        "    [ip, full, socket.gethostname(), socket.gethostbyname(socket.gethostname())]))\n"
    ).replace("'/dev/termination-log'", "sys.argv[2]")
    words = ["python", "-c", program, bench.namespace, "/dev/termination-log"]
    bench.pod("a", container={"command": words}, hostname="x-0", **own)
    bench.running("a")
    bench.pod("b", hostname="x-1", **own)
    address = bench.running("b")["status"]["podIP"]
    pod = bench.ended("a")
    said = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert said.split() == [address, address, "x-0", pod["status"]["podIP"]]


@pytest.mark.processes
def test_where_names_cannot_be_given_the_pod_that_needs_them_says_so(own_cluster, monkeypatch):
    async def refused(_directory):
        return "unshare: Operation not permitted"

    monkeypatch.setattr(hostsfile, "problem", refused)
    bench = own_cluster(nodes=1)
    assert bench.cluster.cluster.names_problem == "unshare: Operation not permitted"
    pod = bench.run("a", "exit 0", subdomain="peers")
    assert pod["status"]["phase"] == "Succeeded"

    def events():
        found = bench.request("GET", f"/api/v1/namespaces/{bench.namespace}/events")["items"]
        return [one["message"] for one in found if one["reason"] == "NamesNotResolved"]

    [text] = bench.wait_for(events, bool)
    assert text == "names do not resolve in pods on this machine: unshare: Operation not permitted"
    assert not list(Path(bench.cluster.cluster.state_dir).glob("*/pods/*/etc/hosts"))
