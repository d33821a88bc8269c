"""What is still being stored on this machine, so that a new attempt can wait for it.

A worker is replaced within a fraction of a second; the snapshot it left behind takes longer to be
committed. An attempt that chose its checkpoint at once would train the lost steps again, and the
commit would come too late to count. So every uploader has a file in a directory named after the
store, locked from before it was started whenever it has work, and a new attempt looks at the locks
before it chooses. A lock ends with its process, however that ends: nothing stale is waited for.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import time
from pathlib import Path

WAIT_SECONDS = 10.0
"""How long a new attempt waits at most."""
_STALE_SECONDS = 86_400.0
_PREFIX = "rekindle-flush-"


def _folders(uri: str) -> list[Path]:
    """Where locks of a store may be, in directories that belong to this user alone.

    Temporary directories are shared, so their names are made up: one that can be guessed could be
    there already, and be somebody else's.
    """
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    places = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    return [place / digest for place in sorted(places) if _is_own(place)]


def _is_own(place: Path) -> bool:
    try:
        found = place.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.getuid()


class Lock:
    """The lock of one uploader; its descriptor can be inherited together with the lock."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls, uri: str) -> "Lock":
        """A new one, held; without a writable directory one that nobody waits for."""
        try:
            if not (folders := _folders(uri)):
                tempfile.mkdtemp(prefix=_PREFIX, dir=tempfile.gettempdir())  # for its owner alone
                folders = _folders(uri)
            folder = folders[0]
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.lock"
            lock = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except (OSError, IndexError):
            return cls(-1)
        lock.hold()
        return lock

    def hold(self) -> None:
        """From now on, others wait."""
        self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Nobody need wait."""
        self._flock(fcntl.LOCK_UN)

    def _flock(self, operation: int) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, operation)

    def close(self) -> None:
        """Close the descriptor; the lock stays with whoever has inherited it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def wait(uri: str, seconds: float = WAIT_SECONDS) -> bool:
    """Wait until no process of this machine stores snapshots of this run; whether none does."""
    deadline = time.monotonic() + seconds
    while busy(uri):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def busy(uri: str) -> bool:
    """Whether a process of this machine has snapshots of this run to store."""
    return any(_held(path) for folder in _folders(uri) for path in folder.glob("*.lock"))


def _held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        # Idle, or left behind; it may be locked again, so only an old one is removed.
        if time.time() - os.fstat(descriptor).st_mtime > _STALE_SECONDS:
            with contextlib.suppress(OSError):
                path.unlink()
        return False
    finally:
        os.close(descriptor)
