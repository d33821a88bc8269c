"""What a pod does next, rule by rule."""

from typing import Any

import pytest

from rekindle.api import AgentPhase, Cause, Directive, DirectiveKind, Outcome
from rekindle.launch.agent.decision import (
    DONE_WAIT,
    FAR,
    LINGER,
    Ask,
    End,
    ExitAgent,
    Facts,
    Join,
    Ready,
    Terminate,
    WaitForChange,
    ask_at,
    decide,
    leave_by,
    outcome_of,
)

RUNNING, WAITING, FAILED = AgentPhase.RUNNING, AgentPhase.WAITING, AgentPhase.FAILED
WARMING = AgentPhase.WARMING
DONE, LEAVING = AgentPhase.DONE, AgentPhase.LEAVING
STOP = Directive(kind=DirectiveKind.STOP, round=1, reason="test", code=70)


def outcome(code: int, cause: Cause = Cause.USER_ERROR, **values: Any) -> Outcome:
    return Outcome(cause=cause, code=code, message=values.pop("message", "test"), **values)


RUNS = {"phase": RUNNING, "exits": (None, None)}
NOTICED = {"leave_by": 27.0}
TABLE = {
    "workers run: sleep": (RUNS, WaitForChange(FAR)),
    "an order to stop beats a new round": (RUNS | {"stop": STOP, "joinable": True}, ExitAgent(70)),
    "a new round": (RUNS | {"joinable": True}, Join()),
    "a new round during a save": (RUNS | {"joinable": True, "save_by": 9.0}, Join()),
    "a round without this pod": (RUNS | {"excluded": True}, End(WAITING)),
    "one done, one not": (RUNS | {"exits": (0, None)}, WaitForChange(FAR)),
    "all done": (RUNS | {"exits": (0, 0)}, End(DONE)),
    "all done beats a new round": (RUNS | {"exits": (0, 0), "joinable": True}, End(DONE)),
    "all done beats a notice": (RUNS | {"exits": (0, 0)} | NOTICED, End(DONE)),
    "one failed": (RUNS | {"exits": (None, 1)}, End(FAILED)),
    "one killed": (RUNS | {"exits": (-9, None)}, End(FAILED)),
    "failed before a new round is joined": (
        RUNS | {"exits": (None, 1), "joinable": True},
        End(FAILED),
    ),
    "failed after a notice": (RUNS | {"exits": (1, None)} | NOTICED, End(LEAVING)),
    "a peer's notice: all saved": (RUNS | {"exits": (75, 75)}, End(WAITING, saved=True)),
    "one saved, others follow": (
        RUNS | {"exits": (75, None), "stopped_at": 1.0, "now": 2.0},
        WaitForChange(LINGER - 1.0),
    ),
    "one saved, others do not follow": (
        RUNS | {"exits": (75, None), "stopped_at": 0.0, "now": LINGER},
        End(WAITING, saved=True),
    ),
    "a peer's notice: no time to save": (RUNS | {"exits": (76, 76)}, End(WAITING, saved=False)),
    "one saved, one done": (RUNS | {"exits": (75, 0)}, End(WAITING, saved=True)),
    "to save: ask": (RUNS | {"save_by": 9.0, "attached": True}, Ask(9.0)),
    "to save: asked": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "attached": True},
        WaitForChange(9.0),
    ),
    "to save: a plain script": (RUNS | {"save_by": 9.0, "asked_by": 9.0}, Terminate()),
    "to save: too late": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "attached": True, "now": 9.0},
        Terminate(),
    ),
    "to save: a plain script has until the deadline": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "terminated_at": 1.0, "now": 2.0},
        WaitForChange(7.0),
    ),
    "to save: killed at last": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "terminated_at": 9.0, "now": 10.0},
        End(WAITING, saved=False),
    ),
    "to save: a script that ends by the signal has not": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "terminated_at": 1.0, "exits": (-15, 0)},
        End(WAITING, saved=False),
    ),
    "to save: a script that says so has": (
        RUNS | {"save_by": 9.0, "asked_by": 9.0, "terminated_at": 1.0, "exits": (75, -15)},
        End(WAITING, saved=True),
    ),
    "noticed: ask": (RUNS | {"attached": True} | NOTICED, Ask(27.0)),
    "noticed: the nearer deadline counts": (
        RUNS | {"attached": True, "save_by": 9.0, "asked_by": 27.0} | NOTICED,
        Ask(9.0),
    ),
    "noticed: a new round is not for this pod": (
        RUNS | {"attached": True, "asked_by": 27.0, "joinable": True} | NOTICED,
        WaitForChange(27.0),
    ),
    "noticed: training goes on while somebody sees to a replacement": (
        RUNS | {"attached": True, "ask_at": 12.0, "now": 2.0} | NOTICED,
        WaitForChange(10.0),
    ),
    "noticed: nobody has said when": (
        RUNS | {"attached": True, "ask_at": 12.0, "now": 12.0} | NOTICED,
        Ask(27.0),
    ),
    "noticed: told when": (
        RUNS | {"attached": True, "ask_at": 12.0, "now": 2.0, "save_by": 9.0} | NOTICED,
        Ask(9.0),
    ),
    "noticed: a peer's notice comes first": (
        RUNS | {"exits": (75, None), "stopped_at": 1.0, "ask_at": 12.0, "now": 2.0} | NOTICED,
        Ask(27.0),
    ),
    "noticed: a round that counts on this pod all the same": (
        RUNS | {"attached": True, "ask_at": 12.0, "joinable": True} | NOTICED,
        Join(),
    ),
    "noticed: a round without this pod": (
        RUNS | {"attached": True, "ask_at": 12.0, "excluded": True} | NOTICED,
        End(WAITING),
    ),
    "noticed: saved": (RUNS | {"exits": (75, 75)} | NOTICED, End(LEAVING, saved=True)),
    "noticed: killed at last": (
        RUNS | {"asked_by": 27.0, "terminated_at": 27.0, "now": 28.0} | NOTICED,
        End(LEAVING, saved=False),
    ),
    "leaving": ({"phase": LEAVING, "outcome": outcome(76), "stop": STOP}, ExitAgent(76)),
    "warming": ({"phase": WARMING, "warm": False}, WaitForChange(FAR)),
    "warming: a round has to wait": (
        {"phase": WARMING, "warm": False, "joinable": True},
        WaitForChange(FAR),
    ),
    "warming: warm": ({"phase": WARMING, "warm": True}, Ready()),
    "warming: noticed, nothing is lost": (
        {"phase": WARMING, "warm": False} | NOTICED,
        ExitAgent(75),
    ),
    "warming: an order to stop": ({"phase": WARMING, "warm": False, "stop": STOP}, ExitAgent(70)),
    "waiting": ({"phase": WAITING}, WaitForChange(FAR)),
    "waiting: a round, but the fork server has died": (
        {"phase": WAITING, "joinable": True, "warm": False},
        WaitForChange(FAR),
    ),
    "waiting: a round": ({"phase": WAITING, "joinable": True}, Join()),
    "waiting: tried in vain": (
        {"phase": WAITING, "joinable": True, "retry_at": 3.0, "now": 1.0},
        WaitForChange(2.0),
    ),
    "waiting: try again": (
        {"phase": WAITING, "joinable": True, "retry_at": 3.0, "now": 3.0},
        Join(),
    ),
    "waiting: noticed, nothing is lost": (
        {"phase": WAITING, "joinable": True} | NOTICED,
        ExitAgent(75),
    ),
    "failed: held": ({"phase": FAILED, "outcome": outcome(1)}, WaitForChange(FAR)),
    "failed: a new round": ({"phase": FAILED, "joinable": True}, Join()),
    "failed: a notice does not hide a bug": (
        {"phase": FAILED, "outcome": outcome(1)} | NOTICED,
        ExitAgent(1),
    ),
    "failed with a peer: noticed": (
        {"phase": FAILED, "outcome": outcome(1, Cause.PEER_LOST)} | NOTICED,
        ExitAgent(76),
    ),
    "done: wait for the word": (
        {"phase": DONE, "done_at": 0.0, "now": 1.0},
        WaitForChange(DONE_WAIT - 1),
    ),
    "done: no word": ({"phase": DONE, "done_at": 0.0, "now": DONE_WAIT}, ExitAgent(0)),
    "done: needed again": ({"phase": DONE, "done_at": 0.0, "joinable": True}, Join()),
    "done: noticed": ({"phase": DONE, "done_at": 0.0} | NOTICED, ExitAgent(0)),
}


