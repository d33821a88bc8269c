"""What workers print, on its way through FIFOs to this process's own streams, in one thread.

Of several workers, each line gets a prefix with the rank. Of a single one whose lines somebody
wants to read along (a tap), the bytes pass unchanged and at once. torch's way through log files
would grow without bounds and read them by polling.

A FIFO outlives the worker: what a killed one has printed is still copied. Where both streams of
this process are the same file, both of a worker are the same FIFO, so that its lines stay in order.
"""

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rekindle import threads
from rekindle.launch.health.progress_readers import lines_of

LINE_LIMIT = 1 << 16
"""Bytes of a line that are held back for its end."""

Tap = Callable[[bytes], None]
"""Called with each line, without its end, by the copying thread: it must be quick."""


@dataclass
class _Source:
    prefix: bytes
    to: BinaryIO
    tap: Tap | None
    held: bytes = b""
    """Where lines get a prefix: the beginning of one, which is not copied yet."""
    heard: bytes = b""
    """With a tap: the beginning of a line, or of what a progress bar has drawn last."""


class Copier:
    """Copies from FIFOs to this process's streams."""

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}
        self._poller = select.poll()
        self._stop_read, self._stop_write = os.pipe()
        self._poller.register(self._stop_read, select.POLLIN)
        self._thread: threading.Thread | None = None

    def streams(self, folder: Path, *, prefix: bytes, tap: Tap | None) -> dict[str, str]:
        """Make the FIFOs of one worker in its folder; gives their paths by stream."""
        found: dict[str, str] = {}
        for name, to in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            if found and not prefix and _one_file():
                found[name] = found["stdout"]
                continue
            found[name] = str(folder / name)
            os.mkfifo(found[name])
            # Open for writing too: else the FIFO is at its end whenever no worker holds it.
            file = os.open(found[name], os.O_RDWR | os.O_NONBLOCK)
            self._sources[file] = _Source(prefix, to.buffer, tap)
            self._poller.register(file, select.POLLIN)
        return found

    def start(self) -> None:
        """Begin to copy."""
        self._thread = threads.lasting(self._run, name="copier")

    def stop(self) -> None:
        """Copy what is there and end."""
        os.write(self._stop_write, b"\0")
        if self._thread is not None:
            self._thread.join(5.0)
            if self._thread.is_alive():
                return  # Nobody reads this process's streams: the files are the thread's.
        for file in (*self._sources, self._stop_read, self._stop_write):
            os.close(file)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            ready = [file for file, _ in self._poller.poll()]
            stopping = self._stop_read in ready
            for file, source in self._sources.items():
                while self._copy(file, source):
                    pass
        for source in self._sources.values():
            if source.held:
                self._put(source.to, source.prefix + source.held + b"\n")
            if source.tap is not None and source.heard:
                source.tap(source.heard)

    def _copy(self, file: int, source: _Source) -> bool:
        try:
            data = os.read(file, LINE_LIMIT)
        except BlockingIOError:
            return False
        if source.prefix:
            *lines, rest = (source.held + data).split(b"\n")
            if len(rest) >= LINE_LIMIT:
                lines, rest = [*lines, rest], b""
            source.held = rest
            self._put(source.to, b"".join(source.prefix + line + b"\n" for line in lines))
        else:
            self._put(source.to, data)
        if source.tap is not None:
            lines, source.heard = lines_of(source.heard, data)
            for line in lines:
                source.tap(line)
        return True

    def _put(self, to: BinaryIO, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            to.write(data)
            to.flush()


def _one_file() -> bool:
    """Whether what is printed goes to one place, whatever the stream."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False
