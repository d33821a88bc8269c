"""Nodes: scheduling on them, and what happens when they go."""

import socket

import pytest

from rekindle_local.nodes.node_lifecycle import LifecycleTimings
from rekindle_local.nodes.nodes import SPOT_TAINT

pytestmark = pytest.mark.processes


def condition(thing, kind):
    found = [one for one in thing["status"].get("conditions") or () if one["type"] == kind]
    return found[0] if found else {}


def disrupted(reason):
    return lambda pod: (
        pod is not None and condition(pod, "DisruptionTarget").get("reason") == reason
    )


def taints(node):
    return {(one["key"], one["effect"]) for one in node["spec"].get("taints") or ()}


def alive(pids):
    """The processes that still run; one that is dead but not collected by its parent is dead."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                found += [pid] if stat.read().rpartition(")")[2].split()[0] != "Z" else []
        except OSError:
            continue
    return found


def test_pods_spread_over_the_nodes(bench):
    for name in ("a", "b"):
        bench.pod(name)
    nodes = {bench.running(name)["spec"]["nodeName"] for name in ("a", "b")}
    assert nodes == {"node-0", "node-1"}


def test_a_pod_that_fits_nowhere_says_why_and_runs_when_a_node_comes(own_cluster):
    bench = own_cluster(nodes=1)
    bench.pod("a", "true", nodeSelector={"zone": "b"})
    pod = bench.wait("a", lambda pod: condition(pod, "PodScheduled").get("status") == "False")
    assert condition(pod, "PodScheduled")["reason"] == "Unschedulable"
    assert condition(pod, "PodScheduled")["message"].startswith(
        "0/1 nodes are available: 1 node(s)"
    )
    bench.cluster.add_node(zone="b")
    assert bench.ended("a")["spec"]["nodeName"] == "node-1"


def test_a_cordoned_node_takes_no_pod_until_it_is_open_again(own_cluster):
    bench = own_cluster(nodes=1)
    bench.cluster.cordon("node-0")
    bench.pod("a", "true")
    pod = bench.wait("a", lambda pod: condition(pod, "PodScheduled").get("status") == "False")
    assert "1 node(s) were unschedulable" in condition(pod, "PodScheduled")["message"]
    bench.cluster.call(lambda cluster: cluster.nodes["node-0"].uncordon())
    bench.ended("a")


def test_a_no_execute_taint_evicts_what_does_not_tolerate_it(own_cluster):
    bench = own_cluster(nodes=1)
    bench.pod("a", "trap 'sleep 0.5; exit 75' TERM; sleep 60 & wait")
    bench.pod("b", tolerations=[{"key": "maintenance", "operator": "Exists"}])
    for name in ("a", "b"):
        bench.running(name)
    bench.cluster.taint("node-0", "maintenance", effect="NoExecute")
    bench.wait("a", disrupted("DeletionByTaintManager"))
    bench.gone("a")
    assert bench.get("b")["status"]["phase"] == "Running"
    bench.cluster.untaint("node-0", "maintenance")
    assert taints(bench.node("node-0")) == set()


def test_a_reclaimed_node_gives_notice_evicts_its_pods_and_goes(own_cluster):
    bench = own_cluster(nodes=2)
    bench.pod("a", "trap 'sleep 0.4; exit 75' TERM; sleep 60 & wait")
    name = bench.running("a")["spec"]["nodeName"]
    bench.cluster.reclaim(name, 2.0)
    assert (SPOT_TAINT[0], SPOT_TAINT[2]) in taints(bench.node(name))
    assert bench.node(name)["spec"]["unschedulable"]
    pod = bench.wait("a", lambda pod: "deletionTimestamp" in pod["metadata"])
    assert disrupted("EvictionByEvictionAPI")(pod)
    bench.gone("a")
    assert bench.node(name) is not None
    bench.wait_node(name, lambda node: node is None)
    assert name not in bench.cluster.node_names()
    bench.pod("b", "true")
    assert bench.ended("b")["spec"]["nodeName"] != name


def test_at_the_end_of_the_notice_what_still_runs_is_killed_and_collected(own_cluster):
    bench = own_cluster(nodes=1)
    bench.pod("a", "trap '' TERM; while :; do sleep 0.1; done")
    bench.running("a")
    pids = bench.cluster.pids(bench.namespace, "a")
    bench.cluster.reclaim("node-0", 0.5, drain_after=0.5)
    bench.wait_node("node-0", lambda node: node is None)
    assert alive(pids) == []
    bench.gone("a")


def test_a_failed_node_becomes_unreachable_and_its_pods_stay_terminating(own_cluster):
    bench = own_cluster(nodes=2)
    bench.pod("a")
    name = bench.running("a")["spec"]["nodeName"]
    pids = bench.cluster.pids(bench.namespace, "a")
    bench.cluster.fail(name)
    assert alive(pids) == []
    node = bench.wait_node(name, lambda node: condition(node, "Ready")["status"] == "Unknown")
    assert condition(node, "Ready")["reason"] == "NodeStatusUnknown"
    unreachable = "node.kubernetes.io/unreachable"
    bench.wait_node(
        name, lambda n: {(unreachable, "NoSchedule"), (unreachable, "NoExecute")} <= taints(n)
    )
    bench.wait("a", lambda pod: condition(pod, "Ready").get("status") == "False")
    pod = bench.wait("a", lambda pod: "deletionTimestamp" in pod["metadata"])
    assert condition(pod, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    assert pod["status"]["phase"] == "Running"
    bench.cluster.remove(name)
    bench.gone("a")


SERVES = """
python3 -c '
import socket
with socket.create_server(("0.0.0.0", 7001)) as server:
    open("/dev/termination-log", "w").write("up")
    while True:
        connection, _ = server.accept()
        connection.sendall(b"here")
