"""What only a file system can get wrong."""

import errno
import os
import threading

import pytest

from rekindle.checkpoint.file import FileObjects
from rekindle.checkpoint.objects import AccessDenied, NoSpace, NotFound, Refused


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
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(Refused, match="would not be atomic"):
        objects.put("commit/a", b"x", if_none_match=True)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(Refused, match="is a directory"):
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
