"""A status stays below 64 KiB whatever pods say, and what matters most stays in it."""

import json
import random

import pytest

from rekindle.api import AgentReport, Cause, Hang, Outcome, RestoredFrom, Rollback
from rekindle_operator.incidents import incidents
from rekindle_operator.incidents.incidents import Incident
from rekindle_operator.status import status, status_size

MOST = 64 * 1024
HOSTILE = ["\U0001f525", "<&>", "\x1b[2J\ud800", '"\\', "x", "\u202e"]


def incident(n, word="x", pods=100, **changes):
    """One with all that its documents can hold."""
    names = tuple(f"{'p' * 40}-{n}-{i}" for i in range(pods))
    source = RestoredFrom(step=1, source=word * 5000).source
    fields = {
        "at": 1e9 + n,
        "round": n,
        "cause": Cause.HUNG,
        "evidence": Outcome(cause="x", code=1, message=word * 5000).message,
        "victims": names,
        "collateral": names,
        "action": word * 150,
        "stacks": Hang(rank=0, step=0, phase="", idle=1, timeout=1, stacks=word * 9000).stacks,
        "restored": tuple((name, source) for name in names),
        **changes,
    }
    return Incident(**fields)


def told(incident_list, word="x"):
    """A status with them, and with conditions that say a lot."""
    message = Outcome(cause="x", code=1, message=word * 5000).message
    return {
        "phase": "Running",
        "message": message,
        "conditions": [status.condition(f"C{n}", True, "R", message * 4) for n in range(8)],
        "incidents": [incidents.to_status(one) for one in incident_list],
    }


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("pods", [1, 12])
def test_the_worst_that_can_be_told_fits(word, pods):
    document = told([incident(n, word, pods) for n in range(incidents.KEEP)], word)
    found = status_size.fit(document)
    assert status_size.size(found) <= status_size.MOST < MOST
    assert len(json.dumps(found)) < MOST
    assert len(found["conditions"]) == 8
    assert found["incidents"][-1]["round"] == incidents.KEEP - 1
    assert all(incidents.from_status(one).cause is Cause.HUNG for one in found["incidents"])
    assert status_size.fit(found) == found, "it settles"


def test_any_mixture_fits():
    luck = random.Random(3)
    for _ in range(4):
        record = [incident(n, luck.choice(HOSTILE), luck.choice([0, 1, 9, 20])) for n in range(20)]
        assert (
            status_size.size(status_size.fit(told(record, luck.choice(HOSTILE))))
            <= status_size.MOST
        )


def test_what_fits_is_left_alone():
    document = told([incident(n, pods=2, stacks="", evidence="e") for n in range(3)])
    document["conditions"] = document["conditions"][:1]
    document["message"] = document["conditions"][0]["message"] = "short"
    assert status_size.fit(document) == document


def test_the_oldest_incidents_say_less_first():
    found = status_size.fit(told([incident(n, pods=5) for n in range(20)]))["incidents"]
    assert len(found) == 20
    assert "stacks" not in found[0]
    assert len(found[-1]["stacks"]) == 2000
    assert len(found[-1]["victims"]) == 5


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("most", [5, 10, 100])
def test_a_text_is_cut_to_bytes(word, most):
    found = status_size.cut(word * 1000, most)
    assert status_size.size(found) <= most or found == "..."
    assert status_size.cut("ab", 100) == "ab"


def test_asides_take_few_places():
    real = [incident(n, pods=1) for n in range(10)]
    asides = [
        incident(n, pods=1, cause=luck)
        for n, luck in enumerate([Cause.ROLLED_BACK, Cause.OPERATOR] * 200)
    ]
    found = incidents.kept((*real, *asides))
    assert found[:10] == tuple(real)
    assert found[10:] == tuple(asides[-incidents.ASIDES :])


def test_a_trainer_that_keeps_going_back_displaces_no_loss(world):
    w = world().start().train(3).kill("digits-1").settle()
    w.until(w.training)
    for _ in range(30):
        back = Rollback(at_step=9, to_step=5, reason="\x1b[2J" * 90, at=w.now)
        for agent in w.group():
            agent.more["rollback"] = back
        w.run(1)
    causes = [one["cause"] for one in w.status["incidents"]]
    assert causes.count("RolledBack") == incidents.ASIDES
    assert "PodLost" in causes


def test_hostile_reports_reach_no_status(world):
    """What an agent may say at most, with everything in it that moves a cursor."""
    w = world(replicas=2).start().train(3)
    word = "\x1b[2J\ud800\n\u202e"
    for name in w.members:
        agent = w.pod(name).agent
        agent.more["hang"] = Hang(
            rank=0, step=1, phase=word, idle=90, timeout=60, stacks=word * 9999, waits=False
        )
        agent.restored = RestoredFrom(step=3, source=word * 9999, skipped=(word * 999,) * 99)
    w.settle().run(30)
    text = json.dumps(w.status, ensure_ascii=False)
    assert len(text.encode()) < MOST
    assert w.status["incidents"]
    assert not set(text) & set("\x1b\u202e\ud800")
    assert AgentReport.from_json(w.pod(w.members[0]).agent.report(w).to_json())
