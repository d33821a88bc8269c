"""The examples are run as a user runs them, a little shorter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "runtime" / "examples"


def run(name, *arguments):
    path = os.pathsep.join([str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name / "train.py"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.processes
def test_digits_are_learnt(tmp_path):
    done = run("digits", "--epochs", "8", "--root", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"validation accuracy (0\.\d+) after 184 steps", done.stdout)
    assert accuracy, done.stdout
    assert float(accuracy.group(1)) > 0.9


@pytest.mark.processes
def test_a_language_model_learns_from_the_standard_library(tmp_path):
    done = run(
        "stdlib_lm", "--max-steps", "40", "--bytes", "60000", "--root", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    bits = re.search(r"(\d\.\d+) bits per byte after 40 steps", done.stdout)
    assert bits, done.stdout
    # Eight bits say nothing; knowing the frequencies of bytes is worth about three of them.
    assert float(bits.group(1)) < 5.0


@pytest.mark.parametrize("name", ["digits", "stdlib_lm"])
def test_the_manifest_runs_the_script_beside_it(name):
    job = yaml.safe_load((EXAMPLES / name / "job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("rekindle.dev/v1alpha1", "TrainingJob")
    assert set(job["spec"]) <= {"replicas", "elastic", "procPerNode", "template", "checkpoint"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "trainer"
    assert container["args"][0] == f"{name}/train.py"
