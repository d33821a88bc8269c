"""Traps of this layout that no linter sees. Each of them has cost somebody a day elsewhere."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "charts",
    "constraints.txt",
    "crds",
    "docs",
    "mkdocs.yml",
    "operator",
    "pyproject.toml",
    "runtime",
    "tests",
}
# What the imperative shell of the operator is made of.
SHELL = ["kopf", "kubernetes", "aiohttp", "prometheus_client"]

# Imports `module` where importing any of `blocked` fails as it does where it is not installed.
PROBE = """
import sys
module, *blocked = sys.argv[1:]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
__import__(module)
"""


def tracked_and_new() -> list[str]:
    """What git would put into a commit of everything; ignored files are nobody's business."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=180
    )
    if listed.returncode:  # a source archive instead of a checkout
        return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds our packages whether or not they are installed."""
    path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "runtime")])
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_the_top_level_holds_nothing_unexpected() -> None:
    entries = {name.partition("/")[0] for name in tracked_and_new()}
    assert {entry for entry in entries if not entry.startswith(".")} <= ALLOWED


def test_the_folder_operator_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator.py").exists()
    found = run_python("-c", "import operator, collections; print(operator.__file__)")
    assert found.returncode == 0, found.stderr
    assert not found.stdout.startswith(str(ROOT))


def test_no_folder_of_tests_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_runtime_is_a_folder_and_no_package() -> None:
    assert not (ROOT / "runtime" / "__init__.py").exists()


@pytest.mark.parametrize(
    "package", ["rekindle", "rekindle_cli", "rekindle_local", "rekindle_operator"]
)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    side = "runtime" if package == "rekindle" else "operator"
    assert (ROOT / side / package / "py.typed").is_file()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # What the operator's image lacks.
        ("rekindle_operator.__main__", ["torch", "numpy", "boto3", "flask", "moto"]),
        ("rekindle_operator.coordinator.coordinator", ["torch", "numpy", "boto3"]),
        # The core decides without kopf, the API or metrics.
        ("rekindle.api.spec", ["torch", *SHELL]),
        ("rekindle_operator.reconcile.reconcile", ["torch", *SHELL]),
        # The standard library is all that the contract needs.
        ("rekindle.api", ["torch", "urllib3", *SHELL]),
        # What the runtime's image lacks.
        ("rekindle", ["torch", "kopf", "kubernetes", "aiohttp"]),
        ("rekindle.launch.__main__", ["kopf", "kubernetes", "aiohttp", "yaml"]),
    ],
)  # fmt: skip
def test_module_imports_where_other_packages_are_absent(module: str, absent: list[str]) -> None:
    done = run_python("-c", PROBE, module, *absent)
    assert done.returncode == 0, done.stderr


def test_the_probe_notices_a_package_that_is_absent() -> None:
    done = run_python("-c", PROBE, "email.mime.text", "email")
    assert done.returncode == 1
    assert "No module named 'email' (blocked)" in done.stderr


def test_the_chart_holds_equal_copies_of_the_crds() -> None:
    source = {path.name: path.read_bytes() for path in (ROOT / "crds").iterdir()}
    copy = {path.name: path.read_bytes() for path in (ROOT / "charts/rekindle/crds").iterdir()}
    assert source, "crds/ is empty"
    different = {name for name in source | copy if source.get(name) != copy.get(name)}
    assert not different, "run: cp crds/* charts/rekindle/crds/"


@pytest.mark.processes
def test_the_import_contracts_are_kept() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = run_python("-c", lint, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kept, 0 broken" in done.stdout


PRODUCT = sorted(
    path
    for folder in ("operator", "runtime/rekindle")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def test_a_public_class_has_a_name_of_its_own() -> None:
    """So that a search for it finds one; Lightning's names of one thing are one class."""
    homes: dict[str, list[str]] = {}
    for path in PRODUCT:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == SHARED


SHARED = {
    # Lightning has a callback and a utility of this name.
    "ModelSummary": [
        "runtime/rekindle/callbacks/monitors/model_summary.py",
        "runtime/rekindle/model/summary.py",
    ],
    # A type of Lightning's annotations, which scripts find under its own name there.
    "OptimizerConfig": [
        "runtime/rekindle/model/optimizers.py",
        "runtime/rekindle/pytorch/utilities/types.py",
    ],
}


def test_a_room_has_no_more_modules_than_a_newcomer_looks_through() -> None:
    rooms: dict[str, list[str]] = {}
    for path in PRODUCT:
        if path.stem != "__init__":
            rooms.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.stem)
    assert {room: len(found) for room, found in rooms.items() if len(found) > 14} == {}
    assert len(rooms["runtime/rekindle"]) <= 12
