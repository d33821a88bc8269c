"""The example of an image classification, word for word but for its import lines."""

import json
import random
import runpy
from collections import Counter
from pathlib import Path

import pytest

from rekindle import audit
from rekindle.checkpoint import Store

pytestmark = pytest.mark.processes

RUNNER = Path(__file__).with_name("runner.py")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Run the script in a process of its own that has torch imported already."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rekindle.trainer.trainer", "torchmetrics", "torch._dynamo"])
    base = tmp_path_factory.mktemp("acceptance")

    def run(name, **given):
        names = {"GIVEN": {"folder": str(base / name), **given}}
        process = context.Process(
            target=runpy.run_path, args=(str(RUNNER),), kwargs={"init_globals": names}
        )
        process.start()
        process.join(90)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        file = base / name / "result.json"
        return code, json.loads(file.read_text()) if file.exists() else None, base / name

    return run


@pytest.fixture(scope="module")
def whole(start):
    """An uninterrupted run of the script."""
    code, result, folder = start("whole")
    assert code == 0
    return result, folder


@pytest.mark.parametrize(
    "words",
    [
        "share one Images object",
        "16-mixed",
        "pin_memory",
        "test() uses val_dataloader",
        "test() uses validation_step",
        "predict() uses val_dataloader",
    ],
)
def test_each_warning_appears_once(whole, words):
    said = [text for text in whole[0]["warnings"] if words in text]
    assert len(said) == 1, whole[0]["warnings"]


def test_a_batch_size_that_a_callback_changes_takes_effect(whole):
    sizes = {(epoch, size) for epoch, size in map(tuple, whole[0]["sizes"])}
    # 102 samples: 12 batches of 8 and one of 6, then 6 of 16 and one of 6.
    assert sizes == {(0, 8), (0, 6), (1, 16), (1, 6)}
    counts = Counter((epoch, size) for epoch, _, size in whole[0]["seen"])
    assert counts == {(0, 8): 12, (0, 6): 1, (1, 16): 6, (1, 6): 1}


def test_every_sample_is_used_once_in_each_epoch(whole):
    store = Store.open(str(whole[1] / "checkpoints"))
    found = audit(store.read(store.commits()[0]).meta)
    assert found.exact
    assert sum(size for _, _, size in whole[0]["seen"]) == 2 * 102


def test_best_and_last_checkpoints_are_found_by_their_names(whole):
    result, folder = whole
    assert result["rebuilt"] == {"num_classes": 3, "lr": 1e-3, "weight_decay": 0.01}
    assert "val/f1=" in result["best"]
    assert result["best"].endswith(".ckpt")
    assert Path(result["best"]).is_file()
    assert sum(shape[0] for shape in result["predictions"]) == 26
    assert {"train/acc", "val/acc", "val/f1", "val/loss"} <= set(result["metrics"])


def test_a_killed_script_ends_with_the_weights_of_one_that_was_not(start, whole):
    die = random.Random(7).randrange(1, whole[0]["step"])
    code, result, _ = start("killed", die=die)
    assert (code, result) == (-9, None)
    code, result, _ = start("killed", resume=True)
    assert code == 0
    assert result["weights"] == whole[0]["weights"]
