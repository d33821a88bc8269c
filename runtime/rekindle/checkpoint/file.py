"""Objects on a POSIX file system, with the semantics of an object store.

An object is written to a temporary file below `.tmp/`, flushed to the disk, and only then given
its name: by `link`, which fails if the name exists (`if_none_match`), or by `rename`, which
replaces. A reader or a crash therefore sees the whole object or none, and of many processes that
create one name exactly one wins, on a local disk and on NFS alike. The directory is flushed as
well, since a name that was not flushed may vanish with the power although the data is there.

`delete` with `if_match` compares and then unlinks; two deleters could both succeed, which retention
(the one user, one deleter per run) does not mind. `put` with `if_match`, the update of a pin, is
made one step by a lock. Empty directories are removed again, and a writer that loses its directory
to that simply makes it once more.

A file system that has no hard links (FAT, some FUSE mounts) cannot create atomically and is
refused, not worked around.
"""

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

from rekindle.checkpoint.objects import (
    AccessDenied,
    Body,
    NoSpace,
    NotFound,
    PreconditionFailed,
    Refused,
    Stat,
    StoreError,
    Unreachable,
    check_key,
)

_TMP = ".tmp"
_LOCK = "lock"
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FileObjects:
    """The objects below one directory, which is created with the first write."""

    endpoint = "the file system"

    def __init__(self, root: str) -> None:
        self._root = root
        self.uri = f"file://{quote(root)}"

    def put(
        self, key: str, body: Body, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Write to a temporary file, flush, then give it its name."""
        path = self._path(key)
        with self._errors("write", key):
            tmp = self._temporary()
            try:
                with open(tmp, "xb", buffering=0) as file:
                    view = memoryview(body).cast("B")
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(file.fileno())
                    etag = _etag(os.fstat(file.fileno()))
                if if_match is None:
                    self._name(tmp, path, key, create=if_none_match)
                else:
                    with self._one_at_a_time():
                        self._compare(path, key, "replace", if_match)
                        self._name(tmp, path, key, create=False)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(tmp)
            _flush_directory(os.path.dirname(path))
        return etag

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        limit: int | None = None,
    ) -> bytes:
        """Read a range, or everything."""
        with self._errors("read", key), open(self._path(key), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            begin = min(start or 0, size)
            end = size if stop is None else min(stop, size)
            if limit is not None and end - begin > limit:
                raise Refused(
                    f"read of {self._full(key)}: {end - begin} bytes, at most {limit} are expected"
                )
            buffer = bytearray(max(0, end - begin))
            count = _fill(file.fileno(), memoryview(buffer), begin)
            return bytes(buffer[:count])

    def get_into(self, key: str, buffer: memoryview, start: int = 0) -> int:
        """Fill the buffer with positioned reads."""
        with self._errors("read", key), open(self._path(key), "rb", buffering=0) as file:
            return _fill(file.fileno(), buffer.cast("B"), start)

    def head(self, key: str) -> Stat:
        """Size and etag from one `stat`."""
        with self._errors("stat", key):
            stat = os.stat(self._path(key))
            return Stat(key=key, size=stat.st_size, etag=_etag(stat))

    def list(self, prefix: str) -> list[Stat]:
        """Walk only the directories that can hold the prefix."""
        directory = prefix.rpartition("/")[0]
        with self._errors("list", prefix):
            return sorted(self._walk(directory, prefix), key=lambda stat: stat.key)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Unlink, after comparing the etag when one is given."""
        path = self._path(key)
        with self._errors("delete", key):
            try:
                if if_match is not None:
                    self._compare(path, key, "delete", if_match)
                os.unlink(path)
            except FileNotFoundError:
                return
            self._prune(os.path.dirname(path))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Unlink one by one; a file system has no batches."""
        for key in keys:
            self.delete(key)

    def try_upload(self, key: str) -> None:
        """Create and remove a temporary file, which is what an upload is here."""
        with self._errors("write", key):
            tmp = self._temporary()
            with open(tmp, "xb"):
                pass
            os.unlink(tmp)

    def abandon_uploads(
        self, prefix: str, *, older_than: float, only: Callable[[str], bool] | None = None
    ) -> int:
        """Remove temporary files that a killed writer left (they carry no key, so all match)."""
        count = 0
        horizon = time.time() - older_than
        with self._errors("list", prefix), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(os.path.join(self._root, _TMP)):
                with contextlib.suppress(FileNotFoundError):
                    if entry.name != _LOCK and entry.stat().st_mtime < horizon:
                        os.unlink(entry.path)
                        count += 1
        return count

    def impatient(self) -> "FileObjects":
        """Itself: a file system has no timeouts of ours."""
        return self

    def _compare(self, path: str, key: str, verb: str, etag: str) -> None:
        try:
            if _etag(os.stat(path)) != etag:
                raise PreconditionFailed(f"{verb} {self._full(key)}: the object has changed")
        except FileNotFoundError:
            raise PreconditionFailed(f"{verb} {self._full(key)}: the object is gone") from None

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Updates under a condition compare and rename, which only a lock makes one step."""
        with open(os.path.join(self._root, _TMP, _LOCK), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, key: str) -> str:
        return os.path.join(self._root, check_key(key))

    def _full(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _temporary(self) -> str:
        directory = os.path.join(self._root, _TMP)
        os.makedirs(directory, exist_ok=True)
        return os.path.join(directory, f"{os.getpid()}-{uuid.uuid4().hex}")

    def _name(self, tmp: str, path: str, key: str, *, create: bool) -> None:
        """Give the file its name, in a directory that deleters may remove while it is empty."""
        directory = os.path.dirname(path)
        for _ in range(100):
            # Until the name stands, the directory can vanish between any two calls: again, then.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                os.makedirs(directory, exist_ok=True)
            try:
                if create:
                    os.link(tmp, path)
                else:
                    os.replace(tmp, path)
            except FileExistsError:
                raise PreconditionFailed(f"create {self._full(key)}: it exists already") from None
            except FileNotFoundError:
                continue
            except OSError as error:
                if create and error.errno in _NO_LINKS and os.access(self._root, os.W_OK):
                    raise Refused(
                        f"create {self._full(key)}: this file system has no hard links, so a "
                        f"commit would not be atomic. Use a local disk, NFS or S3."
                    ) from None
                raise
            return
        raise Unreachable(f"write {self._full(key)}: {directory} vanished 100 times while writing")

    def _walk(self, directory: str, prefix: str) -> Iterator[Stat]:
        try:
            entries = list(os.scandir(os.path.join(self._root, directory)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{directory}/{entry.name}" if directory else entry.name
            if key == _TMP:
                continue
            if entry.is_dir(follow_symlinks=False):
                if key.startswith(prefix) or prefix.startswith(key + "/"):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                # A file may vanish between the listing and the stat; then it is simply not there.
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    yield Stat(key=key, size=stat.st_size, etag=_etag(stat))

    def _prune(self, directory: str) -> None:
        while directory.startswith(self._root + "/"):
            try:
                os.rmdir(directory)
            except OSError:
                return
            directory = os.path.dirname(directory)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        """Translate operating system errors; the path in the message is the one to look at."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise NotFound(f"{verb} {self._full(key)}: no such object") from None
        except OSError as error:
            raise self._translate(verb, key, error) from error

    def _translate(self, verb: str, key: str, error: OSError) -> StoreError:
        text = f"{verb} {self._full(key)}: {error.strerror}"
        if error.errno in _DENIED:
            return AccessDenied(f"{text}. Give user {os.geteuid()} write access to {self._root}.")
        if error.errno in _FULL:
            return NoSpace(f"{text}. Free space on {self._root} or keep fewer checkpoints.")
        if error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}:
            return Unreachable(f"{text}. Check the disk or the network mount below {self._root}.")
        return Refused(f"{text}. Check that {self._root} is a directory on a healthy disk.")


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _fill(descriptor: int, view: memoryview, start: int) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            break
        done += count
    return done


def _flush_directory(directory: str) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # the object was deleted again, and its directory with it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
