"""A model in shares trains what a whole one trains, and checkpoints know no difference."""

import runpy
from pathlib import Path

import pytest

from rekindle import audit
from rekindle.checkpoint import Store

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("shares")]

PROGRAM = Path(__file__).parent / "program" / "sharded.py"
FOUR = {"global_batch_size": 4}


def task(strategy, root=None, **more):
    return {"program": "sharded.py", "strategy": strategy, "root": root or strategy, **more}


def train(path, root="run", **more):
    """In this process."""
    return runpy.run_path(str(PROGRAM))["main"]({**task("ddp", **more), "root": str(path / root)})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"))


TASKS = {
    "sharded": task("fsdp2", validate=True),
    "half": task("bf16"),
    "named": task("named"),
    "first part": task("fsdp2", "cut", flags={"max_steps": 7}, drop=0.2),
    "second part": task("fsdp2", "cut", drop=0.2),
    "uncut": task("fsdp2", "uncut", drop=0.2),
    "synced": task("ddp", "synced", n=38, norm=True, flags={**FOUR, "sync_batchnorm": True}),
    "whole part": task("ddp", "back", flags={"max_steps": 5}),
    "then deepspeed": task("deepspeed", "back"),
    "scaled": task("fsdp2", "scaled", scaled=True),
    "layers": task("auto", "layers", flags={"mesh": {"dp": 1, "tp": 2}, "max_steps": 7}),
    "more layers": task("auto", "layers", flags={"mesh": {"dp": 1, "tp": 2}}, validate=True),
    "large": task("ddp", "large", width=256, average=True, flags={"max_steps": 2}),
    "large shares": task("fsdp2", "large", width=256, average=True, flags={"max_steps": 3}),
    "large again": task("fsdp2", "large", width=256, average=True, flags={"max_steps": 4}),
    "copies": task("auto", "copies", flags={"mesh": {"dp": 2, "tp": 1}}),
}


@pytest.fixture(scope="module")
def two(ranks_of_module):
    """What two ranks have done: for each task its result by rank."""
    return dict(zip(TASKS, zip(*ranks_of_module(2, *TASKS.values()), strict=True), strict=True))


def same(results, other, tolerance=1e-5):
    for one in results:
        for a, b in zip(one["parameters"], other["parameters"], strict=True):
            assert a == pytest.approx(b, abs=tolerance)
    return True


def test_two_ranks_with_a_share_each_train_what_one_process_trains(two, alone):
    assert same(two["sharded"], alone)
    assert same(two["named"], alone)
    for result in two["sharded"]:
        assert result["own"] < 0.6 * alone["own"]
        assert result["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
        assert result["tested"]["val/error"] == pytest.approx(alone["metrics"]["val/error"])


def test_activations_are_computed_twice_where_the_policy_says_so(two):
    assert two["sharded"][0]["calls"] > 1.5 * two["half"][0]["calls"]


def test_shares_are_gathered_in_bfloat16_when_asked(two, alone):
    assert [result["seen"] for result in two["half"]] == [["torch.bfloat16"]] * 2
    assert same(two["half"], alone, 0.05)


def test_a_step_that_overflows_on_one_share_is_skipped_on_all(two, tmp_path):
    alone = train(tmp_path, scaled=True)
    assert 0 < alone["updates"] < alone["step"], "the first scales are far too large"
    assert [result["updates"] for result in two["scaled"]] == [alone["updates"]] * 2
    assert same(two["scaled"], alone, 0.02)


def test_a_sharded_run_with_dropout_resumes_bit_equal(two):
    assert [r["step"] for r in two["first part"]] == [7, 7]
    for resumed, uncut in zip(two["second part"], two["uncut"], strict=True):
        assert resumed["parameters"] == uncut["parameters"]


def test_a_run_of_whole_models_goes_on_in_shares(two, alone):
    assert [r["step"] for r in two["whole part"]] == [5, 5]
    assert same(two["then deepspeed"], alone)


def test_a_run_moves_between_strategies_and_numbers_of_ranks(ranks, alone, tmp_path):
    for (rank,) in ranks(2, task("fsdp2", "moved", flags={"max_steps": 5})):
        assert rank["step"] == 5
    for (rank,) in ranks(3, task("plain", "moved", flags={"max_steps": 8})):
        assert rank["step"] == 8
    result = train(tmp_path, "moved")
    assert result["step"] == alone["step"] == 12
    assert same([result], alone)


def test_a_rank_reads_its_share_of_a_checkpoint_and_no_more(two):
    (root,) = {result["root"] for result in two["large again"]}
    store = Store.open(root)
    whole = sum(entry.nbytes for entry in store.read(store.commits()[0]).tensors)
    assert whole > 4e6, "parameters, two moments and their average"
    for name in ("large shares", "large again"):
        for result in two[name]:
            assert result["got"] < 0.51 * whole, name
    # Chunks are verified whole; those of a rank's own share hold nothing else.
    assert all(result["read"] < 0.55 * whole for result in two["large again"])


def test_statistics_of_two_batches_are_those_of_one_twice_as_large(two, tmp_path):
    normed = train(tmp_path, n=38, norm=True, batch_size=4, flags=FOUR)
    assert same(two["synced"], normed, 1e-4)
    for result in two["synced"]:
        for ours, theirs in zip(result["buffers"], normed["buffers"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def test_layers_are_cut_across_processes_by_the_plan_of_the_module(two, alone):
    assert same(two["more layers"], alone)
    assert same(two["copies"], alone)
    for part, whole in zip(two["layers"], two["more layers"], strict=True):
        assert part["own"] < 0.7 * alone["own"]
        assert (part["step"], whole["step"]) == (7, 12)
        assert whole["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
        assert whole["tested"]["val/error"] == pytest.approx(alone["metrics"]["val/error"])
    store = Store.open(two["layers"][0]["root"])
    assert audit(store.read(store.commits()[0]).meta).exact
