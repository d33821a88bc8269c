"""The examples of manual optimization learn what they are about."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "runtime" / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in this process; gives what it printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(name, *arguments):
        script = str(EXAMPLES / name / "train.py")
        monkeypatch.setattr(sys, "argv", [script, "--root", str(tmp_path / "run"), *arguments])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


@pytest.mark.processes
def test_a_gan_learns_the_radius_of_a_ring(run):
    said = run("gan", "--epochs", "25")
    radius = re.search(r"radius (\d\.\d\d) .* after 800 steps and 800 updates", said)
    assert radius, said
    assert float(radius.group(1)) == pytest.approx(2.0, abs=0.4)


@pytest.mark.processes
def test_a_policy_learns_to_stay_at_the_origin(run):
    said = run("policy", "--updates", "80")
    distance = re.search(r"distance (\d\.\d+) from the origin after 80 updates", said)
    assert distance, said
    assert float(distance.group(1)) < 0.4, "1.8 without training"
