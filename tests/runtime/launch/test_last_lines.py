"""The error that a program's last lines tell."""

import pytest

from rekindle.api import Cause
from rekindle.errors.process_endings import ProcessExit, ProcessRole, row_of
from rekindle.launch.health.last_lines import last_line, outcome_in

OWN = """\
step 3
Traceback (most recent call last):
  File "/x/train.py", line 3, in <module>
    main()
  File "/x/train.py", line 2, in main
    raise ValueError("bad batch: 3")
ValueError: bad batch: 3
"""
PEER = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/train.py", line 3, in <module>
[rank1]:     dist.all_reduce(x)
[rank1]: RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1
"""
LAUNCHER = """\
E1130 torch/distributed/elastic/multiprocessing/api.py:986] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
"""


@pytest.mark.parametrize(
    ("text", "cause", "message"),
    [
        (OWN, Cause.USER_ERROR, "ValueError: bad batch: 3"),
        (OWN + LAUNCHER, Cause.USER_ERROR, "ValueError: bad batch: 3"),
        (PEER + LAUNCHER, Cause.PEER_LOST, None),
        ("[0] " + OWN.replace("\n", "\n[0] "), Cause.USER_ERROR, "ValueError: bad batch: 3"),
        (OWN + OWN.replace("bad", "worse"), Cause.USER_ERROR, "ValueError: worse batch: 3"),
        (
            OWN.replace("ValueError", "torch.OutOfMemoryError"),
            Cause.USER_ERROR,
            "torch.OutOfMemoryError: bad batch: 3",
        ),
    ],
)
def test_the_last_error_that_tells_something(text, cause, message):
    found = outcome_in(text.splitlines(), rank=3, now=1.0)
    assert found.cause == cause
    assert found.rank == 3
    if message is not None:
        assert found.message == message
        assert found.traceback.endswith(message)


@pytest.mark.parametrize(
    "text", ["", "no error", LAUNCHER, "Traceback (most recent call last):", "\n".join([" x"] * 9)]
)
def test_no_error_is_none(text):
    assert outcome_in(text.splitlines(), rank=0, now=1.0) is None


def test_a_long_one_is_shortened():
    text = OWN.replace("    main()", "    main()" + "y" * 100_000)
    assert len(outcome_in(text.splitlines(), rank=0, now=1.0).traceback) <= 2000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a\nbash: line 1: nope: command not found\n\n", "bash: line 1: nope: command not found"),
        ("[0] red \x1b[31mends", "red  [31mends"),
        ("y" * 1000, "y" * 300),
    ],
)
def test_the_last_line_of_what_has_no_traceback(text, line):
    assert last_line(text.splitlines()) == line


@pytest.mark.parametrize(
    "before", ["", "Traceback (most recent call last):\n  x\nDistBackendError: it is gone\n"]
)
def test_a_launcher_that_tells_of_a_signal_is_heard(before):
    signal = "  traceback : Signal 9 (SIGKILL) received by PID 17"
    text = f"{before}{LAUNCHER}\n  exitcode  : -9 (pid: 17)\n{signal}\n===="
    found = outcome_in(text.splitlines(), rank=3, now=1.0)
    assert found.message == signal.strip()
    assert (
        row_of(ProcessExit(process=ProcessRole.WORKER, code=1, words=found)).cause == "WorkerKilled"
    )
