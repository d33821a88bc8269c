import asyncio
from datetime import UTC, datetime

import pytest

from rekindle_local.kubelet.logs import LogOptions, render, stream, tail
from rekindle_local.kubelet.logserver import log_options

NOW = datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
LINES = [
    b"2030-01-01T00:00:00.000000001Z stdout F one\n",
    b"2030-01-01T00:00:30.000000000Z stdout P tw\n",
    b"2030-01-01T00:00:30.000000001Z stdout F o\n",
    b"2030-01-01T00:00:50.000000000Z stdout F three\n",
]


def text(**options):
    return b"".join(render(LINES, LogOptions(**options))).decode()


def test_stamps_are_cut_off_and_pieces_joined():
    assert text() == "one\ntwo\nthree\n"


def test_stamps_are_shown_once_per_line_when_asked_for():
    assert text(timestamps=True).splitlines()[1] == "2030-01-01T00:00:30.000000000Z two"


def test_old_lines_are_left_out():
    assert text(since=datetime(2030, 1, 1, 0, 0, 40, tzinfo=UTC)) == "three\n"


def test_a_cut_log_continues_from_its_older_half(tmp_path):
    (tmp_path / "0.log.1").write_bytes(LINES[0])
    (tmp_path / "0.log").write_bytes(LINES[3])
    assert tail(tmp_path / "0.log", 10, 100) == "one\nthree\n"


def collect(path, running=lambda: False, **options):
    async def run():
        return [piece async for piece in stream(path, LogOptions(**options), running)]

    return b"".join(asyncio.run(run()))


def test_tail_and_byte_limits_apply(tmp_path):
    (tmp_path / "0.log").write_bytes(b"".join([LINES[0], LINES[3]]))
    assert collect(tmp_path / "0.log", tail_lines=1) == b"three\n"
    assert collect(tmp_path / "0.log", tail_lines=0) == b""
    assert collect(tmp_path / "0.log", limit_bytes=5) == b"one\nt"


def test_following_gives_what_is_written_until_the_end_and_over_a_cut(tmp_path):
    path = tmp_path / "0.log"
    path.write_bytes(LINES[0])
    looks = []

    def running():
        looks.append(1)
        if len(looks) == 1:
            path.rename(tmp_path / "0.log.1")
            path.write_bytes(LINES[3])
        return len(looks) < 3

    assert collect(path, running, follow=True) == b"one\nthree\n"


def test_a_bad_number_in_a_query_is_named():
    with pytest.raises(ValueError, match="tailLines='x' must be a whole number"):
        log_options({"tailLines": "x"}, NOW)


def test_the_query_becomes_options():
    options = log_options({"follow": "true", "sinceSeconds": "30", "tailLines": "5"}, NOW)
    assert options.follow
    assert options.tail_lines == 5
    assert options.since == datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC)
