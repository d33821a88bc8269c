"""The benchmark of the S3 clients runs and says what it is judged by; the figures are its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIELDS = {"up_cpu_s_per_gb", "up_mb_s", "down_cpu_s_per_gb", "down_mb_s"}


@pytest.mark.processes
def test_the_last_line_has_every_figure_of_every_client():
    script = Path(__file__).with_name("s3_throughput.py")
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--mib",
            "40",
            "--rounds",
            "1",
            "--only",
            "rekindle",
            "boto3",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["rekindle"]) == FIELDS
    assert set(found["peers"]["boto3"]) == FIELDS
    assert all(value > 0 for value in found["rekindle"].values())