@pytest.mark.parametrize(("facts", "action"), TABLE.values(), ids=TABLE)
def test_decides(facts, action):
    assert decide(Facts(**{"now": 0.0, **facts})) == action


@pytest.mark.parametrize(("grace", "seconds"), [(30.0, 27.0), (4.0, 2.0), (0.0, 0.0)])
def test_saving_gets_the_grace_less_a_margin_and_at_least_half(grace, seconds):
    assert leave_by(100.0, grace) == 100.0 + seconds


@pytest.mark.parametrize(
    ("heard_at", "save_seconds", "at"),
    [
        (None, None, 100.0),  # nobody to see to a replacement
        (0.0, None, 102.0),  # no answer yet
        (101.0, None, 103.0),  # it goes on if the next answer comes
        (190.0, None, 110.0),  # half of the time, while nothing has been measured
        (190.0, 0.1, 117.0),
        (190.0, 4.0, 111.0),
        (190.0, 60.0, 100.0),
    ],
)
def test_a_noticed_pod_asks_when_nobody_answers_or_a_save_would_be_late(heard_at, save_seconds, at):
    found = ask_at(noticed_at=100.0, heard_at=heard_at, leave_by=120.0, save_seconds=save_seconds)
    assert found == at


def ended(end: End, **values: Any) -> Outcome | None:
    defaults: dict[str, Any] = {
        "exits": (1,),
        "first_rank": 4,
        "left": (),
        "oom": False,
        "step": 7,
        "checkpoint": 5,
        "why": "SIGTERM to this pod",
        "now": 9.0,
    }
    return outcome_of(end=end, **(defaults | values))


