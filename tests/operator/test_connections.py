"""The door of the operator's ports: decided in the register, and tried with half-open sockets."""

import asyncio
import contextlib
import json
import random
import resource
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from rekindle import api
from rekindle.api import AgentPhase, AgentReport
from rekindle_operator.coordinator import certificates, connections, tls
from rekindle_operator.coordinator.connections import Door, Limits, Register, limits
from rekindle_operator.coordinator.rate_limit import Allowance

ALLOWED = Limits(total=10, strangers=6, per_peer=3, per_pod=2)


def test_a_stranger_too_many_from_one_address_costs_that_address_its_oldest():
    register = Register(ALLOWED)
    assert [register.arrive(n, "a") for n in range(3)] == [None] * 3
    assert register.arrive("other", "b") is None
    assert register.arrive(3, "a") == 0


def test_of_too_many_strangers_the_oldest_of_the_greediest_address_goes():
    register = Register(ALLOWED)
    for n, peer in enumerate("abbcc"):
        assert register.arrive(n, peer) is None
    assert register.arrive("last", "d") is None
    assert register.arrive("more", "e") == 1


def test_a_pod_has_few_connections_and_keeps_the_newest():
    register = Register(ALLOWED)
    for n in range(3):
        register.arrive(n, "a")
    assert [register.know(n, "pod") for n in range(3)] == [None, None, 0]
    assert register.know(1, "pod") is None, "it may be said any number of times"


def test_pods_leave_room_for_those_who_come():
    register = Register(ALLOWED)
    for n in range(ALLOWED.total - ALLOWED.strangers):
        register.arrive(n, "a")
        assert register.know(n, f"pod-{n}") is None
    register.arrive("one more", "a")
    assert register.know("one more", "pod-n") == "one more"


def test_any_history_stays_within_the_limits_and_forgets_who_left():
    luck = random.Random(1)
    for _ in range(200):
        register, there = Register(ALLOWED), set()
        for n in range(60):
            if there and luck.random() < 0.3:
                gone = luck.choice(sorted(there))
                register.leave(gone)
                there.discard(gone)
                continue
            there.add(n)
            gone = {register.arrive(n, luck.choice("abcdefgh"))}
            if luck.random() < 0.5:
                gone.add(register.know(n, luck.choice("xyz")))
            for one in gone - {None}:
                register.leave(one)
                there.discard(one)
            assert len(register) == len(there) <= ALLOWED.total
        for one in there:
            register.leave(one)
        assert (len(register), register._waiting) == (0, 0)
        assert not register._strangers
        assert not register._known


@pytest.mark.parametrize("files", [64, 256, 1024, 20_000, 65_536])
def test_limits_leave_files_for_everything_else(files):
    found = limits(files)
    assert found.strangers + found.per_pod <= found.total
    assert found.per_peer < found.strangers
    assert files - found.total >= (128 if files >= 256 else 0)


