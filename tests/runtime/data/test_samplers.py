"""Weighted and custom orders, and what a script's samplers become."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from rekindle import LoaderConfig, split
from rekindle.data.loader import LaneSampler, build
from rekindle.data.loader_config import cpus
from rekindle.data.sampling.order import Cursor, GlobalOrder
from rekindle.data.sampling.samplers import Custom, Weighted, read_back
from rekindle.data.script_data import take_apart

DATA = TensorDataset(torch.arange(50))


def drawn(loader, *, epoch=0, seed=3, sample=0, rank=0, world_size=1):
    """Ids of an epoch as ranks read them, in order."""
    source = take_apart(loader, "train")
    draw = None if source.draw is None else source.draw(seed)
    length = source.positions or (source.samples if draw is None else draw.length)
    kind = ("shuffle" if source.shuffle else "sequential") if draw is None else draw.kind
    cursor = Cursor(
        epoch=epoch,
        sample=sample,
        G=12,
        m=4,
        seed=seed,
        N=source.samples,
        length=length,
        order=kind,
    )
    sampler = LaneSampler(cursor, rank=rank, world_size=world_size, draw=draw)
    return [int(i) for batch in build(source, sampler, seed) for i in batch.data[0]]


@settings(max_examples=10)
@given(n=st.integers(1, 60), epoch=st.integers(0, 99), data=st.data())
def test_weighted_positions_can_be_asked_in_any_piece(n, epoch, data):
    weights = data.draw(st.lists(st.floats(0.0, 9.0), min_size=n, max_size=n))
    weights[data.draw(st.integers(0, n - 1))] = 1.0
    draw = Weighted(weights, 400)
    whole = draw.ids(7, epoch, 0, 400)
    start = data.draw(st.integers(0, 400))
    assert np.array_equal(draw.ids(7, epoch, start, 400), whole[start:])
    assert all(weights[i] > 0 for i in whole)


def test_weights_are_frequencies():
    counts = np.bincount(Weighted([1, 0, 2, 5]).ids(0, 0, 0, 80_000), minlength=4) / 80_000
    assert counts == pytest.approx([0.125, 0, 0.25, 0.625], abs=0.01)


def test_epochs_and_seeds_draw_differently():
    draw = Weighted(np.ones(100))
    found = [draw.ids(seed, epoch, 0, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_the_weighted_order_is_fixed_for_good():
    # An audit draws again what was drawn years ago.
    assert Weighted([1, 2, 3, 4]).ids(7, 1, 0, 8).tolist() == [2, 1, 2, 3, 1, 3, 3, 0]


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, float("nan")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be numbers"):
        Weighted(weights)


def test_an_order_of_the_scripts_own_is_a_function_of_seed_and_epoch():
    def backwards(seed, epoch):
        return [(49 - i + epoch) % 50 for i in range(50)]

    config = LoaderConfig(batch_size=4, order=backwards, num_workers=0)
    assert drawn((DATA, config)) == list(range(49, -1, -1))
    assert drawn((DATA, config), epoch=1, sample=24) == backwards(0, 1)[24:]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda seed, epoch: [0, 50], "sample ids from 0 to 49"),
        (lambda seed, epoch: [], "at least one"),
        (lambda seed, epoch: range(5 + epoch), "the order of epoch 1 has 6 samples"),
    ],
)
def test_ids_that_are_not_in_the_dataset_are_refused(order, message):
    with pytest.raises(ValueError, match=message):
        drawn((DATA, LoaderConfig(batch_size=4, order=order, num_workers=0)), epoch=1)


def test_both_forms_of_a_loader_give_the_same_batches():
    config = LoaderConfig(batch_size=4, num_workers=0)
    assert drawn((DATA, config)) == drawn(DataLoader(DATA, 4, shuffle=True))


def test_weights_of_both_forms_give_the_same_draws_shared_out_over_ranks():
    weights = [1.0 + i % 3 for i in range(50)]
    config = LoaderConfig(
        batch_size=4, order="weighted", weights=weights, num_samples=70, num_workers=0
    )
    whole = drawn((DATA, config))
    assert drawn(DataLoader(DATA, 4, sampler=WeightedRandomSampler(weights, 70))) == whole
    parts = [drawn((DATA, config), rank=rank, world_size=3) for rank in range(3)]
    assert sorted(sum(parts, [])) == sorted(whole)
    assert len(whole) == 70


def test_known_samplers_keep_their_meaning():
    few = drawn(DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=20)))
    assert len(few) == len(set(few)) == 20
    again = drawn(DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True)))
    assert len(again) == 50 > len(set(again))
    subset = drawn(DataLoader(DATA, 4, sampler=SubsetRandomSampler([3, 1, 41])))
    assert sorted(subset) == [1, 3, 41]


class Own(Sampler):
    """Draws from every generator there is, and is told the epoch."""

    def __init__(self):
        self.own = [torch.Generator(), random.Random(), np.random.RandomState(0)]
        self.torch, self.python, self.numpy = self.own
        self.generator = np.random.default_rng()
        self.epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        draws = [
            int(torch.randint(1000, ())),
            random.randrange(1000),
            int(np.random.randint(1000)),
            int(torch.randint(1000, (), generator=self.torch)),
            self.python.randrange(1000),
            int(self.numpy.randint(1000)),
            int(self.generator.integers(1000)),
        ]
        yield from (draw % 50 for draw in (*draws, self.epoch))


@pytest.mark.parametrize(
    "make",
    [
        Own,
        lambda: WeightedRandomSampler([1.0] * 50, 20, replacement=False),
        lambda: RandomSampler(DATA, num_samples=70),
        lambda: [3, 1, 41],
    ],
)
def test_a_sampler_of_the_scripts_own_gives_the_same_in_any_process_and_not_in_any_epoch(make):
    torch.manual_seed(1)
    first = [drawn(DataLoader(DATA, 4, sampler=make()), epoch=epoch) for epoch in (0, 1)]
    torch.manual_seed(2)
    again = [drawn(DataLoader(DATA, 4, sampler=make()), epoch=epoch) for epoch in (0, 1)]
    assert first == again
    assert (first[0] == first[1]) == isinstance(make(), list)


class Counting(Sampler):
    """Begins elsewhere each time it is asked."""

    def __init__(self):
        self.asked = 0

    def __iter__(self):
        self.asked += 1
        return iter([self.asked, 0])


class Growing(Sampler):
    """Has one more each epoch."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(range(2 + self.epoch))


