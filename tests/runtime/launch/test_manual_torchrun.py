import os
import signal
import subprocess
import sys

import pytest

from rekindle.launch.agent import manual_torchrun

SCRIPT = """
import os, signal, sys
way = sys.argv[1]
if way == "saved":
    sys.exit(75)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if way == "error" and os.environ["RANK"] == "1":
    sys.exit(3)
if way == "signalled" and os.environ["RANK"] == "0":
    os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([75], 75),
        ([75, 75], 75),
        ([75, 0], 75),
        ([75, -signal.SIGTERM], 75),
        ([75, 76], 76),
        ([76], 76),
        ([1], None),
        ([75, 1], None),
        ([75, -signal.SIGKILL], None),
        ([-signal.SIGTERM], None),
        ([], None),
    ],
)
def test_only_workers_that_have_all_left_are_told_so(codes, code):
    assert manual_torchrun.code_of(codes) == code


@pytest.mark.processes
@pytest.mark.parametrize(("way", "code"), [("saved", 75), ("signalled", 75), ("error", 1)])
def test_torchrun_by_hand_tells_what_its_workers_have_told(tmp_path, way, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(script), way],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert ("rekindle: the workers saved and left" in done.stderr) == (code == 75)
