"""Stacks of workers, from the dump to what a report says."""

import signal
import subprocess
import sys

import pytest

from rekindle.launch.health import stacks

DUMP = """Thread 0x00007fe12e8e66c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007fe12f648b80 (most recent call first):
  File "{inner}", line 5 in {function}
  File "/app/train.py", line 17 in training_step
  File "<frozen runpy>", line 88 in _run_code
  File "/site-packages/rekindle/launch/spawn/worker.py", line 60 in main
"""


def dump(inner: str, function: str) -> str:
    return DUMP.format(inner=inner, function=function)


def test_the_main_thread_is_found_and_said_to_wait():
    text = dump("/site-packages/torch/distributed/distributed_c10d.py", "all_reduce")
    stack = stacks.main_thread(3, text)
    assert stack.waits
    assert stack.frames[1] == "/app/train.py:17 training_step"
    assert "rank 3 waits for other ranks" in stacks.summary([stack])


def test_the_rank_that_the_others_wait_for_stands_elsewhere():
    stack = stacks.main_thread(1, dump("/app/train.py", "spin"))
    assert not stack.waits
    said = stacks.summary([stack])
    assert said.splitlines()[:2] == ["rank 1 stands:", "  /app/train.py:5 spin"]
    assert "worker.py" not in said


def test_a_summary_of_many_ranks_fits_into_a_report():
    many = [stacks.main_thread(rank, dump("/x" * 300, "f")) for rank in range(64)]
    assert len(stacks.summary(many)) <= stacks.ROOM


@pytest.mark.parametrize("prepared", [0, 1])
def test_nobody_is_asked_where_one_would_die_of_it(tmp_path, prepared):
    asked: list[signal.Signals] = []
    for rank in range(prepared):
        stacks.path_of(tmp_path, rank).touch()
    assert stacks.collect(tmp_path, asked.append, 2, 0.0) == {}
    assert asked == []


@pytest.mark.processes
def test_a_process_that_hangs_in_c_code_tells_where(tmp_path):
    script = tmp_path / "rekindle" / "launch" / "spawn" / "worker.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rekindle.launch.health import stacks\n"
        "def hang():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
        "stacks.prepare(Path(sys.argv[1]), 2)\n"
        "hang()\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        said = stacks.collect(tmp_path, process.send_signal, 1, 30.0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert stacks.main_thread(2, said[2]).frames[0].endswith("hang")
