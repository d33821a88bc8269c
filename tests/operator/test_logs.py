"""The operator's log as JSON, and what it tells of a job's life."""

import io
import json
import logging

import pytest

from rekindle_operator import logs
from rekindle_operator.__main__ import parse
from rekindle_operator.plan import Plan
from rekindle_operator.status import milestones


def line(message, *arguments, level=logging.INFO, **extra):
    logger = logging.Logger("rekindle_operator.controller.controller")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger.addHandler(handler)
    logger.log(level, message, *arguments, **extra)
    (text,) = stream.getvalue().splitlines()
    return json.loads(text)


def test_a_line_about_a_job_names_it_in_fields_of_their_own():
    found = line("%s/%s: round %d: %s", "ml", "digits", 3, "a, b", extra={"round": 3})
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "rekindle_operator.controller.controller",
        "message": "round 3: a, b",
        "namespace": "ml",
        "job": "digits",
        "round": 3,
    }


def test_a_line_about_nothing_has_no_such_fields():
    assert not set(line("listening on %s", "0.0.0.0")) & set(logs.FIELDS)
    assert line("%s/%s are two words", "a", "b")["message"] == "a/b are two words"


def test_lines_of_kopf_name_the_object_they_are_about():
    ref = {"kind": "TrainingJob", "namespace": "ml", "name": "digits", "uid": "u"}
    found = line("Handler 'job' failed", extra={"k8s_ref": ref})
    assert (found["namespace"], found["job"]) == ("ml", "digits")


def test_no_text_can_make_a_second_line():
    found = line("%s/%s: %s", "ml", "digits", 'x\n{"level": "error"}\r\x1b[2J\u2028')
    assert found["message"] == 'x\n{"level": "error"}\r\x1b[2J\u2028'


def test_an_exception_is_part_of_its_line():
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        found = line("%s/%s: reconcile failed", "ml", "digits", exc_info=True, level=logging.ERROR)
    assert found["exception"].startswith("Traceback")
    assert "ValueError: no\nsuch thing" in found["exception"]
    assert found["level"] == "error"


@pytest.mark.parametrize(("form", "first"), [("json", "{"), ("text", "2")])
def test_all_loggers_go_the_chosen_way(form, first, capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers = []
    try:
        logs.configure(form, verbose=False)
        logging.getLogger("kopf.objects").warning("w")
        logging.getLogger("kopf.objects").info("not this one")
        logging.getLogger("aiohttp").error("e")
    finally:
        root.handlers, root.level = before[0], before[1]
    lines = capsys.readouterr().err.splitlines()
    assert [text[0] for text in lines] == [first] * 2


def test_text_is_for_people_who_start_it_by_hand():
    assert parse(["--coordinator-url", "http://c"]).log_format == "text"
    assert parse(["--coordinator-url", "http://c", "--log-format=json"]).log_format == "json"


# What is told of a job's life.


def told(w, monkeypatch, act):
    """The reasons and causes of the lines that an act brings."""
    found = []
    tick = type(w).tick

    def listening(self, **options):
        before = self.status
        monkeypatch.setattr(self, "check", lambda plan, _: found.extend(_of(before, plan)))
        return tick(self, **options)

    monkeypatch.setattr(type(w), "tick", listening)
    act(w)
    return found


def _of(before, plan):
    for one in milestones.lines(before, plan):
        assert one.message
        yield one.fields.get("incident") if one.level == logging.WARNING else one.fields["reason"]


def ends(w):
    w.total_steps = 20
    w.start().until(lambda: w.phase == "Succeeded")


def fails(w):
    w.start().fail("digits-0", cause="Configuration").run(10)


def loses_a_pod(w):
    w.start().kill("digits-1").until(lambda: len(w.rounds) == 3 and w.training())


def is_suspended_and_resumed(w):
    w.start().change(suspend=True).until(lambda: not w.pods)
    w.change(suspend=False).until(w.training)


LIVES = [
    (ends, ["Created", "RoundFormed", "Completed"]),
    (fails, ["Created", "RoundFormed", "Configuration", "Configuration"]),
    (loses_a_pod, ["Created", "RoundFormed", "PodLost", "RoundFormed", "Recovered", "RoundFormed"]),
    (is_suspended_and_resumed, ["Created", "RoundFormed", "Suspended", "Resumed", "RoundFormed"]),
]


@pytest.mark.parametrize(
    ("act", "expected"), LIVES, ids=lambda value: getattr(value, "__name__", "")
)
def test_each_event_of_a_life_is_one_line(world, monkeypatch, act, expected):
    assert told(world(), monkeypatch, act) == expected


def test_an_end_says_why_and_how_bad_that_is(world, monkeypatch):
    w = world().start()
    before = dict(w.status)
    w.fail("digits-0", "Model/R9: no such bucket", cause="Configuration", reason="Model/R9")
    w.run(10)
    (line,) = milestones.lines(before, Plan(status=w.status))
    assert (line.level, line.fields["reason"]) == (logging.ERROR, "Model:R9")
    assert "no such bucket" in line.message


def test_a_deletion_that_somebody_holds_up_is_told(world):
    w = world().start()
    gone = {**w.status, "phase": "Deleting", "message": "the job is being deleted, no pods run"}
    (line,) = milestones.lines(w.status, Plan(status=gone))
    assert (line.message, line.fields["reason"]) == (gone["message"], "Deleting")
    assert not list(milestones.lines(gone, Plan(status=gone)))


class Lines:
    """A handler on a clock of its own, and what it wrote."""

    def __init__(self):
        self.now, self.stream = 0.0, io.StringIO()
        handler = logs.Moderate(self.stream, lambda: self.now)
        handler.setFormatter(logs.TextFormatter())
        self.logger = logging.Logger("rekindle_operator.x")
        self.logger.addHandler(handler)

    @property
    def written(self):
        return self.stream.getvalue().splitlines()


def test_lines_of_one_kind_come_at_a_limited_rate_and_the_others_are_counted():
    lines = Lines()
    for n in range(1000):
        lines.logger.warning("a connection from 10.0.0.%d is closed: %s", n, "too many")
    assert len(lines.written) == 30
    lines.logger.warning("something else")
    assert len(lines.written) == 31
    lines.now = 10.0
    lines.logger.info("a third thing")
    assert lines.written[31].endswith("(the last of 970 lines of this kind that were left out)")
    assert lines.written[32].endswith("a third thing")


def test_no_variety_of_words_makes_more_of_one_job_and_no_job_costs_another_its_lines():
    lines = Lines()
    for n in range(2000):
        lines.logger.info("%s/%s: %s", "ml", "digits", "x" * (n % 190))
    lines.logger.info("%s/%s: %s", "ml", "other", "x")
    assert len(lines.written) == 301
    for n in range(10_000):
        lines.logger.info("%s/%s: gone", "ml", f"job-{chr(n + 1000)}")
    handler = lines.logger.handlers[0]
    assert len(handler._kinds) == logs.MOST_KINDS
    assert len(handler._left_out) <= logs.MOST_KINDS


def test_text_of_others_moves_no_cursor_and_begins_no_line():
    lines = Lines()
    try:
        raise ValueError("no\n2026-01-01 INFO x: all is well\x1b[2J\ud800")
    except ValueError:
        lines.logger.exception("%s/%s: %s", "ml", "digits", "a\r\n2026-01-01 b\x1b[1A\u202e")
    first, *rest = lines.written
    assert first.endswith(r"ml/digits: a\r\n2026-01-01 b\x1b[1A\u202e")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == r"    2026-01-01 INFO x: all is well\x1b[2J\ud800"
