import pytest

from rekindle_local.apiserver.storage import Expired, ObjectTable


def obj(name, **more):
    metadata = {"name": name, "namespace": "n", "uid": f"uid-{name}", **more.pop("metadata", {})}
    return {"metadata": metadata, **more}


def test_revisions_are_global_and_every_write_takes_one():
    store = ObjectTable()
    first = store.put("pods", obj("a"))
    second = store.put("nodes", obj("b"))
    removed = store.remove("pods", ("n", "a"))
    revisions = [int(item["metadata"]["resourceVersion"]) for item in (first, second, removed)]
    assert revisions == [1, 2, 3]


def test_history_replays_what_happened_after_a_revision():
    store = ObjectTable()
    store.put("pods", obj("a"))
    store.put("pods", obj("b"))
    store.put("pods", obj("a", spec=1))
    store.remove("pods", ("n", "b"))
    changes = [(c.type, c.object["metadata"]["name"]) for c in store.since("pods", 1)]
    assert changes == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


def test_history_is_bounded_and_says_when_it_no_longer_reaches_back():
    store = ObjectTable(history=3)
    for at in range(6):
        store.put("pods", obj("a", spec=at))
    assert len(store.since("pods", 3)) == 3
    with pytest.raises(Expired, match=r"too old resource version: 2 \(3\)"):
        store.since("pods", 2)


def test_a_revision_from_another_life_of_the_server_is_expired():
    with pytest.raises(Expired):
        ObjectTable().since("pods", 7)


def test_a_busy_bucket_does_not_expire_a_quiet_one():
    store = ObjectTable(history=2)
    store.put("nodes", obj("a"))
    for at in range(9):
        store.put("pods", obj("p", spec=at))
    assert [change.type for change in store.since("nodes", 0)] == ["ADDED"]


def test_stored_objects_are_not_changed_by_later_writes():
    store = ObjectTable()
    before = store.put("pods", obj("a", spec=1))
    store.put("pods", obj("a", spec=2))
    assert before["spec"] == 1
    assert store.since("pods", 1)[0].previous is before


def test_dependents_follow_owner_references():
    store = ObjectTable()
    owners = {"ownerReferences": [{"uid": "uid-o"}]}
    store.put("pods", obj("a", metadata=owners))
    assert [(bucket, item["metadata"]["name"]) for bucket, item in store.dependents("uid-o")] == [
        ("pods", "a")
    ]
    store.put("pods", obj("a"))
    assert store.dependents("uid-o") == []


def test_subscribers_see_every_change_until_they_leave():
    store, seen = ObjectTable(), []
    leave = store.subscribe("pods", lambda change: seen.append(change.type))
    store.put("pods", obj("a"))
    store.put("nodes", obj("b"))
    leave()
    store.remove("pods", ("n", "a"))
    assert seen == ["ADDED"]
