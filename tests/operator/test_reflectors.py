"""One list and one watch for each kind: what is told, in which order, and what of a gap."""

import asyncio

import pytest

from rekindle_operator.kube import reflectors
from rekindle_operator.kube.cluster import KubernetesError
from rekindle_operator.kube.reflectors import Listener, Reflector


def body(name, version, **more):
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version), **more}}


class Script:
    """An API server that answers as it is told; nothing more comes after that."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.over = asyncio.Event()

    async def list_all(self, kind, namespace):
        self.asked.append(("list", kind, namespace))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found, version = answer
        return found, str(version)

    async def watch(self, kind, namespace, version):
        self.asked.append(("watch", kind, version))
        if not self.answers:
            self.over.set()
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        for event in answer if isinstance(answer, list) else [answer]:
            if isinstance(event, Exception):
                raise event
            yield event


def follow(script, known=None, namespace=""):
    """What a listener is told until the script is over."""
    told, there, trouble = [], dict(known or {}), []

    def take(kind, seen):
        told.append((kind, seen["metadata"]["name"]))
        if kind == "DELETED":
            there.pop(seen["metadata"]["uid"], None)
        else:
            there[seen["metadata"]["uid"]] = seen

    listener = Listener(
        kind="Pod",
        take=take,
        key=lambda seen: seen["metadata"]["uid"],
        known=lambda: there,
        trouble=lambda kind, error: trouble.append(error and str(error)),
    )

    async def scenario():
        script.over = asyncio.Event()
        task = asyncio.create_task(Reflector(script, listener, namespace).run())
        await asyncio.wait_for(script.over.wait(), 20)
        task.cancel()

    asyncio.run(scenario())
    return told, trouble


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(reflectors, "RETRY_LEAST", 0.001)
    monkeypatch.setattr(reflectors, "RETRY_MOST", 0.002)


def test_a_list_and_then_what_happens():
    events = [("ADDED", body("b", 6)), ("BOOKMARK", body("", 9)), ("DELETED", body("a", 10))]
    script = Script(([body("a", 3)], 5), events)
    told, _ = follow(script)
    assert told == [(None, "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert script.asked == [("list", "Pod", ""), ("watch", "Pod", "5"), ("watch", "Pod", "10")]


@pytest.mark.parametrize("gap", [OSError("reset"), TimeoutError(), ValueError("half a line")])
def test_a_connection_that_ends_is_gone_on_from_and_nothing_is_listed_again(gap):
    script = Script(([], 5), [("ADDED", body("a", 7)), gap], [("ADDED", body("b", 8))])
    told, _ = follow(script)
    assert told == [("ADDED", "a"), ("ADDED", "b")]
    assert [what for what, *_ in script.asked].count("list") == 1
    assert script.asked[2] == ("watch", "Pod", "7")


def test_what_went_in_a_gap_is_told_as_deleted():
    forgotten = KubernetesError(410, "Expired", "too old resource version")
    script = Script(([body("a", 3), body("b", 3)], 5), forgotten, ([body("b", 4)], 900))
    told, trouble = follow(script)
    assert told == [(None, "a"), (None, "b"), ("DELETED", "a"), (None, "b")]
    assert script.asked[-1] == ("watch", "Pod", "900")
    assert not any(trouble), "a version that is too old is no trouble"


def test_what_was_known_before_the_first_list_and_is_not_in_it_has_gone():
    script = Script(([body("b", 3)], 5))
    known = {"a": body("a", 1, namespace="ml"), "x": body("x", 1, namespace="other")}
    told, _ = follow(script, known, namespace="ml")
    assert told == [("DELETED", "a"), (None, "b")], "and nothing is known here of other namespaces"


def test_what_keeps_it_from_being_listed_is_told_until_it_passes():
    script = Script(
        KubernetesError(403, "Forbidden", "no"), KubernetesError(403, "Forbidden", "no"), ([], 5)
    )
    _, trouble = follow(script)
    assert trouble == ["403 no", "403 no", None]


def test_who_wrote_which_field_is_not_kept():
    seen = []
    script = Script(([body("a", 3, managedFields=[{"manager": "m"}])], 5))
    listener = Listener(
        kind="Pod",
        take=lambda _, one: seen.append(one),
        key=lambda one: one["metadata"]["uid"],
        known=dict,
        trouble=lambda *_: None,
    )

    async def scenario():
        task = asyncio.create_task(Reflector(script, listener).run())
        await asyncio.wait_for(script.over.wait(), 20)
        task.cancel()

    asyncio.run(scenario())
    assert seen == [body("a", 3)]
