import base64

import pytest

from rekindle_local.kubelet.environment import (
    CreateContainerConfigError,
    PodPlacement,
    build,
    references,
)

PLACE = PodPlacement(
    pod_ip="127.64.0.2", host_ip="127.64.0.1", allocatable={"cpu": "2", "memory": "4Gi"}
)
POD = {
    "metadata": {
        "name": "p",
        "namespace": "ns",
        "uid": "u1",
        "labels": {"app": "x"},
        "annotations": {"note": "n"},
    },
    "spec": {"nodeName": "node-0"},
}
SECRET = {"data": {"key": base64.b64encode(b"s3cret").decode()}}
CONFIG = {"data": {"mode": "fast"}}
SOURCES = {("Secret", "s"): SECRET, ("ConfigMap", "c"): CONFIG, ("Secret", "gone"): None}


def env(*entries, env_from=(), **container):
    spec = {"name": "c", "env": list(entries), "envFrom": list(env_from), **container}
    return build(POD, spec, SOURCES, PLACE)


def from_field(path):
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_values_see_the_variables_before_them():
    result = env(
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)$(C)"},
        {"name": "C", "value": "3"},
    )
    assert result == {"A": "1", "B": "1$(C)", "C": "3"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "x"),
        ("metadata.annotations['note']", "n"),
        ("metadata.labels['none']", ""),
        ("status.podIP", "127.64.0.2"),
        ("status.hostIP", "127.64.0.1"),
        ("spec.nodeName", "node-0"),
        ("spec.serviceAccountName", "default"),
    ],
)
def test_the_downward_api_gives_the_pods_fields(path, expected):
    assert env(from_field(path)) == {"X": expected}


def test_an_unknown_field_path_is_named():
    with pytest.raises(CreateContainerConfigError, match=r"unsupported fieldPath 'status\.phase'"):
        env(from_field("status.phase"))


def test_secrets_and_config_maps_are_read_by_key():
    result = env(
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "mode"}}},
    )
    assert result == {"S": "s3cret", "C": "fast"}


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ({"secretKeyRef": {"name": "gone", "key": "k"}}, 'secret "gone" not found'),
        ({"secretKeyRef": {"name": "s", "key": "k"}}, "couldn't find key k in Secret ns/s"),
        ({"configMapKeyRef": {"name": "no", "key": "k"}}, 'configmap "no" not found'),
        ({"configMapKeyRef": {"name": "c", "key": "k"}}, "couldn't find key k in ConfigMap ns/c"),
    ],
)
def test_a_missing_reference_is_told_as_a_kubelet_tells_it(ref, message):
    with pytest.raises(CreateContainerConfigError, match=message):
        env({"name": "X", "valueFrom": ref})


def test_an_optional_missing_reference_leaves_the_variable_out():
    ref = {"secretKeyRef": {"name": "gone", "key": "k", "optional": True}}
    assert env({"name": "X", "valueFrom": ref}) == {}


def test_env_from_takes_everything_with_the_prefix_and_env_wins():
    result = env(
        {"name": "P_mode", "value": "slow"},
        env_from=[{"prefix": "P_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
    )
    assert result == {"P_mode": "slow", "key": "s3cret"}


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ({"resource": "limits.memory", "divisor": "1Mi"}, "512"),
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "requests.cpu"}, "1"),
        ({"resource": "requests.cpu", "divisor": "1m"}, "250"),
    ],
)
def test_resource_fields_are_divided_and_rounded_up(ref, expected):
    resources = {"limits": {"memory": "512Mi"}, "requests": {"cpu": "250m"}}
    entry = {"name": "X", "valueFrom": {"resourceFieldRef": ref}}
    assert env(entry, resources=resources) == {"X": expected}


def test_references_lists_what_has_to_be_read():
    container = {
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "envFrom": [{"configMapRef": {"name": "c"}}],
    }
    assert references(container) == {("Secret", "s"), ("ConfigMap", "c")}
