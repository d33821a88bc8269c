"""`rekindle audit`: what it proves of a run, in words, in JSON and by its exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from rekindle.checkpoint import Saver, Store
from rekindle.data.ledger import Ledger
from rekindle.data.sampling.order import Cursor
from rekindle.data.sampling.samplers import Weighted
from rekindle_cli.__main__ import app
from rekindle_cli.output.failure import CommandFailure

START = Cursor(epoch=0, sample=0, G=24, m=4, seed=5, N=103, length=103)
HISTORY = [
    {"step": 0, "epoch": 0, "sample": 0, "G": 24, "m": 4, "world_size": 2},
    {"step": 7, "epoch": 1, "sample": 48, "G": 24, "m": 4, "world_size": 3},
]


def trained(steps, *, cursor=START, draw=None, twice=None):
    """Meta of a checkpoint after so many steps; step number `twice` is done again."""
    ledger = Ledger()
    for number in range(steps):
        step = next(cursor.remaining())
        ids = cursor.order_with(draw).ids(cursor.epoch, step.start, step.stop)
        for _ in range(2 if number == twice else 1):
            ledger.used(cursor.epoch, ids)
            ledger.covered(cursor.epoch, step.start, step.stop)
        cursor = cursor.after(step)
        if cursor.sample == cursor.length:
            cursor = cursor.next_epoch()
    return {
        "step": steps,
        "cursor": cursor.to_json(),
        "ledger": ledger.totals([ledger.own()]),
        "history": HISTORY,
    }


@pytest.fixture
def save(tmp_path):
    """Save checkpoints with the given metas in one store; gives the store."""

    def run(*metas):
        store = Store.open(f"file://{tmp_path}/run")
        fence = store.acquire(owner="test").fence
        saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1, keep_latest=9)
        for meta in metas:
            saver.save(meta["step"], {"w": 1}, rank_state={}, meta=meta, wait=True)
        saver.close()
        return store

    return run


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["audit", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def test_an_exact_run_is_proven_with_its_epochs_sizes_and_world_sizes(save):
    store = save(trained(12))
    said = call(store.uri)
    assert said.splitlines() == [
        "EPOCH  SAMPLES  USED  REPEATED  MISSED",
        "0-1    103      103   0         0",
        "2      48       48    0         0",
        "",
        "FROM STEP  EPOCH  SAMPLE  GLOBAL BATCH  MICRO-BATCH  PROCESSES",
        "0          0      0       24            4            2",
        "7          1      48      24            4            3",
        "",
        "Step 12: proven, 254 samples exactly once per epoch, none repeated or missed.",
    ]
    found = json.loads(call(store.uri, "--json"))
    assert (found["exact"], found["digest_ok"], found["step"]) == (True, True, 12)
    assert found["position"] == {"epoch": 2, "sample": 48, "length": 103, "N": 103}
    assert found["sizes"] == HISTORY
    assert found["epochs"][0] == {
        "first": 0,
        "count": 2,
        "expected": 103,
        "used": 103,
        "repeated": 0,
        "missed": 0,
    }


def test_a_step_done_twice_is_shown_and_is_an_error(save):
    store = save(trained(3), trained(7, twice=5))
    said = call(store.uri, code=1)
    assert "1      48       48    24        0" in said
    assert said.endswith(
        "Step 7: not proven for 151 samples: 24 repeated, 175 used, the samples used are not those "
        "of the order.\n"
    )
    assert json.loads(call(store.uri, "--json", code=1))["samples_repeated"] == 24
    assert "proven, 72 samples" in call(store.uri, "3")


def test_weights_are_read_back_from_the_store(save):
    draw = Weighted(np.arange(103.0), 60)
    cursor = Cursor.from_json(
        {**START.to_json(), "order": "weighted", "draw": draw.mark, "length": 60}
    )
    store = save(trained(5, cursor=cursor, draw=draw))
    result = CliRunner().invoke(app, ["audit", store.uri])
    assert isinstance(result.exception, CommandFailure), "the weights are not there yet"
    store.objects.put(*draw.record(5, 0))
    assert "proven, 108 samples" in call(store.uri)


def test_what_has_no_ledger_proves_nothing(save):
    result = CliRunner().invoke(app, ["audit", save({"step": 4}).uri])
    assert isinstance(result.exception, CommandFailure)
    assert result.exception.code == 2
    assert "has no ledger" in result.exception.lines[0]


@pytest.mark.processes
def test_an_audit_needs_no_torch(save):
    store = save(trained(12))
    block = (
        "import sys; sys.modules['torch'] = None; from rekindle_cli.__main__ import main; main()"
    )
    command = [sys.executable, "-c", block, "audit", store.uri, "--json"]
    done = subprocess.run(command, capture_output=True, timeout=180, check=False)
    assert json.loads(done.stdout)["exact"] is True, done.stderr
