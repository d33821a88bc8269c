"""A script of `lightning.pytorch` with the bridge, against the real Lightning; see `scenarios`."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle

pytestmark = pytest.mark.processes

WHOLE = [
    "step 0",
    "step 4",
    "step 9",
    "step 13",
    "step 19",
    "step 23",
    "workers",
    "accumulation",
    "stream",
    "own generator",
    "two loaders",
    "reloading",
    "averaging",
    "changing accumulation",
    "manual",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("Lightning is not installed")
    found = tmp_path_factory.mktemp("bridge") / "results.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("scenarios.py")), str(found)],
        check=False,
        capture_output=True,
        text=True,
        timeout=280 + 60 * int(os.environ.get("REKINDLE_KILLS", "2")),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(rekindle.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(found.read_text())


@pytest.mark.parametrize("name", WHOLE)
def test_a_preempted_run_that_went_on_equals_an_undisturbed_one(results, name):
    found = results[name]
    assert found["first"]["code"] == 75
    assert found["first"]["step"] < found["whole"]["step"] == found["second"]["step"]
    for what in ("weights", "rates", "metrics"):
        assert found["second"][what] == found["whole"][what], what
    # No validation is left out or done twice.
    assert found["first"]["validated"] + found["second"]["validated"] == found["whole"]["validated"]


def test_a_run_that_was_killed_ends_with_the_weights_of_an_undisturbed_one(results):
    assert results["ends"][2] == 9
    assert results["kill"]["weights"] == results["step 13"]["whole"]["weights"]


def test_sigterm_to_one_of_two_ranks_ends_both_at_one_step_and_they_go_on_equal(results):
    assert results["ends"][:2] == [0, 0]
    (whole, first, second), (other_whole, other_first, other_second) = results["ranks"]
    assert (first["code"], other_first["code"]) == (75, 75)
    assert first["step"] == other_first["step"] < whole["step"]
    assert second["weights"] == other_second["weights"] == whole["weights"]
    assert second["metrics"] == whole["metrics"]
    assert other_second["metrics"] == other_whole["metrics"]


def test_a_run_that_is_complete_is_left_as_it_is(results):
    assert results["again"]["weights"] == results["step 13"]["second"]["weights"]
    assert results["again"]["metrics"] == results["step 13"]["second"]["metrics"]


def test_a_finished_run_that_gets_more_epochs_equals_one_that_had_them_from_the_start(results):
    for what in ("weights", "rates", "metrics"):
        assert results["longer"][what] == results["step 13"]["whole"][what], what


def test_early_stopping_stays_stopped(results):
    stopped, again = results["early"]
    assert stopped["step"] < 100
    assert (again["step"], again["weights"]) == (stopped["step"], stopped["weights"])


def test_the_page_stops_a_run_and_shows_how_far_it_is(results):
    page = results["page"]
    assert page["first"]["code"] == 75
    assert page["attached"]
    assert page["worlds"] == [1, 1], "as many processes as it began with, no more and no fewer"
    assert page["committed"] == page["progress"]["step"] == page["first"]["step"] == 14
    assert page["progress"]["total_steps"] == 30
    assert page["progress"]["epoch"] == 1
    assert page["progress"]["samples"] == 56
    assert page["progress"]["loss"] > 0
    assert "val" in page["progress"]["metrics"]
    assert page["restored"] == {"step": 0, "source": "scratch", "skipped": []}


def test_the_plugin_takes_a_run_for_ckpt_path_and_the_callback_a_job_for_its_root(results):
    # A finished run as the starting point of a new one: nothing is left to train.
    assert results["warm"]["weights"] == results["step 13"]["whole"]["weights"]
    assert results["tested"]["found"] == ["val"]
    assert results["automatic"] == ["RekindleCallback"]
    assert results["job went to"]


def test_what_cannot_work_is_refused_in_one_line(results):
    assert results["refused"]["flag"] == "keep_latest=0 must be an integer of at least 1"
    assert results["refused"]["must"].startswith("resume='must', but there is no checkpoint in ")
    assert "use strategy='ddp', torchrun or a TrainingJob" in results["refused"]["spawn"]
    assert results["refused"]["sharded"] == (
        "RekindleCallback serves one device and DDP, not ModelParallelStrategy; for sharded models "
        "use rekindle.Trainer(strategy='fsdp')"
    )
    # A callback that nobody asked for gets out of the way instead.
    assert results["refused"]["aside"].startswith("checkpoints of the job are not used here: ")
    assert results["refused"]["ranks"].startswith(
        "R13 checkpoint step 15 was written by 2 processes, this attempt has 1. Lightning fixes"
    )
    assert "start as many as before (minReplicas equal to replicas)" in results["refused"]["ranks"]
    assert results["refused"]["fewer"] == [75, 2, 2]
    assert results["refused"]["alone"].startswith(
        "2 processes were started, and the Trainer was made for 1: "
    )


def test_another_model_or_other_data_do_not_go_on_with_what_was_interrupted(results):
    refused = results["refused"]
    assert re.match(
        r"R11 .* holds step 10 of another run: the model was Net and is Duel; every",
        refused["other"],
    )
    assert refused["data"].startswith(
        "R12 step 10 was saved with training data of 40 samples in batches of 4; now they are of "
        "40 samples in batches of 5. To go on, give the same data; to begin anew, resume='never'"
    )
    assert "list_iterator as training data, which can be read only once" in refused["once"]


@pytest.mark.parametrize("name", ["sweep", "folds", "stages", "tuned", "finder", "streams"])
def test_a_script_with_several_fits_that_is_killed_sees_what_a_plain_one_sees(results, name):
    found = results["scripts"][name]
    kills = [code for code in found["ends"] if code]
    assert len(kills) == int(os.environ.get("REKINDLE_KILLS", "2"))
    for seen in found["rounds"]:
        assert seen == found["plain"]


def test_damaged_checkpoints_are_passed_over_and_none_left_is_an_error_of_integrity(results):
    damaged = results["damaged"]
    assert "R16 checkpoint" in damaged["said"]
    # How many there are depends on what was on its way when the run was killed.
    assert re.search(r"Falling back to step (12|15) \((18|15) steps lost\)", damaged["said"])
    assert damaged["first"]["weights"] == results["step 13"]["whole"]["weights"]
    assert damaged["second"] == 70


def test_the_example_is_a_script_that_knows_nothing_of_this(results):
    words, accuracy = results["example"].rsplit(" ", 1)
    assert words == "validation accuracy"
    assert float(accuracy) > 0.9