'
"""


def answers(address, seconds):
    """What a program says; None when its connection is accepted and nothing comes."""
    with socket.create_connection((address, 7001), 5) as connection:
        connection.settimeout(seconds)
        try:
            return connection.recv(16)
        except TimeoutError:
            return None


def serving(bench, name):
    """Its node and address, once a program in it answers."""
    bench.pod(name, SERVES)
    pod = bench.wait(name, lambda pod: pod["status"].get("podIP") and pod["spec"].get("nodeName"))
    address = pod["status"]["podIP"]

    def served():
        try:
            return answers(address, 5)
        except ConnectionRefusedError:
            return None

    bench.wait_for(served, lambda said: said == b"here")
    return pod["spec"]["nodeName"], address


def test_a_node_without_power_closes_no_connection_and_says_nothing_any_more(own_cluster):
    bench = own_cluster(nodes=2)
    name, address = serving(bench, "a")
    pids = bench.cluster.pids(bench.namespace, "a")
    with socket.create_connection((address, 7001), 5) as held:
        assert held.recv(16) == b"here"
        bench.cluster.power_loss(name)
        assert answers(address, 0.3) is None, "accepted by a kernel, and that is all"
        bench.wait_node(name, lambda node: condition(node, "Ready")["status"] == "Unknown")
        pod = bench.wait("a", lambda pod: "deletionTimestamp" in pod["metadata"])
        assert pod["status"]["phase"] == "Running", "nobody can say that it has ended"
        bench.pod("b")
        assert bench.running("b")["spec"]["nodeName"] != name
        held.settimeout(0.1)
        with pytest.raises(TimeoutError):
            held.recv(16)
    assert alive(pids) == pids
    bench.cluster.remove(name)
    bench.gone("a")
    assert alive(pids) == []


def test_a_node_that_stood_still_goes_on_where_it_was(own_cluster):
    bench = own_cluster(nodes=1, lifecycle=LifecycleTimings(node_grace=0.6, default_toleration=60))
    name, address = serving(bench, "a")
    pids = bench.cluster.pids(bench.namespace, "a")
    bench.cluster.pause(name)
    bench.wait_node(name, lambda node: condition(node, "Ready")["status"] == "Unknown")
    bench.delete("a", 30)
    bench.cluster.resume(name)
    bench.wait_node(name, lambda node: condition(node, "Ready")["status"] == "True")
    bench.gone("a")
    assert alive(pids) == []
    assert bench.run("b", "true")["status"]["phase"] == "Succeeded"


def test_a_removed_nodes_pods_are_collected(own_cluster):
    bench = own_cluster(nodes=1)
    bench.pod("a")
    bench.running("a")
    bench.cluster.remove("node-0")
    bench.gone("a")


def test_accelerators_are_named_to_pods_and_free_again_when_a_pod_has_ended(own_cluster):
    bench = own_cluster(nodes=2, gpus_per_node=1)
    one = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    script = "echo -n $CUDA_VISIBLE_DEVICES > /dev/termination-log"
    for name in ("a", "b", "c"):
        pod = bench.run(name, script, container=one)
        message = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
        assert f"node-{message}" == pod["spec"]["nodeName"]
    none = bench.run("none", 'test -z "$CUDA_VISIBLE_DEVICES"')
    assert none["status"]["phase"] == "Succeeded"
    for name in ("d", "e", "f"):
        bench.pod(name, container=one)
    pod = bench.wait("f", lambda pod: condition(pod, "PodScheduled").get("status") == "False")
    assert "2 Insufficient nvidia.com/gpu" in condition(pod, "PodScheduled")["message"]


def test_taking_a_node_twice_is_an_error(own_cluster):
    bench = own_cluster(nodes=1)
    bench.cluster.reclaim("node-0", 30.0)
    with pytest.raises(RuntimeError, match="already being taken away"):
        bench.cluster.reclaim("node-0", 30.0)


def test_killing_a_pod_that_does_not_run_is_an_error(bench):
    with pytest.raises(LookupError, match="runs on no node"):
        bench.cluster.kill_pod(bench.namespace, "none")


def test_a_pod_bound_to_a_node_that_never_was_is_failed_and_collected(bench):
    bench.pod("a", nodeName="nowhere")
    path = f"/api/v1/namespaces/{bench.namespace}/pods/a"
    body = {"metadata": {"finalizers": ["test/keep"]}}
    bench.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    pod = bench.wait("a", lambda pod: pod["metadata"].get("deletionTimestamp"))
    assert pod["status"]["phase"] == "Failed"
    [target] = [one for one in pod["status"]["conditions"] if one["type"] == "DisruptionTarget"]
    assert target["reason"] == "DeletionByPodGC"
    body = {"metadata": {"finalizers": None}}
    bench.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    bench.gone("a")
