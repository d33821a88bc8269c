"""Who pays for the end of a process, row by row: both planes, by one table."""

import json
import signal

import pytest

from rekindle.api import CERTAIN, PAID_BY, Cause, Outcome
from rekindle.errors.outcome import classify
from rekindle.errors.process_endings import (
    OWN_SIGNALS,
    ROWS,
    ProcessExit,
    ProcessRole,
    blame,
    outcome_of,
    row_of,
    signal_in,
)
from rekindle_operator.failures.pod_endings import ending
from rekindle_operator.observed.documents import parse_pod
from rekindle_operator.observed.observations import Observed

KILL, SEGV, TERM = -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM
FROM_OUTSIDE = {KILL, TERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, -signal.SIGUSR1}


def said(error: BaseException) -> Outcome:
    return classify(error, step=7, rank=5, now=9.0)


def loader(how: str) -> Outcome:
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {how}. ")
    return said(error)


WORKER, CHILD, POD = ProcessRole.WORKER, ProcessRole.CHILD, {ProcessRole.FIRST, ProcessRole.AGENT}
BUG, PEER = said(ValueError("bad batch")), said(RuntimeError("Connection closed by peer"))
# Process and name of the row: the end, who pays, whether a job that has made no step is over.
CASES = [
    (WORKER, "raised", ProcessExit(process=WORKER, code=1, words=BUG), "user", True),
    (WORKER, "exited", ProcessExit(process=WORKER, code=3), "user", True),
    (WORKER, "exited with 70", ProcessExit(process=WORKER, code=70), "user", True),
    (WORKER, "crashed", ProcessExit(process=WORKER, code=SEGV), "user", False),
    (WORKER, "crashed", ProcessExit(process=WORKER, code=-signal.SIGABRT), "user", False),
    (WORKER, "crashed", ProcessExit(process=WORKER, code=128 + signal.SIGBUS), "user", False),
    (WORKER, "out of memory", ProcessExit(process=WORKER, code=KILL, oom=True), "user", False),
    *(
        (
            WORKER,
            "killed from outside",
            ProcessExit(process=WORKER, code=code),
            "infrastructure",
            False,
        )
        for code in sorted(FROM_OUTSIDE)
    ),
    (WORKER, "killed from outside", ProcessExit(process=WORKER, code=137), "infrastructure", False),
    (
        WORKER,
        "with its fork server",
        ProcessExit(process=WORKER, code=KILL, orphaned=True),
        "infrastructure",
        False,
    ),
    (
        WORKER,
        "a peer was lost",
        ProcessExit(process=WORKER, code=1, words=PEER),
        "infrastructure",
        False,
    ),
    (WORKER, "saved", ProcessExit(process=WORKER, code=75), "nobody", False),
    (WORKER, "could not save", ProcessExit(process=WORKER, code=76), "preemption", False),
    (WORKER, "done", ProcessExit(process=WORKER, code=0), "nobody", False),
    (
        CHILD,
        "killed from outside",
        ProcessExit(process=WORKER, code=1, words=loader("Killed")),
        "infrastructure",
        False,
    ),
    (
        CHILD,
        "out of memory",
        ProcessExit(process=WORKER, code=1, words=loader("Killed"), oom=True),
        "user",
        False,
    ),
    (
        CHILD,
        "crashed",
        ProcessExit(process=WORKER, code=1, words=loader("Segmentation fault")),
        "user",
        False,
    ),
    (
        ProcessRole.FORK_SERVER,
        "ended while nothing ran",
        ProcessExit(process=ProcessRole.FORK_SERVER, code=KILL),
        None,
        False,
    ),
    (
        ProcessRole.UPLOADER,
        "ended",
        ProcessExit(process=ProcessRole.UPLOADER, code=KILL),
        None,
        False,
    ),
    (
        ProcessRole.FIRST,
        "out of memory",
        ProcessExit(process=ProcessRole.FIRST, code=KILL, oom=True),
        "user",
        False,
    ),
    (
        ProcessRole.FIRST,
        "killed",
        ProcessExit(process=ProcessRole.FIRST, code=KILL),
        "infrastructure",
        False,
    ),
    (
        ProcessRole.AGENT,
        "killed",
        ProcessExit(process=ProcessRole.AGENT, code=SEGV),
        "infrastructure",
        False,
    ),
    (
        ProcessRole.AGENT,
        "killed",
        ProcessExit(process=ProcessRole.AGENT, code=TERM),
        "infrastructure",
        False,
    ),
    (
        ProcessRole.AGENT,
        "raised",
        ProcessExit(
            process=ProcessRole.AGENT,
            code=1,
            words=Outcome(cause=Cause.POD_LOST, code=1, message="the agent itself has failed: x"),
        ),
        "infrastructure",
        False,
    ),
    (
        ProcessRole.AGENT,
        "refused its command line",
        ProcessExit(
            process=ProcessRole.AGENT,
            code=1,
            words=Outcome(cause=Cause.CONFIGURATION, code=1, message="no script to run"),
        ),
        "user",
        True,
    ),
]
IDS = [f"{process}-{row}-{end.code}" for process, row, end, *_ in CASES]


