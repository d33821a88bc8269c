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

Below the root nothing is followed or opened that was not put there as an object: every step goes
from an open directory to the next and takes no symbolic link, and what is no regular file is no
object, so a FIFO cannot hold a reader up and a device cannot be read. The root itself is the user's
own word, and may be a link.

A file system that has no hard links (FAT, some FUSE mounts) cannot create atomically and is
refused, not worked around.
"""

import contextlib
import errno
import fcntl
import os
import stat as modes
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import quote

from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    Body,
    NoSpace,
    NotFound,
    PreconditionFailed,
    RequestRefused,
    Stat,
    StoreError,
    Unreachable,
    check_key,
)

_TMP = ".tmp"
_LOCK = "lock"
LOCK_SECONDS = 30.0
"""For a lock that is held for moments."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FOREIGN = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}
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
        *_, name = check_key(key).split("/")
        with self._errors("write", key), self._temporary() as (drafts, draft):
            try:
                with _opened(draft, drafts, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                    view = memoryview(body).cast("B")
                    while view:
                        view = view[os.write(file, view) :]
                    os.fsync(file)
                    etag = _etag(os.fstat(file))
                if if_match is None:
                    self._name(drafts, draft, key, create=if_none_match)
                else:
                    with self._one_at_a_time(drafts):
                        self._compare(key, "replace", if_match)
                        self._name(drafts, draft, key, create=False)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=drafts)
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
        with self._errors("read", key), self._object(key) as file:
            size = os.fstat(file).st_size
            begin = min(start or 0, size)
            end = size if stop is None else min(stop, size)
            if limit is not None and end - begin > limit:
                raise RequestRefused(
                    f"read of {self._full(key)}: {end - begin} bytes, at most {limit} are expected"
                )
            buffer = bytearray(max(0, end - begin))
            count = _fill(file, memoryview(buffer), begin)
            return bytes(buffer[:count])

    def get_into(self, key: str, buffer: memoryview, start: int = 0) -> int:
        """Fill the buffer with positioned reads."""
        with self._errors("read", key), self._object(key) as file:
            return _fill(file, buffer.cast("B"), start)

    def head(self, key: str) -> Stat:
        """Size and etag from one `stat`."""
        with self._errors("stat", key):
            stat = self._stat(key)
            return Stat(key=key, size=stat.st_size, etag=_etag(stat))

    def list(self, prefix: str) -> list[Stat]:
        """Walk only the directories that can hold the prefix."""
        parents = prefix.split("/")[:-1]
        with self._errors("list", prefix):
            try:
                with self._directory(parents) as directory:
                    found = self._walk(directory, "".join(f"{part}/" for part in parents), prefix)
                    return sorted(found, key=lambda stat: stat.key)
            except OSError as error:
                # No directory, or none of ours: nothing is listed there.
                if error.errno in {errno.ENOENT, *_FOREIGN}:
                    return []
                raise

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Unlink, after comparing the etag when one is given."""
        *parents, name = check_key(key).split("/")
        with self._errors("delete", key):
            try:
                if if_match is not None:
                    self._compare(key, "delete", if_match)
                with self._directory(parents) as directory:
                    os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return
            self._prune(parents)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Unlink one by one; a file system has no batches."""
        for key in keys:
            self.delete(key)

    def try_upload(self, key: str) -> None:
        """Create and remove a temporary file, which is what an upload is here."""
        with self._errors("write", key), self._temporary() as (drafts, draft):
            with _opened(draft, drafts, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
                pass
            os.unlink(draft, dir_fd=drafts)

    def abandon_uploads(
        self, prefix: str, *, older_than: float, only: Callable[[str], bool] | None = None
    ) -> int:
        """Remove temporary files that a killed writer left (they carry no key, so all match)."""
        count = 0
        horizon = time.time() - older_than
        with (
            self._errors("list", prefix),
            contextlib.suppress(FileNotFoundError),
            self._directory([_TMP]) as drafts,
        ):
            for name in os.listdir(drafts):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    stat = os.stat(name, dir_fd=drafts, follow_symlinks=False)
                    if name != _LOCK and stat.st_mtime < horizon:
                        os.unlink(name, dir_fd=drafts)
                        count += 1
        return count

    def impatient(self) -> "FileObjects":
        """Itself: a file system has no timeouts of ours."""
        return self

    def _compare(self, key: str, verb: str, etag: str) -> None:
        try:
            if _etag(self._stat(key)) != etag:
                raise PreconditionFailed(f"{verb} {self._full(key)}: the object has changed")
        except FileNotFoundError:
            raise PreconditionFailed(f"{verb} {self._full(key)}: the object is gone") from None

    @contextlib.contextmanager
    def _one_at_a_time(self, drafts: int) -> Iterator[None]:
        """Updates under a condition compare and rename, which only a lock makes one step."""
        with _opened(_LOCK, drafts, os.O_WRONLY | os.O_CREAT) as file:
            _lock(file)
            yield

    @contextlib.contextmanager
    def _directory(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """A directory below the root, opened step by step; made where it is missing."""
        if create:
            os.makedirs(self._root, exist_ok=True)
        directory = os.open(self._root, _DIRECTORY)
        try:
            for part in parts:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=directory)
                following = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = following
            yield directory
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _object(self, key: str) -> Iterator[int]:
        """An object, opened for reading."""
        *parents, name = check_key(key).split("/")
        with self._directory(parents) as directory:
            # Looked at before it is opened: to open a device may already do something.
            _regular(os.stat(name, dir_fd=directory, follow_symlinks=False))
            with _opened(name, directory, os.O_RDONLY) as file:
                _regular(os.fstat(file))
                yield file

    def _stat(self, key: str) -> os.stat_result:
        *parents, name = check_key(key).split("/")
        with self._directory(parents) as directory:
            return _regular(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _full(self, key: str) -> str:
        return f"{self.uri}/{key}"

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        """Where drafts are written, and a name for one."""
        with self._directory([_TMP], create=True) as drafts:
            yield drafts, f"{os.getpid()}-{uuid.uuid4().hex}"

    def _name(self, drafts: int, draft: str, key: str, *, create: bool) -> None:
        """Give the file its name, in a directory that deleters may remove while it is empty."""
        *parents, name = check_key(key).split("/")
        for _ in range(100):
            # Until the name stands, the directory can vanish between any two calls: again, then.
            try:
                with self._directory(parents, create=True) as directory:
                    places = {"src_dir_fd": drafts, "dst_dir_fd": directory}
                    if create:
                        os.link(draft, name, **places, follow_symlinks=False)
                    else:
                        os.replace(draft, name, **places)
                    os.fsync(directory)
            except FileExistsError:
                raise PreconditionFailed(f"create {self._full(key)}: it exists already") from None
            except FileNotFoundError:
                continue
            except OSError as error:
                if create and error.errno in _NO_LINKS and os.access(self._root, os.W_OK):
                    raise RequestRefused(
                        f"create {self._full(key)}: this file system has no hard links, so a "
                        f"commit would not be atomic. Use a local disk, NFS or S3."
                    ) from None
                raise
            return
        raise Unreachable(
            f"write {self._full(key)}: its directory vanished 100 times while writing"
        )

    def _walk(self, directory: int, at: str, prefix: str) -> Iterator[Stat]:
        for name in os.listdir(directory):
            key = f"{at}{name}"
            if key == _TMP or not (key.startswith(prefix) or prefix.startswith(f"{key}/")):
                continue
            # What vanishes between the listing and the look is simply not there.
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if modes.S_ISDIR(stat.st_mode):
                    flags = _DIRECTORY | os.O_NOFOLLOW
                    with _opened(name, directory, flags) as below:
                        yield from self._walk(below, f"{key}/", prefix)
                elif modes.S_ISREG(stat.st_mode) and key.startswith(prefix):
                    yield Stat(key=key, size=stat.st_size, etag=_etag(stat))

    def _prune(self, parts: Sequence[str]) -> None:
        for depth in range(len(parts), 0, -1):
            try:
                with self._directory(parts[: depth - 1]) as directory:
                    os.rmdir(parts[depth - 1], dir_fd=directory)
            except OSError:
                return

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        """Translate operating system errors; the path in the message is the one to look at."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise NotFound(f"{verb} {self._full(key)}: no such object") from None
        except _Foreign as error:
            raise NotFound(f"{verb} {self._full(key)}: {error}") from None
        except OSError as error:
            raise self._translate(verb, key, error) from error

    def _translate(self, verb: str, key: str, error: OSError) -> StoreError:
        if error.errno in _FOREIGN and os.path.isdir(self._root):
            # A link, or a file, where a directory of ours belongs: there is no object behind it.
            kind = NotFound if verb in {"read", "stat"} else RequestRefused
            return kind(
                f"{verb} {self._full(key)}: a link, or something else that is no directory, is on "
                f"the way there. Remove it, or use another directory."
            )
        text = f"{verb} {self._full(key)}: {error.strerror}"
        if error.errno in _DENIED:
            return AccessDenied(f"{text}. Give user {os.geteuid()} write access to {self._root}.")
        if error.errno in _FULL:
            return NoSpace(f"{text}. Free space on {self._root} or keep fewer checkpoints.")
        if error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}:
            return Unreachable(f"{text}. Check the disk or the network mount below {self._root}.")
        return RequestRefused(f"{text}. Check that {self._root} is a directory on a healthy disk.")


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


class _Foreign(Exception):
    """What has the name of an object, and is none."""


def _regular(stat: os.stat_result) -> os.stat_result:
    if not modes.S_ISREG(stat.st_mode):
        kind = "a symbolic link" if modes.S_ISLNK(stat.st_mode) else "a directory, FIFO or device"
        raise _Foreign(f"no object, but {kind}")
    return stat


@contextlib.contextmanager
def _opened(name: str, directory: int, flags: int) -> Iterator[int]:
    """A file by its name alone: through no link, and without waiting for anybody."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    file = os.open(name, flags, 0o666, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def _lock(file: int) -> None:
    """Have a lock that is held for moments; raises TimeoutError when somebody keeps it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the lock {_TMP}/{_LOCK} is held by another process"
                ) from None
            time.sleep(0.01)
        else:
            return