def test_an_allowance_is_a_burst_and_then_a_rate():
    allowed = Allowance(rate=2.0, burst=3.0)
    assert [allowed.take(10.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [allowed.take(10.5), allowed.take(10.6)] == [True, False]
    assert [allowed.take(99.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not allowed.take(98.0), "a clock that goes back gives nothing"


@contextlib.asynccontextmanager
async def served(app, allowed=ALLOWED, context=None):
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    door = Door(runner, "127.0.0.1", 0, allowed, context)
    door.open()
    try:
        yield door
    finally:
        await door.close()
        await runner.cleanup()


def hello():
    async def answer(request):
        await request.read()
        return web.Response(text="hello\n")

    app = web.Application()
    app.router.add_route("*", "/", answer)
    return app


def scenario(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.mark.servers
@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_who_says_nothing_more_is_closed(said, monkeypatch):
    monkeypatch.setattr(connections, "IDLE", 0.2)

    async def run():
        async with served(hello()) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(said)
            answer = await reader.read()  # to the end, which is a close of theirs
            assert (b"hello" in answer) is said.endswith(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            assert len(door._register) == len(door._peers) == len(door._handshakes) == 0

    scenario(run())


def tls_of(name):
    """What a server needs to be known by a name, and what its client needs."""
    now = datetime.now(UTC)
    by = certificates.authority(now)
    context, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    tls.show(context, certificates.issue(by, [name], now))
    trusted.load_verify_locations(cadata=by.certificate)
    return context, trusted


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The begin of a TLS handshake that is longer than this."""


@pytest.mark.servers
@pytest.mark.parametrize("said", [b"", HELLO, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_handshake_that_comes_to_no_end_is_closed_and_forgotten(said, monkeypatch):
    monkeypatch.setattr(connections, "HANDSHAKE", 0.2)

    async def run():
        async with served(hello(), context=tls_of("localhost")[0]) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(said)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()  # to the end, which is a close of theirs
            writer.close()
            while len(door._register) or door._peers or door._handshakes:
                await asyncio.sleep(0.001)

    scenario(run())


@pytest.mark.servers
def test_handshakes_that_come_to_no_end_keep_nobody_out():
    context, trusted = tls_of("localhost")

    async def ask(port):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusted, server_hostname="localhost"
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def run():
        async with served(hello(), context=context) as door:
            held = []
            for _ in range(4 * ALLOWED.per_peer):
                held.append(await asyncio.open_connection("127.0.0.1", door.port))
                held[-1][1].write(HELLO)
            for reader, _ in held[: -ALLOWED.per_peer]:  # long before a handshake's time is over
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            assert len(door._register) == len(door._handshakes) == ALLOWED.per_peer
            assert b"hello" in await ask(door.port)
            for _, writer in held:
                writer.close()

    scenario(run())


@pytest.mark.servers
def test_a_head_that_is_no_http_is_not_quoted(capfd):
    async def run():
        async with served(hello()) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"GET / HTTP/1.1\r\nAuthorization: Bearer s3cr3t\x00\r\n\r\n")
            answer = await reader.read()
            writer.close()
            assert b" 400 " in answer.split(b"\r\n")[0]
            assert b"s3cr3t" not in answer

    scenario(run())
    told = capfd.readouterr().err
    assert "does not speak HTTP" in told
    assert "s3cr3t" not in told


SERVER = """
import asyncio, resource, sys
from aiohttp import web
from rekindle_operator import logs
from rekindle_operator.coordinator import connections
from rekindle_operator.coordinator.coordinator import Coordinator

async def tokens(job):
    return ("t",)

async def main():
    files = connections.raise_file_limit()
    coordinator = Coordinator(
        tokens_of=tokens, is_live=lambda *_: True, wake=lambda *_: None, complain=lambda *_: None
    )
    runner = web.AppRunner(coordinator.application(), shutdown_timeout=0.1)
    await runner.setup()
    door = connections.Door(runner, "127.0.0.1", 0, connections.limits(files))
    door.open()
    print(door.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
logs.configure("text", verbose=False)
asyncio.run(main())
"""


@pytest.mark.processes
def test_half_open_sockets_keep_nobody_out(tmp_path):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2000:
        pytest.skip("this process may not open 2,000 files")
    root = Path(__file__).parents[2]
    log = tmp_path / "log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("wb")),
                env={"PYTHONPATH": f"{root / 'operator'}:{root / 'runtime'}"},
            )
        )
        stack.callback(server.kill)
        port = int(server.stdout.readline())

        async def report(session):
            told = AgentReport(
                pod="p-0", uid="u", address="a", store_port=1, nproc=1, phase=AgentPhase.WAITING
            )
            url = f"http://127.0.0.1:{port}{api.pod_path('ml', 'p', 'p-0')}"
            head = {"Authorization": "Bearer t"}
            data = json.dumps(told.to_json())
            async with session.post(url, data=data, headers=head) as answer:
                return answer.status

        async def run():
            async with ClientSession() as before, ClientSession() as after:
                assert await report(before) == 200
                held = []
                for _ in range(1500):
                    one = socket.create_connection(("127.0.0.1", port), 5)
                    stack.callback(one.close)
                    with contextlib.suppress(OSError):
                        one.sendall(b"POST / HTTP/1.1\r\nHost:")
                    held.append(one)
                assert await report(before) == 200, "who was in stays in"
                assert await report(after) == 200, "who comes is let in"

        scenario(run())
        assert server.poll() is None
        server.stdin.close()
        server.wait(60)
    assert log.stat().st_size < 64 * 1024, "lines of one kind are few"
    assert b"left out" in log.read_bytes() or log.read_bytes().count(b"\n") < 40
