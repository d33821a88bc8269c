"""Clean-up over a store: what goes, in which order, and what is never touched."""

from collections import Counter
from dataclasses import replace

import pytest

from rekindle.checkpoint import Best, CommitRef, Retention, Store
from rekindle.checkpoint.cleanup import Cleaner, Housekeeper, sweep
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import ManifestError
from rekindle.checkpoint.objects.interface import NotFound, PreconditionFailed, Stat


@pytest.fixture
def run(store, savers, save):
    """A run with commits at the given steps, each with a metric that falls with the step."""

    def make(*steps: int, **meta) -> Store:
        (saver,) = savers(store, world_size=1, keep_latest=99)
        for step in steps:
            save([saver], step, meta={"metrics": {"loss": 1.0 / step}, **meta})
        return store

    return make


def steps(store: Store) -> list[int]:
    return [ref.step for ref in store.commits()]


def at(step: int, fence: int = 1) -> CommitRef:
    return CommitRef(step=step, fence=fence)


def test_the_policy_and_the_pins_decide(run):
    store = run(10, 20, 30, 40, 50, 60)
    store.pin(at(20), name="release-1", note="for the paper")
    best = (Best(metric="loss", mode="max"),)
    plan = Cleaner(store, Retention(latest=2, best=best, every=40)).run()
    assert steps(store) == [60, 50, 40, 20, 10]
    assert list(plan.goes) == [at(30)]
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
    assert groups == set(store.commits()), "the data goes with the commit"


def test_a_saver_takes_a_policy(store, savers, save):
    (saver,) = savers(store, world_size=1, retention=Retention(latest=1, every=20))
    for step in (10, 20, 30):
        save([saver], step)
    assert steps(store) == [30, 20]


def test_the_checkpoint_that_was_restored_stays_until_the_next_attempt(store, savers, save):
    save(savers(store, world_size=1), 10)
    second = savers(store, world_size=1, fence=2, base=at(10), keep_latest=1)
    for step in (20, 30):
        save(second, step)
    assert steps(store) == [30, 10]
    save(savers(store, world_size=1, fence=3, base=at(30, 2), keep_latest=1), 40)
    assert steps(store) == [40, 30]


def test_the_commit_goes_before_its_data(run, faulty):
    store = run(10, 20)
    spy = faulty(store.objects)
    Cleaner(Store(objects=spy), Retention(latest=1)).run()
    deletions = [name for name, _ in spy.log if name.startswith("delete")]
    assert deletions == ["delete", "delete_many"]
    assert (deletions[0], manifest.commit_key(at(10))) in spy.log


def test_a_commit_that_is_not_the_one_that_was_judged_stays_with_its_data(store, run):
    run(10, 20)
    objects, key = store.objects, manifest.commit_key(at(10))

    class Replaced:
        """Somebody writes the commit anew between the judgement and its removal."""

        def __getattr__(self, name):
            return getattr(objects, name)

        def delete(self, gone, *, if_match=None):
            assert gone == key
            objects.put(key, objects.get(key))
            return objects.delete(gone, if_match=if_match)

    Cleaner(Store(objects=Replaced()), Retention(latest=1)).run()
    assert steps(store) == [20, 10]
    store.load(store.read(at(10)))


def test_a_clean_up_that_ends_anywhere_is_finished_by_the_next(run, faulty, state, same):
    store = run(10, 20, 30)
    before = {stat.key: store.objects.get(stat.key) for stat in store.objects.list("")}
    spy = faulty(store.objects)
    Cleaner(Store(objects=spy), Retention(latest=1)).run()
    for k in range(spy.count):
        for key, body in before.items():
            store.objects.put(key, body)
        crashing = Store(objects=faulty(store.objects, at=k, mode="after"))
        with pytest.raises(Exception, match="injected"):
            Cleaner(crashing, Retention(latest=1)).run()
        assert same(Store(objects=store.objects).restore()[0].state, state(30)), k
        for ref in store.commits():
            store.load(store.read(ref))  # never a commit without its data
        Cleaner(Store(objects=store.objects), Retention(latest=1)).run()
        assert steps(store) == [30]
        assert {manifest.ref_of(s.key) for s in store.objects.list("data/")} == {at(30)}, k


def borrowing(store: Store, newer: CommitRef, older: CommitRef) -> None:
    """Let the commit `newer` refer to the objects of `older` instead of its own."""
    commit = replace(store.read(older), ref=newer)
    store.objects.delete(manifest.commit_key(newer))
    store.objects.put(manifest.commit_key(newer), manifest.commit_bytes(commit))


