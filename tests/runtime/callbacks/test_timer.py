from datetime import timedelta

import pytest

from rekindle.callbacks import Timer

pytestmark = pytest.mark.processes


def test_training_ends_when_the_time_is_over(fit, capsys):
    trainer = fit(Timer(timedelta(microseconds=1)), max_epochs=99)
    assert trainer.global_step < 5
    assert trainer.flags.max_time == 1e-6
    assert "s of training are over" in capsys.readouterr().out


def test_an_epoch_is_finished_first_on_request(fit):
    timer = Timer(timedelta(microseconds=1), interval="epoch")
    assert fit(timer, max_epochs=99).global_step == 5
    assert timer.time_remaining() <= 0


def test_time_of_earlier_attempts_counts(fit):
    first, second = Timer("00:01:00:00"), Timer("00:01:00:00")
    first.load_state_dict({"elapsed": 1800})
    fit(first, stop=3)
    fit(second)
    assert 1700 < second.time_remaining() < 1800
    assert Timer().time_remaining() is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"duration": "1h"}, r"Timer\(duration=\)='1h' must be"), ({"interval": "day"}, "interval")],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        Timer(**bad)
