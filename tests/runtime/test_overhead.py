"""What the trainer costs per step stays within what is promised, measured as the benchmark does."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "trainer_overhead.py"

# Not of processes, but of time that the quick tests do not have.
pytestmark = pytest.mark.processes


def test_an_idle_trainer_costs_60_microseconds_a_step_and_a_logged_scalar_15(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning", None)  # seconds, and nothing that we promise
    monkeypatch.setattr(sys, "argv", ["trainer_overhead.py", "--steps", "300", "--rounds", "3"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(BENCH), run_name="__main__")
    out = capsys.readouterr()
    found = json.loads(out.out.splitlines()[-1])
    # The promise is for a machine where the loop by hand takes 120; other tests run beside this.
    slower = max(1.0, found["raw_us"] / 120)
    assert found["rekindle_extra_us"] < 60 * slower, found
    assert found["rekindle_extra_5logs_us"] - found["rekindle_extra_us"] < 75 * slower, found
    assert found["sampler_resume_ms"] < 50, found
    assert found["lightning_extra_us"] is found["lightning_extra_5logs_us"] is None
    assert "pip install lightning" in out.err
