import os
import signal
import subprocess
import sys

import pytest

from rekindle_cli import places
from rekindle_cli.output import interrupts

PROGRAM = """
import os, signal, sys, time
from rekindle_cli.output import interrupts
interrupts.install()
try:
    print("waiting", flush=True)
    interrupts.wait()
except KeyboardInterrupt:
    for number in range(int(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGTERM)
    print("ended in order", flush=True)
"""


def test_the_first_signal_is_an_interrupt_and_the_second_only_answered(monkeypatch, capsys) -> None:
    monkeypatch.setattr(interrupts, "_seen", 0)
    with pytest.raises(KeyboardInterrupt):
        interrupts._interrupt(signal.SIGTERM, None)
    interrupts._interrupt(signal.SIGTERM, None)
    assert "once more" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.parametrize(("more", "code"), [(0, 0), (1, 0), (2, 128 + signal.SIGTERM)])
def test_only_the_third_signal_leaves_everything_as_it_is(more, code) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(more)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places.python_path())},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as started:
        assert started.stdout.readline() == "waiting\n"
        started.send_signal(signal.SIGINT)
        rest = started.stdout.read()
        assert started.wait(60) == code
    assert ("ended in order" in rest) == (code == 0)
