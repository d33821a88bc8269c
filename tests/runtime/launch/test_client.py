"""The conversation with the coordinator, without processes."""

import threading

import pytest

from rekindle.api import AgentPhase, AgentReport, View
from rekindle.launch.coordinator.client import (
    CoordinatorConnection,
    CoordinatorError,
    CoordinatorLink,
)
from rekindle.launch.pod.settings import Settings, from_environment

REPORT = AgentReport(
    pod="a", uid="u", address="127.0.0.1", store_port=1, nproc=1, phase=AgentPhase.WAITING
)


def settings(url: str, token: str = "a secret") -> Settings:
    return from_environment(
        {
            "REKINDLE_COORDINATOR_URL": url,
            "REKINDLE_JOB_NAME": "job",
            "REKINDLE_JOB_NAMESPACE": "default",
            "REKINDLE_POD_NAME": "a",
            "REKINDLE_POD_UID": "u",
            "REKINDLE_POD_IP": "127.0.0.1",
            "REKINDLE_TOKEN": token,
            "REKINDLE_PROC_PER_NODE": "1",
        }
    )


class Scripted(CoordinatorConnection):
    """Answers in an order that the test decides; a long poll is held until it is released."""

    def __init__(self):
        self.polled, self.release = threading.Event(), threading.Event()
        self.reporting, self.answer = threading.Event(), threading.Event()
        self.reports = 0

    def report(self, report):
        self.reports += 1
        if self.reports != 2:
            return View(version=str(self.reports))
        self.reporting.set()
        assert self.answer.wait(60)
        return View(version="old")

    def watch(self, version, wait):
        if version:
            threading.Event().wait(0.5)
            return View(version=version)
        self.polled.set()
        assert self.release.wait(60)
        return View(version="new")


def test_a_report_is_answered_with_a_view(coordinator):
    client = CoordinatorConnection(settings(coordinator.url))
    view = client.report(REPORT)
    assert coordinator.reports["a"] == REPORT
    assert client.watch("none", 5.0) == view


@pytest.mark.parametrize(
    ("token", "away", "words"),
    [("wrong", False, "answers 401"), ("a secret", True, "answers 503")],
)
def test_refusals_say_the_status(coordinator, token, away, words):
    coordinator.away = away
    with pytest.raises(CoordinatorError, match=words):
        CoordinatorConnection(settings(coordinator.url, token)).report(REPORT)


def test_an_absent_coordinator_is_an_error_that_reads_alike_each_time():
    client = CoordinatorConnection(settings("http://127.0.0.1:9"))
    said = set()
    for _ in range(2):
        with pytest.raises(CoordinatorError, match="cannot reach") as caught:
            client.report(REPORT)
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_flush_waits_for_its_own_report(coordinator):
    link = CoordinatorLink(CoordinatorConnection(settings(coordinator.url)))
    link.start(lambda: REPORT, lambda view: None)
    assert link.flush(5.0)
    coordinator.away = True
    assert not link.flush(0.2)
    link.close()


def test_a_report_answered_late_does_not_undo_a_newer_view():
    scripted = Scripted()
    views, arrived = [], threading.Event()

    def receive(view):
        views.append(view.version)
        arrived.set()

    link = CoordinatorLink(scripted, heartbeat=60.0)
    link.start(lambda: REPORT, receive)
    assert scripted.polled.wait(60)
    link.poke()
    assert scripted.reporting.wait(60)
    arrived.clear()
    scripted.release.set()
    assert arrived.wait(60)
    scripted.answer.set()
    assert link.flush(5.0)
    link.close()
    assert views[:2] == ["1", "new"]
    assert "old" not in views
