"""Limit ranges, service accounts, priorities and quotas: what becomes of an object they concern."""

import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.kinds.quotas import Quotas


def named(kind, name="x", **fields):
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}


def quota(name="q", hard=None, **spec):
    return named("ResourceQuota", name, spec={"hard": hard or {}, **spec})


def container(name="c", *, limits=None, **requests):
    resources = {key: value for key, value in (("requests", requests), ("limits", limits)) if value}
    return {"name": name, "image": "i:1", "resources": resources}


def refusal(bench, obj):
    with pytest.raises(ApiError) as refused:
        bench.create(obj)
    assert refused.value.code == 403
    return refused.value.message


def test_every_namespace_has_a_service_account(bench):
    assert bench.get(named("ServiceAccount", "default"))


def test_a_pod_needs_the_account_and_the_class_that_it_names(bench, pod):
    assert refusal(bench, pod(spec={"serviceAccountName": "robot"})) == (
        'pods "p" is forbidden: error looking up service account default/robot: '
        'serviceaccount "robot" not found'
    )
    bench.create(named("ServiceAccount", "robot"))
    assert bench.create(pod(spec={"serviceAccountName": "robot"}))
    assert refusal(bench, pod("q", spec={"priorityClassName": "high"})) == (
        'pods "q" is forbidden: no PriorityClass with name high was found'
    )
    made = bench.create(pod("q", spec={"priorityClassName": "system-node-critical"}))
    assert made["spec"]["priority"] == 2_000_001_000


def test_a_quota_counts_what_lives_and_says_what_was_asked_used_and_allowed(bench, pod):
    hard = {"pods": 2, "requests.cpu": "3", "limits.memory": "1Gi"}
    bench.create(quota(hard=hard))
    one = container(cpu="500m", limits={"memory": "512Mi"})
    assert refusal(bench, pod()) == (
        'pods "p" is forbidden: failed quota: q: must specify limits.memory for: c; '
        "requests.cpu for: c"
    )
    first = bench.create(pod("a", spec={"containers": [one]}))
    bench.create(pod("b", spec={"containers": [one]}))
    assert refusal(bench, pod("c", spec={"containers": [one]})) == (
        'pods "c" is forbidden: exceeded quota: q, '
        "requested: limits.memory=512Mi,pods=1, used: limits.memory=1Gi,pods=2, "
        "limited: limits.memory=1Gi,pods=2"
    )
    Quotas(bench.store).refresh("default")
    used = bench.get(quota())["status"]["used"]
    assert used == {"pods": "2", "requests.cpu": "1", "limits.memory": "1Gi"}
    # What has ended takes nothing any more.
    bench.update({**first, "status": {"phase": "Failed"}}, "status")
    assert bench.create(pod("c", spec={"containers": [one]}))


@pytest.mark.parametrize(
    ("hard", "objects"),
    [
        ({"count/configmaps": "1"}, [named("ConfigMap", "a"), named("ConfigMap", "b")]),
        ({"secrets": "1"}, [named("Secret", "a"), named("Secret", "b")]),
    ],
)
def test_a_quota_counts_objects_of_any_kind(bench, hard, objects):
    bench.create(quota(hard=hard))
    bench.create(objects[0])
    assert "exceeded quota: q, requested: " in refusal(bench, objects[1])


def test_a_quota_counts_custom_resources_and_accelerators(bench, pod, widget):
    bench.create(quota(hard={"count/widgets.example.dev": "1", "requests.nvidia.com/gpu": "1"}))
    bench.create(widget())
    assert "count/widgets.example.dev=1" in refusal(bench, widget("two"))
    gpu = container(limits={"nvidia.com/gpu": 1})
    bench.create(pod("a", spec={"containers": [gpu]}))
    assert "requested: requests.nvidia.com/gpu=1" in refusal(
        bench, pod("b", spec={"containers": [gpu]})
    )


def test_a_quota_holds_only_the_pods_in_its_scopes(bench, pod):
    bench.create(quota(hard={"pods": 0}, scopes=["Terminating"]))
    assert bench.create(pod("a"))
    assert "exceeded quota" in refusal(bench, pod("b", spec={"activeDeadlineSeconds": 5}))


def test_a_limit_range_fills_in_and_refuses(bench, pod):
    item = {"type": "Container", "default": {"cpu": 1}, "max": {"memory": "1Gi"},
            "min": {"memory": "64Mi"}}  # fmt: skip
    bench.create(named("LimitRange", spec={"limits": [item]}))
    made = bench.create(pod())
    assert made["spec"]["containers"][0]["resources"] == {
        "limits": {"cpu": "1", "memory": "1Gi"},
        "requests": {"cpu": "1", "memory": "1Gi"},
    }
    text = refusal(bench, pod("b", spec={"containers": [container(limits={"memory": "2Gi"})]}))
    assert text.endswith("maximum memory usage per Container is 1Gi, but limit is 2Gi")
    text = refusal(bench, pod("c", spec={"containers": [container(memory="1Mi")]}))
    assert text.endswith("minimum memory usage per Container is 64Mi, but request is 1Mi")


def test_a_limit_range_looks_at_whole_pods_and_at_claims(bench, pod):
    limits = [
        {"type": "Pod", "max": {"cpu": "1"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}},
    ]
    bench.create(named("LimitRange", spec={"limits": limits}))
    two = [container(name, limits={"cpu": "600m"}) for name in ("a", "b")]
    assert "maximum cpu usage per Pod is 1, but limit is 1200m" in refusal(
        bench, pod(spec={"containers": two})
    )
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    assert "minimum storage usage per PersistentVolumeClaim is 1Gi" in refusal(
        bench, named("PersistentVolumeClaim", spec=spec)
    )
