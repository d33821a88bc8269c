"""What the benchmark of recoveries makes of the times that workers note."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


steps = load("recovery_steps")
bench = load("recovery")


def course(*spans):
    """Steps of a worker: (generation, first step, begin, end) with a step every 10 ms."""
    found = []
    for generation, first, begin, end in spans:
        count = round((end - begin) / 0.01)
        found.extend(
            steps.Step(at=begin + 0.01 * n, step=first + n, generation=generation, world=3)
            for n in range(count)
        )
    return found


def test_what_a_worker_notes_is_read_back_and_read_on(tmp_path):
    log = steps.StepLog(tmp_path, "small-0@uid@0", generation=3, world=2)
    read = steps.Course(tmp_path)
    log.note(7)
    assert [(s.step, s.generation, s.world) for s in read.read()["small-0@uid@0"]] == [(7, 3, 2)]
    log.note(8)
    assert [s.step for s in read.read()["small-0@uid@0"]] == [7, 8]


def test_a_record_that_is_cut_off_is_left_out(tmp_path):
    log = steps.StepLog(tmp_path, "w", generation=1, world=1)
    log.note(1)
    log.note(2)
    data = (tmp_path / "w.steps").read_bytes()
    assert [s.step for s in steps.parse(data[:-1])] == [1]


def test_a_worker_has_resumed_with_a_step_of_a_later_generation():
    late = course((1, 1, 0.0, 1.05), (2, 90, 1.3, 2.0))
    assert steps.resumed_at(late, since=1.0, after=1) == pytest.approx(1.3)
    assert steps.resumed_at(late, since=1.0, after=2) is None


def test_the_longest_gap_is_the_one_within_the_span():
    found = course((1, 1, 0.0, 1.0), (2, 100, 1.5, 2.0), (3, 150, 2.2, 3.0))
    assert steps.longest_gap(found, 0.0, 3.0) == pytest.approx(0.51)
    assert steps.longest_gap(found, 1.6, 3.0) == pytest.approx(0.21)


def test_steps_are_lost_that_a_later_generation_does_again():
    kept = course((1, 1, 0.0, 1.0), (2, 101, 1.2, 2.0))
    redone = course((1, 1, 0.0, 1.0), (2, 91, 1.2, 2.0))
    assert steps.steps_lost([kept, kept], since=0.5) == 0
    assert steps.steps_lost([kept, redone], since=0.5) == 10
    assert steps.steps_lost([redone], since=1.5) == 0, "it happened before"


def test_a_run_is_settled_after_enough_steps_of_its_newest_generation():
    found = course((1, 1, 0.0, 1.0), (2, 100, 1.2, 1.5))
    assert steps.settled(found, 2, 30)
    assert not steps.settled(found, 2, 31)
    assert not steps.settled(found, 1, 30)
    assert not steps.settled([], 1, 1)


def test_the_result_has_every_field_also_of_parts_that_did_not_run():
    empty = bench.Figures().result()
    assert {name for name, value in empty.items() if value is None} == {
        "rekindle_kill_s", "rekindle_kill_100mb_s", "rekindle_kill_3workers_s",
        "rekindle_power_loss_s", "rekindle_power_loss_blind_s",
        "rekindle_join_gap_s", "rekindle_preempt_gap_s", "torchrun_default_s",
        "torchrun_tuned_s", "steps_lost", "breakdown", "breakdown_error",
    }  # fmt: skip


def test_figures_are_medians_and_the_breakdown_is_held_against_the_whole(capsys):
    figures = bench.Figures()
    for seconds in (0.2, 0.9, 0.3):
        figures.add("rekindle_kill_s", seconds)
    parts = dict.fromkeys(bench.RECOVERY_PHASES, 0.05)
    figures.add_breakdown(parts, 0.25)
    figures.add_breakdown({**parts, "decide": 0.1}, 0.25)
    figures.add_breakdown(None, 0.25)
    figures.add_breakdown({"detect": 0.1}, 0.25)
    figures.add_torchrun("torchrun_default_s", None, 200.0)
    found = figures.result()
    assert found["rekindle_kill_s"] == 0.3
    assert found["spread"]["rekindle_kill_s"] == [0.2, 0.9, 3]
    assert found["breakdown"]["decide"] == pytest.approx(0.075)
    assert found["breakdown_error"] == pytest.approx(0.1)
    assert (found["torchrun_default_s"], found["torchrun_unrecovered"]) == (200.0, 1)
    assert "rekindle_kill_s 0.900" in capsys.readouterr().err
