"""``rekindle.report``: how a script without our trainer says how far it is.

The agent names a small file in the environment of its workers and reads it a few times a second.
The file is mapped into memory, so a call costs microseconds and no system call, nothing has to be
held back to spare the disk, and the newest word is there for the agent whatever ends the process.
A checksum over the word tells the reader when it looks in the middle of a write.

Standard library only, and without torch: any script can afford the import.
"""

import json
import logging
import math
import mmap
import os
import struct
import threading
import zlib
from operator import index
from pathlib import Path
from typing import SupportsFloat, SupportsIndex

from rekindle.api import ENV_REPORT

SIZE = 4096
"""Bytes of the file; a word is a tenth of it."""
_HEAD = struct.Struct("<II")
"""Length and checksum of the JSON that follows."""

logger = logging.getLogger(__name__)


def report(
    *,
    step: SupportsIndex,
    total_steps: SupportsIndex | None = None,
    epoch: SupportsIndex | None = None,
    loss: SupportsFloat | None = None,
    samples: SupportsIndex | None = None,
) -> None:
    """Say that so many optimizer steps are done; the job's status shows it.

    Call it after each step, or now and then. Only rank 0 is heard, so every rank may call it.
    Outside of a pod it does nothing. A loss that is not finite is left out. Raises ValueError for
    a negative number, TypeError for what is no number.
    """
    word: dict[str, object] = {"step": _count(step, "step")}
    for name, value in (("totalSteps", total_steps), ("epoch", epoch), ("samples", samples)):
        if value is not None:
            word[name] = _count(value, name)
    if os.environ.get("RANK", "0") != "0":
        return
    if loss is not None and math.isfinite(number := float(loss)):
        word["loss"] = number
    path = os.environ.get(ENV_REPORT)
    if not path:
        if not _told:
            _told.append(True)
            logger.debug("nobody listens to rekindle.report: %s is unset", ENV_REPORT)
        return
    _put(path, json.dumps(word).encode())


_told: list[bool] = []
_lock = threading.Lock()
_open: dict[str, mmap.mmap | None] = {}
"""By path; None for one that cannot be had."""


def _count(value: SupportsIndex, name: str) -> int:
    number = index(value)
    if number < 0:
        raise ValueError(f"{name} is {number}, must be 0 or more")
    return number


def _put(path: str, word: bytes) -> None:
    with _lock:
        if path not in _open:
            try:
                with open(path, "r+b") as file:
                    _open[path] = mmap.mmap(file.fileno(), SIZE)
            except (OSError, ValueError) as error:
                _open[path] = None
                logger.debug("nobody hears rekindle.report: %s", error)
        page = _open[path]
        if page is not None and len(word) <= SIZE - _HEAD.size:
            page[: _HEAD.size + len(word)] = _HEAD.pack(len(word), zlib.crc32(word)) + word


def make(path: Path) -> None:
    """Make the file, for the agent; raises OSError."""
    path.write_bytes(bytes(SIZE))


def read(path: Path) -> bytes | None:
    """Give the newest word; None when there is none, or none that is whole at this moment."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack_from(data)
    word = data[_HEAD.size : _HEAD.size + length]
    return word if length and len(word) == length and zlib.crc32(word) == checksum else None
