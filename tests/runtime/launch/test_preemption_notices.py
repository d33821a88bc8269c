"""Notices by a file and by an HTTP call say what SIGTERM says."""

import json
import math
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.coordinator.single_pod import SoloLink
from rekindle.launch.health import exporter, preemption_notices
from rekindle.launch.health.preemption_notices import NoticeRequest, parse
from rekindle.launch.pod.settings import from_environment
from rekindle.launch.pod.signals import Signals

OPERATOR = {
    "REKINDLE_COORDINATOR_URL": "http://op:8430",
    "REKINDLE_JOB_NAME": "digits",
    "REKINDLE_JOB_NAMESPACE": "ml",
    "REKINDLE_POD_NAME": "digits-0",
    "REKINDLE_POD_UID": "u",
    "REKINDLE_POD_IP": "127.0.0.1",
    "REKINDLE_TOKEN": "s3cret",
    "REKINDLE_PROC_PER_NODE": "1",
}


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("", NoticeRequest()),
        (" \n", NoticeRequest()),
        ("{}", NoticeRequest()),
        (
            '{"seconds": 90, "reason": "rack 7 moves"}',
            NoticeRequest(seconds=90.0, reason="rack 7 moves"),
        ),
        ('{"seconds": 0, "more": [1]}', NoticeRequest(seconds=0.0)),
    ],
)
def test_a_notice_may_say_when_and_why(text, notice):
    assert parse(text) == notice


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("90", "JSON object"),
        ("soon", "empty or JSON"),
        ('{"seconds": -1}', "from 0 to 86400"),
        ('{"seconds": true}', "from 0 to 86400"),
        ('{"seconds": 1e999}', "from 0 to 86400"),
        ('{"reason": 5}', "must be a text"),
    ],
)
def test_what_is_wrong_with_a_notice_is_said(text, wrong):
    with pytest.raises(ValueError, match=wrong):
        parse(text)


class Ear:
    """Hears notices."""

    def __init__(self):
        self.heard = []
        self.event = threading.Event()

    def __call__(self, source, seconds):
        self.heard.append((source, seconds))
        self.event.set()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(preemption_notices, "POLL", 0.01)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("", ("file", None)),
        ('{"seconds": 5, "reason": "spot"}', ("file: spot", 5.0)),
        ("half writt", ("file", None)),
    ],
)
def test_a_file_is_a_notice_as_soon_as_it_is_there(tmp_path, fast, text, heard):
    ear, path = Ear(), tmp_path / "notice"
    thread = preemption_notices.watch(path, ear)
    assert not ear.event.wait(0.05)
    path.write_text(text)
    assert ear.event.wait(60)
    thread.join(60)
    assert ear.heard == [heard]


def test_a_file_that_is_still_being_written_is_read_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption_notices, "POLL", 0.2)
    ear, path = Ear(), tmp_path / "notice"
    path.write_text('{"seconds":')
    preemption_notices.watch(path, ear)
    path.write_text('{"seconds": 7}')
    assert ear.event.wait(60)
    assert ear.heard == [("file", 7.0)]


def test_an_empty_file_may_be_about_to_say_more(tmp_path):
    path = tmp_path / "notice"
    path.touch()
    assert preemption_notices._read(path, 0) is None
    assert preemption_notices._read(path, 1) == NoticeRequest()


def post(server, body=b"", **headers):
    url = f"http://127.0.0.1:{server.server_port}{preemption_notices.PATH}"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def served(request):
    """The port of a pod with an operator, or without."""
    environment = OPERATOR if request.param else {"REKINDLE_PROC_PER_NODE": "1"}
    session = PodSession(from_environment(environment), SoloLink(), SimpleNamespace(port=1))
    ear = Ear()
    server = exporter.start(session, lambda: None, address="127.0.0.1", port=0, tell=ear)
    yield server, ear
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("served", [True], indirect=True)
def test_an_http_call_needs_the_token_of_the_job(served):
    server, ear = served
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        assert post(server, **headers)[0] == 401
    assert not ear.heard
    body = json.dumps({"seconds": 20, "reason": "rack"}).encode()
    assert post(server, body, Authorization="Bearer s3cret")[0] == 202
    assert ear.heard == [("HTTP call: rack", 20.0)]


@pytest.mark.parametrize("served", [False], indirect=True)
def test_without_an_operator_the_machine_itself_may_call(served):
    server, ear = served
    assert post(server)[0] == 202
    assert ear.heard == [("HTTP call", None)]


@pytest.mark.parametrize(
    ("peer", "heard"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.7", False)],
)
def test_without_a_token_nobody_else_may(peer, heard):
    if heard:
        preemption_notices.admit(token="", shown=None, peer=peer)
    else:
        with pytest.raises(preemption_notices.Refusal, match="from itself only"):
            preemption_notices.admit(token="", shown=None, peer=peer)


@pytest.mark.parametrize("served", [False], indirect=True)
@pytest.mark.parametrize(
    ("body", "headers"),
    [(b'{"seconds": "x"}', {}), (b"x" * 5000, {}), (b"\xff", {})],
)
def test_a_call_that_is_not_understood_is_refused_and_no_notice(served, body, headers):
    server, ear = served
    status, message = post(server, body, **headers)
    assert status == 400
    assert message.strip()
    assert not ear.heard


def test_of_several_notices_the_earliest_end_counts():
    signals = Signals()
    signals.grace = 30.0
    assert (signals.noticed_at, signals.left) == (None, math.inf)
    signals.tell("file", 120.0)
    first = signals.noticed_at
    assert signals.source == "file"
    assert 119 < signals.left <= 120
    signals.notice(signal.SIGTERM)
    assert signals.noticed_at == first
    assert signals.source == "SIGTERM"
    assert 29 < signals.left <= 30
    assert signals.seconds == pytest.approx(30.0, abs=1.0)
    signals.notice(signal.SIGTERM)
    assert len(signals._notices) == 2
    assert not signals.hurry


def test_a_notice_of_another_thread_wakes_the_main_loop():
    signals = Signals()
    threading.Timer(0.05, signals.tell, ("file", 5.0)).start()
    began = time.monotonic()
    signals.wait(60)
    assert time.monotonic() - began < 50
    assert signals.noticed_at is not None


@pytest.mark.processes
def test_a_signal_is_a_notice(monkeypatch):
    signals = Signals()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
        signals.wait(60)
        assert signals.source == "SIGTERM"
        assert not signals.hurry
        os.kill(os.getpid(), signal.SIGINT)
        signals.wait(60)
        assert signals.hurry
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
