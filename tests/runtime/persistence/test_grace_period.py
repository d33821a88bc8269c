"""R18 is about twice the time of a save, and is said once."""

import pytest

from rekindle.api import ENV_GRACE
from rekindle.persistence.grace_period import Grace, period, warning


@pytest.mark.parametrize(("save", "grace"), [(15.0, 30.0), (1e9, None), (0.1, 30.0)])
def test_a_save_that_fits_twice_or_that_nothing_limits_is_no_word_worth(save, grace):
    assert warning(7, save=save, grace=grace) is None


def test_a_save_that_is_too_long_is_answered_with_a_period_that_leaves_room():
    text = warning(7, save=16.0, grace=30.0)
    assert text.startswith("R18 emergency save needs ~32 s but the grace is 30 s")
    assert "the last durable step is 7" in text
    assert text.endswith("terminationGracePeriodSeconds to 90.")


def test_it_is_given_once_and_kept_until_then(monkeypatch):
    monkeypatch.setenv(ENV_GRACE, "30")
    grace = Grace()
    grace.weigh(1, 1.0)
    assert grace.take() is None
    grace.weigh(2, 20.0)
    grace.weigh(3, 1.0)
    assert "step is 2." in grace.take()
    grace.weigh(4, 20.0)
    assert grace.take() is None


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "x"}, 30.0),
        ({"TORCHELASTIC_RUN_ID": "x", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}, 5.0),
        ({"TORCHELASTIC_RUN_ID": "x", ENV_GRACE: "120"}, 120.0),
    ],
)
def test_the_period_is_the_jobs_else_torchs(monkeypatch, variables, seconds):
    for name in (ENV_GRACE, "TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert period() == seconds
