"""Which checkpoints stay: the rules one by one, and what holds for any policy."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.retention import Best, Candidate, Retention, kept, metrics_of

pytestmark = pytest.mark.sweep


def ref(text: str) -> CommitRef:
    step, fence = text.split("@")
    return CommitRef(step=int(step), fence=int(fence))


def refs(text: str) -> set[CommitRef]:
    return {ref(item) for item in text.split()}


def line(text: str, bad: str = "", others: str = "") -> list[Candidate]:
    return [
        Candidate(ref=one, good=one not in refs(bad), on_line=one not in refs(others))
        for one in refs(f"{text} {others}")
    ]


@pytest.mark.parametrize(
    ("latest", "bad", "expected"),
    [
        (1, "", "40@2"),
        (2, "", "40@2 30@2"),
        (9, "", "40@2 30@2 20@1 10@1"),
        (2, "40@2", "40@2 30@2 20@1"),
        (1, "40@2 30@2", "40@2 30@2 20@1"),
        (1, "10@1 20@1 30@2 40@2", "10@1 20@1 30@2 40@2"),
    ],
)
def test_latest_counts_good_ones(latest, bad, expected):
    commits = line("40@2 30@2 20@1 10@1", bad)
    assert kept(commits, Retention(latest=latest)) == refs(expected)


def test_commits_off_the_line_go_first():
    commits = line("40@2 30@2", others="900@1 800@1")
    assert kept(commits, Retention(latest=3)) == refs("40@2 30@2 900@1")
    assert kept(commits, Retention(latest=2)) == refs("40@2 30@2")


def test_best_keeps_the_best_values_and_the_later_of_equal_ones():
    values = {10: 0.3, 20: 0.9, 30: 0.9, 40: float("nan"), 50: 0.1}
    commits = [
        Candidate(ref=CommitRef(step=s, fence=1), metrics=metrics_of({"metrics": {"f1": v}}))
        for s, v in values.items()
    ]
    highest = Retention(latest=1, best=(Best(metric="f1", mode="max"),))
    assert kept(commits, highest) == refs("50@1 30@1")
    lowest = Retention(latest=1, best=(Best(metric="f1", mode="min", count=2),))
    assert kept(commits, lowest) == refs("50@1 10@1")
    assert kept(commits, Retention(latest=1, best=(Best(metric="acc", mode="min"),))) == refs(
        "50@1"
    )


def test_a_damaged_commit_is_never_the_best():
    commits = [
        Candidate(ref=ref("10@1"), metrics={"f1": 1.0}, good=False),
        Candidate(ref=ref("20@1"), metrics={"f1": 0.5}),
        Candidate(ref=ref("30@1"), metrics={"f1": 0.4}),
    ]
    policy = Retention(latest=1, best=(Best(metric="f1", mode="max"),))
    assert kept(commits, policy) == refs("20@1 30@1")


def test_every_keeps_multiples_for_ever_also_off_the_line():
    commits = line("45@3 40@3", others="35@1 30@1 20@1 10@1")
    assert kept(commits, Retention(latest=1, every=20)) == refs("45@3 40@3 20@1")


def test_hourly_keeps_the_last_of_each_hour():
    commits = [
        Candidate(ref=CommitRef(step=step, fence=1), created=3600.0 * hour)
        for step, hour in [(1, 1.0), (2, 1.9), (3, 2.1), (4, 5.0), (5, 5.5), (6, 5.9)]
    ]
    assert kept(commits, Retention(latest=1, hourly=2)) == refs("6@1 3@1")
    assert kept(commits, Retention(latest=1, hourly=9)) == refs("6@1 3@1 2@1")


def test_pins_and_what_was_restored_stay():
    commits = line("40@2 30@2 20@1 10@1")
    found = kept(commits, Retention(latest=1), refs("10@1 77@7"), restored=ref("20@1"))
    assert found == refs("40@2 20@1 10@1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"latest": 0}, "keep_latest is 0"),
        ({"every": 0}, "every is 0"),
        ({"hourly": -1}, "hourly is -1"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        Retention(**change)


@pytest.mark.parametrize(
    "change", [{"metric": ""}, {"metric": "a", "mode": "maximum"}, {"metric": "a", "count": 0}]
)
def test_a_best_rule_that_means_nothing_is_refused(change):
    with pytest.raises(ValueError, match="need the name of a logged metric"):
        Best(**{"mode": "max", **change})


def test_metrics_are_finite_numbers():
    found = {"a": 1, "b": True, "c": "2", "d": float("inf"), "e": 10**400, "f": 0.5, 3: 1.5}
    assert metrics_of({"metrics": found}) == {"a": 1.0, "f": 0.5, "3": 1.5}
    assert metrics_of({"metrics": [1]}) == metrics_of({}) == {}


def test_a_policy_comes_back_from_json():
    policy = Retention(latest=2, best=(Best(metric="f1", mode="max", count=3),), every=7, hourly=4)
    assert Retention.from_json(policy.to_json()) == policy


refs_ = st.builds(CommitRef, step=st.integers(0, 60), fence=st.integers(1, 4))
candidates_ = st.lists(
    st.builds(
        Candidate,
        ref=refs_,
        created=st.floats(0, 40_000),
        metrics=st.dictionaries(st.sampled_from("ab"), st.floats(-1, 1), max_size=2),
        good=st.booleans(),
        on_line=st.booleans(),
    ),
    max_size=25,
    unique_by=lambda one: one.ref,
)
policies_ = st.builds(
    Retention,
    latest=st.integers(1, 5),
    best=st.lists(
        st.builds(
            Best,
            metric=st.sampled_from("ab"),
            mode=st.sampled_from(["min", "max"]),
            count=st.integers(1, 3),
        ),
        max_size=2,
    ).map(tuple),
    every=st.none() | st.integers(1, 20),
    hourly=st.integers(0, 4),
)
pins_ = st.frozensets(refs_, max_size=3)


@settings(max_examples=300)
@given(candidates_, policies_, pins_, st.none() | refs_)
def test_what_holds_for_every_policy(commits, policy, pins, restored):
    stays = kept(commits, policy, pins, restored=restored)
    by_ref = {one.ref: one for one in commits}
    assert stays <= set(by_ref)
    assert (pins | {restored}) & set(by_ref) <= stays
    good = [one for one in commits if one.good]
    newest = max(good, key=lambda c: (c.on_line, c.ref if c.on_line else (0, 0)), default=None)
    if newest is not None and newest.on_line:
        assert newest.ref in stays
    assert not good or any(by_ref[one].good for one in stays), "one that loads always stays"
    if policy.every:
        assert {c.ref for c in good if c.ref.step % policy.every == 0} <= stays
    forever = sum(c.ref.step % policy.every == 0 for c in good) if policy.every else 0
    bound = policy.latest + sum(r.count for r in policy.best) + policy.hourly + forever
    assert sum(by_ref[one].good for one in stays - pins - {restored}) <= bound


@settings(max_examples=200)
@given(candidates_, policies_, pins_, refs_)
def test_deleting_is_stable_and_rules_only_add(commits, policy, pins, extra):
    stays = kept(commits, policy, pins)
    assert kept(list(reversed(commits)), policy, pins) == stays, "order must not matter"
    left = [one for one in commits if one.ref in stays]
    assert kept(left, policy, pins) == stays, "a second clean-up must find nothing"
    assert stays <= kept(commits, policy, pins | {extra})
    assert stays <= kept(commits, replace(policy, latest=policy.latest + 1), pins)


@settings(max_examples=200)
@given(candidates_, policies_, policies_)
def test_two_policies_together_keep_what_either_keeps(commits, one, other):
    both = one.also(other)
    assert kept(commits, both) >= kept(commits, one) | kept(commits, other)
    assert set(both.best) == set(other.also(one).best) == {*one.best, *other.best}
