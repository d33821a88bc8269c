"""What README says is true: its commands are CI's, its examples run, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 170


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 30
    assert not [one for one in links if "://" not in one and not (ROOT / one).is_file()]


def test_ci_runs_the_two_commands_of_this_page() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for mark, last in (("main job", "rekindle demo"), ("tests", "pytest")):
        assert f"<!-- {mark} -->" in script
        assert command(mark).endswith(last)


@pytest.mark.processes
def test_the_script_trains_and_goes_on_where_it_was(tmp_path: Path) -> None:
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
