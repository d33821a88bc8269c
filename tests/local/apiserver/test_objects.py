"""The verbs on the store, without HTTP."""

import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.writes.operations import timestamp
from rekindle_local.apiserver.writes.options import DeleteOptions, WriteOptions


def refused(code, action, *arguments, **options):
    with pytest.raises(ApiError) as refusal:
        action(*arguments, **options)
    assert refusal.value.code == code, refusal.value.message
    return refusal.value


def delete(bench, obj, **options):
    metadata = obj["metadata"]
    return bench.objects.delete(
        bench.resource(obj),
        metadata.get("namespace", ""),
        metadata["name"],
        DeleteOptions(**options),
    )


def test_the_server_fills_the_metadata_of_a_new_object(bench, widget):
    made = bench.create(widget())["metadata"]
    assert made["uid"]
    assert made["generation"] == 1
    assert made["creationTimestamp"] == timestamp(bench.now)
    assert made["resourceVersion"].isdigit()


def test_generated_names_keep_their_prefix_and_differ(bench, widget):
    body = widget()
    body["metadata"] = {"generateName": "job-", "namespace": "default"}
    names = {bench.create(body)["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


def test_a_name_is_taken_once(bench, widget):
    bench.create(widget())
    assert refused(409, bench.create, widget()).reason == "AlreadyExists"


def test_a_namespace_must_exist(bench, widget):
    body = widget()
    body["metadata"]["namespace"] = "nowhere"
    assert 'namespaces "nowhere" not found' in refused(404, bench.create, body).message


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "Upper"},
        {"name": "under_score"},
        {"name": "a" * 254},
        {"name": "x", "labels": {"-bad": "v"}},
        {"name": "x", "labels": {"k": "bad value"}},
        {"name": "x", "labels": {"k": "v" * 64}},
        {"name": "x", "annotations": {"a b": "v"}},
        {"name": "x", "annotations": {"k": "v" * 300_000}},
        {"name": "x", "finalizers": ["not valid"]},
        {"name": "x", "ownerReferences": [{"kind": "A", "name": "b", "apiVersion": "v1"}]},
        {},
    ],
)
def test_bad_metadata_is_a_422(bench, widget, metadata):
    body = widget()
    body["metadata"] = {"namespace": "default", **metadata}
    assert refused(422, bench.create, body).details["causes"]


def test_defaults_are_filled_and_unknown_fields_dropped_with_a_warning(bench, widget):
    made = bench.objects.create(
        bench.resource(widget()), "default", widget(zzz=1, parts=[{"name": "a"}]), WriteOptions()
    )
    assert made.object["spec"] == {
        "color": "red",
        "replicas": 1,
        "min": 0,
        "parts": [{"name": "a", "size": 3}],
    }
    assert made.warnings == ('unknown field "spec.zzz"',)


def test_strict_validation_refuses_unknown_fields_by_path(bench, widget):
    error = refused(400, bench.create, widget(zzz=1, parts=[{"q": 1}]), validation="Strict")
    assert error.message.endswith(
        'strict decoding error: unknown field "spec.zzz", unknown field "spec.parts[0].q"'
    )


def test_every_bad_field_is_named_at_once(bench, widget):
    error = refused(422, bench.create, widget(color="green", replicas=-1, parts=[{}]))
    fields = {cause["field"] for cause in error.details["causes"]}
    assert {"spec.color", "spec.replicas", "spec.parts[0].name"} <= fields
    assert error.message.startswith('Widget.example.dev "one" is invalid: [')


def test_cel_rules_are_checked_with_field_path(bench, widget):
    error = refused(422, bench.create, widget(min=3, replicas=1))
    assert error.details["causes"] == [
        {
            "reason": "FieldValueInvalid",
            "field": "spec.min",
            "message": 'Invalid value: "object": min is above replicas',
        }
    ]


def test_transition_rules_compare_with_the_stored_object(bench, widget):
    made = bench.create(widget())
    changed = {**made, "spec": {**made["spec"], "color": "blue"}}
    assert "color is immutable" in refused(422, bench.update, changed).message


