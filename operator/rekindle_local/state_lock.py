"""One cluster per state directory: a lock that ends with its process, however that ends."""

import contextlib
import fcntl
import os
from pathlib import Path

_NAME = "lock"


class StateDirectoryInUse(Exception):
    """Another cluster has the directory; the message says which process it is."""


class StateLock:
    """Held from `take` until `release`, or until the process is gone."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, or raise StateDirectoryInUse."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise StateDirectoryInUse(
                f"{self._path.parent} is in use by PID {owner}: end it first, or give another "
                "state directory"
            ) from None
        # The file stays when the lock goes: removing it could let two processes lock two files.
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        """Let another cluster have the directory."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)
