"""When a save is due, from what all ranks know alike."""

import pytest

from rekindle.checkpoint.saving.interval import FIRST_SECONDS, Pace
from rekindle.flags import Every
from rekindle.persistence.save_schedule import Cadence


@pytest.mark.parametrize(
    ("every", "step", "agreed", "due"),
    [
        (None, 5, True, False),
        (Every(steps=5), 5, False, True),
        (Every(steps=5), 6, False, False),
        (Every(steps=5), 3, True, False),
        (Every(seconds=9), 6, False, False),
        (Every(seconds=9), 6, True, True),
        (Every(seconds=9), 4, True, False),
        (Pace(), 6, True, True),
    ],
)
def test_a_save_is_due_by_the_step_or_by_the_word_on_the_clock(every, step, agreed, due):
    assert Cadence(every=every, first=True, saved=3).due(step, agreed) == due


def test_a_wish_is_granted_once_and_never_for_a_step_that_is_saved():
    cadence = Cadence(every=None, first=True, saved=3, wanted=True)
    assert not cadence.due(3, False)
    assert cadence.due(4, False)
    cadence.note(4)
    assert not cadence.due(5, False)


def test_only_the_first_rank_looks_at_its_clock():
    first, other = (Cadence(every=Every(seconds=60), first=each, saved=0) for each in (True, False))
    assert not first.clock_due()
    for cadence in (first, other):
        cadence.begin(7, unsaved_seconds=61)
    assert first.clock_due()
    assert not other.clock_due()


def test_what_waits_for_the_first_step_is_called_once_after_it():
    called = []
    cadence = Cadence(every=Every(steps=9), first=True)
    cadence.begin(0)
    cadence.after_first_step = lambda: called.append(True)
    assert not cadence.due(0, False)
    assert called == []
    assert not cadence.due(1, False)
    assert not cadence.due(2, False)
    assert called == [True]


def test_a_measured_interval_is_explained_once_by_the_first_rank():
    cadence = Cadence(every=Pace(mtbf=100.0, told=True), first=True)
    assert cadence.every.seconds == FIRST_SECONDS
    assert "a save stalls 0.5 s" in cadence.stalled(0.5)
    assert cadence.every.seconds == 50.0
    assert cadence.stalled(0.5) is None
    cadence.committed(70.0)
    assert cadence.every.seconds == 70.0
    assert Cadence(every=Pace(), first=False).stalled(0.5) is None
    assert Cadence(every=Every(steps=1), first=True).stalled(0.5) is None
