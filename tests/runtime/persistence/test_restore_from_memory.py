"""The choice of what a round begins from: pure, the same for all, never older than it must be."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.peer_memory.restore import Offer, Recall, choose
from rekindle.peer_memory.schedule import Keeper
from rekindle.peer_memory.store import Ancestry, HostMemory, KnownCommit, Label, Serial
from rekindle.ranks.distributed import World


def label(generation, number, step, crc=0):
    serial = Serial(generation=generation, number=number)
    return Label(identity="run", serial=serial, step=step, world_size=2, crcs=(crc,))


def offer(rank, *labels, good=(True,), known=None):
    known = known and KnownCommit(generation=known[0], ref=CommitRef(step=known[1], fence=1))
    good = tuple(good)[: len(labels)]
    return Offer(
        rank=rank, seat=rank, pod=f"p{rank}", able=True, labels=labels, good=good, known=known
    )


def test_the_newest_copy_wins_and_goes_to_those_who_lack_it():
    old, new = label(1, 1, 10), label(1, 2, 20)
    found = choose([offer(0, new, old), offer(1, old), offer(2), offer(3, new), offer(4)])
    assert found.label == new
    assert found.holders == (0, 3)
    assert found.sources == {1: 0, 2: 3, 4: 0}


def test_a_later_life_of_the_group_counts_more_than_a_later_step():
    lost, redone = label(1, 9, 90), label(2, 3, 70)
    assert choose([offer(0, lost), offer(1, redone)]).label == redone


def test_what_was_found_damaged_is_left_out():
    old, new = label(1, 1, 10), label(1, 2, 20)
    assert choose([offer(0, new, old, good=[False]), offer(1, old)]).label == old
    assert choose([offer(0, new, old), offer(1, old)], {(0, new.serial)}).holders == (0, 1)
    assert choose([offer(0, new, good=[False])]) is None


def test_copies_that_differ_are_replaced_by_those_that_most_have():
    right, wrong = label(1, 2, 20), label(1, 2, 20, crc=1)
    found = choose([offer(0, wrong), offer(1, right), offer(2, right)])
    assert (found.label, found.holders, found.sources) == (right, (1, 2), {0: 1})


@pytest.mark.parametrize(
    ("known", "memory"),
    [(None, True), ((1, 20), True), ((1, 21), False), ((2, 5), False), ((0, 99), True)],
)
def test_a_newer_commit_counts_more_than_memory(known, memory):
    found = choose([offer(0, label(1, 2, 20)), offer(1, known=known)])
    assert (found is not None) is memory


def test_without_copies_there_is_nothing_to_choose():
    assert choose([offer(0), offer(1)]) is None


ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)


@pytest.mark.parametrize(
    ("asked", "found"), [(None, True), ("best", True), ("s3://other/run", False)]
)
def test_a_run_that_is_begun_from_somewhere_else_is_another_one(asked, found):
    memory = HostMemory.create()
    keeper = Keeper(ALONE, memory, "run", generation=5)
    keeper.begin(0, 0.0, None)
    line = Ancestry(fence=1, step=1, base=None)
    state = {"model": {"w": torch.ones(3)}}
    keeper.take(1, state, {}, {}, productive=1.0, line=line, origin="best", began=0.0)
    recall = Recall(ALONE, memory, "run", "pod", asked)
    assert (recall.recall() is not None) is found
    assert recall.generation == (6 if found else 1)
    memory.close()


COPIES = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 1))
OFFERS = st.lists(
    st.tuples(st.lists(COPIES, max_size=2, unique=True), st.booleans()), min_size=1, max_size=6
)


@given(OFFERS, st.randoms(use_true_random=False))
def test_the_choice_is_the_newest_good_copy_and_reaches_everybody_evenly(drawn, random):
    offers = [
        offer(
            rank,
            *sorted(
                (label(g, n, 10 * n, crc) for g, n, crc in labels),
                key=lambda each: each.serial,
                reverse=True,
            ),
            good=[good],
        )
        for rank, (labels, good) in enumerate(drawn)
    ]
    found = choose(offers)
    usable = [
        label for each in offers for place, label in enumerate(each.labels) if place or each.good[0]
    ]
    if not usable:
        assert found is None
        return
    assert found.label.serial == max(each.serial for each in usable)
    assert set(found.holders) | set(found.sources) == set(range(len(offers)))
    assert not set(found.holders) & set(found.sources)
    assert all(found.label in offers[holder].labels for holder in found.holders)
    loads = Counter({holder: 0 for holder in found.holders})
    loads.update(found.sources.values())
    assert set(loads) == set(found.holders)
    assert max(loads.values()) - min(loads.values()) <= 1
    shuffled = random.sample(offers, len(offers))
    assert choose(shuffled) == found
