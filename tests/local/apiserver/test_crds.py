import copy

import pytest

from rekindle_local.apiserver.errors import ApiError


@pytest.fixture
def other(widget_crd):
    """A second kind of the same group, to be broken."""
    crd = copy.deepcopy(widget_crd)
    crd["metadata"]["name"] = "gadgets.example.dev"
    crd["spec"]["names"] = {"plural": "gadgets", "kind": "Gadget"}
    return crd


def spoil(crd, path, value):
    node = crd
    for part in path[:-1]:
        node = node[part]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value


VERSION = ("spec", "versions", 0)
SCHEMA = (*VERSION, "schema", "openAPIV3Schema")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("metadata", "name"), "wrong.example.dev", "metadata.name"),
        (("spec", "group"), "nodots", "spec.group"),
        (("spec", "scope"), "Everywhere", "spec.scope"),
        ((*VERSION, "storage"), False, "spec.versions"),
        ((*VERSION, "name"), "V_1", "spec.versions[0].name"),
        ((*VERSION, "served"), None, "spec.versions[0].served"),
        ((*VERSION, "schema"), None, "spec.versions[0].schema.openAPIV3Schema"),
        ((*SCHEMA, "type"), "array", "spec.versions[0].schema.openAPIV3Schema.type"),
        (
            (*SCHEMA, "properties", "spec", "x-kubernetes-validations", 0, "rule"),
            "self.min <",
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule",
        ),
        (
            (*VERSION, "subresources", "scale", "specReplicasPath"),
            ".status.replicas",
            "spec.versions[0].subresources.scale.specReplicasPath",
        ),
        (
            (*VERSION, "additionalPrinterColumns", 0, "type"),
            "colour",
            "spec.versions[0].additionalPrinterColumns[0].type",
        ),
        (("spec", "conversion"), {"strategy": "Webhook"}, "spec.conversion.strategy"),
    ],
)
def test_a_bad_crd_is_refused_with_the_place(bench, other, path, value, field):
    spoil(other, path, value)
    with pytest.raises(ApiError) as refusal:
        bench.create(other)
    assert refusal.value.code == 422
    assert field in {cause["field"] for cause in refusal.value.details["causes"]}


def test_an_established_crd_is_served_at_once_with_defaulted_names(bench, other):
    made = bench.create(other)
    conditions = {item["type"]: item["status"] for item in made["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert made["spec"]["names"]["singular"] == "gadget"
    assert bench.registry.find("example.dev", "v1", "gadgets").list_kind == "GadgetList"


def test_a_taken_name_keeps_a_crd_out_of_service(bench, other):
    other["spec"]["names"]["shortNames"] = ["wd"]
    made = bench.create(other)
    conditions = {item["type"]: item for item in made["status"]["conditions"]}
    assert conditions["Established"]["status"] == "False"
    assert '"wd" is already in use' in conditions["NamesAccepted"]["message"]
    assert bench.registry.find("example.dev", "v1", "gadgets") is None


def test_a_changed_schema_holds_for_the_next_write(bench, widget, widget_crd):
    crd = copy.deepcopy(bench.get(widget_crd))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["color"]["enum"].append("green")
    bench.update(crd)
    assert bench.create(widget(color="green"))["spec"]["color"] == "green"


def test_what_names_a_kind_cannot_change(bench, widget_crd):
    crd = copy.deepcopy(bench.get(widget_crd))
    crd["spec"]["scope"] = "Cluster"
    with pytest.raises(ApiError, match=r"spec\.scope: Invalid value: .*immutable"):
        bench.update(crd)
