"""The contract of an object store, over every implementation."""

import threading

import pytest

from rekindle.checkpoint.objects import s3
from rekindle.checkpoint.objects.interface import NotFound, PreconditionFailed, RequestRefused

pytestmark = pytest.mark.servers


def test_an_object_comes_back_as_it_was_put(objects):
    etag = objects.put("commit/a.json", b"hello")
    assert objects.get("commit/a.json") == b"hello"
    stat = objects.head("commit/a.json")
    assert (stat.key, stat.size, stat.etag) == ("commit/a.json", 5, etag)


def test_an_empty_object_is_an_object(objects):
    objects.put("a", b"")
    assert objects.get("a") == b""
    assert objects.get("a", 0, 10) == b""
    assert [stat.size for stat in objects.list("")] == [0]


def test_put_replaces_and_changes_the_etag(objects):
    first = objects.put("a", b"one")
    second = objects.put("a", b"two!")
    assert objects.get("a") == b"two!"
    assert first != second


def test_creating_an_existing_object_fails_and_changes_nothing(objects):
    objects.put("a", b"one", if_none_match=True)
    with pytest.raises(PreconditionFailed, match="/a"):
        objects.put("a", b"two", if_none_match=True)
    assert objects.get("a") == b"one"


def test_exactly_one_of_eight_racing_creators_wins(objects):
    barrier = threading.Barrier(8)
    won = []

    def create(number):
        barrier.wait()
        try:
            objects.put("lease/1", str(number).encode(), if_none_match=True)
        except PreconditionFailed:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.get("lease/1") == str(won[0]).encode()


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 3, b"012"),
        (4, None, b"456789"),
        (None, 2, b"01"),
        (8, 20, b"89"),
        (10, 20, b""),
        (30, None, b""),
        (5, 5, b""),
    ],
)
def test_ranges_are_clipped_to_the_object(objects, start, stop, expected):
    objects.put("a", b"0123456789")
    assert objects.get("a", start, stop) == expected


def test_reading_into_memory_reports_how_much_there_was(objects):
    objects.put("a", b"0123456789")
    buffer = bytearray(6)
    assert objects.get_into("a", memoryview(buffer), 2) == 6
    assert buffer == b"234567"
    assert objects.get_into("a", memoryview(buffer), 7) == 3
    assert buffer[:3] == b"789"
    assert objects.get_into("a", memoryview(buffer), 10) == 0


def test_a_read_beyond_the_limit_is_refused(objects):
    objects.put("a", b"0123456789")
    assert objects.get("a", limit=10)
    with pytest.raises(RequestRefused, match="10 bytes, at most 9"):
        objects.get("a", limit=9)


@pytest.mark.parametrize("call", ["get", "head"])
def test_a_missing_object_is_not_found(objects, call):
    with pytest.raises(NotFound, match="no/such"):
        getattr(objects, call)("no/such")
    with pytest.raises(NotFound):
        objects.get_into("no/such", memoryview(bytearray(1)))


def test_listing_filters_by_prefix_and_sorts(objects):
    for key in ("data/2/r1", "data/10/r0", "data/1/r0", "datum", "part/1/r0"):
        objects.put(key, key.encode())
    assert [stat.key for stat in objects.list("data/")] == ["data/1/r0", "data/10/r0", "data/2/r1"]
    assert [stat.key for stat in objects.list("data/1")] == ["data/1/r0", "data/10/r0"]
    assert [stat.key for stat in objects.list("dat")][-1] == "datum"
    assert objects.list("none/") == []
    assert [stat.size for stat in objects.list("data/10/")] == [10]


def test_delete_is_idempotent_and_conditional_on_request(objects):
    etag = objects.put("x/a", b"1")
    with pytest.raises(PreconditionFailed):
        objects.delete("x/a", if_match='"0123456789abcdef0123456789abcdef"')
    objects.delete("x/a", if_match=etag)
    with pytest.raises(NotFound):
        objects.get("x/a")
    objects.delete("x/a")
    with pytest.raises(PreconditionFailed):
        objects.delete("x/a", if_match=etag)


def test_many_objects_are_deleted_in_one_call(objects):
    keys = [f"data/1/r{n}" for n in range(7)]
    for key in keys:
        objects.put(key, b"x")
    objects.put("data/2/r0", b"y")
    objects.delete_many([*keys, "data/never/was"])
    assert [stat.key for stat in objects.list("")] == ["data/2/r0"]


def test_a_large_body_goes_up_in_parts_from_a_view(objects, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    body = bytearray(bytes(range(256)) * (44 * 2**10))
    objects.put("big", memoryview(body), if_none_match=True)
    assert objects.get("big") == body
    with pytest.raises(PreconditionFailed):
        objects.put("big", memoryview(body), if_none_match=True)
    assert objects.abandon_uploads("", older_than=0) == 0, "the failed upload left parts behind"


def test_an_upload_can_be_tried_and_leaves_nothing(objects):
    objects.try_upload("probe")
    assert objects.list("") == []
    assert objects.abandon_uploads("", older_than=0) == 0


@pytest.mark.parametrize("key", ["", "../x", "a//b", "/a", "a/./b", "a\\b", "a\nb", "x" * 600])
def test_a_key_cannot_leave_the_root(objects, key):
    with pytest.raises(ValueError, match="object key"):
        objects.put(key, b"x")
