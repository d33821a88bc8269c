"""What goes into a checkpoint comes out equal, and nothing else goes in."""

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.checkpoint.format.encoding import DecodingError, EncodingError, decode, encode
from rekindle.checkpoint.format.tensors import TORCH_DTYPES, flatten, rebuild

_dtypes = sorted(set(TORCH_DTYPES) - {"complex32"})  # torch warns about it


@st.composite
def tensors(draw):
    dtype = TORCH_DTYPES[draw(st.sampled_from(_dtypes))]
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    if dtype == torch.bool:
        return torch.tensor([draw(st.booleans()) for _ in range(size)]).reshape(shape)
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(["bool", "uint16", "int64", "float32", "complex128"])))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    if dtype.kind == "b":
        return np.array([draw(st.booleans()) for _ in range(math.prod(shape))], bool).reshape(shape)
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


# All that UTF-8 holds, as by default; but that is found out of the codec, in more than a second.
UNICODE = st.characters(exclude_categories=["Cs"])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(UNICODE)
    | st.binary()
    | st.floats(width=32).map(np.float32)
    | st.integers(0, 255).map(np.uint8)
    | st.booleans().map(np.bool_)
)
keys = st.text(UNICODE, max_size=6) | st.integers()
trees = st.recursive(
    scalars | tensors() | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


def _bits(value):
    """A form in which equal means equal to the bit and in every type."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ("tensor", value.dtype, tuple(value.shape), raw)
    if isinstance(value, np.ndarray | np.generic):
        return (type(value), value.dtype, value.shape, value.tobytes())
    if isinstance(value, float):
        return (float, struct.pack("d", value))
    if isinstance(value, list | tuple):
        return (type(value), [_bits(item) for item in value])
    if isinstance(value, dict):
        return (type(value), [(type(k), k, _bits(v)) for k, v in value.items()])
    return (type(value), value)


@given(trees)
@settings(max_examples=300)
def test_every_tree_of_the_allowed_types_comes_back_to_the_bit(tree):
    flat = flatten(tree)
    stored = json.loads(json.dumps(flat.tree, allow_nan=False))
    assert _bits(rebuild(stored, flat.tensors)) == _bits(tree)


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda x: x, "function"),
        (partial(print), "functools.partial"),
        ({1, 2}, "set"),
        (Path("/x"), "pathlib"),
        (Color.RED, "Color"),
        (datetime(2026, 1, 1), "datetime.datetime"),
        (defaultdict(int), "collections.defaultdict"),
        (object(), "object"),
        (1 + 2j, "complex"),
        (bytearray(b"x"), "bytearray"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([object()]), "dtype object"),
        (np.array([1], dtype=">i4"), "dtype >i4"),
        (np.datetime64("2026-01-01"), "datetime64"),
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "meta device"),
        (torch.Size([1]), "torch.Size"),
        (torch.float32, "torch.dtype"),
    ],
)
def test_anything_else_is_refused_with_its_path_and_type(value, what):
    with pytest.raises(EncodingError, match=r"^callbacks\.ema\.0\.schedule: ") as caught:
        flatten({"callbacks": {"ema": [{"schedule": value}]}})
    assert what in str(caught.value)


@pytest.mark.parametrize("key", [1.5, None, True, (1,), b"x"])
def test_a_key_that_is_no_string_or_int_is_refused(key):
    with pytest.raises(EncodingError, match="optim: key .* keys of a stored dict are str or int"):
        flatten({"optim": {key: 1}})


def test_a_tree_that_contains_itself_is_refused():
    tree: list = []
    tree.append(tree)
    with pytest.raises(EncodingError, match="contains itself"):
        flatten(tree)


def test_plain_trees_refuse_tensors():
    with pytest.raises(EncodingError, match=r"meta\.loss: torch\.Tensor cannot be stored"):
        encode({"loss": torch.ones(())}, "meta")


def test_tensors_are_named_by_their_path_and_never_share_a_name():
    ones = torch.ones(1)
    flat = flatten({"a.b": ones, "a": {"b": ones * 2}, "n": {0: ones * 3, "0": ones * 4}})
    assert list(flat.tensors) == ["a.b", "a.b~2", "n.0", "n.0~2"]
    back = rebuild(flat.tree, flat.tensors)
    assert [back["a"]["b"].item(), back["n"][0].item(), back["n"]["0"].item()] == [2, 3, 4]


def test_a_model_and_an_optimizer_with_schedulers_can_be_stored():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    schedulers = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 10),
    ]
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }
    flat = flatten(tree)
    back = rebuild(json.loads(json.dumps(flat.tree)), flat.tensors)
    assert _bits(back) == _bits(tree)


@pytest.mark.parametrize(
    "stored",
    [
        {"$": "pickle", "v": "gASVCgAAAAAAAAB9lC4="},
        {"$": "tensor", "v": "no.such"},
        {"$": "tensor", "v": 3},
        {"$": "tuple"},
        {"$": "tuple", "v": {}},
        {"$": 1, "v": []},
        {"$": "tuple", "v": [], "x": 1},
        {"$": "dict", "v": [[1]]},
        {"$": "dict", "v": [[1, 2], [1, 3]]},
        {"$": "dict", "v": [[None, 2]]},
        {"$": "int", "v": "zz"},
        {"$": "float", "v": "00"},
        {"$": "bytes", "v": "*"},
        {"$": "numpy", "v": ["object", "00"]},
        {"$": "numpy", "v": ["float32", "00"]},
        {"$": "numpy", "v": ["float32", "zz"]},
        {"$": "numpy", "v": [["float32"], "00"]},
    ],
)
def test_a_stored_tree_that_nobody_wrote_is_refused(stored):
    with pytest.raises(DecodingError):
        rebuild({"state": [stored]}, {})


def test_a_deep_stored_tree_is_refused_and_does_not_exhaust_the_stack():
    tree: list = []
    for _ in range(5000):
        tree = [tree]
    with pytest.raises(DecodingError, match="deeper"):
        decode(tree)
