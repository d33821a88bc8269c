"""The files that volumes start with, and what is said when they cannot."""

import base64
import json
import stat

import pytest

from rekindle_local.kubelet.environment import PodPlacement
from rekindle_local.kubelet.volumes import PodVolumes, VolumeError, files, references

PLACE = PodPlacement(pod_ip="127.0.1.2", host_ip="127.0.1.1", allocatable={"memory": "1Gi"})
SOURCES = {
    ("ConfigMap", "c"): {"data": {"a": "1", "b": "2"}},
    ("Secret", "s"): {"data": {"k": base64.b64encode(b"x").decode()}},
    ("ConfigMap", "none"): None,
}


def pod(*volumes, **more):
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    container = {"name": "c", "volumeMounts": mounts, **more}
    return {
        "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"l": "v"}},
        "spec": {"containers": [container], "volumes": list(volumes)},
    }


def made(volume, **container):
    one = pod(volume, **container)
    found = files(one, volume, SOURCES, PLACE)
    return {file.path: (file.content, oct(file.mode)) for file in found}


def projected(*sources, **more):
    return {"name": "v", "projected": {"sources": list(sources), **more}}


LIMIT = {"resources": {"limits": {"memory": "64Mi"}}}


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ({"configMap": {"name": "c"}}, {"a": (b"1", "0o644"), "b": (b"2", "0o644")}),
        (
            {"configMap": {"name": "c", "defaultMode": 0o400,
                           "items": [{"key": "b", "path": "x/y", "mode": 0o600}]}},
            {"x/y": (b"2", "0o600")},
        ),
        ({"configMap": {"name": "none", "optional": True}}, {}),
        (
            {"configMap": {"name": "c", "optional": True, "items": [{"key": "z", "path": "z"}]}},
            {},
        ),
        ({"secret": {"secretName": "s", "defaultMode": 0o400}}, {"k": (b"x", "0o400")}),
        (
            projected({"configMap": {"name": "c", "items": [{"key": "a", "path": "a"}]}},
                      {"secret": {"name": "s"}},
                      {"downwardAPI": {"items": [
                          {"path": "l", "fieldRef": {"fieldPath": "metadata.labels['l']"}},
                          {"path": "m", "resourceFieldRef": {
                              "containerName": "c", "resource": "limits.memory",
                              "divisor": "1Mi"}}]}}, defaultMode=0o440),
            {"a": (b"1", "0o440"), "k": (b"x", "0o440"), "l": (b"v", "0o440"),
             "m": (b"64", "0o440")},
        ),
    ],
)  # fmt: skip
def test_a_volume_starts_with_the_files_it_names(volume, expected):
    assert made({"name": "v", **volume}, **LIMIT) == expected


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ({"configMap": {"name": "none"}}, 'configmap "none" not found'),
        (
            {"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}},
            "configmap references non-existent config key: z",
        ),
        (
            {"secret": {"secretName": "s", "items": [{"key": "z", "path": "z"}]}},
            "references non-existent secret key: z",
        ),
        ({"configMap": {"name": "c", "items": [{"key": "a", "path": "../a"}]}}, "contain '..'"),
        ({"hostPath": {"path": "/no/such"}}, "/no/such does not exist on this machine"),
        ({"persistentVolumeClaim": {"claimName": "x"}}, "hostPath and local only"),
    ],
)
def test_what_is_missing_is_told_with_the_volume(volume, said, tmp_path):
    volumes = PodVolumes(pod({"name": "v", **volume}), tmp_path, "never-")
    with pytest.raises(VolumeError) as refused:
        volumes.setup(SOURCES, PLACE)
    assert str(refused.value).startswith('MountVolume.SetUp failed for volume "v" : ')
    assert said in str(refused.value)


def test_a_volume_that_no_container_mounts_is_not_even_looked_at(tmp_path):
    body = pod({"name": "v", "configMap": {"name": "none"}}, volumeMounts=[])
    volumes = PodVolumes(body, tmp_path, "never-")
    assert references(body) == set()
    volumes.setup(SOURCES, PLACE)
    volumes.refresh(SOURCES, PLACE)
    assert not list(tmp_path.iterdir())
    body["spec"]["initContainers"] = [{"volumeMounts": [{"name": "v", "mountPath": "/v"}]}]
    assert references(body) == {("ConfigMap", "none")}
    with pytest.raises(VolumeError):
        PodVolumes(body, tmp_path, "never-").setup(SOURCES, PLACE)


def test_a_service_account_token_names_the_pod_and_says_that_it_is_not_signed():
    source = {"serviceAccountToken": {"path": "token", "audience": "vault"}}
    content, _ = made(projected(source))["token"]
    head, claims, signature = content.split(b".")

    def part(raw):
        return json.loads(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)))

    assert part(head)["alg"] == "none"
    assert part(claims)["sub"] == "system:serviceaccount:d:default"
    assert part(claims)["aud"] == ["vault"]
    assert signature == b""


def test_mounts_may_be_parts_of_a_volume_named_by_the_environment(tmp_path):
    volumes = PodVolumes(pod({"name": "v", "emptyDir": {}}), tmp_path, "never-")
    volumes.setup({}, PLACE)

    def mount(**how):
        one = {"name": "v", "mountPath": "/m", **how}
        return volumes.mounts({"name": "c", "volumeMounts": [one]}, {"WHO": "me"})

    assert mount(subPathExpr="$(WHO)/x") == [("/m", str(tmp_path / "v" / "me" / "x"))]
    assert stat.S_ISDIR((tmp_path / "v" / "me" / "x").stat().st_mode)
    for bad in ("../x", "/x"):
        with pytest.raises(VolumeError, match="must be relative"):
            mount(subPath=bad)


def test_a_secret_that_changes_is_brought_into_the_volume_and_nothing_else_is_touched(tmp_path):
    body = pod({"name": "v", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {}})
    volumes = PodVolumes(body, tmp_path, "never-")
    volumes.setup(SOURCES, PLACE)
    before = (tmp_path / "v" / "k").stat().st_ino
    volumes.refresh(SOURCES, PLACE)
    assert (tmp_path / "v" / "k").stat().st_ino == before
    fresh = {"data": {"k": base64.b64encode(b"y").decode(), "z": ""}}
    volumes.refresh({("Secret", "s"): fresh}, PLACE)
    assert {p.name: p.read_bytes() for p in (tmp_path / "v").iterdir()} == {"k": b"y", "z": b""}
    with pytest.raises(VolumeError):
        volumes.refresh({("Secret", "s"): None}, PLACE)
    assert (tmp_path / "v" / "k").read_bytes() == b"y"
