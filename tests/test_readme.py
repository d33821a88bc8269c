"""What README says is true: its commands are CI's, its examples run, its tree is the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(mark: str) -> str:
    """The fenced block after a comment."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, mark
    return found[1]


def command(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n    (.*)\n", README)
    assert found, mark
    return found[1]


def tree() -> set[str]:
    """The paths in the file tree."""
    text = README.split("```text\n")[1].split("```")[0]
    stack: list[tuple[int, str]] = []
    paths = set()
    for line in text.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = "".join(part for _, part in stack) + name
        paths.add(path)
        if name.endswith("/"):
            stack.append((indent, name))
    return paths


def test_everything_in_the_file_tree_exists():
    missing = {path for path in tree() if not (ROOT / path).exists()}
    assert not missing


def test_every_module_is_in_the_file_tree():
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("operator", "runtime/rekindle")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and "__pycache__" not in path.parts
    }
    assert not modules - tree()


def test_ci_runs_the_two_commands_of_this_page():
    script = (ROOT / ".ci" / "run").read_text()
    for mark, last in (("main job", "rekindle demo"), ("tests", "pytest")):
        assert f"<!-- {mark} -->" in script
        assert command(mark).endswith(last)


@pytest.mark.parametrize("changes", [None, "storage", "capacity", "watch"])
def test_the_manifest_is_accepted(changes):
    from rekindle_local.apiserver.http.server import ApiServer

    server = ApiServer()
    server.load([yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())])
    job = yaml.safe_load(block("manifest"))
    job["metadata"]["namespace"] = "default"
    if changes is not None:
        job["spec"].update(yaml.safe_load(block(changes))["spec"])
    server.load([job])


@pytest.mark.processes
def test_the_script_trains_and_goes_on_where_it_was(tmp_path):
    (tmp_path / "train.py").write_text(block("script"))
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "operator")])
    env = {**os.environ, "PYTHONPATH": path}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "train.py"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "commit").is_dir()
