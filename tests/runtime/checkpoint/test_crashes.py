"""The crash matrix: for every call k of a save, what is left when everything ends at k."""

import itertools
import time

import pytest

from rekindle.checkpoint import CommitRef, Store
from rekindle.checkpoint.format import manifest

pytestmark = pytest.mark.sweep


def crashed_at(k, mode, store, savers, save, state, faulty):
    """Save step 2 on two ranks over a committed step 1, with call k failing; the call's log."""
    save(savers(store, fence=store.acquire(owner="first").fence), 1)
    objects = faulty(store.objects, at=k, mode=mode)
    base = CommitRef(step=1, fence=1)
    fence = store.acquire(owner="second").fence
    one, other = savers(Store(objects=objects), fence=fence, base=base)
    # In mode `lost` rank 0 lives on and waits for a part of rank 1 that may never come.
    deadline = time.monotonic() + (0.2 if mode == "lost" else 60)
    # Rank 1 first and then rank 0, so that call k is the same one in every run.
    for saver in (other, one):
        saver.save(2, state(2), rank_state={"rank": saver._rank}, deadline=deadline)
        saver._drain(float("inf"))
    return objects, one


def calls_of_a_save(tmp_path, savers, save, state, faulty):
    store = Store.open(f"file://{tmp_path}/count")
    return crashed_at(-1, "before", store, savers, save, state, faulty)[0].count


@pytest.mark.parametrize("mode", ["before", "after", "lost"])
def test_whatever_call_fails_the_newest_whole_checkpoint_loads_and_the_next_save_works(
    mode, tmp_path, savers, save, state, same, faulty
):
    total = calls_of_a_save(tmp_path, savers, save, state, faulty)
    assert total > 15
    newest = []
    for k in range(total):
        store = Store.open(f"file://{tmp_path}/{k}")
        objects, rank_0 = crashed_at(k, mode, store, savers, save, state, faulty)
        clean = Store.open(f"file://{tmp_path}/{k}")
        restored, skipped = clean.restore(rank=1)
        if k >= len(objects.log):
            break  # it had to look for parts less often than the save that was counted
        where = f"{mode} call {k}: {objects.log[k]}"
        assert skipped == [], where
        assert same(restored.state, state(restored.ref.step)), where
        assert restored.rank_state == {"rank": 1}, where
        if rank_0.last_commit is not None:
            assert restored.ref.step == 2, f"{where}: a reported checkpoint was lost"
        newest.append(restored.ref.step)

        lease = clean.acquire(owner="third")
        save(savers(clean, fence=lease.fence, base=restored.ref), 3)
        assert same(clean.restore()[0].state, state(3)), where
        groups = {manifest.ref_of(stat.key) for stat in clean.objects.list("")} - {None}
        assert groups == set(clean.commits()), f"{where}: garbage was left"
    # Both outcomes occur, and a checkpoint once durable stays so for all later crashes.
    assert newest == sorted(newest) or mode == "lost"
    assert set(newest) == {1, 2}


def test_a_rank_that_dies_anywhere_never_tears_a_commit(
    tmp_path, savers, save, state, same, faulty
):
    for k, mode in itertools.product(range(2), ("before", "after")):
        store = Store.open(f"file://{tmp_path}/{k}{mode}")
        save(savers(store), 1)
        dying = Store(objects=faulty(store.objects, at=k, mode=mode))
        one, other = savers([store, dying], fence=2, base=CommitRef(step=1, fence=1))
        other.save(2, state(2))
        other._drain(float("inf"))
        one.save(2, state(2), deadline=time.monotonic() + 0.1)
        one._drain(float("inf"))
        whole = k == 1 and mode == "after"  # the part was stored before the rank died
        assert [ref.step for ref in store.commits()] == ([2, 1] if whole else [1])
        assert same(store.restore()[0].state, state(2 if whole else 1))


def test_garbage_stays_bounded_over_many_crashes(tmp_path, savers, save, state, faulty):
    store = Store.open(f"file://{tmp_path}/run")
    save(savers(store, fence=store.acquire(owner="0").fence), 0)
    for cycle in range(1, 30):
        base = store.commits()[0]
        fence = store.acquire(owner=str(cycle)).fence
        crashing = Store(objects=faulty(store.objects, at=cycle % 23, mode="after"))
        save(savers(crashing, fence=fence, base=base), cycle)
    fence, base = store.acquire(owner="last").fence, store.commits()[0]
    save(savers(store, fence=fence, base=base), 100)
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
    assert groups == set(store.commits())
    assert len(groups) <= 3
    assert len(store.objects.list("lease/")) <= 21
