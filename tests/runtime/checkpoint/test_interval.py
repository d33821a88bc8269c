"""When to save, if it is left to us: a pure function of cost and failures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.checkpoint.saving.interval import FIRST_SECONDS, Pace, interval

times = st.floats(0.001, 1e5)


def test_a_costlier_save_and_rarer_failures_mean_a_longer_interval():
    assert interval(0.5, 3600) == pytest.approx(math.sqrt(2 * 0.5 * 3600))
    assert interval(2.0, 360_000) == pytest.approx(1200)


@given(times, times, st.floats(0.001, 0.5), times)
def test_saves_never_take_more_than_their_share_nor_overtake_each_other(cost, mtbf, share, durable):
    seconds = interval(cost, mtbf, overhead=share, durable=durable)
    assert cost / seconds <= share * (1 + 1e-9)
    assert seconds >= durable


@given(times, times)
def test_no_other_interval_loses_less(cost, mtbf):
    def lost(seconds):
        return cost / seconds + seconds / (2 * mtbf)

    best = interval(cost, mtbf, overhead=0.999999)
    if best == pytest.approx(math.sqrt(2 * cost * mtbf)):
        assert lost(best) <= min(lost(best * 0.9), lost(best * 1.1))


@pytest.mark.parametrize("wrong", [{"cost": -1}, {"mtbf": 0}, {"overhead": 1}, {"durable": -1}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="need times of at least 0"):
        interval(**{"cost": 1, "mtbf": 100, **wrong})


def test_the_first_save_comes_early_and_the_interval_follows_what_saves_cost():
    pace = Pace(mtbf=20_000, told=True)
    assert pace.seconds == FIRST_SECONDS
    pace.stalled(1.0)
    assert pace.seconds == 200
    for _ in range(5):
        pace.stalled(4.0)
    assert pace.seconds == 400
    pace.committed(900.0)
    assert pace.seconds == 900


@pytest.mark.parametrize(
    ("cost", "durable", "told", "line"),
    [
        (
            1.0,
            0.0,
            True,
            "checkpoint every 3.33 min: a save stalls 1 s and a failure comes every 5.56 h (as "
            "counted); 0.50% of the time",
        ),
        (
            100.0,
            0.0,
            False,
            "checkpoint every 2.78 h: a save stalls 100 s and a failure comes every 5.56 h "
            "(assumed); at most 1% of the time",
        ),
        (1e-9, 0.0, True, "at most every second"),
        (0.1, 300.0, True, "as long as a save takes to be durable"),
    ],
)
def test_the_reason_is_told_in_one_line(cost, durable, told, line):
    pace = Pace(mtbf=20_000, told=told)
    pace.stalled(cost)
    pace.committed(durable)
    assert line in pace.reason()
    assert "\n" not in pace.reason()
