import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.selectors import (
    matches_selector,
    parse_fields,
    parse_labels,
    predicate,
)


def labelled(**labels):
    return {"metadata": {"name": "x", "labels": labels}}


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app!=web", False),
        ("other!=web", True),
        ("app in (web, api)", True),
        ("app notin (web,api)", False),
        ("missing notin (web)", True),
        ("app", True),
        ("!app", False),
        ("!missing", True),
        ("tier>1", True),
        ("tier<1", False),
        ("app=web,tier=2", True),
        ("app=web,tier=3", False),
        ("app in (web,api),tier=2", True),
    ],
)
def test_label_selectors_match_as_kubernetes_does(selector, matching):
    matches = predicate(parse_labels(selector), ())
    assert matches(labelled(app="web", tier="2")) is matching


@pytest.mark.parametrize("selector", ["a in", "a=b=c", "a in (b", "a b", "-bad=x", "a=?", "a>x"])
def test_a_bad_label_selector_is_a_400(selector):
    with pytest.raises(ApiError) as refusal:
        parse_labels(selector)
    assert refusal.value.code == 400


def test_field_selectors_compare_texts_and_may_negate():
    obj = {"metadata": {"name": "x"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    fields = ("spec.nodeName", "status.phase", "metadata.name")
    for selector, matching in [
        ("spec.nodeName=n1", True),
        ("spec.nodeName!=n1", False),
        ("status.phase!=Failed,spec.nodeName=n1", True),
        ("metadata.name=y", False),
    ]:
        assert predicate((), parse_fields(selector, fields, "pods"))(obj) is matching


def test_a_missing_field_compares_as_empty_and_a_missing_flag_as_false():
    obj = {"metadata": {"name": "x"}, "spec": {}}
    fields = ("spec.nodeName", "spec.unschedulable")
    assert predicate((), parse_fields("spec.nodeName=", fields, "nodes"))(obj)
    assert predicate((), parse_fields("spec.unschedulable=false", fields, "nodes"))(obj)


def test_an_unsupported_field_names_those_that_are_supported():
    with pytest.raises(ApiError, match=r"not supported: spec\.x \(supported: metadata\.name\)"):
        parse_fields("spec.x=1", ("metadata.name",), "pods")


def test_a_selector_object_needs_all_its_terms():
    selector = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["1", "2"]}],
    }
    assert matches_selector(selector, {"app": "web", "tier": "2"})
    assert not matches_selector(selector, {"app": "web", "tier": "3"})
    assert matches_selector({}, {})
    assert not matches_selector(None, {})
