import os
import signal
import subprocess

import pytest

from rekindle_local.cluster import ClusterConfig, ClusterThread
from rekindle_local.kubelet.containers.processes import ROOT_VARIABLE

pytestmark = pytest.mark.processes


def test_a_kubelet_ends_and_removes_what_an_earlier_one_left_in_its_directory(tmp_path):
    node = tmp_path.resolve() / "node-0"
    (node / "pods" / "uid").mkdir(parents=True)
    (node / "logs" / "uid").mkdir(parents=True)
    env = {**os.environ, ROOT_VARIABLE: str(node)}
    config = ClusterConfig(nodes=1, s3=False, state_dir=tmp_path)
    left = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
    with left, ClusterThread(config) as cluster:
        assert left.wait(60) == -signal.SIGKILL
        assert not (node / "pods" / "uid").exists()
        assert not (node / "logs" / "uid").exists()
        assert cluster.kubeconfig == tmp_path.resolve() / "kubeconfig"
    assert tmp_path.exists()


def test_a_node_says_what_it_has_and_where_it_is():
    config = ClusterConfig(
        nodes=2,
        s3=False,
        node_capacity={"cpu": "7"},
        node_labels=({"spot": "true"},),
        gpus_per_node=2,
    )
    with ClusterThread(config) as cluster:
        nodes = cluster.call(lambda c: c.client.get("/api/v1/nodes"))["items"]
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-0"
        assert cluster.call(lambda c: c.client.get(leases))["spec"]["holderIdentity"] == "node-0"
    first, second = nodes
    assert first["status"]["allocatable"]["cpu"] == "7"
    assert first["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert first["metadata"]["labels"]["spot"] == "true"
    assert "spot" not in second["metadata"]["labels"]
    assert first["metadata"]["labels"]["kubernetes.io/hostname"] == "node-0"
    addresses = {one["type"]: one["address"] for one in first["status"]["addresses"]}
    assert addresses["Hostname"] == "node-0"
    assert addresses["InternalIP"].startswith("127.")
