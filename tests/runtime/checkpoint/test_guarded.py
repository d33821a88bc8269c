"""The declared weaker mode for stores that ignore conditions."""

import threading

import pytest

from rekindle.checkpoint import CommitRef, LeaseLost, ProbeError, Store, store
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.guarded import GuardedObjects
from rekindle.checkpoint.objects.interface import PreconditionFailed


class Ignoring(FileObjects):
    """A store whose server does not look at conditions, as some do."""

    def put(self, key, body, *, if_none_match=False, if_match=None):
        return super().put(key, body)

    def delete(self, key, *, if_match=None):
        super().delete(key)


@pytest.fixture(autouse=True)
def settle(monkeypatch):
    monkeypatch.setattr(store, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def weak(tmp_path) -> Store:
    return Store(objects=GuardedObjects(Ignoring(str(tmp_path / "run"))), commit="lease")


def test_a_store_without_conditions_is_refused_and_the_weaker_mode_offered(tmp_path, weak):
    with pytest.raises(ProbeError, match="ignored If-None-Match.*set store.commit='lease'"):
        Store(objects=Ignoring(str(tmp_path / "run"))).probe("a")
    weak.probe("a")
    assert weak.objects.list("") == []


def test_the_mode_is_chosen_when_the_store_is_opened_and_recorded(tmp_path, savers, save):
    uri = f"file://{tmp_path}/run"
    opened = Store.open(uri, commit="lease")
    assert isinstance(opened.objects, GuardedObjects)
    save(savers(opened, world_size=1), 1)
    assert Store.open(uri).read(CommitRef(step=1, fence=1)).mode == "lease"
    plain = savers(Store.open(uri), world_size=1, fence=2, base=CommitRef(step=1, fence=1))
    save(plain, 2)
    assert Store.open(uri).read(CommitRef(step=2, fence=2)).mode == "conditional"
    with pytest.raises(ValueError, match="store.commit is 'none': allowed are"):
        Store.open(uri, commit="none")


def test_racing_attempts_get_different_fences(weak):
    fences = []
    threads = [
        threading.Thread(target=lambda n=n: fences.append(weak.acquire(owner=str(n)).fence))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(fences)) == 4


def test_an_attempt_that_lost_its_lease_does_not_commit(weak, savers, save, state):
    first = savers(weak, world_size=1, fence=weak.acquire(owner="a").fence)
    save(first, 1)
    weak.acquire(owner="b")
    with pytest.raises(LeaseLost):
        first[0].save(2, state(2), wait=True)
    assert [ref.step for ref in weak.commits()] == [1]


def test_conditions_are_checked_by_looking(weak):
    objects = weak.objects
    etag = objects.put("tag/a", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        objects.put("tag/a", b"2", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        objects.put("tag/a", b"2", if_match="other")
    with pytest.raises(PreconditionFailed):
        objects.delete("tag/a", if_match="other")
    assert objects.get("tag/a") == b"1"
    objects.delete("tag/a", if_match=etag)
    assert objects.list("") == []


def test_a_writer_that_is_overwritten_at_once_notices(weak, monkeypatch):
    inner = weak.objects._inner
    original = inner.put

    def beaten(key, body, **_):
        etag = original(key, body)
        original(key, b"somebody else's")
        return etag

    monkeypatch.setattr(inner, "put", beaten)
    with pytest.raises(PreconditionFailed, match="another writer was faster"):
        weak.objects.put("lease/x", b"mine", if_none_match=True)


def test_checkpoints_survive_a_crash_at_any_call_in_this_mode_too(
    tmp_path, savers, save, state, same, faulty
):
    for k in range(0, 60, 7):
        inner = Ignoring(str(tmp_path / str(k)))
        weak = Store(objects=GuardedObjects(inner), commit="lease")
        save(savers(weak, world_size=1, fence=1), 1)
        dying = Store(objects=GuardedObjects(faulty(inner, at=k, mode="after")), commit="lease")
        save(savers(dying, world_size=1, fence=2, base=CommitRef(step=1, fence=1)), 2)
        restored, skipped = weak.restore()
        assert not skipped
        assert same(restored.state, state(restored.ref.step)), k
