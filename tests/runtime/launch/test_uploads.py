"""A pod's end waits for the snapshot of a dead worker that is on its way."""

import threading
import time
from types import SimpleNamespace

import pytest

from rekindle.checkpoint.saving import flush
from rekindle.launch.__main__ import UPLOAD_SECONDS, await_uploads, upload_seconds


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(flush.tempfile, "gettempdir", lambda: str(tmp_path))
    lock = flush.Lock.create("s3://bucket/run")
    yield lock
    lock.close()


def test_it_waits_until_the_upload_is_through_also_when_the_root_is_written_otherwise(lock):
    through = []
    timer = threading.Timer(0.2, lambda: (through.append(True), lock.release()))
    timer.start()
    await_uploads("s3://bucket/run/", 60.0)
    assert through
    timer.join()


def test_it_waits_no_longer_than_it_may(lock, caplog):
    began = time.monotonic()
    await_uploads("s3://bucket/run", 0.1)
    assert time.monotonic() - began < 3
    assert "given up" in caplog.text


@pytest.mark.parametrize("uri", [None, "", "s3:/x", "s3://bucket/other"])
def test_there_is_nothing_to_wait_for(lock, uri, caplog):
    await_uploads(uri, 5.0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("ago", "grace", "least", "most"), [(0, 30, 10, 10), (25, 30, 2, 3), (29, 30, 0, 0)]
)
def test_a_pod_that_has_to_go_keeps_to_its_grace(ago, grace, least, most):
    signals = SimpleNamespace(noticed_at=time.monotonic() - ago, grace=grace)
    assert least <= upload_seconds(signals) <= most


def test_a_pod_that_ends_by_itself_may_stay_a_while():
    assert upload_seconds(SimpleNamespace(noticed_at=None)) == UPLOAD_SECONDS
