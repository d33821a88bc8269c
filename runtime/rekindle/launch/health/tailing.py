"""What is appended to a file from a moment on, read again and again: for files of other people.

What stood there when a round began was said in another one, so it is passed over. A file may not
be there yet, may be replaced (another inode) or begun anew (it is shorter than it was): then it is
read from its beginning. A line without an end is kept until its end comes, or dropped when there is
too much of it. Reading is bounded: of more than that, the newest part counts.
"""

import os
from pathlib import Path

from rekindle.launch.health.progress_readers import lines_of

MOST = 1 << 20
"""Bytes read at a time. A file that has grown by more is read from its newest part only."""


class Tail:
    """The lines that come to a file."""

    def __init__(self, path: Path) -> None:
        """Begin after what is there now."""
        self._path = path
        self._rest = b""
        self._file: tuple[int, int] | None = None
        self._at = 0
        try:
            status = path.stat()
        except OSError:
            return
        self._file, self._at = (status.st_dev, status.st_ino), status.st_size

    def lines(self, *, last: bool = False) -> list[bytes]:
        """Give the whole lines since the last time; with ``last`` also what has no end."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                which = (status.st_dev, status.st_ino)
                if which != self._file or status.st_size < self._at:
                    self._file, self._at, self._rest = which, 0, b""
                if status.st_size - self._at > MOST:
                    # What lies between is older news; the line that this begins in is not whole.
                    self._at, self._rest = status.st_size - MOST, b"\0"
                file.seek(self._at)
                data = file.read(MOST)
        except (OSError, ValueError):
            return []
        self._at += len(data)
        found, self._rest = lines_of(self._rest, data)
        if last and self._rest:
            found, self._rest = [*found, self._rest], b""
        return found
