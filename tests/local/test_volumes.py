"""Claims, volumes and the pods that mount them, on the embedded cluster."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rekindle_local.provisioner import match


def claim(name="c", size="1Gi", modes=("ReadWriteOnce",), **spec):
    return {
        "metadata": {"name": name, "namespace": "d", "uid": "u"},
        "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": size}}, **spec},
    }


def volume(name, size="1Gi", modes=("ReadWriteOnce",), **spec):
    return {
        "metadata": {"name": name},
        "spec": {"accessModes": list(modes), "capacity": {"storage": size}, **spec},
    }


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        (claim(), [volume("a", "10Gi"), volume("b", "2Gi")], "b"),
        (claim(size="3Gi"), [volume("b", "2Gi")], None),
        (claim(modes=["ReadWriteMany"]), [volume("a")], None),
        (claim(storageClassName="x"), [volume("a")], None),
        (claim(volumeName="a"), [volume("a", "10Gi"), volume("b")], "a"),
        (claim(), [volume("a", claimRef={"namespace": "d", "name": "c", "uid": "old"})], None),
        # Kept for it by hand.
        (claim(), [volume("a"), volume("b", "9Gi", claimRef={"namespace": "d", "name": "c"})], "b"),
    ],
)
def test_a_claim_gets_the_smallest_volume_that_gives_what_it_asks_for(wanted, offered, taken):
    found = match(wanted, offered)
    assert (found and found["metadata"]["name"]) == taken


def make(bench, name="data", **spec):
    spec = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        **spec,
    }
    return bench.create("persistentvolumeclaims", name, spec=spec)


def path(bench, name="data"):
    return f"/api/v1/namespaces/{bench.namespace}/persistentvolumeclaims/{name}"


def bound(bench, name="data"):
    return bench.wait_for(
        lambda: bench.find(path(bench, name)), lambda one: one["status"]["phase"] == "Bound"
    )


def mounting(name="data"):
    return {
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}],
        "container": {"volumeMounts": [{"name": "v", "mountPath": "/data"}]},
    }


def unscheduled(pod):
    conditions = pod["status"].get("conditions") or ()
    return next((one["message"] for one in conditions if one["type"] == "PodScheduled"
                 and one["status"] == "False"), None)  # fmt: skip


def message(pod):
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]


@pytest.mark.processes
def test_pods_find_the_files_of_those_before_them_until_the_claim_is_deleted(bench):
    make(bench)
    assert bench.run("a", "echo kept > /data/f", **mounting())["status"]["phase"] == "Succeeded"
    bench.delete("a", grace=0)
    bench.gone("a")
    assert message(bench.run("b", "cat /data/f > /dev/termination-log", **mounting())) == "kept\n"
    name = bound(bench)["spec"]["volumeName"]
    folder = Path(bench.find(f"/api/v1/persistentvolumes/{name}")["spec"]["hostPath"]["path"])
    assert (folder / "f").exists()
    # In use: it waits for the pod.
    bench.request("DELETE", path(bench))
    assert bench.find(path(bench))["metadata"]["deletionTimestamp"]
    assert (folder / "f").exists()
    bench.delete("b", grace=0)
    bench.wait_for(lambda: bench.find(path(bench)), lambda one: one is None)
    bench.wait_for(lambda: bench.find(f"/api/v1/persistentvolumes/{name}"), lambda one: one is None)
    assert not folder.exists()


@pytest.mark.processes
def test_a_pod_waits_for_a_claim_and_says_which(bench):
    bench.pod("a", "exit 0", **mounting())
    pod = bench.wait("a", unscheduled)
    assert unscheduled(pod) == ('0/2 nodes are available: persistentvolumeclaim "data" not found.')
    make(bench)
    assert bench.ended("a")["status"]["phase"] == "Succeeded"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"storageClassName": "fast"}, 'storageclass.storage.k8s.io "fast" not found'),
        ({"storageClassName": ""}, "no persistent volumes available for this claim"),
    ],
)
def test_a_claim_that_nobody_serves_says_why(bench, spec, said):
    make(bench, **spec)
    bench.pod("a", **mounting())

    def events():
        found = bench.request("GET", f"/api/v1/namespaces/{bench.namespace}/events")["items"]
        return [one["message"] for one in found
                if one["involvedObject"]["kind"] == "PersistentVolumeClaim"]  # fmt: skip

    bench.wait_for(events, lambda texts: any(said in text for text in texts))
    pod = bench.wait("a", unscheduled)
    assert "pod has unbound immediate PersistentVolumeClaims" in unscheduled(pod)


@pytest.mark.processes
def test_a_class_may_wait_for_the_first_pod(bench):
    name = f"later-{bench.namespace}"
    body = {"metadata": {"name": name}, "provisioner": "rekindle.dev/local-path",
            "volumeBindingMode": "WaitForFirstConsumer"}  # fmt: skip
    bench.request("POST", "/apis/storage.k8s.io/v1/storageclasses", body=body)
    make(bench, storageClassName=name)

    def reasons():
        found = bench.request("GET", f"/api/v1/namespaces/{bench.namespace}/events")["items"]
        return [one["reason"] for one in found]

    bench.wait_for(reasons, lambda found: "WaitForFirstConsumer" in found)
    assert bench.find(path(bench))["status"]["phase"] == "Pending"
    assert bench.run("a", "exit 0", **mounting())["status"]["phase"] == "Succeeded"
    assert bound(bench)["spec"]["storageClassName"] == name


@pytest.mark.processes
def test_a_pod_brings_a_claim_along_that_goes_with_it(bench):
    template = {"spec": {"accessModes": ["ReadWriteOnce"],
                         "resources": {"requests": {"storage": "1Mi"}}}}  # fmt: skip
    volumes = [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]
    mount = {"volumeMounts": [{"name": "scratch", "mountPath": "/s",
                               "subPathExpr": "of-$(WHO)"}],
             "env": [{"name": "WHO", "value": "me"}]}  # fmt: skip
    bench.run("a", "echo x > /s/f", volumes=volumes, container=mount)
    name = bound(bench, "a-scratch")["spec"]["volumeName"]
    folder = bench.find(f"/api/v1/persistentvolumes/{name}")["spec"]["hostPath"]["path"]
    assert Path(folder, "of-me", "f").read_text() == "x\n"
    bench.delete("a", grace=0)
    bench.wait_for(lambda: bench.find(path(bench, "a-scratch")), lambda one: one is None)


@pytest.mark.processes
def test_a_volume_made_by_hand_is_bound_mounted_and_kept(bench, tmp_path):
    (tmp_path / "f").write_text("mine")
    name = f"by-hand-{bench.namespace}"
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
            "storageClassName": "", "hostPath": {"path": str(tmp_path)},
            "claimRef": {"namespace": bench.namespace, "name": "data"}}  # fmt: skip
    body = {"metadata": {"name": name}, "spec": spec}
    bench.request("POST", "/api/v1/persistentvolumes", body=body)
    make(bench, storageClassName="", volumeName=name)
    assert message(bench.run("a", "cat /data/f > /dev/termination-log", **mounting())) == "mine"
    bench.delete("a", grace=0)
    bench.gone("a")
    bench.request("DELETE", path(bench))
    found = bench.wait_for(
        lambda: bench.find(f"/api/v1/persistentvolumes/{name}"),
        lambda one: one["status"]["phase"] == "Released",
    )
    assert found["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert (tmp_path / "f").exists()


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_shows_claims_volumes_and_classes(bench):
    make(bench)
    bound(bench)
    config = bench.cluster.cluster.kubeconfig

    def kubectl(*words):
        line = ["kubectl", f"--kubeconfig={config}", "-n", bench.namespace, *words]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout

    assert "standard (default)" in kubectl("get", "sc")
    row = kubectl("get", "pvc").splitlines()[1].split()
    assert row[:2] == ["data", "Bound"]
    assert row[3:7] == ["1Gi", "RWX", "standard", "<unset>"]
    found = json.loads(kubectl("get", "pvc", "data", "-o", "json"))
    assert found["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert f"{bench.namespace}/data" in kubectl("get", "pv")
