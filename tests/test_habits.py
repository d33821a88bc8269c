"""Habits that nobody keeps unless something looks: scripts of CI, private names, waiting in tests."""

import ast
import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENTED = {"os._exit", "sys._getframe"}
OURS = {"rekindle", "rekindle_operator", "rekindle_local", "rekindle_cli"}


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


# Private names of other packages


def uses(source):
    """`module.name` for each private name of a foreign module that the text shows.

    That is `from m import _x`, `import m._x`, and `m.a._x` where `m` was imported in this file.
    """
    tree, known, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
                found.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = full
                found.add(full)
    for node in ast.walk(tree):
        names, value = [], node
        while isinstance(value, ast.Attribute):
            names.append(value.attr)
            value = value.value
        if names and isinstance(value, ast.Name) and value.id in known:
            found.add(".".join([known[value.id], *reversed(names)]))
    return {name for name in map(shortened, found) if name}


def shortened(full):
    """Up to the first private part; None if there is none, or if it is ours or documented."""
    parts = full.split(".")
    numbers = [i for i, part in enumerate(parts) if i and re.fullmatch(r"_(?!_)\w*", part)]
    if not numbers or parts[0] in OURS or full in DOCUMENTED:
        return None
    return ".".join(parts[: numbers[0] + 1])


def attributes(sources):
    """`*.name` for each private attribute that is read off an object and that no text defines."""
    defined, read = set(), set()
    for tree in map(ast.parse, sources):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"_(?!_)\w+", node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
                (defined if own and isinstance(node.ctx, ast.Store) else read).add(node.attr)
    return {f"*.{name}" for name in read - defined if not name.startswith("_rekindle")}


def product():
    for side in ("runtime/rekindle", "operator"):
        for path in sorted((ROOT / side).rglob("*.py")):
            yield path


def test_private_names_of_other_packages_are_listed_and_no_others():
    table = tomllib.loads((ROOT / "docs" / "private-names.toml").read_text())
    sources = [path.read_text() for path in product()]
    used = {name for source in sources for name in uses(source)}
    behind = {f"*.{name.rpartition('.')[2]}" for name in [*used, *DOCUMENTED]}
    used |= attributes(sources) - behind
    assert sorted(used - set(table)) == [], "list them in docs/private-names.toml"
    assert sorted(set(table) - used) == [], "nobody uses these any more"
    for name, entry in table.items():
        assert set(entry) == {"of", "seen", "fallback"}, name
        assert all(entry.values()), name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._C.x", {"torch._C"}),
        ("from a.b import _c as d", {"a.b._c"}),
        ("import a._b.c", {"a._b"}),
        ("from a import B\nB._x()", {"a.B._x"}),
        ("import os\nself._x\nos.__name__\nfrom rekindle import _y", set()),
    ],
)
def test_the_forms_that_are_seen(source, found):
    assert uses(source) == found


def test_a_private_attribute_of_an_object_is_seen_if_nothing_of_ours_has_that_name():
    assert attributes(["x._a\nself._b = 1\ny._b\nz._rekindle_mark"]) == {"*._a"}


# Waiting


def sleeps(tree):
    """How often a test file itself sleeps, in a function that is no loop's pause."""
    looped = {
        inner for node in ast.walk(tree) if isinstance(node, ast.While) for inner in ast.walk(node)
    }
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == "time.sleep"
        and node not in looped
        for node in ast.walk(tree)
    )


def test_no_test_sleeps_in_place_of_waiting_but_those_that_are_listed():
    """A pause between two looks at a condition, in a `while`, is none. The list only shrinks."""
    listed = tomllib.loads((ROOT / "tests" / "data" / "sleeps.toml").read_text())
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = str(path.relative_to(ROOT / "tests"))
        if not name.startswith("bench/") and (count := sleeps(ast.parse(path.read_text()))):
            found[name] = count
    assert found == {name: entry["times"] for name, entry in listed.items()}, (
        "wait for the condition, with a deadline; and take out of sleeps.toml what is gone"
    )


def test_a_sleep_is_seen_and_a_pause_is_not():
    assert sleeps(ast.parse("import time\ntime.sleep(1)\nwhile x:\n    time.sleep(1)")) == 1
