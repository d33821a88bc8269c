"""What does not change is stored once, as long as it is certain that it did not change."""

import itertools

import pytest
import torch

from rekindle.checkpoint import CommitRef, Saver, Store
from rekindle.checkpoint.format import manifest

FROZEN = ("model.backbone", "model.odd")


def model(step, *, backbone=0):
    generator = torch.Generator().manual_seed(backbone)
    return {
        "model": {
            "backbone": torch.randn(1000, generator=generator),
            "odd": torch.randn(7, 3, generator=generator).to(torch.bfloat16),
            "head": torch.full((50,), float(step)),
        },
    }


@pytest.fixture
def attempts():
    return itertools.count(1)


@pytest.fixture
def train(savers, attempts):
    """Save steps on some ranks, as one attempt; gives the bytes stored per step."""

    def run(store, steps, world_size=2, base=None, state=model, **kwargs):
        group = savers(
            store, fence=next(attempts), base=base, world_size=world_size, keep_latest=1, **kwargs
        )
        sizes = []
        for step in steps:
            for saver in reversed(group):
                saver.save(step, state(step), rank_state={"r": torch.zeros(3)}, frozen=FROZEN)
            for saver in reversed(group):
                saver._drain(float("inf"))
                assert saver.error is None
            ref = store.commits()[0]
            assert ref.step == step
            sizes.append(sum(s.size for s in store.objects.list(manifest.data_prefix(ref))))
        return sizes

    return run


def test_frozen_tensors_are_stored_once_and_outlive_the_commit_that_stored_them(store, train, same):
    first, *others = train(store, [1, 2, 3, 4])
    assert first > 4000 > 4 * max(others)
    assert store.commits() == [CommitRef(step=4, fence=1)]
    assert same(store.restore()[0].state, model(4))
    groups = {manifest.ref_of(s.key).step for s in store.objects.list("data/")}
    assert groups == {1, 4}


def test_a_frozen_tensor_that_changes_after_all_is_stored_again(store, train, same):
    sizes = train(
        store,
        range(1, 9),
        state=lambda step: model(step, backbone=0 if step in (1, 2, 5, 6) else 9),
    )
    large = [size > 4000 for size in sizes]
    assert large == [True, False, True, False, True, False, True, False]
    assert same(store.restore()[0].state, model(8, backbone=9))


def test_the_next_attempt_refers_to_what_the_one_before_has_stored(store, train, same):
    train(store, [1])
    for number, world_size in enumerate((3, 1, 4), 2):
        (size,) = train(store, [number], world_size, base=store.commits()[0])
        assert size < 2500, "only small headers, rank states and the head"
        assert same(store.restore()[0].state, model(number))


def test_what_was_never_committed_is_not_referred_to(store, savers, same, faulty):
    broken = Store(objects=faulty(store.objects, at=2))  # dies between part and commit
    (saver,) = savers(broken, world_size=1)
    saver.save(1, model(1), frozen=FROZEN)
    saver._drain(float("inf"))
    assert store.commits() == []
    broken.objects.dead, broken.objects.at = False, -1
    saver.save(2, model(2), frozen=FROZEN, wait=True)
    saver._drain(float("inf"))
    assert same(store.restore()[0].state, model(2))
    assert {e.key.split("/")[1] for e in store.read(store.commits()[0]).objects} == {
        "000000000002-00000001"
    }


def reshaped(step):
    """The same bytes."""
    tensors = model(step)["model"]
    return {"model": {**tensors, "backbone": tensors["backbone"].reshape(50, 20)}}


def whole_numbers(step):
    """The same bytes."""
    tensors = model(step)["model"]
    return {"model": {**tensors, "backbone": tensors["backbone"].view(torch.int32)}}


def renamed(step):
    tensors = model(step)["model"]
    return {"model": {"trunk": tensors["backbone"], "odd": tensors["odd"]}}


@pytest.mark.parametrize(
    ("state", "frozen"),
    [
        (reshaped, FROZEN),
        (whole_numbers, FROZEN),
        (renamed, ("model.trunk", "model.odd")),
    ],
    ids=["another shape", "another type of the same size", "another name"],
)
def test_what_is_not_the_same_tensor_is_not_referred_to(store, savers, same, state, frozen):
    (saver,) = savers(store, world_size=1, keep_latest=9)
    saver.save(1, model(1), frozen=FROZEN, wait=True)
    (other,) = savers(store, fence=2, base=store.commits()[0], world_size=1, keep_latest=9)
    other.save(2, state(2), frozen=frozen, wait=True)
    other._drain(float("inf"))
    newest = store.commits()[0]
    assert newest.step == 2
    assert same(store.restore()[0].state, state(2))
    assert sum(s.size for s in store.objects.list(manifest.data_prefix(newest))) > 4000


def test_chunks_of_another_size_are_not_compared(store, savers, same):
    (saver,) = savers(store, world_size=1, keep_latest=9)
    saver.save(1, model(1), frozen=FROZEN, wait=True)
    base = store.commits()[0]
    other = Saver(
        store, lease_fence=2, base=base, rank=0, world_size=1, chunk_bytes=512, keep_latest=9
    )
    try:
        other.save(2, model(2), frozen=FROZEN, wait=True)
        other._drain(float("inf"))
    finally:
        other.close(timeout=10)
    newest = store.commits()[0]
    assert same(store.restore()[0].state, model(2))
    assert {e.key.split("/")[1] for e in store.read(newest).objects} == {str(newest)}


def test_a_frozen_name_that_does_not_exist_is_refused(store, savers):
    (saver,) = savers(store, world_size=1)
    with pytest.raises(ValueError, match=r"frozen names no tensors of the state: \['model.typo'\]"):
        saver.save(1, model(1), frozen=("model.typo",))


@pytest.mark.processes
def test_frozen_tensors_take_no_room_in_a_snapshot(tmp_path, train, same):
    store = Store.open(f"file://{tmp_path}/run")
    sizes = train(store, [1, 2, 3], world_size=1, process=True)
    assert sizes[0] > 4000 > 4 * sizes[2]
    assert same(store.restore()[0].state, model(3))
