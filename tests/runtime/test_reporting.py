"""``rekindle.report``, from the script to the reader of its file."""

import json
import subprocess
import sys

import pytest

import rekindle
from rekindle import reporting


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "report"
    reporting.make(path)
    monkeypatch.setenv("REKINDLE_REPORT_FILE", str(path))
    monkeypatch.delenv("RANK", raising=False)
    return path


def test_the_newest_word_is_what_is_read(file):
    assert reporting.read(file) is None
    rekindle.report(step=1000, total_steps=2000, epoch=1, loss=0.5, samples=64000)
    rekindle.report(step=1001)
    assert json.loads(reporting.read(file)) == {"step": 1001}
    rekindle.report(step=1002, total_steps=2000, epoch=1, loss=0.5, samples=64000)
    assert json.loads(reporting.read(file)) == {
        "step": 1002,
        "totalSteps": 2000,
        "epoch": 1,
        "loss": 0.5,
        "samples": 64000,
    }


def test_a_word_that_is_half_written_is_none(file):
    rekindle.report(step=1)
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    assert reporting.read(file) is None
    file.write_bytes(b"")
    assert reporting.read(file) is None
    assert reporting.read(file.with_name("absent")) is None


@pytest.mark.parametrize("rank", ["1", "17"])
def test_other_ranks_are_not_heard(file, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    rekindle.report(step=3)
    assert reporting.read(file) is None


def test_a_loss_that_is_no_number_is_left_out(file):
    for loss in (float("nan"), float("inf")):
        rekindle.report(step=3, loss=loss)
        assert json.loads(reporting.read(file)) == {"step": 3}


def test_what_is_no_step_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="step is -1, must be 0 or more"):
        rekindle.report(step=-1)
    with pytest.raises(TypeError):
        rekindle.report(step=1.5)


def test_without_a_listener_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.delenv("REKINDLE_REPORT_FILE", raising=False)
    rekindle.report(step=1)
    monkeypatch.setenv("REKINDLE_REPORT_FILE", str(tmp_path / "gone"))
    rekindle.report(step=1)


@pytest.mark.processes
def test_a_killed_process_has_said_its_last_word_and_needs_the_standard_library_only(file):
    script = (
        "import os, signal, sys, rekindle\n"
        "for step in range(100): rekindle.report(step=step + 1)\n"
        "third = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(*sorted(third - {'__main__', 'rekindle'}), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"REKINDLE_REPORT_FILE": str(file), **paths},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -9
    assert done.stdout.decode().split() == []
    assert json.loads(reporting.read(file)) == {"step": 100}