def test_a_stale_write_is_a_conflict(bench, widget):
    made = bench.create(widget())
    bench.update({**made, "spec": {**made["spec"], "replicas": 3}})
    error = refused(409, bench.update, {**made, "spec": {**made["spec"], "replicas": 4}})
    assert "the object has been modified" in error.message


def test_a_write_for_another_uid_is_a_conflict(bench, widget):
    made = bench.create(widget())
    other = {**made, "metadata": {**made["metadata"], "uid": "other"}}
    assert "UID in precondition: other" in refused(409, bench.update, other).message


def test_a_custom_resource_must_be_updated_with_its_revision(bench, widget):
    bench.create(widget())
    assert "must be specified for an update" in refused(422, bench.update, widget()).message


def test_generation_counts_spec_changes_only(bench, widget):
    made = bench.create(widget())
    made = bench.update({**made, "metadata": {**made["metadata"], "labels": {"a": "b"}}})
    assert made["metadata"]["generation"] == 1
    made = bench.update({**made, "status": {"phase": "On"}}, "status")
    assert made["metadata"]["generation"] == 1
    made = bench.update({**made, "spec": {**made["spec"], "replicas": 5}})
    assert made["metadata"]["generation"] == 2


def test_status_and_spec_are_written_through_their_own_endpoints(bench, widget):
    made = bench.create({**widget(), "status": {"phase": "ignored"}})
    assert "status" not in made
    both = {**made, "spec": {**made["spec"], "replicas": 7}, "status": {"phase": "On"}}
    after = bench.update(both, "status")
    assert (after["spec"]["replicas"], after["status"]) == (1, {"phase": "On"})
    after = bench.update({**after, "spec": both["spec"], "status": {"phase": "Off"}})
    assert (after["spec"]["replicas"], after["status"]) == (7, {"phase": "On"})


def test_a_write_that_changes_nothing_takes_no_revision(bench, widget):
    made = bench.create(widget())
    before = bench.store.revision
    assert bench.update(made)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert bench.store.revision == before


def test_a_dry_run_answers_and_stores_nothing(bench, widget):
    made = bench.create(widget(), dry_run=True)
    assert made["metadata"]["uid"]
    refused(404, bench.get, widget())
    stored = bench.create(widget())
    bench.update({**stored, "spec": {**stored["spec"], "replicas": 9}}, dry_run=True)
    assert bench.get(widget())["spec"]["replicas"] == 1


def test_finalizers_hold_a_deletion_until_the_last_is_gone(bench, widget):
    body = widget()
    body["metadata"]["finalizers"] = ["example.dev/a", "example.dev/b"]
    made = bench.create(body)
    marked = delete(bench, made)
    assert not marked.gone
    assert marked.object["metadata"]["deletionTimestamp"] == timestamp(bench.now)
    assert delete(bench, made).object == marked.object, "a second delete changes nothing"
    left = bench.update(
        {
            **marked.object,
            "metadata": {**marked.object["metadata"], "finalizers": ["example.dev/b"]},
        }
    )
    assert bench.exists(made)
    bench.update({**left, "metadata": {**left["metadata"], "finalizers": []}})
    assert not bench.exists(made)


def test_no_finalizer_can_be_added_to_what_is_being_deleted(bench, widget):
    body = widget()
    body["metadata"]["finalizers"] = ["example.dev/a"]
    marked = delete(bench, bench.create(body)).object
    marked = {**marked, "metadata": {**marked["metadata"], "finalizers": ["example.dev/new"]}}
    assert "no new finalizers can be added" in refused(422, bench.update, marked).message


def test_delete_preconditions_are_checked(bench, widget):
    made = bench.create(widget())
    refused(409, delete, bench, made, uid="other")
    refused(409, delete, bench, made, resource_version="1")
    assert delete(bench, made, uid=made["metadata"]["uid"]).gone


def test_an_unbound_pod_is_deleted_at_once(bench, pod):
    made = bench.create(pod())
    assert delete(bench, made).gone
    assert not bench.exists(made)


def test_a_bound_pod_waits_for_its_kubelet(bench, pod):
    made = bench.create(pod(spec={"nodeName": "n1", "terminationGracePeriodSeconds": 7}))
    marked = delete(bench, made)
    assert not marked.gone
    assert marked.object["metadata"]["deletionGracePeriodSeconds"] == 7
    assert marked.object["metadata"]["deletionTimestamp"] == timestamp(bench.now + 7)
    assert delete(bench, made, grace_seconds=0).gone
    assert not bench.exists(made)


