"""When a pod is not heard: what is enough to go on without it, and what is not."""

import pytest

from rekindle_operator.observed.liveness import (
    ALONE,
    OUTAGE,
    QUIET,
    SILENT,
    STALL,
    Hearing,
    Silence,
    loss,
)
from rekindle_operator.observed.liveness_tracker import PROBE_AFTER, Ear

NODE = "node node-1: node is unreachable"
DEAD = {"peers": ("digits-0",)}

ENOUGH = [
    ("a peer", SILENT + 0.1, DEAD, ["no report for 3 s", "answers no probe", "digits-0 cannot"]),
    ("a peer, where no other is heard of late", 9, {**DEAD, "company": False}, ["digits-0"]),
    ("a peer and the node", 4, {**DEAD, "node": NODE}, ["digits-0 cannot reach it", NODE]),
    ("no lifeline at all", 4, {**DEAD, "lifeline": False}, ["holds no lifeline"]),
    ("the node, while others are heard", 4, {"node": NODE}, [NODE]),
    ("the node of one that is alone", ALONE + 1, {"node": NODE, "company": False}, [NODE]),
    ("the node of one that never spoke", 99, {"node": NODE, "spoke": False}, ["no report has"]),
    ("its readiness, in the end", ALONE + 1, {"unready": True}, ["not ready"]),
    ("another pod on its node", QUIET + 0.1, {"neighbour": "digits-4"}, ["digits-4 on its node"]),
    ("many peers", 4, {"peers": tuple("abcde")}, ["a, b, c and 2 more cannot reach it"]),
]
NOT_ENOUGH = [
    ("silence", 1e6, {}),
    ("silence of all", 1e6, {"company": False}),
    ("a peer, but not for long", SILENT, DEAD),
    ("another pod on its node, but not for long", QUIET, {"neighbour": "digits-4"}),
    ("the node, but not for long", SILENT, {"node": NODE}),
    ("the node while nobody is heard", ALONE, {"node": NODE, "company": False}),
    ("its readiness for a moment", ALONE, {"unready": True}),
    ("the readiness of one that starts", 1e6, {"unready": True, "spoke": False}),
]


@pytest.mark.parametrize(
    ("seconds", "facts", "words"), [e[1:] for e in ENOUGH], ids=lambda e: str(e)[:20]
)
def test_silence_and_a_witness_are_enough(seconds, facts, words):
    said = loss(Silence(seconds=seconds, **facts))
    assert said is not None
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("seconds", "facts"), [e[1:] for e in NOT_ENOUGH], ids=[e[0] for e in NOT_ENOUGH]
)
def test_nothing_else_is(seconds, facts):
    assert loss(Silence(seconds=seconds, **facts)) is None


@pytest.mark.parametrize(
    ("hearing", "silence"),
    [
        (Hearing(since=0.0, looked=100.0), 40.0),
        (Hearing(since=90.0, looked=100.0), 10.0),
        (Hearing(since=105.0, looked=100.0), 0.0),
        (Hearing(since=0.0, looked=100.0 - STALL - 0.1), 0.0),
    ],
    ids=["all the time", "since the way is there again", "not yet", "this process stood still"],
)
def test_silence_counts_only_while_it_could_be_heard(hearing, silence):
    assert hearing.silence(60.0, now=100.0) == silence


JOB = ("ml", "digits")


def heard(*moments):
    """An ear that has heard pods: (pod, when)."""
    ear = Ear(0.0)
    for pod, at in moments:
        for tick in range(round(ear.hearing().looked), int(at)):
            ear.look(float(tick))
        ear.hear(JOB, pod, f"uid-{pod}", at)
        ear.look(at)
    return ear


def test_those_that_say_nothing_are_found_longest_first_and_no_others():
    ear = heard(("a", 1.0), ("b", 1.5), ("c", 2.0), ("a", 3.0))
    assert [found.pod for found in ear.look(3.0 + PROBE_AFTER - 0.1)] == ["b", "c"]
    ear.forget("uid-b")
    assert [found.pod for found in ear.look(3.0 + PROBE_AFTER - 0.1)] == ["c"]
    assert (ear.at("uid-a"), ear.at("uid-b")) == (3.0, None)


def test_when_all_were_silent_at_once_nobody_is_suspected_before_all_could_be_back():
    ear = heard(("a", 1.0), ("b", 1.5), ("a", 60.0))
    assert ear.hearing().silence(1.5, now=60.0 + OUTAGE) == 0.0
    for tick in range(60, 80):
        ear.look(float(tick))
    assert ear.hearing().silence(1.5, now=79.0) == pytest.approx(79.0 - 60.0 - OUTAGE)


def test_an_operator_that_stood_still_has_heard_nobody_meanwhile():
    ear = heard(("a", 1.0), ("b", 1.5))
    assert ear.hearing().silence(1.5, now=60.0) == 0.0, "before it has looked again"
    ear.look(60.0)
    ear.hear(JOB, "a", "uid-a", 60.1)
    assert ear.hearing().silence(1.5, now=60.5) == pytest.approx(0.5)


def test_one_silent_pod_beside_one_that_speaks_is_silent():
    ear = heard(
        *[("a", float(at)) for at in range(1, 3)],
        ("b", 2.0),
        *[("a", float(at)) for at in range(3, 9)],
    )
    assert ear.hearing().silence(ear.at("uid-b"), now=8.0) == 6.0
