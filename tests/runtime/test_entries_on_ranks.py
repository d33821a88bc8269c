"""The entry points on several ranks: nothing counted twice, nothing downloaded twice."""

import pytest

pytestmark = pytest.mark.processes

TASK = {"program": "entries.py"}


def test_entry_points_on_three_ranks_are_those_of_one_process(ranks):
    results = ranks(
        3,
        {**TASK, "fit": True, "slow": 0.1, "root": "whole"},
        {**TASK, "broken": True, "root": "broken"},
        {**TASK, "fit": True, "odd": 2, "root": "odd"},
        {
            **TASK,
            "fit": True,
            "late": 4,
            "flags": {"max_steps": -1, "max_time": {"minutes": 9}},
            "root": "late",
        },
    )
    whole, broken, odd, late = zip(*results, strict=True)
    # Errors of 2x from x over 0..9: the mean of x squared.
    for one in whole:
        assert one["test"] == {"error": pytest.approx(28.5), "mean": pytest.approx(4.5)}
        assert one["predictions"] == [2.0 * n for n in range(10)]
        assert (one["error"], one["step"], one["phase"]) == (None, 3, "done")
    assert [one["calls"] for one in whole] == [["data", "module"], [], []]
    assert [one["said"] for one in whole] == ["said once\n", "", ""]
    assert {one["error"].partition(": ")[2].removeprefix("OSError: ") for one in broken} == {
        "no space left"
    }
    for one in odd:
        assert one["error"].startswith("RequirementError: R14 rank 2 runs a different config (sha")
        assert "Check image tag of pod" in one["error"]
    # The clock of one rank, agreed on by all of them one step later.
    assert {one["step"] for one in late} == {5}


def test_data_may_be_prepared_on_every_node(ranks, monkeypatch):
    results = ranks(2, {**TASK, "fit": True, "each_node": True})
    assert [result[0]["calls"] for result in results] == [["data", "module"], []]
