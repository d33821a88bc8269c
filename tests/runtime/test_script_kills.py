"""Scripts with several fits, killed at random moments: they come to what a plain run comes to.

``REKINDLE_KILLS=20`` kills each that often.
"""

import json
import os
import random
import runpy
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parent / "program" / "scripts.py"
SCRIPTS = list(runpy.run_path(str(PROGRAM))["SCRIPTS"])
KILLS = int(os.environ.get("REKINDLE_KILLS", "1"))
JOB = {f"REKINDLE_JOB_{name}": "x" for name in ("NAME", "NAMESPACE", "UID")}
DEADLINE = 120.0


@pytest.fixture
def start(_forkserver):
    def start(script, root, environment):
        task = {"script": script, "root": str(root), "environment": environment}
        process = _forkserver.Process(
            target=runpy.run_path,
            args=(str(PROGRAM),),
            kwargs={"init_globals": {"TASK": task}, "run_name": "__main__"},
        )
        process.start()
        return process

    return start


@pytest.mark.parametrize("where", ["laptop", "job"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_killed_again_and_again_ends_as_a_plain_one(
    script, where, start, tmp_path
):
    environment = JOB if where == "job" else {}
    began = time.monotonic()
    plain = start(script, tmp_path / "plain", environment)
    plain.join(DEADLINE)
    took = time.monotonic() - began
    assert plain.exitcode == 0
    expected = json.loads((tmp_path / "plain" / "result.json").read_text())
    moments = random.Random(f"{script} {where}")
    kills, ended, turns = 0, False, 0
    root = tmp_path / "killed"
    while not ended or kills < KILLS:
        fresh, began = not root.exists(), time.monotonic()
        process = start(script, root, environment)
        if kills < KILLS:
            # Where this is in the script is up to the machine: that is what is wanted.
            process.join(moments.uniform(0.1, 0.8) * took)
            kills += process.exitcode is None
            process.kill()
        process.join(DEADLINE)
        ended = (root / "result.json").exists()
        if ended:
            if fresh:
                # The first one was cold: moments after a script's end would kill nothing.
                took = min(took, time.monotonic() - began)
            assert json.loads((root / "result.json").read_text()) == expected
            turns += 1
            root = tmp_path / f"killed-{turns}"
        else:
            assert process.exitcode == -signal.SIGKILL
