"""The project's own API: its CRD registers as it is, and kubectl explains every field of it."""

from pathlib import Path

import pytest
import yaml

from rekindle_local.apiserver.schemas.schema import Schema

CRD = yaml.safe_load((Path(__file__).parents[3] / "crds" / "trainingjob.yaml").read_text())
[VERSION] = CRD["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


def fields(node, path="trainingjob"):
    """Yield every field that the CRD itself describes, with its schema."""
    for key, inner in (node.get("properties") or {}).items():
        if path == "trainingjob" and key in {"apiVersion", "kind", "metadata"}:
            continue
        yield f"{path}.{key}", inner
        if key != "template" and not key.endswith("Ref"):
            # Below those are the fields of Kubernetes, which describes them itself.
            yield from fields(inner.get("items") or inner, f"{path}.{key}")


def test_the_crd_is_accepted_and_established(bench):
    made = bench.create(CRD, validation="Strict")
    conditions = {item["type"]: item["status"] for item in made["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    resource = bench.registry.find("rekindle.dev", "v1alpha1", "trainingjobs")
    assert set(resource.subresources) == {"status", "scale"}


def test_every_printer_column_points_at_a_described_field():
    schema = Schema(root=SCHEMA)
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].lstrip(".").split(".")
        if path[0] != "metadata":
            assert schema.at(*path).get("type") == column["type"], column["name"]


def test_every_field_of_the_spec_has_a_description():
    missing = [
        path
        for path, node in fields(SCHEMA["properties"]["spec"], "trainingjob.spec")
        if not node.get("description")
    ]
    assert not missing


@pytest.mark.processes
def test_kubectl_explains_the_job_and_its_checkpoint(kubectl):
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(CRD))
    text = kubectl("explain", "trainingjob.spec", "--recursive")
    assert "checkpoint" in text
    for path in ("trainingjob.spec.checkpoint.uri", "tj.spec.replicas", "tj.status.conditions"):
        assert "DESCRIPTION" in kubectl("explain", path)
