import os
import subprocess
import sys

import pytest

from rekindle_local.state_lock import StateDirectoryInUse, StateLock

HOLD = """
import sys
from pathlib import Path
from rekindle_local.state_lock import StateLock
StateLock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_directory_has_one_cluster_and_tells_which(tmp_path):
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    first.take()
    with pytest.raises(StateDirectoryInUse, match=f"{tmp_path} is in use by PID {os.getpid()}: "):
        second.take()
    first.release()
    second.take()
    second.release()


@pytest.mark.processes
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateDirectoryInUse, match=f"PID {holder.pid}"):
            StateLock(tmp_path).take()
        holder.kill()
        holder.wait(60)
        lock = StateLock(tmp_path)
        lock.take()
        lock.release()