@pytest.mark.parametrize(
    ("exits", "oom", "cause", "code", "words", "rank"),
    [
        ((None, 3), False, Cause.USER_ERROR, 1, "worker 5 exited with code 3", 5),
        ((70, None), False, Cause.INTEGRITY, 70, "worker 4 exited with code 70", 4),
        ((1, -11), False, Cause.CRASHED, 1, "worker 5 crashed with SIGSEGV", 5),
        ((-9, None), False, Cause.WORKER_KILLED, 76, "worker 4 was killed by SIGKILL", 4),
        ((1, -9), True, Cause.OUT_OF_MEMORY, 1, "out of memory", 5),
    ],
)
def test_exit_codes_and_signals_are_put_into_words(exits, oom, cause, code, words, rank):
    found = ended(End(FAILED), exits=exits, oom=oom)
    assert (found.cause, found.code, found.rank) == (cause, code, rank)
    assert words in found.message
    assert (found.step, found.checkpoint, found.at) == (7, 5, 9.0)


def test_a_program_that_leaves_no_word_is_told_with_its_last_line():
    printed = {0: "fine", 1: "bash: line 1: trian: command not found"}
    found = ended(End(FAILED), exits=(None, 127), printed=printed)
    assert found.message == "worker 5 exited with code 127: bash: line 1: trian: command not found"


def test_a_worker_may_say_why_training_is_complete_and_that_is_no_failure():
    early = outcome(0, Cause.COMPLETED, message="training is complete: no patience left", at=1.0)
    assert ended(End(AgentPhase.DONE), left=[early]).message == early.message
    found = ended(End(FAILED), exits=(None, 3), left=[early])
    assert (found.cause, found.rank) == (Cause.USER_ERROR, 5)


def test_a_workers_own_words_win_and_own_errors_before_lost_peers():
    peer = outcome(1, Cause.PEER_LOST, rank=4, at=1.0)
    own = outcome(1, message="the reason", rank=5, at=2.0)
    found = ended(End(FAILED), exits=(1, 1), left=[peer, own])
    assert (found.message, found.rank, found.step) == ("the reason", 5, 7)


@pytest.mark.parametrize(
    ("code", "oom", "cause"),
    [
        (-9, True, Cause.OUT_OF_MEMORY),
        (-9, False, Cause.WORKER_KILLED),
        (-11, False, Cause.CRASHED),
    ],
)
def test_a_signal_explains_a_lost_peer(code, oom, cause):
    peer = outcome(1, Cause.PEER_LOST, rank=4, at=1.0)
    found = ended(End(FAILED), exits=(1, code), left=[peer], oom=oom)
    assert (found.cause, found.rank) == (cause, 5)


def test_who_says_more_than_its_sibling_is_heard_although_it_has_not_ended():
    own = outcome(1, message="the reason", rank=5, at=2.0)
    assert ended(End(FAILED), exits=(1, None), left=[own]).message == "the reason"


def test_workers_that_fall_with_their_fork_server_say_so():
    found = ended(End(FAILED), exits=(-9, -9), orphaned=True)
    assert found.cause == Cause.WORKER_KILLED
    assert "forked from" in found.message


def test_saved_and_unsaved_ends_say_what_asked_for_them():
    saved = ended(End(LEAVING, saved=True), exits=(75,))
    assert (saved.cause, saved.code, saved.checkpoint) == (Cause.SAVED, 75, 5)
    lost = ended(End(LEAVING, saved=False), exits=(-15, None))
    assert (lost.cause, lost.code) == (Cause.PREEMPTED, 76)
    assert "SIGTERM to this pod" in lost.message
    assert "SIGTERM, no end before the deadline" in lost.message


def test_a_round_that_goes_on_elsewhere_is_no_outcome():
    assert ended(End(WAITING), exits=(None,)) is None


def test_a_pod_that_leaves_after_a_peers_loss_was_preempted_unsaved():
    left = [outcome(1, Cause.PEER_LOST)]
    assert ended(End(LEAVING), left=left).code == 76
    assert ended(End(LEAVING), left=[outcome(1)]).code == 1
