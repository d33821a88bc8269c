import pytest

from rekindle_local.apiserver.schemas.rules import check, compile_rules, parse_quantity


def rules(rule, properties=None, **more):
    node = {
        "type": "object",
        "properties": properties or {},
        "x-kubernetes-validations": [{"rule": rule, **more}],
    }
    compiled, causes = compile_rules(node, "schema")
    assert causes == []
    return compiled


def texts(compiled, value, old=None):
    return [f"{cause.field}: {cause.message}" for cause in check(compiled, value, old)]


NUMBER = {"type": "integer"}
TEXT = {"type": "string"}


def test_a_rule_that_holds_says_nothing_and_one_that_does_not_says_its_message():
    compiled = rules("self.a <= self.b", {"a": NUMBER, "b": NUMBER}, message="a is above b")
    assert texts(compiled, {"a": 1, "b": 2}) == []
    assert texts(compiled, {"a": 3, "b": 2}) == [': Invalid value: "object": a is above b']


def test_a_rule_without_message_shows_itself():
    compiled = rules("self.a > 1", {"a": NUMBER})
    assert "failed rule: self.a > 1" in texts(compiled, {"a": 1})[0]


def test_a_message_expression_is_evaluated_and_a_broken_one_falls_back():
    shape = {"a": NUMBER}
    compiled = rules("self.a < 3", shape, messageExpression="'got ' + string(self.a)")
    assert "got 7" in texts(compiled, {"a": 7})[0]
    broken = rules("self.a < 3", shape, messageExpression="self.nothing", message="too big")
    assert "too big" in texts(broken, {"a": 7})[0]


def test_field_path_and_reason_shape_the_cause():
    compiled = rules("has(self.a)", {"a": NUMBER}, fieldPath=".a", reason="FieldValueRequired")
    [cause] = check(compiled, {})
    assert (cause.field, cause.reason) == ("a", "FieldValueRequired")
    assert cause.message.startswith("Required value")


def test_a_transition_rule_is_checked_on_updates_only():
    compiled = rules("self.a == oldSelf.a", {"a": NUMBER}, message="immutable")
    assert texts(compiled, {"a": 1}) == []
    assert texts(compiled, {"a": 1}, {"a": 1}) == []
    assert "immutable" in texts(compiled, {"a": 2}, {"a": 1})[0]


def test_what_an_update_leaves_alone_is_not_checked_again():
    shape = {"a": {**NUMBER, "x-kubernetes-validations": [{"rule": "self > 5"}]}, "b": NUMBER}
    compiled = rules("self.b > 0", shape)
    assert texts(compiled, {"a": 1, "b": 2}, {"a": 1, "b": 1}) == []
    assert "self > 5" in texts(compiled, {"a": 2, "b": 1}, {"a": 1, "b": 1})[0]
    increasing = rules("self.a > oldSelf.a", {"a": NUMBER}, message="must grow")
    assert "must grow" in texts(increasing, {"a": 1}, {"a": 1})[0]


def test_an_optional_old_value_lets_a_transition_rule_see_creation():
    compiled = rules(
        "oldSelf.hasValue() || self.a == 0", {"a": NUMBER}, optionalOldSelf=True, message="from 0"
    )
    assert texts(compiled, {"a": 0}) == []
    assert "from 0" in texts(compiled, {"a": 5})[0]
    assert texts(compiled, {"a": 5}, {"a": 0}) == []


def test_items_of_map_lists_are_compared_with_the_item_of_the_same_key():
    items = {
        "type": "object",
        "properties": {"name": TEXT, "size": NUMBER},
        "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size", "message": "no"}],
    }
    node = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": items,
    }
    compiled, causes = compile_rules(node, "x")
    assert causes == []
    old = [{"name": "a", "size": 1}, {"name": "b", "size": 9}]
    found = texts(compiled, [{"name": "b", "size": 2}, {"name": "a", "size": 1}], old)
    assert found == ['[0]: Invalid value: "object": no']


def test_old_values_below_an_atomic_list_cannot_be_found_and_the_rule_is_refused():
    items = {**TEXT, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}
    _, causes = compile_rules({"type": "array", "items": items}, "x")
    assert "uncorrelatable" in causes[0].message


@pytest.mark.parametrize(
    "rule",
    [
        "self.a +",
        "nothing > 1",
        "undefined(self.a)",
        "self.a + 1",
        "ip('1.2.3.4').family() == 4",
        "",
    ],
)
def test_a_rule_that_does_not_compile_is_named(rule):
    node = {"type": "object", "x-kubernetes-validations": [{"rule": rule}]}
    _, causes = compile_rules(node, "schema")
    assert causes[0].field == "schema.x-kubernetes-validations[0].rule"


def test_a_date_compared_as_a_date_without_conversion_is_refused_not_passed():
    shape = {"t": {"type": "string", "format": "date-time"}}
    compiled = rules("self.t < timestamp('2027-01-01T00:00:00Z')", shape)
    assert "evaluation failed" in texts(compiled, {"t": "2026-01-01T00:00:00Z"})[0]


def test_a_rule_that_fails_when_evaluated_is_a_refusal_not_a_pass():
    compiled = rules("self.missing == 1", {"a": NUMBER})
    assert "evaluation failed" in texts(compiled, {"a": 1})[0]


@pytest.mark.parametrize(
    "rule",
    [
        "self.n.isSorted()",
        "self.n.sum() == 6",
        "self.n.min() == 1 && self.n.max() == 3",
        "self.s.find('[0-9]+') == '42'",
        "self.s.findAll('[a-z]+', 1) == ['a']",
        "isURL(self.u) && url(self.u).getScheme() == 's3' && url(self.u).getHost() == 'bucket'",
        "url(self.u).getEscapedPath() == '/key' && url(self.u).getPort() == ''",
        "quantity(self.q).isGreaterThan(quantity('1Mi')) && isQuantity(self.q)",
        "quantity('1500m').add(quantity('0.5')).compareTo(quantity('2')) == 0",
        "!isQuantity('x')",
        "self.n.exists_one(i, i == 2) && self.n.map(i, i * 2).sum() == 12",
        "self.s.split('-').size() == 2 && self.s.lowerAscii() == self.s",
        "self.f > 1.0 && duration(self.d) == duration('90s')",
        "timestamp(self.t) < timestamp('2027-01-01T00:00:00Z')",
        "self.__namespace__ == 'x' && self.dash__dash__ed == 1",
        "self.?absent.orValue(5) == 5",
        "cel.bind(x, self.n[0], x == 1)",
        "math.greatest(self.n) == 3",
    ],
)
def test_kubernetes_functions_and_conversions_work(rule):
    properties = {
        "n": {"type": "array", "items": NUMBER},
        "s": TEXT,
        "u": TEXT,
        "q": TEXT,
        "f": {"type": "number"},
        "d": {"type": "string", "format": "duration"},
        "t": {"type": "string", "format": "date-time"},
        "namespace": TEXT,
        "dash-ed": NUMBER,
    }
    value = {
        "n": [1, 2, 3],
        "s": "a-42",
        "u": "s3://bucket/key",
        "q": "1Gi",
        "f": 2,
        "d": "1m30s",
        "t": "2026-01-01T00:00:00Z",
        "namespace": "x",
        "dash-ed": 1,
    }
    assert texts(rules(rule, properties), value) == []
    assert texts(rules(f"!({rule})", properties), value) != []


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("500m", 0.5), ("1Ki", 1024), ("1.5Gi", 1.5 * 2**30), ("2e3", 2000), ("3M", 3e6)],
)
def test_quantities_are_numbers(text, value):
    assert float(parse_quantity(text)) == value
