"""What only a file system can get wrong."""

import errno
import fcntl
import os
import stat
import threading

import pytest

from rekindle.checkpoint.objects import file
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    NoSpace,
    NotFound,
    PreconditionFailed,
    RequestRefused,
    Unreachable,
)


@pytest.fixture
def objects(tmp_path):
    return FileObjects(str(tmp_path / "run"))


def test_a_failed_write_leaves_no_object_and_no_temporary_file(objects, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match=r"No space left.*keep fewer"):
        objects.put("commit/a", b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_system_without_links_is_refused_and_not_worked_around(objects, monkeypatch):
    def unsupported(*_, **__):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(RequestRefused, match="would not be atomic"):
        objects.put("commit/a", b"x", if_none_match=True)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RequestRefused, match="is a directory"):
        FileObjects(str(tmp_path / "run")).put("a", b"x")


def test_a_missing_permission_names_the_directory(objects, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "makedirs", denied)
    with pytest.raises(AccessDenied, match=r"Give user \d+ write access to .*run"):
        objects.put("a", b"x")


def test_abandoned_temporary_files_are_swept_by_age(objects, tmp_path):
    objects.put("a", b"x")
    left = tmp_path / "run" / ".tmp" / "killed"
    left.write_bytes(b"half")
    assert objects.abandon_uploads("", older_than=3600) == 0
    os.utime(left, (1, 1))
    assert objects.abandon_uploads("", older_than=3600) == 1
    assert [stat.key for stat in objects.list("")] == ["a"]


def test_writers_survive_deleters_that_remove_their_directory(objects):
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            objects.put("data/1/other", b"x")
            objects.delete("data/1/other")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for number in range(100):
            objects.put("data/1/mine", str(number).encode(), if_none_match=True)
            assert objects.get("data/1/mine") == str(number).encode()
            objects.delete("data/1/mine")
    finally:
        stop.set()
        thread.join()
    with pytest.raises(NotFound):
        objects.head("data/1/mine")


def foreign(kind, path, outside):
    """Put something that is no object where one could be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(outside / "secret")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory"])
def test_what_is_no_regular_file_is_no_object(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not yours")
    objects = FileObjects(str(tmp_path / "run"))
    objects.put("commit/good.json", b"good")
    foreign(kind, tmp_path / "run" / "commit" / "evil.json", outside)
    key = "commit/evil.json"
    assert [found.key for found in objects.list("commit/")] == ["commit/good.json"]
    for read in (
        lambda: objects.get(key),
        lambda: objects.get_into(key, memoryview(bytearray(4))),
        lambda: objects.head(key),
    ):
        with pytest.raises(NotFound, match="no object, but"):
            read()
    with pytest.raises(PreconditionFailed):
        objects.put(key, b"mine", if_none_match=True)
    if kind != "directory":
        objects.put(key, b"mine")  # takes its place, and does not write through it
        assert objects.get(key) == b"mine"
    assert (outside / "secret").read_bytes() == b"not yours"


def test_no_link_is_followed_out_of_the_root(tmp_path):
    outside = tmp_path / "outside"
    (outside / "x").mkdir(parents=True)
    (outside / "x" / "secret").write_bytes(b"not yours")
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "run").symlink_to(real)  # the root is the user's own word
    objects = FileObjects(str(tmp_path / "run"))
    objects.put("data/1/a", b"mine")
    assert objects.get("data/1/a") == b"mine"
    for name in ("commit", "data/2"):
        (real / name).symlink_to(outside)
        assert objects.list(f"{name}/") == []
        assert [found.key for found in objects.list("")] == ["data/1/a"]
        with pytest.raises(NotFound, match="on the way there"):
            objects.get(f"{name}/x/secret")
        with pytest.raises(RequestRefused, match=r"on the way there\. Remove it"):
            objects.put(f"{name}/x/new", b"out")
        with pytest.raises(RequestRefused, match="on the way there"):
            objects.delete(f"{name}/x/secret")
    objects.delete("data/1/a")
    (real / ".tmp").rename(real / "moved")
    (real / ".tmp").symlink_to(outside)
    with pytest.raises(RequestRefused, match="on the way there"):
        objects.put("data/1/a", b"out")
    with pytest.raises(RequestRefused, match="on the way there"):
        objects.abandon_uploads("", older_than=-1.0)
    assert sorted(path.name for path in outside.rglob("*")) == ["secret", "x"]


def test_a_lock_that_somebody_keeps_is_waited_for_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.05)
    objects = FileObjects(str(tmp_path))
    etag = objects.put("tag/pin-a.json", b"one")
    with open(tmp_path / ".tmp" / "lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unreachable, match="held by another process"):
            objects.put("tag/pin-a.json", b"two", if_match=etag)
    objects.put("tag/pin-a.json", b"two", if_match=etag)
