"""The toolbox does on two ranks what it does on one."""

import runpy
from pathlib import Path

import pytest

from rekindle.callbacks import PredictionWriter

pytestmark = pytest.mark.processes

TOOLS = [
    "finetuning",
    "averages",
    "monitors",
    "stopping",
    "pruning",
    "timer",
    "checkpoint",
    "spike",
]


def task(name, **more):
    return {"program": "toolbox.py", "toolbox": name, "root": name, **more}


@pytest.fixture(scope="module")
def alone():
    program = Path(__file__).parents[1] / "program" / "toolbox.py"
    return runpy.run_path(str(program))["main"]


def near(values):
    return pytest.approx(values, rel=1e-4, abs=1e-5)


def test_two_ranks_do_what_one_does(ranks, alone, tmp_path, shares):
    tasks = [task(name) for name in TOOLS]
    tasks += [task("finetuning", root="bitwise", flags={"data": {"guarantee": "bitwise"}})]
    tasks += [task("averages", root="sharded", flags={"strategy": "fsdp"})]
    tasks += [task("monitors", root="sharded-monitors", flags={"strategy": "fsdp"})]
    tasks += [task("averages", root="resumed", flags={"strategy": "fsdp", "max_epochs": 2})]
    tasks += [task("averages", root="resumed", flags={"strategy": "fsdp"})]
    tasks += [task("finder", flags={"global_batch_size": 12})]
    tasks += [task("prediction", predict=True), task("prediction", predict=True)]
    one, two = ranks(2, *tasks)
    steps = [result["step"] for result in one]
    assert steps == [15, 15, 11, 5, 10, 5, 15, 13, 15, 15, 11, 10, 15, 6, 15, 15]
    # What fits is what fits on the smaller device; the global batch is what was asked for.
    assert one[13]["micro"] == 4
    for mine, theirs, given in zip(one, two, tasks, strict=True):
        assert mine == theirs, given
        flags = {k: v for k, v in given.get("flags", {}).items() if k != "strategy"}
        root = str(tmp_path / f"alone-{given['root']}")
        lonely = alone({**given, "root": root, "flags": flags})
        assert mine["step"] == lonely["step"], given
        for key in ("weights", "shadow", "metrics", "predicted"):
            assert mine[key] == near(lonely[key]), given
        if given["root"] == "bitwise":
            assert mine["weights"] == lonely["weights"]
    written = [len(ids) for ids, _ in PredictionWriter.read(tmp_path / "prediction-out")]
    assert written == [4] * 5
