"""Hyperparameters that are no plain values, in checkpoints and back."""

import enum
import json
import os
import threading
from argparse import Namespace
from collections import Counter, OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.checkpoint.format import encoding
from rekindle.model import describing
from rekindle.model.describing import Missing, describe, recall


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass(frozen=True)
class Config:
    width: int
    colour: Colour = Colour.RED


def ours(x):
    return x


def through(value):
    """What comes back from a checkpoint's document."""
    text = json.dumps(encoding.encode(describe(value)))
    return recall(encoding.decode(json.loads(text)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        1e400,
        "text",
        b"bytes",
        [1, [2.5]],
        (1, ("a",)),
        {"a": {"$is": 1}},
        {1: 2, "x": 3},
        {(1, 2): [3]},
        OrderedDict(b=1, a=2),
        Counter(a=2),
        {1, 2},
        frozenset({"a"}),
        range(1, 9, 2),
        1 + 2j,
        Path("a/b"),
        timedelta(days=1, seconds=2),
        torch.float16,
        torch.device("cpu"),
        torch.Size([1, 2]),
        Namespace(a=Path("x")),
        int,
        dict,
        torch.nn.ReLU,
        torch.nn.functional.relu,
        torch.optim.SGD,
        ours,
        Colour,
        Colour.RED,
        Level.HIGH,
        Config(width=2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_comes_back_as_it_was(value):
    found = through(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back(dtype):
    value = torch.tensor([[0, 1], [2, 3]]).to(dtype)
    found = through(value)
    assert found.dtype == dtype
    assert torch.equal(found, value)
    assert through(torch.tensor(2.0)).shape == ()


def test_arrays_come_back():
    value = np.arange(6.0).reshape(2, 3)
    assert (through(value) == value).all()
    assert through(np.float32(1.5)) == 1.5


@pytest.mark.parametrize(
    "value",
    [
        lambda x: x,
        torch.nn.Linear(1, 2),
        object(),
        threading.Lock(),
        torch.zeros(100_000),
        np.array(["a"]),
        os.system,
        threading.Thread,
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_rest_is_described(value):
    found = through({"a": [value]})
    assert isinstance(found["a"][0], Missing)
    assert describing.missing(found) is found["a"][0]
    assert " at 0x" not in found["a"][0].text


def test_nothing_is_imported_or_taken_from_elsewhere():
    for place in (["posix", "system"], ["antigravity", "fly"], ["builtins", "eval"]):
        assert isinstance(recall({"$is": "object", "value": place}), Missing)
    # A module re-exports what is not its own.
    assert isinstance(recall({"$is": "object", "value": [__name__, "Path"]}), Missing)
    assert isinstance(recall({"$is": "enum", "value": [__name__, "Colour", "BLUE"]}), Missing)
    assert isinstance(recall({"$is": "dataclass", "value": [__name__, "Colour", {}]}), Missing)