def test_objects_that_a_kept_commit_refers_to_are_live(run, state, same):
    store = run(10, 20, 30)
    borrowing(store, at(30), at(10))
    Cleaner(store, Retention(latest=1)).run()
    assert steps(store) == [30]
    assert same(store.load(store.read(at(30))).state, state(10))
    assert store.objects.list("data/" + str(at(10)))
    assert not store.objects.list("data/" + str(at(20)))
    assert not store.objects.list("part/" + str(at(10)))
    again = Cleaner(store, Retention(latest=1)).plan()
    assert not again.goes
    assert not again.left_over, "a borrowed group is no garbage"


def test_borrowed_objects_go_with_the_last_commit_that_needs_them(run, savers, save):
    store = run(10, 20)
    borrowing(store, at(20), at(10))
    save(savers(store, world_size=1, fence=2, base=at(20)), 30)
    Cleaner(store, Retention(latest=1)).run()
    assert {manifest.ref_of(s.key) for s in store.objects.list("data/")} == {at(30, 2)}


def test_a_commit_that_was_replaced_meanwhile_is_spared(run):
    store = run(10, 20)

    class Racing:
        def __getattr__(self, name):
            return getattr(store.objects, name)

        def delete(self, key, *, if_match=None):
            raise PreconditionFailed("somebody was here")

    Cleaner(Store(objects=Racing()), Retention(latest=1)).run()
    assert steps(store) == [20, 10]
    store.load(store.read(at(10)))


def test_nothing_goes_while_a_pin_cannot_be_read(run, caplog):
    store = run(10, 20)
    store.objects.put(manifest.pin_key("release"), b"{}")
    with pytest.raises(ManifestError, match="tag/pin-release.json.*Set the pin anew"):
        Cleaner(store, Retention(latest=1)).run()
    Housekeeper(store, Retention(latest=1), fence=1, restored=None).tidy(at(20))
    assert "no checkpoint of" in caplog.text
    assert steps(store) == [20, 10]


def test_a_pin_moves_and_goes(run):
    store = run(10, 20)
    assert store.pin(at(10)) == str(at(10))
    assert store.pin(at(10), name="good") == "good"
    store.pin(at(20), name="good", note="better")
    assert {name: pin.ref for name, pin in store.pins().items()} == {
        str(at(10)): at(10),
        "good": at(20),
    }
    assert store.pins()["good"].note == "better"
    assert store.unpin("good")
    assert not store.unpin("good")
    with pytest.raises(NotFound):
        store.pin(at(77))
    with pytest.raises(ValueError, match="pin name '../x' is not usable"):
        store.pin(at(10), name="../x")


def test_two_people_who_move_a_pin_do_not_lose_one(objects):
    etag = objects.put("tag/pin-a.json", b"one")
    objects.put("tag/pin-a.json", b"two", if_match=etag)
    with pytest.raises(PreconditionFailed):
        objects.put("tag/pin-a.json", b"three", if_match=etag)
    with pytest.raises(PreconditionFailed):
        objects.put("tag/pin-b.json", b"three", if_match=etag)
    assert objects.get("tag/pin-a.json") == b"two"


def test_unfinished_uploads_of_any_kind_are_abandoned(endpoint, bucket):
    store = Store.open(f"s3://{bucket}/run", endpoint_url=endpoint)
    client, keys = (
        store.objects._client,
        [manifest.data_key(at(1, fence), 0, 0) for fence in (1, 2)],
    )
    for key in (*keys, manifest.commit_key(at(1))):
        client.create_multipart_upload(Bucket=bucket, Key=f"run/{key}")
    # This server says that every upload began in 2010; those of the living attempt stay.
    sweep(store, fence=2)
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == [f"run/{keys[1]}"]
    assert store.objects.abandon_uploads("", older_than=1e10) == 0
    assert store.objects.abandon_uploads("", older_than=0) == 1


class Counted:
    """Objects in memory; counts requests by name, and what listings give."""

    uri, endpoint = "memory://", "memory"

    def __init__(self):
        self.held, self.calls = {}, Counter()

    def put(self, key, body, *, if_none_match=False, if_match=None):
        self.calls["put"] += 1
        self.held[key] = bytes(body)
        return "1"

    def get(self, key, start=None, stop=None, *, limit=None):
        self.calls["get"] += 1
        return self.held[key]

    def head(self, key):
        self.calls["head"] += 1
        if key not in self.held:
            raise NotFound(key)
        return Stat(key=key, size=len(self.held[key]), etag="1")

    def list(self, prefix):
        found = [self.head(key) for key in sorted(self.held) if key.startswith(prefix)]
        self.calls["head"] -= len(found)
        self.calls["list"] += 1
        self.calls["listed"] += len(found)
        return found

    def delete(self, key, *, if_match=None):
        self.calls["delete"] += 1
        del self.held[key]

    def delete_many(self, keys):
        self.calls["delete_many"] += 1
        for key in keys:
            del self.held[key]

    def abandon_uploads(self, prefix, *, older_than, only=None):
        return 0

    def commit(self, step):
        ref = at(step)
        commit = manifest.Commit(
            ref=ref,
            base=None,
            world_size=1,
            created=0.0,
            chunk=16,
            objects=(),
            tensors=(),
            tree=None,
            meta={"metrics": {"loss": 1.0 / step}},
            parts=(manifest.PartEntry(rank=0, size=1, sha256="0" * 64),),
        )
        self.held[manifest.commit_key(ref)] = manifest.commit_bytes(commit)
        self.held[manifest.part_key(ref, 0)] = b"x"
        self.held[manifest.data_key(ref, 0, 0)] = b"x"
        return ref