def test_the_time_to_stop_can_be_shortened_and_never_prolonged(bench, pod):
    made = bench.create(pod(spec={"nodeName": "n1"}))
    began = bench.now
    delete(bench, made, grace_seconds=20)
    longer = delete(bench, made, grace_seconds=60).object["metadata"]
    assert longer["deletionGracePeriodSeconds"] == 20
    bench.now += 8
    shorter = delete(bench, made, grace_seconds=3).object["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 3
    assert shorter["deletionTimestamp"] == timestamp(began + 3)


def test_a_finished_pod_is_deleted_at_once(bench, pod):
    made = bench.create(pod(spec={"nodeName": "n1"}))
    done = bench.update({**made, "status": {"phase": "Succeeded"}}, "status")
    assert delete(bench, done).gone


def test_the_kubelet_may_finish_a_pod_that_has_finalizers_only_after_they_are_gone(bench, pod):
    body = pod(spec={"nodeName": "n1"}, metadata={"finalizers": ["example.dev/a"]})
    made = bench.create(body)
    delete(bench, made)
    stopped = delete(bench, made, grace_seconds=0)
    assert not stopped.gone
    metadata = {**stopped.object["metadata"], "finalizers": []}
    bench.update({**stopped.object, "metadata": metadata})
    assert not bench.exists(made)


def test_default_namespaces_cannot_be_deleted(bench):
    home = bench.get({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    assert "may not be deleted" in refused(403, delete, bench, home).message


def test_a_pod_is_bound_once(bench, pod):
    bench.create(pod())
    bench.objects.bind("default", "p", {"target": {"name": "n1"}}, WriteOptions())
    bound = bench.get(pod())
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    target = {"target": {"name": "n2"}}
    refused(409, bench.objects.bind, "default", "p", target, WriteOptions())


def test_scale_reads_and_writes_the_paths_of_the_crd(bench, widget):
    made = bench.create(widget(replicas=2))
    bench.update({**made, "status": {"replicas": 1, "selector": "a=b"}}, "status")
    resource = bench.resource(made)
    scale = bench.objects.scale(resource, "default", "one")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    scale["spec"]["replicas"] = 5
    after = bench.objects.set_scale(resource, "default", "one", scale, WriteOptions())
    assert after["spec"]["replicas"] == 5
    assert bench.get(made)["metadata"]["generation"] == 2
    refused(409, bench.objects.set_scale, resource, "default", "one", scale, WriteOptions())


def test_scale_refuses_negative_numbers_and_what_the_rules_refuse(bench, widget):
    resource = bench.resource(bench.create(widget(min=2, replicas=2)))
    for replicas in (-1, 1):
        body = {"spec": {"replicas": replicas}}
        refused(422, bench.objects.set_scale, resource, "default", "one", body, WriteOptions())


def test_an_event_is_one_object_in_both_of_its_apis(bench):
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started",
        "message": "hello",
        "count": 2,
    }
    bench.create(event)
    new = bench.get({**event, "apiVersion": "events.k8s.io/v1"})
    assert (new["regarding"]["name"], new["note"], new["deprecatedCount"]) == ("p", "hello", 2)
    body = {**new, "note": "bye"}
    assert bench.update(body)["note"] == "bye"
    assert bench.get(event)["message"] == "bye"


def test_a_new_version_serves_the_objects_of_the_old_one(bench, widget, widget_crd):
    bench.create(widget())
    crd = bench.get(widget_crd)
    second = {**crd["spec"]["versions"][0], "name": "v2", "storage": False}
    bench.update({**crd, "spec": {**crd["spec"], "versions": [*crd["spec"]["versions"], second]}})
    new = bench.get({**widget(), "apiVersion": "example.dev/v2"})
    assert new["apiVersion"] == "example.dev/v2"
    bench.update({**new, "spec": {**new["spec"], "replicas": 4}})
    assert bench.get(widget())["spec"]["replicas"] == 4
