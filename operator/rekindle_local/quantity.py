"""Resource quantities: `500m` of a CPU, `64Mi` of memory.

Exact arithmetic on `Fraction`, because `0.1` of a CPU three times is not `0.3` in floating point
and a scheduler that compares sums must not lose a pod to rounding.
"""

import re
from fractions import Fraction
from functools import lru_cache

_SUFFIX = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000) ** n for n, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{unit: Fraction(1024) ** n for n, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_SHAPE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([A-Za-z]{0,2}))")


def parse_quantity(value: object) -> Fraction:
    """The exact value of a quantity; raises ValueError with the text that is not one."""
    return _parse(str(value).strip())


@lru_cache(maxsize=1024)  # the scheduler reads the same few again and again
def _parse(value: str) -> Fraction:
    match = _SHAPE.fullmatch(value)
    if match is None or (match[3] or "") not in _SUFFIX:
        raise ValueError(f"{value!r} is not a quantity: write a number such as 500m, 2 or 64Mi")
    number = Fraction(match[1])
    if match[2]:
        return number * Fraction(10) ** int(match[2][1:])
    return number * _SUFFIX[match[3] or ""]


def ceil_div(value: Fraction, divisor: Fraction) -> int:
    """`value / divisor` rounded up, as resourceFieldRef rounds."""
    return -((-value) // divisor)


_DECIMAL = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def canonical(value: object) -> str:
    """The text by which an API server writes a quantity back: `0.5` is `500m`, `1024Mi` is `1Gi`.

    The family of units stays, and of those that need no fraction the largest is taken; nothing is
    smaller than a billionth. Raises ValueError.
    """
    text = str(value).strip()
    number = parse_quantity(text)
    if number == 0:
        return "0"
    if re.search(r"[eE][+-]?\d+$", text):
        return text
    if text.endswith("i") and number.denominator == 1 and abs(number) >= 1024:
        return _largest(int(number), 1024, _BINARY)
    return _largest(ceil_div(number * 10**9, Fraction(1)), 1000, _DECIMAL)


def _largest(number: int, base: int, units: tuple[str, ...]) -> str:
    at = 0
    while at + 1 < len(units) and number % base == 0:
        number, at = number // base, at + 1
    return f"{number}{units[at]}"
