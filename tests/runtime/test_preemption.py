"""A plain script, started as `python train.py`: told to go, it saves; started again, it goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle

pytestmark = pytest.mark.processes

SCRIPT = """
import sys, runpy
program = runpy.run_path({program!r})

class Announce(program["Witness"]):
    def on_train_batch_end(self, trainer, *rest):
        print("at step", trainer.global_step, flush=True)

data = program["DataLoader"](program["Samples"](400), 4, shuffle=True, num_workers=1)
trainer = program["rk"].Trainer(
    max_epochs=1, root={root!r}, callbacks=[Announce({{}})], log_every_n_steps=10**6
)
trainer.fit(program["Net"](), data)
print("complete at", trainer.global_step)
"""


def start(tmp_path):
    program = Path(__file__).parent / "program" / "program.py"
    script = SCRIPT.format(program=str(program), root=str(tmp_path / "run"))
    paths = os.pathsep.join(
        [str(Path(rekindle.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def lines_until(process, wanted):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(wanted):
            return lines
    raise AssertionError("".join(lines))


def test_sigterm_to_the_whole_process_group_ends_in_a_commit_and_a_resume(tmp_path):
    with start(tmp_path) as process:
        lines_until(process, "at step 5\n")
        # As a terminal, a batch system or kubelet does it: loader workers get it too (R19).
        os.killpg(process.pid, signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(60) == 75, rest
    (commit,) = (tmp_path / "run" / "commit").iterdir()
    saved = int(commit.name[:12])
    assert saved >= 5
    with start(tmp_path) as process:
        said = process.stdout.read()
        assert process.wait(60) == 0, said
    assert f"resumed at step {saved}" in said
    assert f"at step {saved + 1}\n" in said
    assert f"at step {saved}\n" not in said
    assert "complete at 100" in said
