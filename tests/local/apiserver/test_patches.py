import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.kinds.models import builtin
from rekindle_local.apiserver.writes.patches import json_patch, merge_patch, strategic_merge_patch


def strategic(document, patch, kind="Pod"):
    schema = builtin("", "v1", kind)
    return strategic_merge_patch(document, patch, schema.root, schema.resolve)


def pod(**spec):
    return {"spec": spec}


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([{"op": "add", "path": "/b", "value": 2}], {"a": {"x": 1}, "l": [1, 2], "b": 2}),
        ([{"op": "add", "path": "/l/-", "value": 3}], {"a": {"x": 1}, "l": [1, 2, 3]}),
        ([{"op": "add", "path": "/l/0", "value": 0}], {"a": {"x": 1}, "l": [0, 1, 2]}),
        ([{"op": "remove", "path": "/l/0"}], {"a": {"x": 1}, "l": [2]}),
        ([{"op": "replace", "path": "/a/x", "value": 5}], {"a": {"x": 5}, "l": [1, 2]}),
        ([{"op": "move", "from": "/a/x", "path": "/y"}], {"a": {}, "l": [1, 2], "y": 1}),
        ([{"op": "copy", "from": "/l", "path": "/m"}], {"a": {"x": 1}, "l": [1, 2], "m": [1, 2]}),
        ([{"op": "test", "path": "/a/x", "value": 1}], {"a": {"x": 1}, "l": [1, 2]}),
        ([{"op": "add", "path": "/a~1b~0c", "value": 1}], {"a": {"x": 1}, "l": [1, 2], "a/b~c": 1}),
    ],
)
def test_json_patch_follows_the_rfc(operations, expected):
    document = {"a": {"x": 1}, "l": [1, 2]}
    assert json_patch(document, operations) == expected
    assert document == {"a": {"x": 1}, "l": [1, 2]}, "the document itself must not change"


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "test", "path": "/a", "value": 2}, 422),
        ({"op": "test", "path": "/missing", "value": 2}, 422),
        ({"op": "remove", "path": "/missing"}, 422),
        ({"op": "replace", "path": "/missing", "value": 1}, 422),
        ({"op": "add", "path": "/missing/deep", "value": 1}, 422),
        ({"op": "add", "path": "a", "value": 1}, 400),
        ({"op": "add", "path": "/a"}, 400),
        ({"op": "jump", "path": "/a"}, 400),
        ({"path": "/a"}, 400),
    ],
)
def test_json_patch_tells_malformed_from_not_applicable(operation, code):
    with pytest.raises(ApiError) as refusal:
        json_patch({"a": 1}, [operation])
    assert refusal.value.code == code


def test_merge_patch_merges_objects_removes_nulls_and_replaces_lists():
    patched = merge_patch({"a": {"x": 1, "y": 2}, "l": [1]}, {"a": {"x": None, "z": 3}, "l": [2]})
    assert patched == {"a": {"y": 2, "z": 3}, "l": [2]}


def test_strategic_merge_merges_containers_by_name_and_appends_new_ones():
    document = pod(containers=[{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}])
    patch = pod(
        containers=[
            {"name": "a", "env": [{"name": "Y", "value": "2"}]},
            {"name": "b", "image": "2"},
        ]
    )
    first, second = strategic(document, patch)["spec"]["containers"]
    assert first["image"] == "1"
    assert [item["name"] for item in first["env"]] == ["X", "Y"]
    assert second["name"] == "b"


def test_strategic_merge_replaces_lists_without_a_merge_key():
    document = pod(tolerations=[{"key": "a"}], containers=[{"name": "c", "args": ["x", "y"]}])
    patched = strategic(document, pod(containers=[{"name": "c", "args": ["z"]}]))
    assert patched["spec"]["containers"][0]["args"] == ["z"]
    assert strategic(document, pod(tolerations=[]))["spec"]["tolerations"] == []


def test_strategic_merge_deletes_an_item_on_request():
    document = pod(volumes=[{"name": "a"}, {"name": "b"}])
    patched = strategic(document, pod(volumes=[{"name": "a", "$patch": "delete"}]))
    assert patched["spec"]["volumes"] == [{"name": "b"}]


def test_strategic_merge_replaces_a_whole_list_or_map_on_request():
    document = {"metadata": {"labels": {"a": "1"}}, "spec": {"volumes": [{"name": "a"}]}}
    patch = {
        "metadata": {"labels": {"$patch": "replace", "b": "2"}},
        "spec": {"volumes": [{"$patch": "replace"}, {"name": "b"}]},
    }
    patched = strategic(document, patch)
    assert patched["metadata"]["labels"] == {"b": "2"}
    assert patched["spec"]["volumes"] == [{"name": "b"}]


def test_strategic_merge_treats_finalizers_as_a_set():
    document = {"metadata": {"finalizers": ["a", "b"]}}
    assert strategic(document, {"metadata": {"finalizers": ["b", "c"]}}) == {
        "metadata": {"finalizers": ["a", "b", "c"]}
    }
    removed = strategic(document, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})
    assert removed == {"metadata": {"finalizers": ["b"]}}


def test_strategic_merge_puts_items_into_the_order_that_the_patch_asks_for():
    document = pod(volumes=[{"name": "a"}, {"name": "server"}, {"name": "b"}])
    order = [{"name": "b"}, {"name": "a"}]
    patched = strategic(document, {"spec": {"$setElementOrder/volumes": order}})
    assert [item["name"] for item in patched["spec"]["volumes"]] == ["b", "server", "a"]


def test_strategic_merge_retains_only_the_named_keys():
    document = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    patch = {
        "spec": {
            "volumes": [
                {"name": "v", "configMap": {"name": "c"}, "$retainKeys": ["name", "configMap"]}
            ]
        }
    }
    assert strategic(document, patch)["spec"]["volumes"] == [
        {"name": "v", "configMap": {"name": "c"}}
    ]


def test_strategic_merge_merges_conditions_by_type_and_taints_as_a_whole():
    node = {"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Disk"}]}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    patched = strategic(node, patch, "Node")
    assert patched["status"]["conditions"] == [
        {"type": "Ready", "status": "False"},
        {"type": "Disk"},
    ]
    taints = {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}
    added = {"spec": {"taints": [{"key": "b", "effect": "NoSchedule"}]}}
    assert strategic(taints, added, "Node") == added


@pytest.mark.parametrize(
    "patch",
    [{"$patch": "explode"}, {"spec": {"containers": [{"image": "no name"}]}}],
)
def test_strategic_merge_refuses_what_it_cannot_place(patch):
    with pytest.raises(ApiError) as refusal:
        strategic(pod(containers=[]), patch)
    assert refusal.value.code == 400
