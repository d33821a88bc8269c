"""Container logs: what `kubectl logs` asks of a kubelet.

The files are in the CRI format (time, stream, tag, text) and written by the shims; this module only
reads them. A log that was cut continues from its older half. Following is by looking again five
times a second while somebody follows, which survives a cut (the file's inode changes) and needs
nothing of the system.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rekindle_local import timestamps

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """The query of a log request; `since` bounds the age of lines, the others are the API's."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None


def render(lines: Iterable[bytes], options: LogOptions) -> Iterator[bytes]:
    """Stored lines as the reader wants them: pieces joined, old ones dropped, stamps cut off."""
    since = timestamps.seconds(options.since).encode()[:-1] if options.since else b""
    fresh = True
    for line in lines:
        fields = line.rstrip(b"\n").split(b" ", 3)
        if len(fields) < 4:
            continue
        stamp, _, tag, text = fields
        if stamp < since:
            continue
        head = stamp + b" " if options.timestamps and fresh else b""
        fresh = tag == b"F"
        yield head + text + (b"\n" if fresh else b"")


def stored(path: Path) -> list[bytes]:
    """Every stored line, the older half first; empty when there is no log."""
    lines: list[bytes] = []
    for part in (path.with_name(path.name + ".1"), path):
        try:
            lines += part.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            continue
    return lines


def tail(path: Path, lines: int, limit: int) -> str:
    """The end of a log as text, at most so many lines and bytes."""
    text = b"".join(render(stored(path)[-lines:], LogOptions()))
    return text[-limit:].decode(errors="replace")


async def stream(
    path: Path, options: LogOptions, running: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """The log in pieces, until its end or, when followed, until `running` says no."""
    left = options.limit_bytes if options.limit_bytes is not None else 1 << 62
    lines, position, inode = await asyncio.to_thread(_snapshot, path)
    if options.tail_lines is not None:
        lines = lines[max(0, len(lines) - options.tail_lines) :]
    last = False
    while True:
        piece = b"".join(render(lines, options))[:left]
        left -= len(piece)
        if piece:
            yield piece
        if left <= 0 or not options.follow or last:
            return
        last = not running()  # then look once more: the end may have been written since
        if not last:
            await asyncio.sleep(_LOOK_SECONDS)
        lines, position, inode = _more(path, position, inode)


def _snapshot(path: Path) -> tuple[list[bytes], int, int]:
    older = stored(path.with_name(path.name + ".1"))
    lines: list[bytes] = []
    position = inode = 0
    while True:
        more, position, inode = _more(path, position, inode)
        if not more:
            return older + lines, position, inode
        lines += more


def _more(path: Path, position: int, inode: int) -> tuple[list[bytes], int, int]:
    """The complete lines after a position, and the new position."""
    lines: list[bytes] = []
    try:
        with path.open("rb") as file:
            now = os.fstat(file.fileno()).st_ino
            if inode and now != inode:
                older = path.with_name(path.name + ".1")
                if older.exists():
                    lines, _, _ = _more(older, position, 0)
                position = 0
            file.seek(position)
            data = file.read(1 << 22)
    except FileNotFoundError:
        return lines, position, inode
    end = data.rfind(b"\n") + 1
    return lines + data[:end].splitlines(keepends=True), position + end, now
