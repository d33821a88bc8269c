"""The termination message: what Kubernetes keeps of a pod when its log is gone.

It is the Outcome as JSON. Kubernetes cuts at 4096 bytes, and JSON that is cut is no JSON, so it
is shortened here: first the traceback gives way (its middle, because the head says where in the
user's code and the tail says what), then the message. The file is a bind mount, which cannot be
replaced by rename, so it is written by one write call; the kubelet reads it when the container
has ended.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rekindle.api import Outcome

LIMIT = 4096
"""Bytes that Kubernetes keeps."""


def encode(outcome: Outcome, limit: int = LIMIT) -> bytes:
    """Give the message in at most ``limit`` bytes (128 and more), shortened where necessary."""
    whole = _dump(outcome)
    if len(whole) <= limit:
        return whole

    def with_traceback(room: int) -> bytes:
        return _dump(replace(outcome, traceback=middle_out(outcome.traceback or "", room) or None))

    def with_message(room: int) -> bytes:
        return _dump(replace(outcome, traceback=None, message=middle_out(outcome.message, room)))

    if len(with_traceback(0)) <= limit:
        return _longest(with_traceback, len(outcome.traceback or ""), limit)
    return _longest(with_message, len(outcome.message), limit)


def _longest(make: Callable[[int], bytes], most: int, limit: int) -> bytes:
    """Give the longest of ``make(0)`` to ``make(most)`` that fits.

    Characters and bytes are different measures here: JSON escapes take two to twelve for one.
    """
    fits, too_long = 0, most + 1
    while too_long - fits > 1:
        room = (fits + too_long) // 2
        if len(make(room)) <= limit:
            fits = room
        else:
            too_long = room
    return make(fits)


def write(path: Path | None, outcome: Outcome) -> bool:
    """Write the message, replacing an earlier one; says whether that worked, raises no OSError.

    A pod on its way out has nothing better to do than to go on when its last words cannot be kept.
    """
    if path is None:
        return False
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(file, encode(outcome))
        finally:
            os.close(file)
    except OSError:
        return False
    return True


def middle_out(text: str, room: int) -> str:
    """Cut the middle so that at most ``room`` characters are left."""
    mark = "\n[...]\n"
    if len(text) <= room:
        return text
    if room <= len(mark):
        return text[:room]
    head = (room - len(mark)) // 3
    tail = room - len(mark) - head
    return text[:head] + mark + text[-tail:]


def _dump(outcome: Outcome) -> bytes:
    known = {key: value for key, value in outcome.to_json().items() if value is not None}
    return json.dumps(known, separators=(",", ":")).encode()
