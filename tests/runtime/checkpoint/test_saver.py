"""Saves of several ranks: what is durable, what waits, what fails and what is kept."""

import threading
import time

import pytest
import torch

from rekindle.checkpoint import (
    CommitRef,
    EncodingError,
    IntegrityError,
    LeaseLost,
    SaveError,
    Saver,
    SaveTimeout,
    Store,
)
from rekindle.checkpoint.format import layout, manifest
from rekindle.checkpoint.objects.interface import Unreachable
from rekindle.checkpoint.saving import writer

pytestmark = pytest.mark.servers


def run_on_all(savers, call):
    """Call a function per rank at the same time; returns results or exceptions by rank."""
    results = [None] * len(savers)

    def one(rank):
        try:
            results[rank] = call(rank, savers[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(savers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_checkpoint_of_any_world_size_comes_back_to_the_bit(
    objects, savers, state, same, world_size
):
    store = Store(objects=objects)
    seen = []
    group = savers(
        store, world_size=world_size, on_commit=lambda *commit: seen.append(commit), shard_bytes=600
    )
    meta = {"cursor": 17, "loss": float("nan")}
    results = run_on_all(
        group,
        lambda rank, saver: saver.save(
            40, state(40), rank_state={"rng": torch.full((3,), rank)}, meta=meta, wait=True
        ),
    )
    assert all(isinstance(seconds, float) for seconds in results), results
    ref = CommitRef(step=40, fence=1)
    assert store.commits() == [ref]
    assert {commit[0] for commit in seen} == {ref}
    assert len(seen) == world_size
    assert [saver.last_commit for saver in group] == [ref] * world_size
    for rank in range(world_size):
        restored = store.load(store.read(ref), rank=rank)
        assert same(restored.state, state(40))
        assert restored.rank_state["rng"].tolist() == [rank] * 3
        assert restored.meta["cursor"] == 17
        assert restored.world_size == world_size
    assert store.load(store.read(ref), rank=world_size).rank_state is None


def test_ranks_share_the_upload_about_equally(store, savers):
    group = savers(store, world_size=4)
    big = {"w": torch.randn(100_000), "small": [torch.ones(3) for _ in range(50)]}
    run_on_all(group, lambda _, saver: saver.save(1, big, wait=True))
    loads = [0] * 4
    for entry in store.read(store.commits()[0]).objects:
        loads[manifest.rank_of(entry.key)] += entry.size
    assert max(loads) < 1.15 * min(loads), loads


def test_the_state_may_change_as_soon_as_save_returns(store, savers):
    gate = threading.Event()
    inner = store.objects

    class Slow:
        def __getattr__(self, name):
            return getattr(inner, name)

        def put(self, *args, **kwargs):
            gate.wait(60)
            return inner.put(*args, **kwargs)

    (saver,) = savers(Store(objects=Slow()), world_size=1)
    tensor, numbers = torch.ones(1000), [1, 2]
    saver.save(1, {"t": tensor, "numbers": numbers})
    tensor.zero_()
    numbers.append(3)
    gate.set()
    saver.close()
    restored = store.restore()[0].state
    assert restored["t"].sum().item() == 1000
    assert restored["numbers"] == [1, 2]


def test_a_second_save_waits_for_the_first_and_uses_the_same_memory(store, savers, state):
    gate, begun = threading.Event(), threading.Event()
    inner = store.objects

    class Slow:
        def __getattr__(self, name):
            return getattr(inner, name)

        def put(self, *args, **kwargs):
            begun.set()
            gate.wait(60)
            return inner.put(*args, **kwargs)

    (saver,) = savers(Store(objects=Slow()), world_size=1)
    saver.save(1, state(1))
    memory = saver._memory.data_ptr()
    assert begun.wait(60)
    with pytest.raises(SaveTimeout, match="step 1. is still in flight"):
        saver.save(2, state(2), deadline=time.monotonic() + 0.05)
    threading.Timer(0.1, gate.set).start()
    assert saver.save(2, state(2), wait=True) > 0.09
    assert saver._memory.data_ptr() == memory
    assert [ref.step for ref in store.commits()] == [2, 1]


def test_saving_a_step_twice_is_one_checkpoint(store, savers, state):
    (saver,) = savers(store, world_size=1)
    saver.save(5, state(5))
    saver.save(5, state(5), wait=True)
    assert store.commits() == [CommitRef(step=5, fence=1)]
    with pytest.raises(ValueError, match="step 4 is before step 5.*take a new lease"):
        saver.save(4, state(4))


def test_what_cannot_be_stored_raises_at_once_and_saves_nothing(store, savers):
    (saver,) = savers(store, world_size=1)
    with pytest.raises(EncodingError, match=r"callbacks\.ema\.schedule: function"):
        saver.save(1, {"callbacks": {"ema": {"schedule": lambda: 0}}})
    with pytest.raises(EncodingError, match=r"meta\.t: torch.Tensor"):
        saver.save(1, {}, meta={"t": torch.ones(1)})
    assert store.commits() == []


def test_a_failed_background_save_is_reported_and_the_next_one_tries_again(
    store, savers, state, same, faulty
):
    errors = []
    broken = Store(objects=faulty(store.objects, at=0))
    (saver,) = savers(broken, world_size=1, on_error=errors.append)
    saver.save(1, state(1))
    saver._drain(float("inf"))
    assert isinstance(saver.error, Unreachable)
    assert errors == [saver.error]
    with pytest.raises(Unreachable):
        saver.save(2, state(2), wait=True)
    broken.objects.dead = False
    broken.objects.at = -1
    saver.save(2, state(2), wait=True)
    assert saver.error is None
    assert same(store.restore()[0].state, state(2))


def test_rank_0_does_not_wait_for_a_rank_that_has_gone_on(store, savers, state):
    one, other = savers(store)
    one.save(1, state(1))
    other.save(2, state(2))  # as if its save of step 1 had failed
    one._drain(time.monotonic() + 10)
    assert isinstance(one.error, SaveError)
    assert "rank 1 could not store its part and has gone on to step 2" in str(one.error)
    one.save(2, state(2), wait=True)
    assert [ref.step for ref in store.commits()] == [2]


def test_a_dead_rank_costs_one_checkpoint_and_not_a_hang(store, savers, state):
    group = savers(store, world_size=3)
    deadline = time.monotonic() + 0.3
    with pytest.raises(SaveTimeout, match=r"step 1 was not durable.*ranks \[1, 2\] are missing"):
        group[0].save(1, state(1), wait=True, deadline=deadline)
    with pytest.raises(SaveTimeout, match="rank 0 has not committed it"):
        group[1].save(2, state(2), wait=True, deadline=time.monotonic() + 0.1)
    assert store.commits() == []


def test_ranks_with_different_tensors_do_not_commit(store, savers, state):
    one, other = savers(store)
    other.save(1, {"model": torch.ones(4)})
    with pytest.raises(IntegrityError, match="rank 1 saved another layout than rank 0"):
        one.save(1, {"model": torch.ones(5)}, wait=True)
    assert store.commits() == []


def test_parts_that_do_not_cover_every_tensor_are_not_committed(store, savers, state, monkeypatch):
    one, other = savers(store)
    whole = layout.share
    monkeypatch.setattr(layout, "share", lambda *args, **kwargs: whole(*args, **kwargs)[:-1])
    other.save(1, state(1))
    other._drain(float("inf"))
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match=r"tensor 'optim.* is covered for \d+ of \d+ bytes"):
        one.save(1, state(1), wait=True)
    assert store.commits() == []


def test_parts_whose_objects_are_gone_are_not_committed(store, savers, state):
    one, other = savers(store)
    other.save(1, state(1))
    other._drain(float("inf"))
    key = manifest.data_key(CommitRef(step=1, fence=1), 1, 0)
    store.objects.delete(key)
    with pytest.raises(IntegrityError, match=f"object {key} is missing"):
        one.save(1, state(1), wait=True)
    assert store.commits() == []


def test_a_commit_that_exists_already_is_never_overwritten(store, savers, save, state, same):
    save(savers(store), 1)
    key = manifest.commit_key(CommitRef(step=1, fence=1))
    before = store.objects.head(key)
    store.objects.delete_many(s.key for s in store.objects.list("part/"))
    one, other = savers(store)  # a second group under the same fence, which is a mistake
    other.save(1, {"w": torch.zeros(99)})
    with pytest.raises(LeaseLost, match="R15 another process commits with fence 1"):
        one.save(1, {"w": torch.zeros(99)}, wait=True)
    assert store.objects.head(key) == before


def test_only_the_latest_checkpoints_are_kept_with_all_their_objects(objects, savers, save):
    store = Store(objects=objects)
    group = savers(store, keep_latest=2)
    for step in (10, 20, 30, 40):
        save(group, step)
    assert [ref.step for ref in store.commits()] == [40, 30]
    groups = {manifest.ref_of(stat.key) for stat in objects.list("")} - {None}
    assert sorted(ref.step for ref in groups) == [30, 40]


def test_the_newest_is_kept_even_if_the_rest_is_damaged(store, savers, save, state, same):
    group = savers(store, keep_latest=1)
    save(group, 10)
    store.quarantine(CommitRef(step=10, fence=1), "test")
    save(group, 20)
    assert same(store.restore()[0].state, state(20))
    assert store.objects.list("bad/") == []


def test_a_failed_group_and_those_of_dead_attempts_are_removed(store, savers, save, state):
    dead = savers(store, fence=store.acquire(owner="first").fence)
    save(dead, 10)
    dead[1].save(20, state(20))
    dead[1].close()
    lease = store.acquire(owner="second")
    live = savers(store, fence=lease.fence, base=store.commits()[0])
    live[1].save(15, state(15))
    live[1]._drain(float("inf"))
    save(live, 30)
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
    assert sorted((ref.step, ref.fence) for ref in groups) == [(10, 1), (30, 2)]


def test_a_writer_that_lost_its_lease_stops_with_r15(store, savers, save, state):
    old = savers(store, fence=store.acquire(owner="old").fence)
    save(old, 10)
    store.acquire(owner="new")
    old[1].save(20, state(20))
    with pytest.raises(LeaseLost) as caught:
        old[0].save(20, state(20), wait=True)
    assert str(caught.value) == (
        "R15 attempt 1 lost the writer lease to attempt 2 (this process was declared dead but "
        "lives). This process stops; no data was overwritten."
    )
    with pytest.raises(LeaseLost):
        old[0].save(30, state(30))
    assert [ref.step for ref in store.commits()] == [10]


def test_a_zombie_that_commits_after_all_never_becomes_the_newest(
    store, savers, save, state, same, monkeypatch
):
    old = savers(store, fence=store.acquire(owner="old").fence)
    save(old, 7400)
    new = savers(store, fence=store.acquire(owner="new").fence, base=store.commits()[0])
    save(new, 7500)
    # It slept between the check and the write.
    monkeypatch.setattr(writer.Writer, "_check_lease", lambda self: None)
    save(old, 8000)
    assert old[0].last_commit == CommitRef(step=8000, fence=1)
    assert [ref.step for ref in store.commits()] == [7500, 7400]
    assert same(store.restore()[0].state, state(7500))
    save(new, 7600)
    assert [ref.step for ref in store.commits()] == [7600, 7500, 7400]
    # Nobody looks through the whole store after each save: the next attempt removes it.
    save(savers(store, fence=store.acquire(owner="third").fence, base=store.commits()[0]), 7700)
    assert CommitRef(step=8000, fence=1) not in store.listed()


def test_a_part_whose_answer_was_lost_is_used_and_not_overwritten(
    store, savers, state, same, faulty
):
    objects = faulty(store.objects, at=1, mode="lost")
    (saver,) = savers(Store(objects=objects), world_size=1)
    saver.save(1, state(1), wait=True)
    key = manifest.part_key(CommitRef(step=1, fence=1), 0)
    assert [call for call in objects.log if call == ("put", key)] == [("put", key)] * 2
    assert same(store.restore()[0].state, state(1))


def test_a_repeated_try_overwrites_nothing_that_an_earlier_part_names(store, savers, state, faulty):
    objects = faulty(store.objects, at=1, mode="after")  # dies when the part is stored
    (saver,) = savers(Store(objects=objects), world_size=1)
    with pytest.raises(Unreachable):
        saver.save(1, state(1), rank_state={"rng": torch.zeros(9)}, wait=True)
    objects.dead = False
    saver.save(1, state(1), rank_state={"rng": torch.ones(9)}, wait=True)
    assert store.restore(rank=0)[0].rank_state["rng"].tolist() == [0] * 9


def test_a_closed_saver_saves_no_more(store, savers, state):
    (saver,) = savers(store, world_size=1)
    saver.save(1, state(1))
    saver.close()
    assert saver.last_commit == CommitRef(step=1, fence=1)
    with pytest.raises(ValueError, match="closed"):
        saver.save(2, state(2))


def test_an_attempt_that_begins_anew_does_not_destroy_what_was_there(store, savers, save):
    save(savers(store, fence=store.acquire(owner="first").fence), 1000)
    anew = savers(store, fence=store.acquire(owner="second").fence, keep_latest=2)
    save(anew, 1)
    assert [ref.step for ref in store.commits()] == [1]
    assert CommitRef(step=1000, fence=1) in store.listed()
    save(anew, 2)
    assert sorted(ref.step for ref in store.listed()) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"rank": 2, "world_size": 2}, "need 0 <= rank < world_size"),
        ({"rank": 0, "world_size": 1, "keep_latest": 0}, "keep_latest is 0"),
        ({"rank": 0, "world_size": 1, "chunk_bytes": 100}, "multiple of 16"),
    ],
)
def test_wrong_arguments_are_refused(store, arguments, why):
    with pytest.raises(ValueError, match=why):
        Saver(store, lease_fence=1, base=None, **arguments)
