"""Which commits count: the reader's rule that makes zombies harmless."""

import pytest

from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.lineage import garbage, live_line


def ref(text: str) -> CommitRef:
    step, fence = text.split("@")
    return CommitRef(step=int(step), fence=int(fence))


def refs(text: str) -> list[CommitRef]:
    return [ref(item) for item in text.split()]


@pytest.mark.parametrize(
    ("case", "commits", "bases", "expected"),
    [
        ("no commit", "", {}, ""),
        ("one attempt", "100@1 300@1 200@1", {}, "300@1 200@1 100@1"),
        ("two attempts", "100@1 200@1 300@2", {2: "200@1"}, "300@2 200@1 100@1"),
        (
            "a zombie that runs ahead",
            "7400@3 8000@3 7500@4",
            {4: "7400@3"},
            "7500@4 7400@3",
        ),
        ("a zombie before the newer attempt commits", "7400@3 8000@3", {}, "8000@3 7400@3"),
        ("a deliberate rollback", "100@1 200@1 300@1 150@2", {2: "100@1"}, "150@2 100@1"),
        ("the same step again", "100@1 100@2", {2: "100@1"}, "100@2 100@1"),
        ("an attempt from nothing", "100@1 200@1 50@2", {2: None}, "50@2"),
        (
            "an attempt in between that nobody continued",
            "100@1 150@2 200@3",
            {2: "100@1", 3: "100@1"},
            "200@3 100@1",
        ),
        (
            "three attempts in a row",
            "10@1 20@1 30@2 40@2 50@3",
            {2: "10@1", 3: "30@2"},
            "50@3 30@2 10@1",
        ),
        ("a base that retention removed", "10@1 50@3", {3: "30@2"}, "50@3"),
    ],
)
def test_the_live_line(case, commits, bases, expected):
    def base_of(own):
        base = bases[own[0].fence]
        return None if base is None else ref(base)

    assert live_line(refs(commits), base_of) == refs(expected), case


def test_garbage_is_what_can_never_count_again():
    groups = refs("10@1 20@1 30@2 35@2 40@2 50@2 60@3 20@3")
    found = garbage(groups, committed=refs("40@2 30@2 10@1"), newest=ref("40@2"))
    # Not 50@2, which may be on its way, and nothing of fence 3, which has replaced us.
    assert found == refs("20@1 35@2")
