"""Reading: the newest good checkpoint, what was lost, and who may write."""

import json
import random
import threading

import pytest

from rekindle.checkpoint import CommitRef, IntegrityError, Store, VersionError
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    NotFound,
    PreconditionFailed,
    StoreError,
)

pytestmark = pytest.mark.servers


def damage(tmp_path, ref):
    path = sorted((tmp_path / "run" / "data" / str(ref)).iterdir())[0]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_run_without_checkpoints_restores_nothing(objects):
    assert Store(objects=objects).restore() is None


def test_eight_racing_attempts_get_eight_fences(objects):
    store = Store(objects=objects)
    fences = []
    threads = [
        threading.Thread(target=lambda n=n: fences.append(store.acquire(owner=str(n)).fence))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(fences) == list(range(1, 9))
    assert store.acquire(owner="ninth").fence == 9


def test_a_fence_is_above_every_commit_even_if_the_leases_are_gone(store, savers, save):
    save(savers(store, fence=7), 1)
    assert store.acquire(owner="x").fence == 8


def test_a_stray_lease_far_away_counts_for_nothing(store, savers, save, caplog):
    assert [store.acquire(owner=str(n)).fence for n in (1, 2, 3)] == [1, 2, 3]
    stray = manifest.lease_key(99_999_999)
    store.objects.put(stray, b"by mistake")
    assert store.newest_fence() == 3
    assert store.acquire(owner="next").fence == 4
    assert f"{stray} is no lease of any attempt, and is passed over; remove it" in caplog.text
    save(savers(store, fence=4), 1)
    assert [(ref.step, ref.fence) for ref in store.commits()] == [(1, 4)]


def test_leases_of_a_run_with_very_many_attempts_count(store, savers, save):
    save(savers(store, fence=123_456), 1)
    store.objects.put(manifest.lease_key(123_456), b"ours")
    assert store.newest_fence() == 123_456
    assert store.acquire(owner="next").fence == 123_457


def test_what_stands_where_a_lease_belongs_is_stepped_over(store, tmp_path):
    store.acquire(owner="first")
    (tmp_path / "run" / manifest.lease_key(2)).symlink_to("/etc/hostname")  # no object, but there
    assert store.acquire(owner="next").fence == 3


def test_a_commit_with_the_last_fence_is_told_and_not_counted_on_from(store):
    key = manifest.commit_key(CommitRef(step=1, fence=manifest.LAST_FENCE))
    store.objects.put(key, b"by mistake")
    with pytest.raises(StoreError, match=r"fences up to 99999999.*remove what is in commit/"):
        store.acquire(owner="next")


def test_a_damaged_newest_falls_back_and_says_what_was_lost(
    store, savers, save, state, same, tmp_path
):
    group = savers(store)
    for step in (7000, 7200, 7400):
        save(group, step)
    damage(tmp_path, CommitRef(step=7400, fence=1))
    restored, skipped = store.restore(rank=0)
    assert same(restored.state, state(7200))
    (only,) = skipped
    assert only.ref == CommitRef(step=7400, fence=1)
    assert only.steps_lost == 200
    assert only.reason.startswith("R16 checkpoint step 7400: object data/000000007400-00000001/r0")
    assert only.reason.endswith("Falling back to step 7200 (200 steps lost).")
    assert [ref.step for ref in store.commits()] == [7200, 7000]
    assert Store.open(store.uri).restore()[1] == [], "it is not tried again"


def test_an_attempt_after_a_fallback_continues_from_its_base(
    store, savers, save, state, same, tmp_path
):
    group = savers(store)
    for step in (100, 200):
        save(group, step)
    damage(tmp_path, CommitRef(step=200, fence=1))
    restored, _ = store.restore()
    lease = store.acquire(owner="second")
    save(savers(store, fence=lease.fence, base=restored.ref), 150)
    assert [(ref.step, ref.fence) for ref in store.commits()] == [(150, 2), (100, 1)]


def test_a_damaged_commit_document_falls_back_too(store, savers, save, state, same, tmp_path):
    group = savers(store)
    for step in (1, 2):
        save(group, step)
    path = tmp_path / "run" / manifest.commit_key(CommitRef(step=2, fence=1))
    path.write_bytes(path.read_bytes()[:-40])
    restored, skipped = store.restore()
    assert same(restored.state, state(1))
    assert "its own SHA-256 differs" in skipped[0].reason


def test_where_an_attempt_began_that_nobody_can_read_all_below_it_counts(
    store, savers, save, state, same, tmp_path
):
    """Else a run whose newest attempt is damaged throughout would have no checkpoint left."""
    first = savers(store)
    for step in (1, 2):
        save(first, step)
    old = store.commits()[0]
    save(savers(store, fence=2, base=old), 3)
    (tmp_path / "run" / manifest.commit_key(CommitRef(step=3, fence=2))).write_bytes(b"{}")
    fresh = Store.open(f"file://{tmp_path}/run")  # nothing is remembered
    assert [(r.step, r.fence) for r in fresh.line()] == [(3, 2), (2, 1), (1, 1)]
    found, _ = fresh.restore()
    assert same(found.state, state(2))


def test_a_part_that_is_gone_and_one_that_comes_back_well_at_the_second_look(
    store, savers, save, monkeypatch
):
    save(savers(store), 1)
    commit = store.read(store.commits()[0])
    key, real = manifest.part_key(commit.ref, 1), store.objects.get
    answers = [b"cut short"]

    def once(asked, *rest, **more):
        return answers.pop() if asked == key and answers else real(asked, *rest, **more)

    monkeypatch.setattr(store.objects, "get", once)
    assert store.load(commit, rank=1).rank_state is not None
    assert not answers
    monkeypatch.undo()
    store.objects.delete(key)
    with pytest.raises(IntegrityError, match=f"object {key} is missing"):
        store.load(commit, rank=1)


def test_who_always_finds_somebody_faster_gives_up_and_says_so(store, monkeypatch):
    monkeypatch.setattr("rekindle.checkpoint.store.time.sleep", lambda _: None)

    def taken(key, *_, **__):
        raise PreconditionFailed(key)

    monkeypatch.setattr(store.objects, "put", taken)
    drawn = random.getstate()
    with pytest.raises(StoreError, match="100 other attempts took the lease first"):
        store.acquire(owner="x")
    assert random.getstate() == drawn, "the script's own random numbers have moved on"


def test_a_pin_that_others_change_all_the_time_and_one_of_nothing(store, savers, save, monkeypatch):
    save(savers(store), 1)
    ref = store.commits()[0]
    store.pin(ref, name="keep")
    assert store.pins()["keep"].ref == ref
    with pytest.raises(NotFound):
        store.pin(CommitRef(step=9, fence=9), name="nothing")
    assert set(store.pins()) == {"keep"}, "a pin of nothing keeps nothing"
    path = manifest.pin_key("damaged")
    store.objects.put(path, b"{}")
    with pytest.raises(manifest.ManifestError, match="damaged"):
        store.pins()

    def taken(key, *_, **__):
        raise PreconditionFailed(key)

    monkeypatch.setattr(store.objects, "put", taken)
    with pytest.raises(StoreError, match="10 others changed the pin first"):
        store.pin(ref, name="keep")


def test_a_damaged_part_is_found_by_its_rank(store, savers, save, tmp_path):
    save(savers(store), 1)
    ref = CommitRef(step=1, fence=1)
    path = tmp_path / "run" / manifest.part_key(ref, 1)
    path.write_bytes(path.read_bytes().replace(b'"rank":1', b'"rank":0'))
    commit = store.read(ref)
    store.load(commit, rank=0)
    with pytest.raises(IntegrityError, match=r"part/.*/r00001.json failed SHA-256"):
        store.load(commit, rank=1)


def test_with_no_good_checkpoint_left_the_training_does_not_begin_again(
    store, savers, save, tmp_path
):
    group = savers(store)
    for step in (1, 2):
        save(group, step)
        damage(tmp_path, CommitRef(step=step, fence=1))
    for _ in range(2):  # the second time all are in quarantine
        with pytest.raises(IntegrityError, match="R16 no good checkpoint is left in file:///"):
            store.restore()


def test_falling_back_works_with_read_only_credentials(
    store, savers, save, state, same, tmp_path, monkeypatch
):
    group = savers(store)
    for step in (1, 2):
        save(group, step)
    damage(tmp_path, CommitRef(step=2, fence=1))

    def denied(*_, **__):
        raise AccessDenied("no")

    monkeypatch.setattr(store.objects, "put", denied)
    assert same(store.restore()[0].state, state(1))


def test_a_newer_format_stops_the_restore_and_is_not_skipped(
    store, savers, save, tmp_path, monkeypatch
):
    group = savers(store)
    save(group, 1)
    monkeypatch.setattr(manifest, "VERSION", 2)
    body = manifest.commit_bytes(
        manifest.Commit(
            ref=CommitRef(step=2, fence=1),
            base=None,
            world_size=1,
            created=0.0,
            chunk=64,
            objects=(),
            tensors=(),
            tree=None,
            meta={},
            parts=(manifest.PartEntry(rank=0, size=1, sha256="a"),),
        )
    )
    monkeypatch.undo()
    store.objects.put(manifest.commit_key(CommitRef(step=2, fence=1)), body)
    with pytest.raises(VersionError, match=r"R21 manifest version 2 is newer .* \(1\)"):
        store.restore()
    assert store.objects.list("bad/") == []


def test_modification_times_decide_nothing(store, savers, save, state, same, tmp_path):
    import os

    group = savers(store)
    for step in (1, 2, 3):
        save(group, step)
    for age, path in enumerate(sorted((tmp_path / "run" / "commit").iterdir())):
        os.utime(path, (10**9 - 10**6 * age, 10**9 - 10**6 * age))
    assert [ref.step for ref in store.commits()] == [3, 2, 1]


def test_foreign_objects_in_the_prefix_disturb_nobody(store, savers, save):
    for key in ("commit/readme.txt", "data/x", "lease/old", "bad/y.json", "part/1/2", "notes.md"):
        store.objects.put(key, b"?")
    assert store.restore() is None
    save(savers(store, fence=store.acquire(owner="x").fence), 1)
    assert [ref.step for ref in store.commits()] == [1]
    assert store.objects.get("notes.md") == b"?"


def test_the_meta_of_a_commit_is_readable_without_tensors(store, savers, state):
    (saver,) = savers(store, world_size=1)
    meta = {"cursor": {"epoch": 1, 3: (1, 2)}, "metrics": {"val/loss": float("inf")}}
    saver.save(1, state(1), meta=meta, wait=True)
    commit = store.read(store.commits()[0])
    assert commit.meta == meta
    assert commit.nbytes > 2000
    raw = json.loads(store.objects.get(manifest.commit_key(commit.ref)))
    assert raw["step"] == 1
