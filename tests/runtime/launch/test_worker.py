"""A script under the worker sees and shows what it would under plain Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rekindle.api import Outcome
from rekindle.ranks.control_page import ControlPage

pytestmark = pytest.mark.processes

SEEN = """
import sys, __main__
print(sys.argv, sys.path[0], __name__, __main__.__file__, vars(__main__) is globals())
"""
NESTED = "import json\ndef f(x):\n    json.loads(x)\nf('no json')\n"


def run(folder: Path, *command: str, run_dir: Path | None = None, **variables: str):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables
    if run_dir is not None:
        environment["REKINDLE_RUN_DIR"] = str(run_dir)
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", ["{}/pack/train.py -x 1", "-m pack.train -x"])
def test_a_script_sees_what_python_shows_it(tmp_path, command):
    command = command.format(tmp_path).split()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "train.py").write_text(SEEN)
    plain = run(tmp_path, *command)
    ours = run(tmp_path, "-m", "rekindle.launch.spawn.worker", *command)
    assert ours.stdout == plain.stdout != ""
    assert (ours.returncode, ours.stderr) == (0, "")


@pytest.mark.parametrize("script", [NESTED, "def f(:\n", "import nothing_like_it\n"])
def test_a_failing_script_prints_pythons_traceback_and_leaves_word(tmp_path, script):
    (tmp_path / "train.py").write_text(script)
    page = ControlPage(tmp_path, create=True)
    plain = run(tmp_path, "train.py")
    ours = run(
        tmp_path, "-m", "rekindle.launch.spawn.worker", "train.py", run_dir=tmp_path, RANK="3"
    )
    assert ours.stderr == plain.stderr
    assert ours.returncode == plain.returncode == 1
    [outcome] = page.outcomes()
    assert outcome.rank == 3
    assert outcome.message.split(": ", 1)[1].split(" (")[0] in plain.stderr
    assert "frozen runpy" not in (outcome.traceback or "")


def test_an_outcome_of_the_trainer_stays(tmp_path):
    (tmp_path / "train.py").write_text(NESTED)
    page = ControlPage(tmp_path, create=True)
    page.write_outcome(Outcome(cause="Integrity", code=70, message="known better", rank=0))
    run(tmp_path, "-m", "rekindle.launch.spawn.worker", "train.py", run_dir=tmp_path, RANK="0")
    assert [outcome.message for outcome in page.outcomes()] == ["known better"]


@pytest.mark.parametrize(
    ("ending", "code", "words"), [("75", 75, []), ("'no data'", 1, ["no data"]), ("", 0, [])]
)
def test_exit_codes_pass_and_parting_words_are_kept(tmp_path, ending, code, words):
    (tmp_path / "train.py").write_text(f"import sys; sys.exit({ending})")
    page = ControlPage(tmp_path, create=True)
    ours = run(tmp_path, "-m", "rekindle.launch.spawn.worker", "train.py", run_dir=tmp_path)
    assert ours.returncode == code
    assert [outcome.message for outcome in page.outcomes()] == words


def test_a_worker_whose_agent_is_gone_does_not_run(tmp_path):
    (tmp_path / "train.py").write_text("print('ran')")
    ours = run(tmp_path, "-m", "rekindle.launch.spawn.worker", "train.py", REKINDLE_PARENT_PID="1")
    assert (ours.returncode, ours.stdout) == (-9, "")


def test_an_interrupted_script_dies_of_the_signal_like_python(tmp_path):
    (tmp_path / "train.py").write_text("raise KeyboardInterrupt")
    plain = run(tmp_path, "train.py")
    ours = run(tmp_path, "-m", "rekindle.launch.spawn.worker", "train.py")
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)
    assert ours.returncode == -2
