import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from rekindle import Trainer
from rekindle.callback import Callback
from rekindle.config import schema
from rekindle.config.schema import convert, fill
from rekindle.config.tree import ConfigError, ConfigNode

HERE = Path(__file__).parent
PROGRAM = f"{HERE / 'program.py'}"


def node(value, text=None):
    """A tree as a file or (with text) an option would give it."""
    if isinstance(value, dict):
        return ConfigNode({key: node(item) for key, item in value.items()}, "here:1")
    if isinstance(value, list):
        return ConfigNode([node(item) for item in value], "here:1")
    return ConfigNode(value, "here:1", text)


@dataclass
class Box:
    width: int
    names: list[str] | None = None


@pytest.mark.parametrize(
    ("value", "annotation", "found"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 0.001),
        (3, int | float, 3),
        (0.5, int | float, 0.5),
        (True, bool | int, True),
        (1, bool | int, 1),
        (None, int | None, None),
        ("auto", int | Literal["auto"], "auto"),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], Sequence[float], [1.0, 2.0]),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1, 2], tuple[int, ...], (1, 2)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ("a/b", Path, Path("a/b")),
        ({"deep": [1, {"x": None}]}, Any, {"deep": [1, {"x": None}]}),
        ("json:dumps", Callable[..., Any], __import__("json").dumps),
    ],
)
def test_a_value_that_fits_is_taken(value, annotation, found):
    result = convert(node(value), annotation, "x")
    assert result == found
    assert type(result) is type(found)


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        ("three", int, "int"),
        (3.5, int, "int"),
        (True, int, "int"),
        (1, bool, "bool"),
        (3, str, "str"),
        ("fast", float, "float"),
        (5, int | None, None),
        ([1], int | None, "int or None"),
        ("yes", Literal["auto", "must", "never"], "'auto', 'must' or 'never'"),
        (3, list[int], "a list of int"),
        ([1, 2, 3], tuple[int, int], "tuple"),
        (3, Mapping[str, int], "a mapping"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_place_and_type(value, annotation, wanted):
    if wanted is None:
        assert convert(node(value), annotation, "x") == value
        return
    with pytest.raises(ConfigError) as error:
        convert(node(value), annotation, "trainer.x")
    assert str(error.value) == f"here:1: trainer.x is {value!r}, must be {wanted}"


def test_a_text_of_an_option_counts_as_what_was_meant():
    assert convert(node(3, text="3"), str, "x") == "3"
    assert convert(node(16, text="16"), Literal["16", "32"], "x") == "16"
    assert convert(node(3, text="3"), str | int, "x") == 3


def test_objects_are_mappings_with_a_class_or_mere_names():
    listed = list[Callback] | Callback | None
    found = convert(node(["EMA", {"class": "EarlyStopping", "monitor": "val"}]), listed, "x")
    ema, stopping = schema.made(found)
    assert type(ema).__name__ == "EMA"
    assert stopping.monitor == "val"
    # Where texts are allowed as well, a class's name still means the class.
    (ema, word) = schema.made(convert(node(["EMA", "mine"]), list[Callback | str], "x"))
    assert (type(ema).__name__, word) == ("EMA", "mine")
    own = convert(node({"class": f"{PROGRAM}:Witness", "word": "hi"}), listed, "x")
    assert schema.made(own).word == "hi"
    assert schema.made(convert(node({"width": 2, "names": ["a"]}), Box | None, "x")) == Box(
        2, ["a"]
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"class": "EarlyStoping"},
            "one of yours is written module:Class); did you mean 'EarlyStopping'?",
        ),
        ({"class": "EarlyStopping", "monitr": "x"}, "has no key 'monitr'; did you mean 'monitor'"),
        ({"class": "Trainer"}, "x must be a Callback, and Trainer is none"),
        ({"class": "no.such:Thing"}, "there is no module 'no'"),
        ({"class": f"{PROGRAM}:Witnes"}, "has no 'Witnes'; did you mean 'Witness'?"),
        ({"class": f"{HERE}/none.py:Net"}, "there is no file "),
        ({"class": f"{PROGRAM}:number"}, "is a int, not a class"),
        ({"class": 3}, "x.class must be a name"),
    ],
)
def test_an_object_that_cannot_be_is_refused(value, message):
    with pytest.raises(ConfigError) as error:
        convert(node(value), Callback | None, "x")
    assert message in str(error.value)


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ConfigError) as error:
        fill(Box, node({"widht": 3}), "model", "m:Box")
    assert str(error.value) == "here:1: model (m:Box) has no key 'widht'; did you mean 'width'?"
    with pytest.raises(ConfigError, match=r"needs 'width' \(int\), which nobody gives; write it"):
        fill(Box, node({}), "model", "m:Box")
    # What takes anything is given anything, but its own names are still checked.
    needy = schema.named(f"{PROGRAM}:Needy", "here:1", "model")
    assert fill(needy, node({"classes": 3, "x": 1}), "model", "n").arguments == {
        "classes": 3,
        "x": 1,
    }
    with pytest.raises(ConfigError, match="model.classes is 'a', must be int"):
        fill(needy, node({"classes": "a"}), "model", "n")


def test_a_float_as_default_says_what_an_argument_without_annotation_is():
    net = schema.named(f"{PROGRAM}:Net", "here:1", "model")
    assert fill(net, node({"lr": "1e-3"}), "model", "n").arguments == {"lr": 0.001}


def test_the_schema_of_the_trainer_is_its_signature():
    signature = inspect.signature(Trainer.__init__)
    given = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    made = {one.name: one for one in fields(schema.schema(Trainer))}
    assert list(made) == given
    for name in given:
        assert schema.default(made[name]) == signature.parameters[name].default
