"""The step of the newest event in TensorBoard's files, without TensorBoard.

An event file is a row of records: a length (8 bytes), its checksum (4), that many bytes, and their
checksum (4). The bytes are a protocol buffer, whose first two fields are the time and the step;
what comes after them, images for example, is passed over unread. A record whose end is not written
yet is looked at again later; a length with a wrong checksum means that this is no event file, or a
damaged one, and nothing behind it can be found.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

HEAD = struct.Struct("<QI")
PEEK = 64
"""Bytes of an event in which its step stands, if it has one."""
MOST_RECORDS = 20_000
"""Records that are passed at a time, in one file."""
MOST_FILES = 2_000
"""Files and folders that are looked at, below a directory, for event files."""
DEPTH = 4
_MARK = "tfevents"


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        found.append(value)
    return tuple(found)


_CRC32C = _table()


def masked_crc(data: bytes) -> int:
    """Give the checksum of these files: CRC-32C, rotated and moved."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def step_of(event: bytes) -> int | None:
    """Give the step of an event by its first bytes; None where it has no value, or is none.

    The first event of a file, which only tells its version, has none.
    """
    at, step = 0, 0
    try:
        while at < len(event):
            key, at = _varint(event, at)
            field, kind = key >> 3, key & 7
            if field == 2 and kind == 0:
                step, at = _varint(event, at)
            elif kind == 0:
                _, at = _varint(event, at)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind == 2:
                # A summary (5) is what a step is told for.
                return step if field == 5 and step < 1 << 53 else None
            else:
                return None
    except IndexError:
        return None
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise IndexError("no number ends here")


class EventFiles:
    """The event files below a directory, from a moment on."""

    def __init__(self, directory: Path) -> None:
        """Begin after what is there now."""
        self._directory = directory
        self._at: dict[str, int] = {}
        self._broken: set[str] = set()
        for path, size in self._files():
            self._at[path] = size

    def step(self) -> int | None:
        """Give the newest step since the last time; None when no event has come."""
        newest: tuple[float, int] | None = None
        for path, size in self._files():
            if size <= self._at.get(path, 0) or path in self._broken:
                continue
            try:
                changed = os.stat(path).st_mtime
                found = self._read(path)
            except (OSError, ValueError):
                continue
            if found is not None and (newest is None or (changed, found) >= newest):
                newest = (changed, found)
        return newest[1] if newest else None

    def _read(self, path: str) -> int | None:
        step = None
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            at = self._at.get(path, 0)
            for _ in range(MOST_RECORDS):
                file.seek(at)
                head = file.read(HEAD.size)
                if len(head) < HEAD.size:
                    break
                length, checksum = HEAD.unpack(head)
                if masked_crc(head[:8]) != checksum:
                    self._broken.add(path)
                    break
                after = at + HEAD.size + length + 4
                if after > end:
                    break
                found = step_of(file.read(min(length, PEEK)))
                step = step if found is None else found
                at = after
            self._at[path] = at
        return step

    def _files(self) -> Iterator[tuple[str, int]]:
        left = MOST_FILES
        todo = [(str(self._directory), 0)]
        while todo and left > 0:
            folder, depth = todo.pop(0)
            try:
                entries = sorted(os.scandir(folder), key=lambda each: each.name, reverse=True)
            except OSError:
                continue
            for entry in entries:
                left -= 1
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < DEPTH:
                            todo.append((entry.path, depth + 1))
                    elif _MARK in entry.name:
                        yield entry.path, entry.stat().st_size
                except OSError:
                    continue
