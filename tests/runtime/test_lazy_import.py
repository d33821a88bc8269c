"""Importing the package must cost nothing and must not need torch."""

import subprocess
import sys
from importlib import import_module

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
@pytest.mark.parametrize(
    "module", ["api", "ranks.control_page", "errors.outcome", "data.sampling.order", "data.ledger"]
)
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


@pytest.mark.parametrize("package", ["callbacks", "checkpoint", "config", "loggers", "profilers"])
def test_packages_show_all_their_names_and_say_which_there_are(package):
    module = import_module(f"rekindle.{package}")
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=rf"{package}' has no attribute 'Nothing'; it has "):
        _ = module.Nothing


@pytest.mark.processes
def test_a_name_loads_its_own_module_only():
    done = python(
        "import rekindle.callbacks\nassert 'rekindle.callbacks.timer' not in sys.modules\n"
        "rekindle.callbacks.Timer\nassert 'rekindle.callbacks.timer' in sys.modules\n"
        "assert 'rekindle.callbacks.weights.averaging' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
