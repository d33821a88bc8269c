"""Since when the workers of a round run, for every kind of script."""

import pytest

from rekindle.launch.pod.worker_uptime import names_trainer, running_at


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, None),
        ({"started": 100.0, "now": 105.0}, None),
        ({"started": 100.0, "now": 110.0}, 110.0),
        ({"started": 100.0, "now": 150.0}, 110.0),
        ({"started": 100.0, "formed": 102.0, "now": 102.0}, 102.0),
        ({"started": 100.0, "reported": 101.0, "now": 102.0}, 101.0),
        ({"started": 100.0, "formed": 109.0, "reported": 120.0, "now": 130.0}, 109.0),
        ({"started": 100.0, "formed": 102.0, "attached": True, "now": 200.0}, None),
        ({"started": 100.0, "formed": 102.0, "attached": True, "stepped": 103.0}, 103.0),
        ({"started": 100.0, "awaited": True, "now": 150.0}, None),
        ({"started": 100.0, "awaited": True, "formed": 120.0, "now": 125.0}, None),
        ({"started": 100.0, "awaited": True, "formed": 120.0, "now": 131.0}, 130.0),
        ({"started": 100.0, "awaited": True, "reported": 120.0, "now": 121.0}, 120.0),
        ({"started": 100.0, "awaited": True, "now": 500.0}, 400.0),
    ],
)
def test_since_when(known, expected):
    values = {"now": 1000.0, "started": None, **known}
    assert running_at(**values) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("import rekindle as rk", True),
        ("import os, rekindle", True),
        ("def f():\n    from rekindle.bridge import RekindleCallback", True),
        ("import lightning.pytorch as pl", True),
        ("from lightning import Trainer", True),
        ("import torch", False),
        ("# import rekindle", False),
        ("import lightningrod", False),
        ("print('import rekindle')", False),
        ("\xff", False),
    ],
)
def test_a_script_that_names_a_trainer(tmp_path, text, named):
    path = tmp_path / "train.py"
    path.write_text(text)
    assert names_trainer([str(path)]) is named
    assert names_trainer(["-c", text]) is named


def test_modules_are_known_by_their_names():
    assert names_trainer(["-m", "rekindle", "fit"])
    assert not names_trainer(["-m", "torchtune"])
    assert not names_trainer(["absent.py"])
