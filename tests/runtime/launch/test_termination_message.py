"""The termination message fits and stays JSON."""

import json

import pytest

from rekindle.api import Outcome
from rekindle.launch.pod import termination_message


def outcome(message: str = "test", traceback: str | None = None) -> Outcome:
    return Outcome(cause="UserError", code=1, message=message, traceback=traceback)


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\n", '"', "\U0001f600"])
def test_a_long_traceback_loses_its_middle(letter):
    text = "head of it" + letter * 9000 + "ValueError: tail of it"
    encoded = termination_message.encode(outcome("the reason", text))
    assert termination_message.LIMIT - 1500 < len(encoded) <= termination_message.LIMIT
    kept = json.loads(encoded)
    assert kept["message"] == "the reason"
    assert kept["traceback"].startswith("head of it")
    assert kept["traceback"].endswith("ValueError: tail of it")


def test_a_long_message_gives_way_last():
    # Twelve bytes each: what may be as long as it is elsewhere is too long here.
    encoded = termination_message.encode(outcome("\U0001f600" * 9000, "t" * 9000))
    assert len(encoded) <= termination_message.LIMIT
    kept = json.loads(encoded)
    assert kept["message"].startswith("\U0001f600" * 3)
    assert "traceback" not in kept


def test_a_short_message_is_kept_as_it_is():
    there = outcome("test", "Traceback ...")
    assert Outcome.from_json(json.loads(termination_message.encode(there))) == there


def test_a_later_message_replaces_the_earlier_one(tmp_path):
    log = tmp_path / "log"
    termination_message.write(log, outcome("a long message that is first"))
    assert termination_message.write(log, outcome("second"))
    assert json.loads(log.read_text())["message"] == "second"


def test_a_place_that_cannot_be_written_stops_nobody(tmp_path):
    assert not termination_message.write(tmp_path / "no" / "such", outcome())
    assert not termination_message.write(None, outcome())