@pytest.mark.parametrize(
    "policy",
    [
        Retention(latest=2, every=10),
        Retention(latest=2, every=10, best=(Best(metric="loss", mode="min", count=2),), hourly=3),
    ],
)
def test_what_a_save_costs_does_not_grow_with_the_checkpoints_that_are_kept(policy):
    costs = []
    for kept in (100, 2000):
        objects = Counted()
        objects.held[manifest.lease_key(1)] = b"x"
        for n in range(1, kept + 1):
            objects.commit(10 * n)
        keeper = Housekeeper(Store(objects=objects), policy, fence=1, restored=None)
        keeper.tidy(objects.commit(10 * kept + 1))
        objects.calls.clear()
        for n in range(2, 7):
            keeper.tidy(objects.commit(10 * kept + n))
        costs.append(dict(objects.calls))
        held = {manifest.ref_of(key).step for key in objects.held if key.startswith("data/")}
        assert held == {*range(10, 10 * kept + 1, 10), 10 * kept + 5, 10 * kept + 6}
    assert costs[0] == costs[1]
    assert sum(costs[0].values()) <= 5 * 20, costs[0]


def test_the_first_look_reads_no_more_commits_than_the_policy_asks_for():
    objects = Counted()
    for n in range(1, 501):
        objects.commit(10 * n)
    objects.commit(5001)
    Cleaner(Store(objects=objects), Retention(latest=2, every=10)).run(objects.commit(5002))
    assert objects.calls["get"] <= 4, "the newest, and who could borrow from what goes"


def test_what_a_failed_save_leaves_goes_after_the_next_commit():
    objects = Counted()
    keeper = Housekeeper(Store(objects=objects), Retention(latest=2), fence=1, restored=None)
    keeper.tidy(objects.commit(1))
    objects.held[manifest.data_key(at(2), 0, 0)] = b"of a save that failed"
    keeper.disturbed()
    keeper.tidy(objects.commit(3))
    assert not [key for key in objects.held if manifest.ref_of(key) == at(2)]


def test_pins_and_marks_are_heeded_whenever_they_are_set():
    objects = Counted()
    store = Store(objects=objects)
    keeper = Housekeeper(store, Retention(latest=2), fence=1, restored=None)
    for step in (1, 2):
        keeper.tidy(objects.commit(step))
    store.pin(at(1), name="good")
    store.quarantine(at(2), "damaged")
    for step in (3, 4):
        keeper.tidy(objects.commit(step))
    assert sorted(ref.step for ref in store.listed()) == [1, 3, 4]
    store.unpin("good")
    keeper.tidy(objects.commit(5))
    assert sorted(ref.step for ref in store.listed()) == [4, 5]


def test_a_damaged_commit_does_not_count_and_one_that_vanishes_is_passed_over():
    objects = Counted()
    keeper = Housekeeper(Store(objects=objects), Retention(latest=2), fence=1, restored=None)
    for step in (1, 2):
        keeper.tidy(objects.commit(step))
    objects.held[manifest.commit_key(at(3))] = b"damaged"
    keeper.tidy(at(3))
    assert sorted(ref.step for ref in Store(objects=objects).listed()) == [1, 2, 3]
    gone = manifest.commit_key(at(4))
    objects.commit(4)
    plain = objects.get

    def get(key, *given, **named):
        if key == gone:
            objects.held.pop(key, None)
            raise NotFound(key)
        return plain(key, *given, **named)

    objects.get = get
    keeper.tidy(at(4))
    assert sorted(ref.step for ref in Store(objects=objects).listed()) == [1, 2, 3]


def test_an_attempt_that_was_replaced_removes_nothing():
    objects = Counted()
    objects.held[manifest.lease_key(2)] = b"x"
    keeper = Housekeeper(Store(objects=objects), Retention(latest=1), fence=1, restored=None)
    for step in (1, 2):
        keeper.tidy(objects.commit(step))
    assert objects.calls["delete"] == 0
