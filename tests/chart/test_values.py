"""Values: each one is documented, checked and used; what is wrong is refused with its name."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "rekindle"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())


def paths(properties: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values that the schema knows."""
    for name, schema in properties.items():
        if "properties" in schema and name != "resources":
            yield from paths(schema["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


SETTINGS = [path for path in paths(SCHEMA["properties"]) if path != "global"]


def test_the_defaults_pass_their_own_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(VALUES)


def test_no_object_of_the_schema_is_open() -> None:
    def open_ones(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("additionalProperties") is not False:
                yield path
            for key, value in schema.items():
                if key not in {"if", "then"}:  # those only add to a schema that is closed
                    yield from open_ones(value, f"{path}/{key}")

    assert list(open_ones(SCHEMA, "")) == []


@pytest.mark.parametrize("path", SETTINGS)
def test_each_setting_has_a_default_and_a_template_that_reads_it(path: str) -> None:
    value: Any = VALUES
    for part in path.split("."):
        assert part in value, f"{path} has no default in values.yaml"
        value = value[part]
    section, _, name = path.rpartition(".")
    whole = rf"\.Values\.{re.escape(path)}\b"
    in_with = rf"with \.Values\.{re.escape(section)} }}}}.*?[\s(]\.{name}\b"
    assert re.search(whole, TEMPLATES) or (section and re.search(in_with, TEMPLATES, re.DOTALL))


def test_templates_read_no_value_that_the_schema_does_not_know() -> None:
    read = set(re.findall(r"\.Values\.([\w.]+)", TEMPLATES))
    sections = {path.rpartition(".")[0] for path in SETTINGS}
    assert read <= set(SETTINGS) | sections


def test_versions_of_chart_and_distribution_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"watchNamespace": ["a"]}, "'watchNamespace' not allowed"),
        ({"replicas": 2}, "'replicas' not allowed"),
        ({"image": {"tagg": "1"}}, "/image': additional properties 'tagg' not allowed"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy': value must be one of"),
        ({"image": {"tag": 1.0}}, "/image/tag': got number, want string"),
        ({"image": {"digest": "latest"}}, "/image/digest'"),
        ({"image": {"repository": ""}}, "/image/repository'"),
        ({"watchNamespaces": "team-a"}, "/watchNamespaces': got string, want array"),
        ({"watchNamespaces": ["Team_A"]}, "/watchNamespaces/0': 'Team_A' does not match pattern"),
        ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces': items at 0 and 1 are equal"),
        ({"watchNodes": "yes"}, "/watchNodes': value must be one of 'auto', true, false"),
        ({"serviceAccount": {"create": False}}, "/serviceAccount/name'"),
        ({"rbac": {"create": "yes"}}, "/rbac/create': got string, want boolean"),
        ({"resources": {"request": {}}}, "/resources': additional properties 'request'"),
        ({"tolerations": {"key": "spot"}}, "/tolerations': got object, want array"),
        ({"podLabels": {"a": 1}}, "/podLabels/a': got number, want string"),
        ({"extraArgs": "--verbose"}, "/extraArgs': got string, want array"),
        ({"extraEnv": [{"value": "1"}]}, "/extraEnv/0': missing property 'name'"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "/networkPolicy/metricsFrom/0'"),
        ({"monitoring": {"interval": "often"}}, "/monitoring/interval'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(
    helm: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(helm.refused) as caught:
        helm.render(values)
    assert message in str(caught.value)
