"""The benchmarks run, and print what they promise, at a size that says nothing."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

pytestmark = pytest.mark.processes


def last_line(script, *arguments):
    command = [sys.executable, "-W", "ignore", str(BENCH / script), *arguments]
    done = subprocess.run(command, check=True, timeout=100, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stall_is_measured_beside_a_copy_and_torch():
    found = last_line("checkpoint_stall.py", "--mib", "1", "--rounds", "1")
    assert {"memcpy_s", "stall_s", "dcp_async_stall_s", "torch_save_s"} <= set(found)
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(("case", "limit"), [("save_ratio", 1.5), ("load_ratio", 1.0)])
def test_memory_over_the_state_is_measured_in_a_process_of_its_own(case, limit):
    # Not where other tests write: files in memory would count.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        arguments = ["--mib", "64", "--case", case, "--folder", folder]
        assert -0.1 < last_line("checkpoint_memory.py", *arguments) < limit
