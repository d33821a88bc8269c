"""What a command has made is made again from a checkpoint, of classes that are loaded already."""

import pytest
from torch import nn

from rekindle.model.loading import made_again

COMMAND = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


class Part:
    def __init__(self, size: int = 1):
        self.size = size


class Net:
    def __init__(self, part: Part, rate: float = 0.1, **others):
        self.part, self.rate = part, rate


def saved(place, **more):
    return {**COMMAND, "part": {"class_path": place, "init_args": {"size": 3}}, **more}


def test_nested_objects_are_made_again():
    made = made_again(Net, saved(f"{__name__}.Part"), None, {"rate": 0.5})
    assert isinstance(made.part, Part)
    assert (made.part.size, made.rate) == (3, 0.5)


def test_a_class_that_is_not_loaded_is_named_and_not_imported():
    words = "names antigravity.Part for part, which is not loaded. Import antigravity first, or"
    with pytest.raises(ValueError, match=words):
        made_again(Net, saved("antigravity.Part"), None, {})


def test_a_checkpoint_of_another_class_is_refused():
    stored = saved(f"{__name__}.Part", _class_path=f"{__name__}.Part")
    with pytest.raises(ValueError, match=r"is of .*Part, which is no Net. Call it on that class"):
        made_again(Net, stored, None, {})


def test_what_names_any_other_function_is_not_run():
    stored = {"_instantiator": "os.system", "in_features": 2, "out_features": 3}
    assert isinstance(made_again(nn.Linear, stored, None, {}), nn.Linear)
