"""PID 1 of a pod hands signals on, ends with the agent and as the agent did, and takes it along."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rekindle.api import ENV_COORDINATOR, ENV_TOKEN

pytestmark = pytest.mark.processes

PROGRAM = """
import os, signal, sys, time
from rekindle.launch.spawn import init_process
from rekindle.launch.pod.signals import Signals
init_process.END_SECONDS = 60.0 if os.environ.get("PATIENT") else init_process.END_SECONDS
init_process.stand_before_the_agent()
"""


@contextmanager
def pod(body: str, coordinator: str = "http://127.0.0.1:1") -> Iterator[subprocess.Popen[str]]:
    """A program after its first process stands; it says its own pid and waits for what comes."""
    environment = {**os.environ, ENV_COORDINATOR: coordinator}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def agent_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process that is no child of ours ends in time."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([file], [], [], seconds)[0])
    finally:
        os.close(file)


WAITS = "print(os.getpid(), flush=True)\ntime.sleep(60)"


def test_its_death_is_the_agents():
    with pod(WAITS) as process:
        agent = agent_of(process)
        assert agent != process.pid
        process.kill()
        assert gone(agent)


@pytest.mark.parametrize(("end", "code"), [("os._exit(75)", 75), ("os.kill(os.getpid(), 9)", 137)])
def test_it_ends_with_the_agents_code(end, code):
    with pod(end) as process:
        assert process.wait(60) == code


def test_a_notice_reaches_the_agent():
    seen = (
        "s = Signals()\ns.install()\nprint(os.getpid(), flush=True)\n"
        "s.wait(30)\nos._exit(7 if s.noticed_at else 8)"
    )
    with pod(seen) as process:
        agent_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_a_signal_that_nobody_handles_ends_neither_of_them():
    seen = (
        "s = Signals()\ns.install()\nprint(os.getpid(), flush=True)\n"
        "s.wait(30)\nos._exit(7 if s.noticed_at else 8)"
    )
    with pod(seen) as process:
        agent_of(process)
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_a_notice_from_before_the_agent_listens_is_kept_for_it():
    seen = (
        "print(os.getpid(), flush=True)\nsys.stdin.read()\n"
        "s = Signals()\ns.install()\ns.wait(30)\nos._exit(7 if s.noticed_at else 8)"
    )
    with pod(seen) as process:
        agent_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 7


def test_without_an_operator_the_agent_is_the_first_process_itself():
    with pod(WAITS, coordinator="") as process:
        assert agent_of(process) == process.pid


@contextmanager
def coordinator() -> Iterator[tuple[str, socket.socket]]:
    """Something that accepts lifelines; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


def said(connection: socket.socket) -> bytes:
    """Everything up to the end of a connection."""
    connection.settimeout(60)
    parts = []
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            parts.append(part)
    return b"".join(parts)


def test_its_lifeline_breaks_when_it_is_killed(monkeypatch):
    monkeypatch.setenv(ENV_TOKEN, "a secret")
    with coordinator() as (url, server), pod(WAITS, coordinator=url) as process:
        connection, _ = server.accept()
        agent_of(process)
        head = connection.recv(4096)
        assert b"/lifeline?uid=" in head
        assert b"Bearer a secret\r\n" in head
        assert b"a secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
        process.kill()
        assert said(connection) == b""


def test_its_lifeline_answers_when_it_is_asked_and_not_while_it_stands_still():
    with coordinator() as (url, server), pod(WAITS, coordinator=url) as process:
        connection, _ = server.accept()
        agent_of(process)
        connection.settimeout(60)
        with connection:
            assert b"&probe=1 HTTP/1.1" in connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(4096) == b"1\r\n\n\r\n"
            connection.sendall(b"1\r\n?\r\n")
            assert connection.recv(4096) == b"1\r\n\n\r\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            connection.sendall(b"1\r\n?\r\n")
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(4096)
            connection.settimeout(60)
            process.send_signal(signal.SIGCONT)
            assert connection.recv(4096) == b"1\r\n\n\r\n"


def test_a_lifeline_that_is_refused_is_tried_again():
    with coordinator() as (url, server), pod(WAITS, coordinator=url):
        for _ in range(3):
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4096)
                connection.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n")


def test_it_says_goodbye_when_the_agent_is_through():
    body = "print(os.getpid(), flush=True)\nsys.stdin.read()\nos._exit(0)"
    with coordinator() as (url, server), pod(body, coordinator=url) as process:
        agent_of(process)
        connection, _ = server.accept()
        assert connection.recv(4096)
        assert process.stdin is not None
        process.stdin.close()
        assert said(connection).endswith(b"0\r\n\r\n")
        assert process.wait(60) == 0


def test_its_goodbye_is_heard_although_it_is_asked_something_at_that_moment(monkeypatch):
    # A connection that is closed with something unread is reset, and what was said on it is gone.
    monkeypatch.setenv("PATIENT", "1")
    body = "print(os.getpid(), flush=True)\nsys.stdin.read()\nos._exit(0)"
    with coordinator() as (url, server), pod(body, coordinator=url) as process:
        agent_of(process)
        connection, _ = server.accept()
        connection.settimeout(60)
        with connection:
            assert connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(4096) == b"1\r\n\n\r\n"
            assert process.stdin is not None
            process.stdin.close()
            assert connection.recv(4096) == b"0\r\n\r\n"
            connection.sendall(b"1\r\n?\r\n")
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(4096)
            connection.sendall(b"0\r\n\r\n")
            assert process.wait(60) == 0


def test_a_lifeline_that_breaks_is_there_again():
    with coordinator() as (url, server), pod(WAITS, coordinator=url):
        for _ in range(3):
            connection, _ = server.accept()
            assert connection.recv(4096)
            connection.close()
