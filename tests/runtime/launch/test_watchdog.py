"""Silence is judged by what this run has shown to be normal."""

from dataclasses import replace

import pytest

from rekindle.launch.health.watchdog import (
    FACTOR,
    LEAST,
    UNKNOWN,
    WARM_STEPS,
    Watchdog,
    limit,
    observe,
    suspect,
    verdict,
)
from rekindle.ranks.heartbeat import Activity, Beat, Heartbeat, path_of, read

BEAT = Beat(rank=0, step=0, phase=Activity.TRAINING, at=0.0)


def trained(seconds: float, steps: int = 20) -> tuple[Watchdog, Beat]:
    """A watchdog that has seen so many steps of so many seconds."""
    known, beat = Watchdog(), BEAT
    for step in range(steps + 1):
        beat = replace(BEAT, step=step, at=step * seconds)
        known = observe(known, [beat])
    return known, beat


def test_a_limit_is_a_multiple_of_the_longest_step_and_never_short():
    known, beat = trained(100.0)
    assert limit(known, beat, None) == FACTOR * 100.0
    known, beat = trained(0.1)
    assert limit(known, beat, None) == LEAST


def test_the_first_steps_teach_nothing_and_may_take_long():
    known = observe(observe(Watchdog(), [BEAT]), [replace(BEAT, step=1, at=700.0)])
    assert known.longest == {}
    assert limit(known, replace(BEAT, step=1), 5.0) == UNKNOWN[Activity.TRAINING]
    known, beat = trained(1.0, WARM_STEPS)
    assert limit(known, beat, 5.0) == 5.0


def test_a_silent_worker_is_named_once_its_limit_has_passed():
    known, beat = trained(1.0)
    assert verdict(known, [beat], given=None, now=beat.at + LEAST) is None
    found = verdict(known, [beat], given=None, now=beat.at + LEAST + 1)
    assert found is not None
    assert (found.rank, found.step, found.phase, found.idle) == (0, 20, "training", LEAST + 1)


def test_of_several_the_one_that_is_over_its_limit_for_longest_is_named():
    known, beat = trained(1.0)
    other = replace(beat, rank=3, at=beat.at - 5.0)
    # Rank 7 has only begun with this round, and first steps may take long.
    fresh = replace(beat, rank=7, first=beat.step - 1, at=0.0)
    found = verdict(known, [beat, other, fresh], given=None, now=beat.at + LEAST + 30)
    assert found is not None
    assert found.rank == 3


def test_a_validation_has_a_limit_of_its_own():
    known, beat = trained(0.1)
    inside = replace(beat, phase=Activity.VALIDATING)
    assert limit(known, inside, None) == UNKNOWN[Activity.VALIDATING]
    known = observe(known, [inside])
    known = observe(known, [replace(inside, at=inside.at + 40.0)])
    assert limit(known, inside, None) == FACTOR * 40.0
    assert limit(known, inside, 7.0) == 7.0


@pytest.mark.parametrize("phase", [Activity.SAVING, Activity.BETWEEN])
def test_what_shows_no_sign_of_life_is_not_hurried(phase):
    known, beat = trained(0.1)
    assert limit(known, replace(beat, phase=phase), 7.0) == UNKNOWN[phase]


def test_a_plain_script_and_a_worker_that_is_done_are_left_alone():
    silent = replace(BEAT, phase=Activity.STARTING)
    assert verdict(Watchdog(), [silent], given=1.0, now=1e6) is None
    done = replace(BEAT, phase=Activity.DONE, step=5)
    assert verdict(Watchdog(), [done], given=1.0, now=1e6) is None


def test_what_was_learned_outlives_the_round_and_its_ranks_do_not():
    known, _ = trained(100.0)
    fresh = known.next_round()
    assert (fresh.longest, fresh.seen) == (known.longest, {})


def test_a_pod_that_is_asked_names_who_stands_still_and_nobody_who_gets_on():
    known, beat = trained(1.0)
    other = replace(beat, rank=1, at=beat.at + 8.0)
    known = observe(known, [other])
    now = beat.at + 9.0
    assert verdict(known, [beat, other], given=10.0, now=now) is None
    found = suspect(known, [beat, other], given=10.0, now=now)
    assert found is not None
    assert (found.rank, found.idle) == (0, 9.0)
    assert suspect(known, [beat, other], given=20.0, now=now) is None
    assert suspect(known, [], given=1.0, now=now) is None


def test_a_heartbeat_is_read_as_it_was_written(tmp_path):
    heart = Heartbeat(path_of(tmp_path, 1), rank=5)
    (first,) = read(tmp_path)
    assert (first.rank, first.step, first.phase, first.busy) == (5, 0, Activity.STARTING, None)
    heart.enter(Activity.TRAINING)
    heart.step(7, 12.5)
    heart.busy(0.25)
    assert read(tmp_path) == (Beat(rank=5, step=7, phase=Activity.TRAINING, at=12.5, busy=0.25),)
    with heart.during(Activity.VALIDATING):
        assert read(tmp_path)[0].phase is Activity.VALIDATING
    assert read(tmp_path)[0].phase is Activity.TRAINING
    assert read(tmp_path)[0].at > 12.5


def test_a_file_that_is_only_being_made_counts_as_no_heartbeat(tmp_path):
    path_of(tmp_path, 0).write_bytes(b"")
    assert read(tmp_path) == ()
