"""Autoscalers: kept in two versions, and honest about not being acted upon."""

import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.kinds.autoscaling import to_v1, to_v2


def autoscaler(version="v2", **spec):
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
    return {
        "apiVersion": f"autoscaling/{version}",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "default"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 3, **spec},
    }


def test_a_new_one_says_that_nothing_will_come_of_it(bench):
    made = bench.create(autoscaler())
    [condition] = made["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("ScalingActive", "False")
    assert "no metrics server" in condition["message"]
    assert made["spec"]["minReplicas"] == 1


def test_what_is_written_in_one_version_is_read_in_the_other(bench):
    bench.create(autoscaler("v1", targetCPUUtilizationPercentage=50))
    [metric] = bench.get(autoscaler())["spec"]["metrics"]
    assert metric["resource"]["target"] == {"type": "Utilization", "averageUtilization": 50}
    assert bench.get(autoscaler("v1"))["spec"]["targetCPUUtilizationPercentage"] == 50


def test_metrics_that_the_old_version_lacks_survive_it():
    pods = {"type": "Pods", "pods": {"metric": {"name": "queue"}}}
    new = autoscaler(metrics=[pods])
    assert to_v2(to_v1(new)) == new


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"maxReplicas": 0}, "spec.maxReplicas"),
        ({"minReplicas": 4}, "spec.maxReplicas"),
        ({"scaleTargetRef": {"kind": "Deployment"}}, "spec.scaleTargetRef.name"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bench, spec, field):
    with pytest.raises(ApiError) as refusal:
        bench.create(autoscaler(**spec))
    assert field in {cause["field"] for cause in refusal.value.details["causes"]}