@pytest.mark.parametrize("sampler", [Counting(), Growing()])
def test_a_sampler_that_cannot_be_asked_again_makes_a_stream_that_says_so(sampler):
    source = take_apart(DataLoader(DATA, 1, sampler=sampler), "train")
    assert source.streamed
    assert source.loose is not None
    assert "gives another order, or another number, each time it is asked" in source.loose
    assert getattr(sampler, "asked", 0) == 0, "a copy was asked"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"order": "random"}, "order='random'"),
        ({"order": "weighted"}, "weights= and order='weighted' go together"),
        ({"weights": [1]}, "weights= and order='weighted' go together"),
        ({"num_samples": 3}, "num_samples= goes with"),
    ],
)
def test_a_loader_config_is_checked_where_it_is_made(wrong, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**wrong)


def test_workers_follow_the_quota_and_the_local_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    quota = tmp_path / "cpu.max"
    quota.write_text("600000 100000\n")
    assert cpus(quota) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cpus(quota) == 1
    quota.write_text("max 100000\n")
    assert cpus(quota) == 16
    assert cpus(tmp_path / "none") == 16
    assert LoaderConfig(num_workers=5).workers == 5


def test_what_was_recorded_gives_the_order_back():
    objects = {}
    weighted, custom = Weighted([1, 2, 3], 9), Custom(lambda seed, epoch: [epoch, 1, 2], 5, 0)
    for draw in (weighted, custom):
        for epoch in (0, 1):
            objects.update([draw.record(4, epoch)])
        again = read_back(draw.kind, draw.mark, draw.length, objects.__getitem__)
        assert np.array_equal(again.ids(4, 1, 0, 3), draw.ids(4, 1, 0, 3))
    objects[f"order/{weighted.mark}"] = b"\0" * 16 + np.float64(1).tobytes()
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_back("weighted", weighted.mark, 9, objects.__getitem__)


def test_a_drawn_order_needs_its_draw():
    with pytest.raises(ValueError, match="order 'weighted' and draw=None"):
        GlobalOrder(n=3, seed=0, kind="weighted")


def test_a_split_is_exact_disjoint_and_stays_when_samples_are_appended():
    parts = split(DATA, [0.8, 0.2], seed=5)
    assert [len(part) for part in parts] == [40, 10]
    assert sorted([*parts[0].indices, *parts[1].indices]) == list(range(50))
    assert split(DATA, [0.8, 0.2], seed=5)[1].indices == parts[1].indices
    assert split(DATA, [0.8, 0.2], seed=6)[1].indices != parts[1].indices
    longer = split(TensorDataset(torch.arange(55)), [0.8, 0.2], seed=5)
    assert len(set(longer[1].indices) & set(parts[1].indices)) >= 7


@pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [1.2, -0.2]])
def test_fractions_that_are_no_split_are_refused(fractions):
    with pytest.raises(ValueError, match="must be above 0 and add up to 1"):
        split(DATA, fractions)
    with pytest.raises(ValueError, match="too few"):
        split(Subset(DATA, [0]), [0.5, 0.5])
