"""Word of an error is left once, and never hides the error."""

import sys

import pytest

from rekindle.errors import error_report
from rekindle.errors.outcome import classify
from rekindle.ranks.control_page import ControlPage


def outcome(error):
    return classify(error, step=3, rank=0, now=0.0)


@pytest.fixture
def page(tmp_path):
    return ControlPage(tmp_path, create=True)


def test_the_first_word_of_an_error_is_marked(page):
    error = ValueError("bad luck")
    assert not error_report.left(error)
    error_report.leave(error, page, outcome(error))
    assert error_report.left(error)
    assert [one.message for one in page.outcomes()] == ["ValueError: bad luck"]


def test_without_an_agent_or_room_for_it_the_error_goes_its_way(page, monkeypatch):
    def full(self, outcome):
        raise OSError("No space left on device")

    monkeypatch.setattr(ControlPage, "write_outcome", full)
    for where in (None, page):
        error = ValueError("bad luck")
        error_report.leave(error, where, outcome(error))
        assert error_report.left(error)


def test_the_interpreters_hook_says_what_nobody_said_and_calls_the_one_before(page, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, where: seen.append(error))
    before = sys.excepthook
    error_report.watch(None, outcome)
    assert sys.excepthook is before
    error_report.watch(page, outcome)
    ours = sys.excepthook
    error_report.watch(page, outcome)
    assert sys.excepthook is ours
    said, new = ValueError("said"), ValueError("new")
    error_report.leave(said, None, outcome(said))
    ours(ValueError, said, None)
    assert page.outcomes() == []
    ours(ValueError, new, None)
    assert [one.message for one in page.outcomes()] == ["ValueError: new"]
    assert seen == [said, new]
