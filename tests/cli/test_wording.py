from datetime import UTC, datetime, timedelta

import pytest

from rekindle_cli.output import wording

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1m 00s"),
        (125, "2m 05s"),
        (3599.7, "1h 00m"),
        (11400, "3h 10m"),
        (200_000, "2d 7h"),
        (-3, "-3.0 s"),
    ],
)
def test_a_duration_is_as_precise_as_people_say_it(value: float, text: str) -> None:
    assert wording.seconds(value) == text


def test_counting_knows_one_from_many() -> None:
    assert wording.count(1, "step") == "1 step"
    assert wording.count(1200, "step") == "1,200 steps"


def test_names_are_joined_as_in_a_sentence() -> None:
    assert [wording.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "nobody",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_times_of_the_api_are_read_with_and_without_fractions() -> None:
    assert wording.parse_time("2026-11-20T12:00:00Z") == NOON
    assert wording.parse_time("2026-11-20T12:00:00.123456789Z") == NOON + timedelta(
        microseconds=123456
    )
    assert wording.parse_time("yesterday") is None
    assert wording.parse_time(None) is None


def test_times_are_said_in_utc_wherever_they_come_from() -> None:
    assert wording.clock(datetime.fromisoformat("2026-11-20T14:00:00+02:00")) == "12:00:00"
    assert wording.date(NOON) == "2026-11-20 12:00:00Z"


@pytest.mark.parametrize(
    ("ago", "text"), [(5, "5s"), (119, "119s"), (600, "10m"), (7200, "2h"), (3 * 86400, "3d")]
)
def test_an_age_is_said_as_kubectl_says_it(ago: int, text: str) -> None:
    assert wording.age(NOON - timedelta(seconds=ago), NOON) == text


def test_a_sentence_ends_once() -> None:
    assert wording.sentence("two\n  lines") == "two lines."
    assert wording.sentence("why?") == "why?"
    assert wording.sentence("") == ""
