import pytest

from rekindle_local.apiserver.controllers.disruption import Budgets, headroom
from rekindle_local.apiserver.errors import ApiError


def pods(healthy, unhealthy=0):
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    made = [{"metadata": {}, "status": ready} for _ in range(healthy)]
    return made + [{"metadata": {}, "status": {}} for _ in range(unhealthy)]


@pytest.mark.parametrize(
    ("spec", "healthy", "expected", "allowed"),
    [
        ({"minAvailable": 2}, 3, 3, 1),
        ({"minAvailable": 3}, 3, 3, 0),
        ({"minAvailable": "50%"}, 3, 3, 1),
        ({"maxUnavailable": 1}, 3, 3, 1),
        ({"maxUnavailable": 1}, 2, 3, 0),
        ({"maxUnavailable": "34%"}, 3, 3, 2),
        ({"maxUnavailable": 0}, 3, 3, 0),
        ({}, 1, 1, 0),
    ],
)
def test_a_budget_allows_what_is_above_what_it_wants(spec, healthy, expected, allowed):
    assert headroom({"spec": spec}, pods(healthy), expected).allowed == allowed


@pytest.fixture
def budget():
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    }


def ready_pod(bench, pod, name, owner):
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    metadata = {"labels": {"app": "x"}, "ownerReferences": [reference]}
    made = bench.create(pod(name, metadata=metadata, spec={"nodeName": "n"}))
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return bench.update({**made, "status": status}, "status")


def test_the_scale_of_the_controller_says_how_many_pods_there_should_be(bench, pod, widget, budget):
    owner = bench.create(widget(replicas=3))
    budgets = Budgets(bench.objects)
    made = [ready_pod(bench, pod, f"p{at}", owner) for at in range(2)]
    bench.create(budget)
    with pytest.raises(ApiError, match="violate the pod's disruption budget") as refusal:
        budgets.check(made[0])
    assert refusal.value.code == 429
    ready_pod(bench, pod, "p2", owner)
    budgets.check(made[0])


def test_the_status_of_a_budget_is_kept_up_to_date(bench, pod, widget, budget):
    owner = bench.create(widget(replicas=2))
    budgets = Budgets(bench.objects)
    bench.create(budget)
    for at in range(2):
        ready_pod(bench, pod, f"p{at}", owner)
    budgets.refresh("default")
    status = bench.get(budget)["status"]
    assert (status["expectedPods"], status["currentHealthy"], status["disruptionsAllowed"]) == (
        2,
        2,
        1,
    )
    before = bench.store.revision
    budgets.refresh("default")
    assert bench.store.revision == before, "a status that is right is not written again"
