import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from rekindle_cli.local import tether
from rekindle_cli.local.supervisor import Supervisor, pause

SECONDS = 60.0
SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('x', flush=True)"


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {SECONDS} s"
        time.sleep(0.02)


@pytest.fixture
def supervise(tmp_path):
    started: list[Supervisor] = []

    def make(program: str, *, health: str = "http://127.0.0.1:9/") -> Supervisor:
        said: list[str] = []
        command = [sys.executable, "-c", program, health.rpartition(":")[2].rstrip("/")]
        found = Supervisor(
            "operator",
            command,
            env=dict(os.environ),
            log=tmp_path / "log",
            health=health,
            tell=said.append,
        )
        found.said = said
        started.append(found)
        found.start()
        return found

    yield make
    for one in started:
        one.stop()


@pytest.fixture
def health() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def test_the_pause_grows_and_has_a_limit() -> None:
    assert [pause(failures) for failures in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 30.0]


@pytest.mark.processes
def test_a_process_that_is_killed_is_started_again(supervise, health) -> None:
    operator = supervise(SERVE, health=health)
    assert operator.wait_until_healthy(SECONDS)
    first = operator.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: operator.pid not in {None, first})
    assert operator.wait_until_healthy(SECONDS)
    assert operator.said == ["operator ended with SIGKILL; started again in 0.5 s"]
    assert operator.restarts == 1


@pytest.mark.processes
def test_a_process_that_keeps_ending_shows_its_last_words(supervise) -> None:
    operator = supervise("raise SystemExit('no such module')")
    assert not operator.wait_until_healthy(SECONDS)
    assert operator.hopeless
    until(lambda: "  no such module" in operator.said)
    assert operator.said[0] == "operator ended with exit code 1; started again in 0.5 s"
    assert operator.last_words()[-1] == "no such module"


@pytest.mark.processes
def test_a_process_that_ignores_the_request_to_end_is_killed(supervise, tmp_path) -> None:
    operator = supervise(f"{STUBBORN}; time.sleep(600)")
    until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "x\n")
    pid = operator.pid
    operator.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.processes
def test_a_process_that_hangs_is_replaced(supervise, health, monkeypatch) -> None:
    monkeypatch.setattr("rekindle_cli.local.supervisor._PROBE_EVERY", 0.3)
    monkeypatch.setattr("rekindle_cli.local.supervisor._PROBE_SECONDS", 0.3)
    operator = supervise(SERVE, health=health)
    assert operator.wait_until_healthy(SECONDS)
    first = operator.pid
    os.kill(first, signal.SIGSTOP)
    until(lambda: operator.pid not in {None, first})
    assert "does not answer" in operator.said[0]


@pytest.mark.processes
@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_one_that_takes_long_to_start_is_given_time(
    supervise, health, monkeypatch, tmp_path, patience
) -> None:
    monkeypatch.setattr("rekindle_cli.local.supervisor._PROBE_EVERY", 0.02)
    monkeypatch.setattr("rekindle_cli.local.supervisor._START_SECONDS", patience)
    os.mkfifo(tmp_path / "go")
    operator = supervise(f"open({str(tmp_path / 'go')!r}).read()\n{SERVE}", health=health)
    until(lambda: operator.pid)
    first, asked = operator.pid, []
    answers = operator._answers
    monkeypatch.setattr(operator, "_answers", lambda s: asked.append(s) or answers(s))
    until(lambda: len(asked) > 10 or operator.said)
    if patience:
        (tmp_path / "go").write_text("")  # it reads until then
        assert operator.wait_until_healthy(SECONDS)
        assert (operator.pid, operator.said) == (first, [])
    else:
        assert "does not answer" in operator.said[0]


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a tether needs Linux")
def test_a_tethered_process_ends_with_its_parent() -> None:
    program = f"""
import subprocess, sys, os, time
sleeper = "import time; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, {tether.__file__!r}, str(os.getpid()),
                          sys.executable, "-c", sleeper], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
