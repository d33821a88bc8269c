"""The collector, driven step by step; its worker is covered by the HTTP tests."""

import pytest

from rekindle_local.apiserver.controllers.garbage import EVENT_TTL, Collector
from rekindle_local.apiserver.writes.options import DeleteOptions


@pytest.fixture
def collector(bench):
    return Collector(bench.objects)


def settle(collector):
    for _ in range(200):
        if not collector._busy():
            return
        collector.step()
    raise AssertionError("the collector does not come to rest")


def owned(obj, *owners, block=False):
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    return {**obj, "metadata": {**obj["metadata"], "ownerReferences": references}}


def delete(bench, obj, **options):
    metadata = obj["metadata"]
    bench.objects.delete(
        bench.resource(obj),
        metadata.get("namespace", ""),
        metadata["name"],
        DeleteOptions(**options),
    )


def test_what_an_owner_owned_goes_after_it_down_to_the_last(bench, collector, widget, pod):
    owner = bench.create(widget())
    child = bench.create(owned(widget("two"), owner))
    grandchild = bench.create(owned(pod(), child))
    delete(bench, owner)
    assert bench.exists(child)
    settle(collector)
    assert not bench.exists(child)
    assert not bench.exists(grandchild)


def test_one_of_two_owners_keeps_an_object_and_the_dead_reference_goes(
    bench, collector, widget, pod
):
    one, two = bench.create(widget("one")), bench.create(widget("two"))
    child = bench.create(owned(pod(), one, two))
    delete(bench, one)
    settle(collector)
    [left] = bench.get(child)["metadata"]["ownerReferences"]
    assert left["name"] == "two"


def test_an_object_born_after_its_owner_died_is_collected(bench, collector, widget, pod):
    owner = bench.create(widget())
    delete(bench, owner)
    child = bench.create(owned(pod(), owner))
    settle(collector)
    assert not bench.exists(child)


def test_an_owner_of_an_unknown_kind_is_no_reason_to_delete(bench, collector, widget, pod):
    stranger = {**widget(), "apiVersion": "unknown.dev/v1"}
    stranger["metadata"]["uid"] = "u-1"
    child = bench.create(owned(pod(), stranger))
    settle(collector)
    assert bench.exists(child)


def test_orphaning_leaves_the_dependents_without_the_reference(bench, collector, widget, pod):
    owner = bench.create(widget())
    child = bench.create(owned(pod(), owner))
    delete(bench, owner, propagation="Orphan")
    settle(collector)
    assert not bench.exists(owner)
    assert "ownerReferences" not in bench.get(child)["metadata"]


def test_foreground_deletion_waits_for_blocking_dependents(bench, collector, widget, pod):
    owner = bench.create(widget())
    child = bench.create(owned(pod(spec={"nodeName": "n1"}), owner, block=True))
    delete(bench, owner, propagation="Foreground")
    settle(collector)
    assert bench.exists(owner), "the pod waits for its kubelet, and its owner for the pod"
    delete(bench, child, grace_seconds=0)
    settle(collector)
    assert not bench.exists(owner)


def test_a_namespace_goes_when_it_is_empty(bench, collector, pod):
    home = bench.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
    child = bench.create(pod(metadata={"namespace": "n"}, spec={"nodeName": "n1"}))
    delete(bench, home)
    settle(collector)
    assert bench.get(home)["status"]["phase"] == "Terminating"
    assert bench.get(child)["metadata"]["deletionTimestamp"]
    delete(bench, child, grace_seconds=0)
    settle(collector)
    assert not bench.exists(home)


def test_a_crd_takes_its_objects_with_it(bench, collector, widget, widget_crd):
    made = bench.create(widget())
    crd = bench.get(widget_crd)
    delete(bench, crd)
    assert bench.exists(crd)
    settle(collector)
    assert not bench.exists(made)
    assert not bench.exists(crd)
    assert bench.registry.find("example.dev", "v1", "widgets") is None


def test_events_are_forgotten_after_their_time(bench, collector):
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"namespace": "default"},
    }
    made = bench.create(event)
    bench.now += EVENT_TTL - 10
    collector.expire_events()
    assert bench.exists(made)
    bench.now += 20
    collector.expire_events()
    assert not bench.exists(made)


def test_a_flood_of_events_drops_the_oldest(bench, collector, monkeypatch):
    monkeypatch.setattr("rekindle_local.apiserver.controllers.garbage.EVENT_LIMIT", 10)
    for at in range(11):
        bench.now += 1
        bench.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e{at}", "namespace": "default"},
                "involvedObject": {"namespace": "default"},
            }
        )
    settle(collector)
    names = {item["metadata"]["name"] for item in bench.store.select("events")}
    assert names == {f"e{at}" for at in range(2, 11)}
