"""What is asked about pods: only where it must be, once, and never for long."""

import asyncio

import pytest

from rekindle.api import LABEL_GENERATION, LABEL_INDEX
from rekindle_operator.controller import pod_lookups
from rekindle_operator.controller.pod_lookups import Inquiries, told
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.kube.cluster import KubernetesError
from rekindle_operator.observed.documents import parse_pod
from rekindle_operator.observed.observations import Observed

NOW = 1_750_000_600.0


def pod(number, *, phase="Failed", state=None, init=None, probe=False, age=400):
    name = f"digits-{number}"
    trainer = {"name": "trainer", **({"livenessProbe": {"httpGet": {"port": 80}}} if probe else {})}
    return parse_pod(
        {
            "metadata": {
                "name": name,
                "uid": f"u{number}",
                "labels": {LABEL_INDEX: str(number), LABEL_GENERATION: "0"},
                "creationTimestamp": stamp(NOW - age),
            },
            "spec": {
                "nodeName": "node-1",
                "containers": [trainer],
                "initContainers": [{"name": "get"}] if init else [],
            },
            "status": {
                "phase": phase,
                "startTime": stamp(NOW - age),
                "containerStatuses": [{"name": "trainer", "state": state or {}}],
                "initContainerStatuses": [{"name": "get", "state": init}] if init else [],
            },
        }
    )


def ended(code, message=""):
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message}}


CREATING = {"waiting": {"reason": "ContainerCreating"}}


class Answers:
    """An API server that counts what it is asked."""

    def __init__(self, error=None, never=False):
        self.asked, self.error, self.never = [], error, never

    async def answer(self, what):
        self.asked.append(what)
        if self.never:
            await asyncio.Event().wait()
        if self.error:
            raise self.error

    async def pod_events(self, namespace, uid):
        await self.answer(("events", uid))
        late = {"reason": "Killing", "message": "last", "lastTimestamp": "2025-06-15T15:10:00Z"}
        early = {"reason": "Pulled", "message": "first", "lastTimestamp": "2025-06-15T15:00:00Z"}
        return [late, early]

    async def pod_log(self, namespace, name, container, lines):
        await self.answer(("log", name, container, lines))
        return "no such bucket\n"


def ask(cluster, *pods, known=(), memory=None, times=1):
    memory = memory or Inquiries()
    observed = Observed(pods=pods, now=NOW)

    async def whole():
        for _ in range(times):
            found = await memory.complete(cluster, "ml", observed, known)
        return found

    return asyncio.run(whole())


def test_nothing_is_asked_about_pods_whose_status_says_why():
    cluster = Answers()
    ask(
        cluster,
        pod(0, state=ended(137)),
        pod(1, init=ended(3, "no such bucket")),
        pod(2, phase="Running", state={"running": {}}),
        pod(3, phase="Pending", state=CREATING, age=5),
        pod(4, phase="Succeeded", state=ended(0), probe=True),
    )
    assert cluster.asked == []


def test_what_a_status_leaves_open_is_asked_once_and_given_to_the_decision():
    cluster = Answers()
    found = ask(cluster, pod(0, state=ended(137), probe=True), pod(1, init=ended(3)), times=3)
    assert sorted(cluster.asked) == [("events", "u0"), ("log", "digits-1", "get", 10)]
    assert [event.message for event in found.pods[0].events] == ["first", "last"]
    assert found.pods[1].logs == {"get": "no such bucket\n"}


def test_an_end_that_is_in_the_status_already_is_not_asked_about():
    cluster = Answers()
    ask(cluster, pod(1, init=ended(3)), known=told({"incidents": [{"victims": ["digits-1"]}]}))
    assert cluster.asked == []


def test_of_many_pods_that_are_held_a_few_are_asked_about():
    cluster = Answers()
    ask(cluster, *(pod(n, phase="Pending", state=CREATING) for n in range(40)), times=2)
    assert len(cluster.asked) == 3


def test_of_many_pods_that_failed_a_few_are_asked_about_at_a_time():
    cluster = Answers()
    ask(cluster, *(pod(n, init=ended(3)) for n in range(40)))
    assert len(cluster.asked) == pod_lookups.ENDINGS


@pytest.mark.parametrize("error", [KubernetesError(403, "Forbidden", "may not"), TimeoutError()])
def test_without_an_answer_the_decision_is_made_with_what_is_there(error):
    cluster = Answers(error=error)
    found = ask(cluster, pod(1, init=ended(3)), times=2)
    assert len(cluster.asked) == 1
    assert found.pods[0].logs == {}


def test_an_answer_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(pod_lookups, "PATIENCE", 0.01)
    found = ask(Answers(never=True), pod(1, init=ended(3)))
    assert found.pods[0].name == "digits-1"


def test_what_is_known_of_pods_that_are_gone_is_forgotten():
    cluster, memory = Answers(), Inquiries()
    ask(cluster, pod(0, state=ended(137), probe=True), pod(1, init=ended(3)), memory=memory)
    ask(cluster, memory=memory)
    assert (memory.events, memory.logs, memory.asked) == ({}, {}, {})
