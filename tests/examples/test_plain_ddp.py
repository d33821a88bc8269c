"""The store from a hand-written loop: two ranks, killed in the middle, end with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rekindle.checkpoint import Store
from rekindle_cli.local.stack import free_ports

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "runtime" / "examples" / "plain_ddp" / "train.py"


def started(uri):
    (port,) = free_ports(1)
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "runtime"),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), uri],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(processes):
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [int(line.split()[1]) for line in outputs[0].splitlines()]


def tensors(tree, path=""):
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    if not isinstance(tree, dict | list):
        return {}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in items for k, v in tensors(value, f"{path}.{key}").items()}


@pytest.mark.processes
def test_a_killed_run_of_plain_ddp_goes_on_bit_equal(tmp_path):
    whole, killed = (f"file://{tmp_path}/{name}" for name in ("whole", "killed"))
    assert finish(started(whole)) == list(range(1, 61))
    processes = started(killed)
    for line in processes[0].stdout:
        if line == "step 33\n":
            break
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    assert 0 < Store.open(killed).commits()[0].step < 60
    steps = finish(started(killed))
    assert 1 < steps[0] <= 36
    expected = tensors(Store.open(whole).restore()[0].state)
    found = tensors(Store.open(killed).restore()[0].state)
    assert set(found) == set(expected)
    assert len(found) == 4 + 3 * 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_example_is_forty_lines():
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
