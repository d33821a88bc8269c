import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.kinds.models import builtin
from rekindle_local.apiserver.writes.ownership import apply_owned, leaves, track_update

PODS = builtin("", "v1", "Pod")


def config(**spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def apply(current, wanted, manager="me", force=False):
    return apply_owned(current, wanted, PODS, manager=manager, force=force, subresource="", now="t")


def container(name, **more):
    return {"name": name, **more}


def test_paths_know_fields_items_and_sets():
    obj = config(containers=[container("a", args=["x", "y"])])
    obj["metadata"]["finalizers"] = ["f"]
    paths = {path[1:] for path in leaves(obj, PODS)}
    item = ("f:containers", 'k:{"name":"a"}')
    assert paths == {item, (*item, "f:name"), (*item, "f:args"), ("f:finalizers", 'v:"f"')}


def test_an_apply_creates_and_owns_what_it_names():
    made = apply(None, config(hostname="h"))
    assert made["metadata"]["managedFields"] == [
        {
            "manager": "me",
            "operation": "Apply",
            "apiVersion": "v1",
            "time": "t",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:hostname": {}}},
        }
    ]


def test_a_field_no_longer_applied_is_removed_and_others_stay():
    first = apply(None, config(hostname="h", subdomain="s"))
    assert apply(first, config(hostname="h"))["spec"] == {"hostname": "h"}


def test_items_are_merged_by_key_and_removed_whole():
    first = apply(None, config(containers=[container("a", image="1"), container("b", image="1")]))
    assert apply(first, config(containers=[container("a", image="2")]))["spec"]["containers"] == [
        {"name": "a", "image": "2"}
    ]


def test_a_field_of_another_manager_is_a_conflict_unless_forced():
    first = apply(None, config(hostname="h"), "first")
    with pytest.raises(
        ApiError, match=r'conflict with "first" using v1: \.spec\.hostname'
    ) as error:
        apply(first, config(hostname="x"), "second")
    assert error.value.code == 409
    assert error.value.details["causes"][0]["reason"] == "FieldManagerConflict"
    forced = apply(first, config(hostname="x"), "second", force=True)
    assert [entry["manager"] for entry in forced["metadata"]["managedFields"]] == ["second"]


def test_equal_values_are_owned_together_and_live_while_one_owner_names_them():
    first = apply(None, config(hostname="h"), "first")
    both = apply(first, config(hostname="h", subdomain="s"), "second")
    without = apply(both, config(subdomain="s"), "second")
    assert without["spec"] == {"hostname": "h", "subdomain": "s"}
    assert apply(without, config(), "first")["spec"] == {"subdomain": "s"}


def test_a_plain_update_takes_over_what_it_changes():
    first = apply(None, config(hostname="h", subdomain="s"))
    new = {**first, "spec": {**first["spec"], "hostname": "x"}}
    fields = track_update(first, new, PODS, manager="scaler", subresource="", now="t")
    owned = {entry["manager"]: entry["fieldsV1"] for entry in fields}
    assert owned == {
        "me": {"f:spec": {"f:subdomain": {}}},
        "scaler": {"f:spec": {"f:hostname": {}}},
    }
    new["metadata"] = {**new["metadata"], "managedFields": fields}
    with pytest.raises(ApiError, match='conflict with "scaler"'):
        apply(new, config(hostname="h", subdomain="s"))


def test_what_existed_before_the_first_apply_has_an_owner_too():
    existing = config(hostname="h")
    existing["metadata"]["creationTimestamp"] = "t0"
    with pytest.raises(ApiError, match="before-first-apply"):
        apply(existing, config(hostname="x"))
    assert apply(existing, config(subdomain="s"))["spec"] == {"hostname": "h", "subdomain": "s"}


def test_the_default_protocol_is_part_of_the_key_of_a_port():
    ports = [{"containerPort": 80}]
    first = apply(None, config(containers=[container("a", ports=ports)]))
    first["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP"
    again = apply(first, config(containers=[container("a", ports=ports)]))
    assert again["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
