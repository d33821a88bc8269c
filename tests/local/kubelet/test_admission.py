import os

import pytest

from rekindle_local.kubelet.admission import remarks, unsupported


def pod(container=None, **spec):
    return {"spec": {"containers": [{"name": "c", **(container or {})}], **spec}}


def test_an_ordinary_pod_is_taken():
    volumes = [{"name": "a", "emptyDir": {"medium": "Memory"}}, {"name": "s", "secret": {}}]
    mounts = {"volumeMounts": [{"name": "a", "mountPath": "/dev/shm"}]}
    assert unsupported(pod(mounts, volumes=volumes)) is None


@pytest.mark.parametrize(
    ("refused", "field"),
    [
        (pod(volumes=[{"name": "v", "nfs": {}}]), "spec.volumes[0].nfs"),
        (pod({"readinessProbe": {"grpc": {"port": 1}}}), "readinessProbe.grpc"),
        (pod({"tty": True}), "stdin and tty"),
        (pod({"volumeMounts": [{"name": "v", "mountPath": "/"}]}), "mountPath=/"),
        (pod(resourceClaims=[{"name": "gpu"}]), "spec.resourceClaims"),
    ],
)
def test_what_a_process_cannot_have_is_refused_with_its_field(refused, field):
    assert field in (unsupported(refused) or "")


def test_what_is_only_partly_there_is_remarked_with_a_way_round():
    ports = {"ports": [{"containerPort": 80, "hostPort": 8080}]}
    assert remarks(pod(ports), "127.0.1.2") == [
        "hostPort 8080 is reserved on this node and not forwarded: connect to 127.0.1.2:80"
    ]
    assert remarks(pod(ports, hostNetwork=True), "127.0.1.1") == []
    other = {"securityContext": {"runAsUser": os.getuid() + 1}}
    assert f"not {os.getuid() + 1}" in remarks(pod(other), "x")[0]
    same = {"securityContext": {"runAsUser": os.getuid()}}
    assert remarks(pod(same, securityContext={"runAsUser": os.getuid() + 1}), "x") == []
