"""Alerts speak of metrics that exist, with labels and values that occur."""

import re
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from rekindle.api import Cause
from rekindle_operator import metrics

pytestmark = pytest.mark.processes

SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


def exported() -> set[str]:
    """Names of the series that the operator's /metrics can hold."""

    def series(family: Metric) -> set[str]:
        return {family.name + suffix for suffix in SUFFIXES[family.type]}

    return set().union(*map(series, metrics.REGISTRY.collect()))


@pytest.fixture(scope="module")
def rules(helm: Any, prometheus_operator: None) -> list[dict[str, Any]]:
    documents = helm.render({"monitoring": {"enabled": True}})
    (found,) = [document for document in documents if document["kind"] == "PrometheusRule"]
    (group,) = found["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_alerts_use_metrics_that_the_operator_exports(rules: list[dict[str, Any]]) -> None:
    used = {name for rule in rules for name in re.findall(r"\brekindle_\w+", rule["expr"])}
    assert used
    assert used <= exported()


def test_alerts_about_causes_name_causes(rules: list[dict[str, Any]]) -> None:
    used = {name for rule in rules for name in re.findall(r'cause="(\w+)"', rule["expr"])}
    assert used
    assert used <= set(Cause)


def test_alerts_look_at_the_operator_of_their_release_only(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        series = re.findall(r"\b(?:up|rekindle_\w+)\{([^}]*)\}", rule["expr"])
        assert series
        for labels in series:
            assert re.search(r'job="team-\d+/rk-rekindle-operator"', labels)


def test_each_alert_says_how_bad_it_is_and_what_to_do(rules: list[dict[str, Any]]) -> None:
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_can_be_left_out(helm: Any, prometheus_operator: None) -> None:
    documents = helm.render({"monitoring": {"enabled": True, "alerts": False}})
    kinds = {document["kind"] for document in documents}
    assert "PodMonitor" in kinds
    assert "PrometheusRule" not in kinds
