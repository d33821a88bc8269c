from fractions import Fraction

import pytest

from rekindle_local.quantity import canonical, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        (2, 2),
        ("500m", Fraction(1, 2)),
        ("1.5", Fraction(3, 2)),
        ("64Mi", 64 << 20),
        ("1G", 10**9),
        ("1e3", 1000),
        ("12E", 12 * 10**18),
        ("-1k", -1000),
    ],
)
def test_quantities_are_exact(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "abc", "1KB", "--1", "1.2.3"])
def test_what_is_no_quantity_is_named(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1, "1"),
        (1.5, "1500m"),
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1000", "1k"),
        (1073741824, "1073741824"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.1Gi", "107374182400m"),
        ("1Ki", "1Ki"),
        ("1e3", "1e3"),
        ("0.00000000001", "1n"),
        ("0Mi", "0"),
        ("-1", "-1"),
    ],
)
def test_quantities_are_written_back_in_one_form(given, kept):
    assert canonical(given) == kept
