import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from rekindle.data.loader import (
    BatchSampler,
    LaneSampler,
    build,
    describe,
    fingerprint,
    limited,
    to_device,
)
from rekindle.data.sampling.order import Cursor
from rekindle.data.script_data import take_apart
from rekindle.randomness import seed_lane


class Noisy(Dataset):
    """Draws from all three generators, as augmentations do."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {
            "id": index,
            "torch": torch.rand(3),
            "python": random.random(),
            "numpy": float(np.random.rand()),
        }


def lanes(loader, *, rank=0, world_size=1, **position):
    source = take_apart(loader, "train")
    values = {"epoch": 1, "sample": 0, "G": 12, "m": source.batch_size, "seed": 3}
    cursor = Cursor(**{**values, **position}, N=source.samples, length=source.samples)
    sampler = LaneSampler(cursor, rank=rank, world_size=world_size)
    return list(build(source, sampler, 3))


def raw(batches):
    return [
        (ids.tolist(), {name: np.asarray(value).tolist() for name, value in data.items()})
        for ids, data in batches
    ]


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_reads_the_same_batches(workers):
    loaders = [DataLoader(Noisy(), 4, shuffle=True, num_workers=n) for n in (0, workers)]
    assert raw(lanes(loaders[0])) == raw(lanes(loaders[1]))


def test_a_sample_is_augmented_the_same_on_any_rank_and_after_any_resume():
    loader = DataLoader(Noisy(), 4, shuffle=True)
    whole = raw(lanes(loader))
    shares = [raw(lanes(loader, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(map(repr, sum(shares, []))) == sorted(map(repr, whole))
    assert raw(lanes(loader, sample=24)) == whole[6:]


class Rarely(Noisy):
    """Draws from a generator of NumPy's or Python's at one sample only; counts what it read."""

    def __init__(self, draw):
        self.draw, self.read = draw, []

    def __getitem__(self, index):
        self.read.append(index)
        return {"id": index, "torch": torch.rand(1), "rare": self.draw() if index == 7 else 0.0}


@pytest.mark.parametrize("draw", [random.random, np.random.randn, lambda: np.random.rand(312)[0]])
def test_a_dataset_that_draws_once_reads_the_same_as_one_that_is_always_seeded(draw, monkeypatch):
    data = Rarely(draw)
    found = raw(lanes(DataLoader(data, 4, shuffle=True)))
    assert len(data.read) == 50 + 4, "the lane that drew was read again"
    monkeypatch.setattr("rekindle.data.loader.watch", lambda: None)
    assert found == raw(lanes(DataLoader(Rarely(draw), 4, shuffle=True)))


def test_what_was_drawn_before_does_not_reach_a_sample():
    values = []
    for draws in (0, 1, 2):
        seed_lane(1, 2, 3)
        [np.random.randn() for _ in range(draws)]  # an odd number leaves one in a cache
        values.append(raw(lanes(DataLoader(Rarely(np.random.randn), 4, shuffle=True))))
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("make", [list, tuple, lambda items: TensorDataset(torch.stack(items))])
def test_items_may_be_batches_already(make):
    data = make([torch.full((2, 1), float(n)) for n in range(5)])
    read = lanes(DataLoader(data, batch_size=None), G=2, sample=1)
    given = list(DataLoader(data, batch_size=None))
    assert len(read) == 4
    assert all(repr(batch) == repr(given[int(ids[0])]) for ids, batch in read)


def pair(number, kind):
    return kind([torch.full((2,), float(number)), torch.tensor([number])])


def told(value):
    """All there is to say of an item; its `repr` says the same, and takes ten times as long."""
    if isinstance(value, dict):
        return {key: told(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [told(item) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value), value.dtype, value.tolist()
    return type(value), value


@pytest.mark.parametrize(
    "item",
    [
        lambda n: pair(n, tuple),
        lambda n: pair(n, list),
        lambda n: {"x": torch.full((2,), n)},
        lambda n: (np.full(2, n), "name"),
    ],
)
@pytest.mark.parametrize(("world_size", "sample"), [(1, 0), (1, 7), (3, 12)])
def test_batches_in_a_list_come_as_a_loader_gives_them_however_many_are_cut_at_once(
    item, world_size, sample
):
    data = [item(number) for number in range(700)]
    loader = DataLoader(data, batch_size=None)
    given = list(loader)
    shares = [
        lanes(loader, G=6, sample=sample, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    read = {int(ids[0]): told(batch) for share in shares for ids, batch in share}
    assert len(read) == sum(map(len, shares)) == 700 - sample
    assert all(batch == told(given[number]) for number, batch in read.items())


def test_epochs_augment_differently():
    loader = DataLoader(Noisy(), 4, shuffle=False)
    source_order = [lanes(loader, epoch=epoch)[0].data["id"].tolist() for epoch in (0, 1)]
    assert len({tuple(ids) for ids in source_order}) == 1 or source_order[0] != source_order[1]
    noise = [lanes(loader, epoch=epoch)[0].data["torch"] for epoch in (0, 1)]
    assert not torch.equal(*noise)


def test_reading_leaves_the_default_generator_of_tensor_datasets_alone():
    loader = DataLoader(TensorDataset(torch.arange(20)), 4, shuffle=True)
    torch.manual_seed(0)
    lanes(loader)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("subset", [False, True])
def test_tensors_are_indexed_at_once_with_the_same_result(subset):
    dataset = TensorDataset(torch.randn(50, 3), torch.arange(50))
    if subset:
        dataset = Subset(dataset, list(range(49, 9, -1)))
    fast = lanes(DataLoader(dataset, 4, shuffle=True))
    slow = lanes(DataLoader(dataset, 4, shuffle=True, collate_fn=_collate))
    assert len(fast) == len(slow)
    for one, other in zip(fast, slow, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert type(one.data) is type(other.data)
        assert all(torch.equal(a, b) for a, b in zip(one.data, other.data, strict=True))


def _collate(samples):
    return torch.utils.data.default_collate(samples)


def test_validation_batches_of_all_ranks_are_the_dataset_once():
    source = take_apart(DataLoader(TensorDataset(torch.arange(37)), 8), "validation")
    assert source.batches == 5
    seen = []
    for rank in range(3):
        sampler = BatchSampler(37, 8, 5, rank=rank, world_size=3)
        for batch in build(source, sampler, 0):
            seen += batch.data[0].tolist()
    assert sorted(seen) == list(range(37))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_what_cannot_be_iterated_over_is_no_data():
    with pytest.raises(TypeError, match="the train data is a int; give a torch.utils.data.Data"):
        take_apart(3, "train")


def test_a_stream_is_validated_as_it_comes():
    source = take_apart(DataLoader(Stream()), "validation")
    assert source.streamed
    assert source.whole
    assert source.loose is None


def test_a_fingerprint_tells_datasets_apart():
    def mark(dataset):
        return fingerprint(take_apart(DataLoader(dataset), "train"), 0)

    tensors = TensorDataset(torch.arange(40.0))
    marks = [
        mark(tensors),
        mark(TensorDataset(torch.arange(40.0) + 1)),
        mark(TensorDataset(torch.arange(41.0))),
        mark(Subset(tensors, range(39))),
        mark(Subset(tensors, [*range(38), 39])),
        mark(Noisy()),
    ]
    assert len(set(marks)) == len(marks)
    assert mark(Noisy()) == mark(Noisy())


def test_a_dataset_may_name_itself():
    data = Noisy()
    data.fingerprint = "v7"
    assert fingerprint(take_apart(DataLoader(data), "train"), 0) == "v7"


def test_limits_are_counts_or_shares():
    assert [limited(amount, 10) for amount in (3, 30, 0.5, 1.0)] == [3, 10, 5, 10]


@dataclass(frozen=True)
class Pair:
    x: torch.Tensor
    more: dict


def test_dataclasses_in_a_batch_are_moved_too():
    pair = Pair(torch.zeros(2), {"inner": [Pair(torch.ones(1), {})], "text": "a"})
    moved = to_device({"pair": pair}, torch.device("meta"))["pair"]
    assert moved.x.device.type == moved.more["inner"][0].x.device.type == "meta"
    assert (moved.more["text"], pair.x.device.type) == ("a", "cpu")


def test_a_nested_batch_is_moved_and_described():
    batch = {"x": torch.zeros(2, 3), "more": (torch.zeros(2, dtype=torch.int64), ["a"])}
    assert describe(batch) == "{x: float32[2,3], more: (int64[2], (str))}"
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == moved["more"][0].device.type == "meta"
    assert moved["more"][1] == ["a"]