def of_a_pod(end: ProcessExit) -> Cause:
    """What the operator makes of a pod of which only the kubelet tells."""
    code = 128 - end.code if end.code < 0 else end.code
    words = end.words.to_json() if end.words else None
    terminated = {
        "exitCode": code,
        "reason": "OOMKilled" if end.oom else "Error",
        "message": "" if words is None else json.dumps(words),
    }
    state = {"name": "trainer", "state": {"terminated": terminated}}
    labels = {"rekindle.dev/index": "0", "rekindle.dev/generation": "0"}
    pod = parse_pod(
        {
            "metadata": {"name": "digits-0", "uid": "u0", "labels": labels},
            "spec": {},
            "status": {"phase": "Failed", "containerStatuses": [state]},
        }
    )
    assert pod is not None
    return ending(Observed(pods=(pod,), now=5.0), pod).cause


@pytest.mark.parametrize(("process", "row", "end", "payer", "over"), CASES, ids=IDS)
def test_each_way_to_end_has_its_cause_and_its_payer(process, row, end, payer, over):
    if end.process in POD:
        cause = of_a_pod(end)
        rows = [one for one in ROWS if (one.process, one.name) == (process, row)]
        assert [one.cause for one in rows] == [cause], "the operator's table says otherwise"
    else:
        found = row_of(end)
        assert (found.process, found.name) == (process, row)
        cause = found.cause
        base = Outcome(cause=Cause.COMPLETED, code=0, message="", at=9.0)
        if end.process is WORKER:
            told = outcome_of(end, worker=5, base=base)
            assert (told.cause, told.rank) == (cause, 5)
            assert told.message
    assert (cause and PAID_BY[cause]) == payer
    assert (cause in CERTAIN) is over


def test_every_row_has_a_case_and_every_cause_a_payer():
    assert {(row.process, row.name) for row in ROWS} == {(case[0], case[1]) for case in CASES}
    assert set(PAID_BY) == set(Cause)
    assert all(PAID_BY[cause] == "user" for cause in CERTAIN)


def test_no_signal_of_others_is_a_users_error():
    for number in set(signal.valid_signals()) - OWN_SIGNALS:
        cause = row_of(ProcessExit(process=WORKER, code=-number)).cause
        assert PAID_BY[cause] == "infrastructure", number
        assert cause not in CERTAIN


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("DataLoader worker (pid 4242) is killed by signal: Killed. ", signal.SIGKILL),
        ("DataLoader worker (pid 1) is killed by signal: Terminated. ", signal.SIGTERM),
        ("DataLoader worker (pid 1) is killed by signal: Bus error. It is possi", signal.SIGBUS),
        ("process 0 terminated with signal SIGKILL", signal.SIGKILL),
        ("  traceback : Signal 9 (SIGKILL) received by PID 17", signal.SIGKILL),
        ("Command '['x']' died with <Signals.SIGTERM: 15>.", signal.SIGTERM),
        ("The exit codes of the workers are {SIGKILL(-9)}", signal.SIGKILL),
        ("the process that uploads checkpoints was killed, for example by the", signal.SIGKILL),
        ("the process that uploads checkpoints was ended by SIGTERM", signal.SIGTERM),
        ("ValueError: SIGKILL is no batch size", None),
    ],
)
def test_errors_tell_of_a_process_that_the_script_relied_on(text, number):
    assert signal_in(text) == number


def test_the_root_comes_first_among_failures_of_one_moment():
    base = Outcome(cause=Cause.COMPLETED, code=0, message="", at=9.0)
    ends = [
        ProcessExit(process=WORKER, code=KILL, oom=True),
        ProcessExit(process=WORKER, code=KILL),
        ProcessExit(process=WORKER, code=1, words=BUG),
        ProcessExit(process=WORKER, code=SEGV),
        ProcessExit(process=WORKER, code=1),
        ProcessExit(process=WORKER, code=1, words=PEER),
    ]
    orders = [blame(end, outcome_of(end, worker=0, base=base)) for end in ends]
    assert orders == sorted(orders)
    assert len(set(orders)) == len(orders)
