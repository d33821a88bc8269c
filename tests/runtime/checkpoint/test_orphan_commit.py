"""A group that is complete but for its commit becomes a checkpoint, by the rules and once."""

import threading

import pytest

from rekindle.checkpoint import CommitRef, Store
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.saving.orphan_commit import adopt


@pytest.fixture
def stored(store, savers, save, state, faulty):
    """A committed step 1, and step 2 of a second attempt that died right before its commit."""
    save(savers(store, fence=store.acquire(owner="first").fence), 1)
    base = store.commits()[0]

    class Dying(faulty):
        def __getattr__(self, name):
            def put(key, *args, **kwargs):
                if key.startswith("commit/"):
                    raise RuntimeError("dies here")
                return self.inner.put(key, *args, **kwargs)

            return put if name == "put" else getattr(self.inner, name)

    dying = Store(objects=Dying(store.objects))
    save(savers(dying, fence=store.acquire(owner="second").fence, base=base), 2, meta={"a": 1})
    assert [ref.step for ref in store.commits()] == [1]
    return CommitRef(step=2, fence=2)


def test_the_next_attempt_commits_what_is_complete(store, stored, state, same):
    assert adopt(store, fence=store.acquire(owner="third").fence) == stored
    restored = store.restore(rank=1)[0]
    assert restored.ref == stored
    assert restored.meta == {"a": 1}
    assert restored.rank_state == {"rank": 1}
    assert same(restored.state, state(2))
    assert store.read(stored).base == CommitRef(step=1, fence=1)
    assert adopt(store, fence=4) is None


def test_one_of_many_adopters_wins_and_all_are_content(store, stored):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(adopt(Store.open(store.uri), fence=9)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(found) <= {stored, None}
    assert stored in found
    assert [ref.step for ref in store.commits()] == [2, 1]


@pytest.mark.parametrize("kind", ["part", "data"])
def test_an_incomplete_group_is_left_alone(store, stored, kind):
    store.objects.delete(next(s.key for s in store.objects.list(f"{kind}/{stored}/r00001")))
    assert adopt(store, fence=3) is None
    assert [ref.step for ref in store.commits()] == [1]


def test_nothing_is_adopted_once_a_newer_attempt_has_committed(store, stored, savers, save):
    newer = savers(store, fence=store.acquire(owner="third").fence, base=store.commits()[0])
    key = manifest.part_key(stored, 1)
    kept = store.objects.get(key)
    save(newer, 3)
    store.objects.put(key, kept)
    assert adopt(store, fence=4) is None
    assert [ref.step for ref in store.commits()] == [3, 1]


def test_an_attempt_does_not_adopt_its_own_or_a_later_ones_groups(store, stored):
    assert adopt(store, fence=2) is None
