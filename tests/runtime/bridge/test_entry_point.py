import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from rekindle import bridge


def test_lightning_finds_the_callback_where_the_project_says():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (found,) = project["entry-points"]["lightning.pytorch.callbacks_factory"].values()
    module, _, name = found.partition(":")
    assert getattr(importlib.import_module(module), name) is bridge.callbacks


def test_outside_of_a_job_lightning_gets_nothing(monkeypatch):
    monkeypatch.delenv("REKINDLE_CHECKPOINT_URI", raising=False)
    assert bridge.callbacks() == []


def test_without_lightning_the_bridge_says_what_to_install(monkeypatch):
    # None in sys.modules is how Python is told that there is no such module.
    loaded = ("rekindle.bridge.", "lightning.")
    for name in [name for name in sys.modules if name.startswith(loaded)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning>=2.6'"):
        _ = bridge.RekindleCallback
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = bridge.Nothing
