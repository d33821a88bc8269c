import pytest

from rekindle_local.kubelet.admission import unsupported


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
