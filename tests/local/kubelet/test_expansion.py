import pytest

from rekindle_local.kubelet.expansion import expand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)-$(B)y", "x1-twoy"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("100$", "100$"),
        ("$()", "$()"),
        ("$(NESTED)", "$(A)"),
    ],
)
def test_references_are_expanded_as_kubernetes_defines_it(text, expected):
    assert expand(text, {"A": "1", "B": "two", "NESTED": "$(A)"}) == expected
