"""`tests/checklist.md` names a test for every promise of the trainer; here it is kept true.

That each named test ran and passed is looked at when a run of the whole suite ends (conftest.py).
"""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).parent / "checklist.md"
ITEMS = [str(n) for n in range(1, 84)] + [f"R{n}" for n in range(1, 27)] + ["R12b"]


def rows() -> dict[str, list[str]]:
    """Item -> the tests that show it, as `file::function`."""
    found: dict[str, list[str]] = {}
    for line in TABLE.read_text().splitlines():
        if match := re.match(r"\| (R?\d+b?) \|", line):
            assert match[1] not in found, f"{match[1]} has two rows"
            found[match[1]] = re.findall(r"`(tests/[\w/.]+::\w+)`", line)
    return found


@cache
def functions(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(), re.MULTILINE))


def test_every_item_names_a_test():
    found = rows()
    assert sorted(found, key=ITEMS.index) == ITEMS
    assert not [item for item, tests in found.items() if not tests]


def test_every_named_test_exists():
    for item, tests in rows().items():
        for path, _, name in (test.partition("::") for test in tests):
            assert (ROOT / path).is_file(), f"{item}: there is no {path}"
            assert name in functions(path), f"{item}: {path} has no {name}"
