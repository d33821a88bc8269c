"""A model in shares trains what a whole one trains, and checkpoints know no difference."""

import runpy
from pathlib import Path

import pytest

from rekindle import audit
from rekindle.checkpoint import Store

pytestmark = pytest.mark.processes


def newest(path):
    store = Store.open(str(path))
    return store.read(store.commits()[0])


PROGRAM = Path(__file__).parent / "program" / "sharded.py"


def task(strategy, root=None, **more):
    flags = more.pop("flags", {})
    return {
        "program": "sharded.py", "strategy": strategy, "root": root or strategy, "flags": flags,
        **more,
    }  # fmt: skip


def same(one, other, tolerance=1e-5):
    for a, b in zip(one["parameters"], other["parameters"], strict=True):
        assert a == pytest.approx(b, abs=tolerance)
    return True


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"))


def train(path, root="run", **more):
    """In this process."""
    return runpy.run_path(str(PROGRAM))["main"]({**task("ddp", **more), "root": str(path / root)})


def test_two_ranks_with_a_share_each_train_what_one_process_trains(ranks, alone, tmp_path):
    four = {"global_batch_size": 4}
    found = ranks(
        2,
        task("fsdp2", validate=True),
        task("bf16"),
        task("named"),
        task("fsdp2", "cut", flags={"max_steps": 7}, drop=0.2),
        task("fsdp2", "cut", drop=0.2),
        task("fsdp2", "uncut", drop=0.2),
        task("ddp", "synced", n=38, norm=True, flags={**four, "sync_batchnorm": True}),
    )
    normed = train(tmp_path, n=38, norm=True, batch_size=4, flags=four)
    for sharded, half, named, _, resumed, uncut, synced in found:
        assert same(sharded, alone)
        assert sharded["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
        assert sharded["tested"]["val/error"] == pytest.approx(alone["metrics"]["val/error"])
        assert sharded["own"] < 0.6 * alone["own"]
        assert sharded["calls"] > 1.5 * half["calls"], "activations are computed twice"
        assert half["seen"] == ["torch.bfloat16"]
        assert same(half, alone, 0.05)
        assert same(named, alone)
        assert resumed["parameters"] == uncut["parameters"]
        # Statistics over two batches of two are those of one batch of four.
        assert same(synced, normed, 1e-4)
        for ours, theirs in zip(synced["buffers"], normed["buffers"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def test_layers_are_cut_across_processes_by_the_plan_of_the_module(ranks, alone, tmp_path):
    cut = task("auto", "cut", flags={"mesh": {"dp": 1, "tp": 2}, "max_steps": 7})
    both = task("auto", "both", flags={"mesh": {"dp": 2, "tp": 1}})
    rest = {**cut, "flags": {"mesh": {"dp": 1, "tp": 2}}}
    for first, second, replicated in ranks(2, cut, rest, both):
        assert first["own"] < 0.7 * alone["own"]
        assert (first["step"], second["step"]) == (7, 12)
        assert same(second, alone)
        assert same(replicated, alone)
        assert second["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    assert audit(newest(tmp_path / "cut").meta).exact


def test_a_run_moves_between_strategies_and_numbers_of_ranks(ranks, alone, tmp_path):
    first = ranks(2, task("fsdp2", "moved", flags={"max_steps": 5}))
    assert first[0][0]["step"] == 5
    for (rank,) in ranks(3, task("plain", "moved", flags={"max_steps": 8})):
        assert rank["step"] == 8
    result = train(tmp_path, "moved")
    assert result["step"] == alone["step"] == 12
    assert same(result, alone)
    whole = task("ddp", "back", flags={"max_steps": 5})
    for _, back in ranks(2, whole, task("deepspeed", "back")):
        assert same(back, alone)
