"""Habits that need somebody to look: workflows run scripts of CI, and a release is whole."""

import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OURS = {"rekindle", "rekindle_operator", "rekindle_local", "rekindle_cli"}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_scripts_of_the_repository(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = [word for line in commands for word in re.findall(r"\.ci/\w+", line)]
    assert scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"
    for job in jobs.values():
        assert job["timeout-minutes"] <= 90


def test_each_script_of_ci_is_in_a_workflow_or_is_called_by_another():
    texts = [path.read_text() for path in [*WORKFLOWS, ROOT / ".ci" / "run"]]
    for script in (ROOT / ".ci").iterdir():
        if script.name != "lock":  # after a change of pyproject.toml, by hand
            assert any(f".ci/{script.name}" in text for text in texts), script.name


def test_the_pythons_of_the_workflow_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = [c.rpartition(" :: ")[2] for c in project["classifiers"] if "Python :: 3." in c]
    suite = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["suite"]
    assert suite["strategy"]["matrix"]["python"] == told


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_a_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    if path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        assert len({part["id"] for part in form["body"]}) == len(form["body"])


# A release


@pytest.fixture(scope="module")
def release():
    loader = SourceFileLoader("release", str(ROOT / ".ci" / "release"))
    module = module_from_spec(spec_from_loader("release", loader))
    loader.exec_module(module)
    return module


def test_the_number_of_a_release_is_the_same_everywhere(release):
    paths = ("pyproject.toml", "charts/rekindle/Chart.yaml", "Dockerfile")
    found = release.versions(*((ROOT / path).read_text() for path in paths))
    assert len(found) == 5
    assert release.agreed(found)
    with pytest.raises(SystemExit, match=r"one number, these differ:\n.*\n  b: 2"):
        release.agreed({"a": "1", "b": "2"})


def test_a_wheel_that_lacks_something_is_refused(release):
    metadata = (
        "Name: rekindle\nVersion: 1.0\nLicense-Expression: Apache-2.0\nSummary: s\n"
        "Requires-Python: >=3.11\nLicense-File: LICENSE\n"
    )
    names = {f"{package}/py.typed" for package in OURS}
    names.add("rekindle_cli/data/crds/trainingjob.yaml")
    assert release.complaints(metadata, "1.0", names) == []
    assert release.complaints(metadata, "1.1", names) == ["Version is '1.0', must be '1.1'"]
    assert release.complaints(metadata, "1.0", {*names, "tests/x.py"}) == [
        "tests/x.py does not belong there"
    ]
    assert release.complaints(metadata, "1.0", set())[-1] == "the CRD is missing"


def test_the_chart_is_packed_the_same_each_time(release):
    first = release.packaged(ROOT / "charts" / "rekindle")
    assert first == release.packaged(ROOT / "charts" / "rekindle")


def test_images_chart_and_files_are_signed_after_they_are_published(release):
    commands = release.publication("1.0", "r.io/x", "out", "abc")
    lines = [" ".join(command) for command in commands]
    for name in ("r.io/x/operator:1.0", "r.io/x/runtime:1.0"):
        (push,) = [i for i, line in enumerate(lines) if f"--tag {name} --push" in line]
        (sign,) = [
            i for i, line in enumerate(lines) if line.startswith("cosign sign ") and name in line
        ]
        assert push < sign
    assert "helm push out/rekindle-1.0.tgz oci://r.io/x/charts" in lines
    assert lines[-1].startswith("twine upload")
