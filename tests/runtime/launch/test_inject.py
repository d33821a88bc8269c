"""The launcher in an image without it: torch and the standard library are all there is."""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle
from rekindle.launch.inject import inject, main

BARE_PYTHON = runpy.run_path(str(Path(__file__).parent / "bare_python.py"))
SCRIPT = """
import importlib.util, json, os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
import rekindle
rekindle.report(step=3, total_steps=3)
total = torch.ones(1)
dist.all_reduce(total)
absent = [n for n in ("prometheus_client", "boto3", "urllib3") if importlib.util.find_spec(n)]
print("SAID", json.dumps([int(total), absent, rekindle.__file__]), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A Python with torch and what torch needs, and without numpy."""
    root = tmp_path_factory.mktemp("image")
    BARE_PYTHON["make"](root / "venv")
    inject(root / "rekindle")
    return root


def run(image: Path, folder: Path, *command: str, python: Path | None = None, **more: str):
    (folder / "train.py").write_text(SCRIPT)
    environment = {
        "PATH": f"{image / 'venv' / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(image / "rekindle"),
        "REKINDLE_TERMINATION_LOG": str(folder / "termination"),
        "REKINDLE_METRICS_PORT": "0",
        "TMPDIR": str(folder),
        **more,
    }
    return subprocess.run(
        [python or image / "venv" / "bin" / "python", *command],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        ["python", "train.py"],
        ["bash", "-c", "python -m torch.distributed.run --standalone train.py"],
    ],
    ids=["script", "torchrun in a shell"],
)
def test_the_launcher_needs_torch_and_nothing_else(image, tmp_path, command):
    done = run(image, tmp_path, "-m", "rekindle.launch", "--", *command)
    assert done.returncode == 0, done.stdout
    (line,) = [each for each in done.stdout.splitlines() if "SAID" in each]
    total, found, home = json.loads(line.partition("SAID ")[2])
    assert (total, found) == (1, [])
    assert home == str(image / "rekindle" / "rekindle" / "__init__.py")
    outcome = json.loads((tmp_path / "termination").read_text())
    assert (outcome["cause"], outcome["step"]) == ("Completed", 3)
    assert "no prometheus-client here" in done.stdout


@pytest.mark.processes
def test_without_torch_one_sentence_says_so(image, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=60
    )
    python = bare / "bin" / "python"
    command = ("-m", "rekindle.launch", "--", "python", "t.py")
    # The command's own Python would do: with it first in PATH, the launcher goes on there.
    done = run(image, tmp_path, *command, python=python)
    assert "there is no script 't.py'" in done.stdout
    done = run(image, tmp_path, *command, python=python, PATH=str(bare / "bin"))
    assert done.returncode == 1
    outcome = json.loads((tmp_path / "termination").read_text())
    assert outcome["cause"] == "Configuration"
    assert outcome["message"].startswith("there is no torch in")
    assert "\n" not in outcome["message"]


@pytest.mark.processes
def test_an_old_python_is_refused_in_one_sentence(tmp_path):
    script = (
        "import sys, runpy; sys.version_info = (3, 9, 2); "
        "runpy.run_module('rekindle.launch', run_name='__main__')"
    )
    environment = {
        "PYTHONPATH": str(Path(rekindle.__file__).parents[1]),
        "REKINDLE_TERMINATION_LOG": str(tmp_path / "log"),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    assert done.returncode == 1
    message = json.loads((tmp_path / "log").read_text())["message"]
    assert "needs Python 3.11 or newer" in message
    assert "is Python 3.9.2" in message


@pytest.mark.parametrize("name", ["__init__.py", "launch/__init__.py", "launch/old_python.py"])
def test_what_an_old_python_reads_is_written_for_it(name):
    source = (Path(rekindle.__file__).parent / name).read_text()
    ast.parse(source, feature_version=(3, 7))


def test_copying_again_replaces_what_is_there(tmp_path):
    target = tmp_path / "target"
    assert main([str(target)]) == 0
    (target / "rekindle" / "stale.py").touch()
    assert main([str(target)]) == 0
    assert not (target / "rekindle" / "stale.py").exists()
    assert sorted(path.name for path in target.iterdir()) == ["rekindle", "rekindle-0.dist-info"]
    mine = Path(rekindle.__file__).parent
    copied = target / "rekindle"
    expected = {path.relative_to(mine) for path in mine.rglob("*.py")}
    assert {path.relative_to(copied) for path in copied.rglob("*.py")} == expected
    assert os.stat(copied / "threads.py").st_mode & 0o777 == 0o644


def test_what_cannot_be_copied_is_said(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 1
    assert "cannot copy the launcher to" in capsys.readouterr().err
    assert main([]) == 2
