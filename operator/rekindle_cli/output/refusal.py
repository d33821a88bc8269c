"""What the API server answers to a bad manifest, in words for the person who wrote it.

The server's Status has one cause per field, already with the fix, because the schema and its rules
say so; but kubectl prints all of them as one long line. Here each becomes a line of its own, the
field first.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_PREFIX = re.compile(r'^[\w.]+ "[^"]*" is invalid: ')
_STRICT = re.compile(r"strict decoding error: (.+)$", re.DOTALL)

_UNCHECKED = "some validation rules were not checked"
"""What the server adds to other causes: true of every message of this kind, and of no use."""


def explain_refusal(body: str | bytes | None, code: int, what: str) -> list[str]:
    """The lines to print for an answer of 400 and above; `what` is the object's kind and name."""
    status = _status(body)
    message = str(status.get("message") or "").strip()
    head = f"The API server refuses {what}:"
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, Mapping) else None
    found = [_cause(entry) for entry in causes or () if isinstance(entry, Mapping)]
    lines = [line for line in found if line and _UNCHECKED not in line]
    if lines:
        return [head, *(f"  {line}" for line in dict.fromkeys(lines))]
    strict = _STRICT.search(message)
    if strict:
        fields = [part.strip() for part in strict.group(1).split(", ") if part.strip()]
        return [head, *(f"  {field}; correct its name or remove it" for field in fields)]
    if code == 409:
        return [f"{what} exists already; delete it first or give the new one another name."]
    if code == 404:
        return [f"{head} {message or 'no such resource'}. Is the CRD of Rekindle installed?"]
    if code in {401, 403}:
        return [f"{head} {message or 'no permission'}"]
    return [f"{head} {_PREFIX.sub('', message) or f'HTTP {code}'}"]


def _status(body: str | bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(body or "{}")
    except ValueError:
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
        return {"message": text}
    return found if isinstance(found, dict) else {"message": str(found)}


def _cause(entry: Mapping[str, Any]) -> str:
    message = str(entry.get("message") or "").strip()
    field = str(entry.get("field") or "").strip()
    if not field or field == "<nil>" or message.startswith(f"{field}:"):
        return message
    return f"{field}: {message}" if message else field
