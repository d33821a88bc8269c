"""What the trainer costs per step stays within what is promised, measured as the benchmark does.

The promise is 25 µs, and 50 with five logged values; the second bound is lower here, so that twice
the cost passes neither. They are for the machine that was measured on, whose loop by hand takes
222 µs a step (the trainer took 16 and 26 there). A machine that is slower, or busy with other
tests, gets more in proportion. Other programs only make figures larger: the best of three counts.

What it costs to go on in the middle of an epoch must not grow with the samples before that place:
that is held against a shorter epoch, and even to count the steps would more than double it.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "trainer_overhead.py"
TRIES = 3

# Not of processes, but of time that the quick tests do not have.
pytestmark = pytest.mark.processes


@pytest.fixture
def measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning", None)  # seconds, and nothing that we promise
    monkeypatch.setattr(sys, "argv", ["trainer_overhead.py", "--steps", "200", "--rounds", "5"])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def measure():
        runpy.run_path(str(BENCH), run_name="__main__")
        out = capsys.readouterr()
        assert "pip install lightning" in out.err
        return json.loads(out.out.splitlines()[-1])

    return measure


def kept(found):
    slower = max(1.0, found["raw_us"] / 222)
    return (
        found["rekindle_extra_us"] < 25 * slower and found["rekindle_extra_5logs_us"] < 40 * slower
    )


def test_a_trainer_costs_25_microseconds_a_step_and_40_with_five_logged_values(measured):
    tries = []
    while not tries or (not kept(tries[-1]) and len(tries) < TRIES):
        tries.append(measured())
    assert kept(tries[-1]), tries
    assert tries[-1]["lightning_extra_us"] is tries[-1]["lightning_extra_5logs_us"] is None


def test_an_epoch_goes_on_late_in_ten_million_samples_as_fast_as_in_ten_thousand(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    resume = runpy.run_path(str(BENCH))["sampler_resume"]
    short, long = (min(resume(samples) for _ in range(20)) for samples in (10**4, 10**7))
    assert long < 2 * short
