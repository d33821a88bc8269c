"""Importing the package must cost nothing and must not need torch."""

import subprocess
import sys

import pytest

import rekindle

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocked())
"""


def python(code):
    path = rekindle.__file__.rsplit("/", 2)[0]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.processes
@pytest.mark.parametrize("module", ["contract", "control", "outcome", "order", "ledger"])
def test_modules_without_tensors_need_no_torch(module):
    done = python(f"{BLOCKED}\nimport rekindle.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_a_missing_torch_is_answered_with_the_command_that_installs_it():
    done = python(f"{BLOCKED}\nimport rekindle\nrekindle.Trainer")
    assert "pip install 'rekindle[runtime]'" in done.stderr


def test_every_public_name_resolves():
    for name in rekindle.__all__:
        assert getattr(rekindle, name) is not None
    assert rekindle.LightningModule is rekindle.Module
    assert set(rekindle.__all__) <= set(dir(rekindle))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = rekindle.Trainr
