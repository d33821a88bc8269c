"""The operator's log: one line for each event, as text for people or as JSON for whoever collects.

What is said of a job names it first: its message begins with ``%s/%s:``, namespace and name. In
JSON those two are fields of their own, as are the round, the incident and the reason where a line
is about one. Lines of kopf and aiohttp go the same way.

Much of a line may come from a pod, from a manifest, or from whoever can reach a port. So control
characters are escaped, and the further lines of a traceback are indented: no text can make a line
that looks like another one. And lines of one kind (the same words about the same job, whatever the
numbers) come at a limited rate. How many were left out is said as soon as there is room for it.
"""

import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from rekindle_operator.coordinator.rate_limit import Allowance

ABOUT_A_JOB = "%s/%s:"
FIELDS = ("namespace", "job", "round", "incident", "reason")
"""What a line may be about, by the names that ``extra`` has for it."""
FORMATS = ("text", "json")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
KIND, WIDER = (0.2, 30.0), (5.0, 300.0)
"""So many lines of a kind a second in the long run, and so many at once; and of all those that one
place in the program writes about one job."""
MOST_KINDS = 2000
"""Kinds of lines that are counted; the one that was heard longest ago is forgotten."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")


def escaped(text: str) -> str:
    """A text without characters that move a cursor, begin a line or turn its direction."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """A line for people; more of them for a traceback, indented."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Give a traceback."""
        lines = super().formatException(ei).splitlines()
        return "\n".join("    " + escaped(line) for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object for each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        found = _subject(record)
        prefix = f"{found.get('namespace')}/{found.get('job')}:"
        if found and message.startswith(prefix):
            message = message[len(prefix) :].lstrip()
        line["message"] = message
        line |= found
        line |= {key: value for key in FIELDS if (value := getattr(record, key, None)) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _subject(record: logging.LogRecord) -> dict[str, str]:
    """The job that a line is about, if it is about one."""
    given = record.args
    about = isinstance(record.msg, str) and record.msg.startswith(ABOUT_A_JOB)
    if about and isinstance(given, tuple) and len(given) >= 2:
        return {"namespace": str(given[0]), "job": str(given[1])}
    ref = getattr(record, "k8s_ref", None)  # kopf's lines about an object
    if isinstance(ref, dict) and ref.get("kind") == "TrainingJob" and ref.get("name"):
        return {"namespace": str(ref.get("namespace") or ""), "job": str(ref["name"])}
    return {}


class Moderate(logging.StreamHandler[TextIO]):
    """Writes lines, those of one kind at a limited rate."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._kinds: OrderedDict[object, Allowance] = OrderedDict()
        self._left_out: dict[object, tuple[int, logging.LogRecord]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless there were too many of its kind."""
        now, (kind, wider) = self._clock(), kinds_of(record)
        for other, (count, last) in list(self._left_out.items()):
            if self._allowed(other, KIND).take(now):
                del self._left_out[other]
                super().emit(_summary(count, last))
        narrow, wide = self._allowed(kind, KIND), self._allowed(wider, WIDER)
        if narrow.left(now) >= 1 and wide.take(now):
            narrow.take(now)
            super().emit(record)
            return
        full = kind if narrow.left(now) < 1 else wider
        count, _ = self._left_out.get(full, (0, record))
        record.exc_info = None  # frames would keep alive what they hold
        self._left_out[full] = count + 1, record

    def _allowed(self, kind: object, rate: tuple[float, float]) -> Allowance:
        if kind not in self._kinds:
            self._kinds[kind] = Allowance(*rate)
        self._kinds.move_to_end(kind)
        while len(self._kinds) > MOST_KINDS:
            forgotten, _ = self._kinds.popitem(last=False)
            self._left_out.pop(forgotten, None)
        return self._kinds[kind]


def kinds_of(record: logging.LogRecord) -> tuple[object, object]:
    """What lines have in common that differ in numbers only; and what in everything they tell."""
    who = (record.name, record.levelno, *_subject(record).values())
    template = _NUMBERS.sub("#", str(record.msg))[:200]
    return (*who, _NUMBERS.sub("#", record.getMessage())[:200]), (*who, template)


def _summary(count: int, last: logging.LogRecord) -> logging.LogRecord:
    fields = {**last.__dict__, "exc_text": None, "stack_info": None, "args": None}
    words = f"{last.getMessage()} (the last of {count} lines of this kind that were left out)"
    return logging.makeLogRecord({**fields, "msg": words})


def configure(form: str, *, verbose: bool) -> None:
    """Send all lines to stderr in this form (one of FORMATS)."""
    handler = Moderate(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.DEBUG if verbose else logging.WARNING)
