"""The operator's log: one line for each event, as text for people or as JSON for whoever collects.

What is said of a job names it first: its message begins with ``%s/%s:``, namespace and name. In
JSON those two are fields of their own, as are the round, the incident and the reason where a line
is about one. Lines of kopf and aiohttp go the same way. JSON escapes control characters, so that
no text of a pod or a manifest can make a line that looks like another one.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

ABOUT_A_JOB = "%s/%s:"
FIELDS = ("namespace", "job", "round", "incident", "reason")
"""What a line may be about, by the names that ``extra`` has for it."""
FORMATS = ("text", "json")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Json(logging.Formatter):
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


def configure(form: str, *, verbose: bool) -> None:
    """Send all lines to stderr in this form (one of FORMATS)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.DEBUG if verbose else logging.WARNING)
