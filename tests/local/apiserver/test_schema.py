import pytest

from rekindle_local.apiserver.schemas.schema import (
    Schema,
    check_structural,
    fill_defaults,
    prune,
    validate,
)

OBJECT = {"type": "object"}


def schema(**properties):
    return Schema(root={"type": "object", "properties": properties})


def messages(value, **properties):
    return [f"{cause.field}: {cause.message}" for cause in validate(value, schema(**properties))]


def test_unknown_fields_are_pruned_at_every_depth_and_named():
    shape = schema(
        a={"type": "object", "properties": {"b": {"type": "string"}}},
        l={"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
    )
    unknown = []
    value = {"a": {"b": "x", "c": 1}, "l": [{"k": "v"}, {"z": 1}], "q": {}}
    assert prune(value, shape, unknown=unknown) == {"a": {"b": "x"}, "l": [{"k": "v"}, {}]}
    assert unknown == ["a.c", "l[1].z", "q"]


def test_an_object_that_preserves_unknown_fields_keeps_them_and_prunes_below_what_it_knows():
    inner = {"type": "object", "properties": {"x": {"type": "string"}}}
    shape = schema(
        free={
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {"known": inner},
        }
    )
    value = {"free": {"any": [1, {"deep": True}], "known": {"x": "1", "y": "2"}}}
    assert prune(value, shape) == {
        "free": {"any": [1, {"deep": True}], "known": {"x": "1"}},
    }


def test_an_object_without_properties_keeps_nothing():
    assert prune({"a": {"b": 1}}, schema(a=OBJECT)) == {"a": {}}


def test_a_map_keeps_all_its_keys():
    shape = schema(m={"type": "object", "additionalProperties": {"type": "string"}})
    assert prune({"m": {"anything": "x"}}, shape) == {"m": {"anything": "x"}}


def test_defaults_are_filled_where_their_parent_exists():
    shape = schema(
        a={"type": "object", "properties": {"n": {"type": "integer", "default": 3}}},
        l={"type": "array", "items": {"properties": {"s": {"default": "x"}}}},
        m={"type": "object", "additionalProperties": {"properties": {"d": {"default": 1}}}},
        top={"type": "object", "default": {}, "properties": {"deep": {"default": True}}},
    )
    assert fill_defaults({"a": {}, "l": [{}], "m": {"k": {}}}, shape) == {
        "a": {"n": 3},
        "l": [{"s": "x"}],
        "m": {"k": {"d": 1}},
        "top": {"deep": True},
    }
    assert "a" not in fill_defaults({}, shape)


def test_a_null_is_kept_when_nullable_defaulted_when_not_and_else_dropped():
    shape = schema(
        kept={"type": "string", "nullable": True, "default": "x"},
        filled={"type": "string", "default": "x"},
        dropped={"type": "string"},
    )
    value = {"kept": None, "filled": None, "dropped": None}
    assert fill_defaults(value, shape) == {"kept": None, "filled": "x"}


@pytest.mark.parametrize(
    ("shape", "good", "bad", "message"),
    [
        ({"type": "integer"}, 3, "x", 'must be of type integer: "string"'),
        ({"type": "integer"}, 3.0, 3.5, "must be of type integer"),
        ({"type": "number"}, 3, True, "must be of type number"),
        ({"type": "string"}, "x", 1, "must be of type string"),
        ({"type": "boolean"}, False, 0, "must be of type boolean"),
        ({"type": "object"}, {}, [], "must be of type object"),
        ({"type": "array", "items": {}}, [], {}, "must be of type array"),
        ({"type": "string", "enum": ["a", "b"]}, "a", "c", 'supported values: "a", "b"'),
        ({"type": "integer", "minimum": 1}, 1, 0, "should be greater than or equal to 1"),
        ({"type": "integer", "maximum": 1}, 1, 2, "should be less than or equal to 1"),
        (
            {"type": "number", "minimum": 0, "exclusiveMinimum": True},
            0.1,
            0,
            "should be greater than 0",
        ),
        ({"type": "integer", "multipleOf": 4}, 8, 6, "should be a multiple of 4"),
        ({"type": "integer", "format": "int32"}, 2**31 - 1, 2**31, "must be of type int32"),
        ({"type": "string", "minLength": 2}, "ab", "a", "at least 2 chars long"),
        ({"type": "string", "maxLength": 2}, "ab", "abc", "may not be more than 2 bytes"),
        ({"type": "string", "pattern": "^a+$"}, "aa", "aab", "should match '^a+$'"),
        ({"type": "string", "pattern": "^a$"}, "a", "a\n", "should match"),
        ({"type": "string", "format": "date-time"}, "2026-01-01T00:00:00Z", "today", "date-time"),
        ({"type": "string", "format": "duration"}, "1h30m", "1 hour", "duration"),
        ({"type": "string", "format": "ipv4"}, "1.2.3.4", "1.2.3", "ipv4"),
        ({"type": "array", "items": {}, "maxItems": 1}, [1], [1, 2], "must have at most 1 items"),
        ({"type": "array", "items": {}, "minItems": 1}, [1], [], "should have at least 1 items"),
        ({"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}, "at most 1"),
        ({"type": "object", "required": ["a"]}, {"a": 1}, {}, "Required value"),
        ({"x-kubernetes-int-or-string": True}, "5%", 1.5, "integer,string"),
        ({"type": "string", "nullable": True}, None, 1, "must be of type string"),
        ({"type": "string"}, "x", None, 'must be of type string: "null"'),
        (
            {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {"a": 1},
            {"a": 1, "b": 2},
            "one and only one",
        ),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, {"a": 1}, {}, "at least one schema"),
        ({"type": "integer", "not": {"enum": [3]}}, 4, 3, "must not validate"),
        (
            {"type": "array", "items": {}, "x-kubernetes-list-type": "set"},
            ["a"],
            ["a", "a"],
            'Duplicate value: "a"',
        ),
    ],
)
def test_each_keyword_accepts_and_refuses(shape, good, bad, message):
    assert messages({"f": good}, f=shape) == []
    [found] = messages({"f": bad}, f=shape)
    assert found.startswith("f")
    assert message in found


def test_items_of_a_map_list_must_differ_in_their_keys():
    shape = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    [found] = messages({"l": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, l=shape)
    assert found == 'l[2]: Duplicate value: {"name": "a"}'


def test_paths_name_the_place_in_lists_and_maps():
    number = {"type": "integer"}
    item = {"type": "object", "properties": {"n": number}}
    found = messages(
        {"l": [{"n": 1}, {"n": "x"}], "m": {"k": "y"}},
        l={"type": "array", "items": item},
        m={"type": "object", "additionalProperties": number},
    )
    assert [text.partition(":")[0] for text in found] == ["l[1].n", "m.k"]


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        ({"type": "object", "properties": {"a": {}}}, "properties[a].type: Required value"),
        ({"type": "array"}, "root.type: Invalid value"),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, "items: Required value"),
        ({"type": "object", "properties": {"a": {"type": "map"}}}, "Unsupported value"),
        ({"type": "object", "$ref": "#/x"}, "$ref is not supported"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
            "must be a valid regular expression",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}},
            "properties[a].default",
        ),
        (
            {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
            "mutual exclusive",
        ),
        (
            {
                "type": "object",
                "properties": {
                    "l": {
                        "type": "array",
                        "items": {"type": "object"},
                        "x-kubernetes-list-type": "map",
                    }
                },
            },
            "x-kubernetes-list-map-keys: Required value",
        ),
        (
            {"type": "object", "anyOf": [{"description": "no"}]},
            "must be empty to be structural",
        ),
    ],
)
def test_a_schema_that_is_not_structural_is_refused(node, complaint):
    texts = [f"{c.field}: {c.message}" for c in check_structural(node, "root", root=True)]
    assert any(complaint in text for text in texts), texts


def test_the_widget_schema_is_structural(widget_crd):
    node = widget_crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert check_structural(node, "root", root=True) == []
