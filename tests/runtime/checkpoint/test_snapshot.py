"""Slots: what a reader finds in shared memory, and how much memory may be taken at all."""

import os
from pathlib import Path

import pytest

from rekindle.checkpoint.saving import flush, snapshot_memory
from rekindle.checkpoint.saving.snapshot import SnapshotMemory


@pytest.fixture
def pair():
    """The two sides of one slot."""
    mine = SnapshotMemory.create()
    theirs = SnapshotMemory(os.dup(mine.descriptor))
    yield mine, theirs
    mine.close()
    theirs.close()


def fill(slot, number, data, ticket=b"ticket"):
    slot.reserve(len(data) + len(ticket))
    slot.memory(len(data))[:] = data
    slot.complete(number, len(data), ticket)


def test_a_complete_snapshot_is_seen_by_the_other_side(pair):
    mine, theirs = pair
    assert theirs.read() is None
    fill(mine, 7, b"x" * 10_000)
    number, ticket, data = theirs.read()
    assert (number, ticket, bytes(data)) == (7, b"ticket", b"x" * 10_000)
    with pytest.raises(TypeError):
        data[0] = 1


def test_a_snapshot_that_is_being_overwritten_is_none(pair):
    mine, theirs = pair
    fill(mine, 7, b"x" * 100)
    mine.memory(100)[:50] = b"y" * 50
    assert theirs.read() is None
    mine.complete(8, 100, b"new")
    assert bytes(theirs.read()[2]) == b"y" * 50 + b"x" * 50


def test_a_ticket_that_is_not_whole_is_no_ticket(pair):
    mine, theirs = pair
    fill(mine, 7, b"x" * 100)
    os.pwrite(mine.descriptor, b"T", 4096 + 100)
    assert theirs.read() is None


def test_a_slot_grows_and_the_other_side_follows(pair):
    mine, theirs = pair
    for number, size in enumerate((10, 100_000, 20), 1):
        fill(mine, number, bytes([number]) * size)
        found = theirs.read()
        assert found[0] == number
        assert bytes(found[2]) == bytes([number]) * size
    assert mine.capacity >= 100_000


def test_a_slot_that_cannot_grow_remains_what_it_is(pair, monkeypatch):
    mine, theirs = pair
    fill(mine, 1, b"x" * 10)

    def full(*_):
        raise OSError("no memory")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no memory"):
        mine.reserve(100_000)
    fill(mine, 2, b"y" * 10)
    assert bytes(theirs.read()[2]) == b"y" * 10


def test_the_pages_of_a_slot_are_there_before_they_are_needed(pair):
    mine, _ = pair
    mine.reserve(10 * 2**20)
    assert os.fstat(mine.descriptor).st_blocks * 512 >= 10 * 2**20


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return snapshot_memory.available(root)


MACHINE = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable:  500 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 500 * 1024),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "1\n",
                "sys/fs/cgroup/a/memory.max": "300000\n",
                "sys/fs/cgroup/a/memory.current": "100000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 9\ninactive_file 5000\n",
            },
            205_000,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "9:cpu,memory:/pod\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "250000\n",
            },
            0,
        ),
    ],
)
def test_the_lowest_limit_counts(tmp_path, files, expected):
    assert system(tmp_path, files) == expected


def test_locks_are_in_a_directory_that_nobody_else_can_have_made(tmp_path, monkeypatch):
    monkeypatch.setattr(flush.tempfile, "gettempdir", lambda: str(tmp_path))
    opened, elsewhere = tmp_path / "rekindle-flush-open", tmp_path / "elsewhere"
    opened.mkdir()
    opened.chmod(0o777)
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "rekindle-flush-link").symlink_to(elsewhere)
    places = set()
    for _ in range(2):
        lock = flush.Lock.create("s3://bucket/run")
        place = Path(os.readlink(f"/proc/self/fd/{lock.descriptor}")).parents[1]
        places.add(place)
        assert flush.busy("s3://bucket/run")
        lock.close()
    (place,) = places
    assert place.parent == tmp_path
    assert place.stat().st_mode & 0o777 == 0o700
    assert not list(opened.iterdir())
    assert not list(elsewhere.iterdir())


def test_a_lock_is_waited_for_as_long_as_somebody_holds_it():
    uri = f"file:///nowhere/{os.getpid()}-{os.urandom(4).hex()}"
    assert flush.wait(uri, 0)
    lock = flush.Lock.create(uri)
    inherited = flush.Lock(os.dup(lock.descriptor))
    lock.close()
    assert not flush.wait(uri, 0.05)
    inherited.release()
    assert flush.wait(uri, 0)
    inherited.hold()
    assert flush.busy(uri)
    inherited.close()
    assert flush.wait(uri, 0)
