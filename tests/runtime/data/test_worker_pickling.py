"""A dataset that cannot be sent to workers: the place of what cannot go, and what to write."""

import functools
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import rekindle as rk
from rekindle.data.worker_pickling import unsendable, words


class Data(Dataset):
    def __init__(self, **parts):
        self.parts = parts

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(2)


def at_the_top(batch):
    return batch


def local():
    def inner(value):
        return value

    return inner


@pytest.mark.parametrize(
    ("parts", "place", "what"),
    [
        ({"a": 1, "b": lambda x: x}, "dataset.parts['b']", "a lambda.*as a function"),
        ({"b": [1, local()]}, "dataset.parts['b'][1]", "inner, which is defined within a function"),
        ({"b": functools.partial(local(), 1)}, "dataset.parts['b'].func", "inner, which"),
        ({"b": threading.Lock()}, "dataset.parts['b']", "a lock.*worker_init_fn"),
    ],
)
def test_the_innermost_thing_is_named(parts, place, what):
    found = unsendable({"worker_init_fn": None, "dataset": Data(**parts)})
    assert found is not None
    assert found[0] == place
    text = words(*found, "spawn", TypeError("no"))
    assert text.startswith(f"{place} is ")
    with pytest.raises(ValueError, match=what):
        raise ValueError(text)


def test_nothing_is_named_where_all_of_it_can_be_sent():
    assert unsendable({"dataset": Data(a=at_the_top), "collate_fn": at_the_top}) is None


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("x", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("dataset.parts['f']", {"dataset": Data(f=lambda x: x)}),
        ("collate_fn", {"collate_fn": lambda items: torch.stack(items[:2])}),
        ("worker_init_fn", {"worker_init_fn": lambda worker: None}),
    ],
)
def test_training_and_validation_say_what_cannot_go_to_spawned_workers(tmp_path, name, given):
    given = {"dataset": Data(), "num_workers": 1, "multiprocessing_context": "spawn", **given}
    trainer = rk.Trainer(max_epochs=1, root=tmp_path, enable_progress_bar=False)
    for run in (trainer.fit, trainer.validate):
        with pytest.raises(ValueError, match="started by 'spawn'") as caught:
            run(Net(), DataLoader(batch_size=2, **given))
        assert str(caught.value).startswith(f"{name} is a lambda")
