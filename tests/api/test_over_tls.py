"""A pod and its operator over TLS: the launcher of one against the coordinator of the other.

The death of a pod, a question over its lifeline and its goodbye mean what they mean in the clear.
"""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web

from rekindle import api
from rekindle.api import AgentPhase, AgentReport
from rekindle.launch.coordinator.client import CoordinatorConnection as Client
from rekindle.launch.coordinator.client import CoordinatorError
from rekindle.launch.pod.settings import from_environment
from rekindle_operator.coordinator import certificates, connections, tls
from rekindle_operator.coordinator import coordinator as module
from rekindle_operator.coordinator.coordinator import Coordinator

pytestmark = [pytest.mark.servers, pytest.mark.processes]

JOB, TOKEN = ("ml", "digits"), "s3cret"
REPORT = AgentReport(
    pod="digits-0", uid="u", address="10.0.0.1", store_port=1, nproc=1, phase=AgentPhase.WAITING
)
POD = """
import os, signal, sys
from rekindle.launch.spawn.init_process import stand_before_the_agent
stand_before_the_agent()
print(os.getppid(), flush=True)
sys.stdin.read()
os._exit(0)
"""


class Bench:
    """A coordinator behind its door, and what a pod finds in its secret."""

    def __init__(self, folder):
        self.folder, self.wakes = folder, []
        self.by = certificates.authority(datetime.now(UTC))
        self.coordinator = Coordinator(
            tokens_of=self.tokens_of,
            is_live=lambda *_: True,
            wake=lambda *told: self.wakes.append(told),
            complain=lambda *_: None,
        )

    async def tokens_of(self, _):
        return (TOKEN,)

    @property
    def room(self):
        return self.coordinator.room(JOB)

    def trust(self, authority):
        (self.folder / api.ACCESS_CA).write_text(authority.certificate)

    @property
    def environment(self):
        return {
            api.ENV_ACCESS: str(self.folder),
            api.ENV_NAMESPACE: JOB[0],
            api.ENV_JOB: JOB[1],
            api.ENV_POD: REPORT.pod,
            api.ENV_POD_UID: REPORT.uid,
            api.ENV_POD_IP: "127.0.0.1",
            api.ENV_PROC_PER_NODE: "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    @asynccontextmanager
    async def pod(self):
        """The first process of a pod, with a lifeline; it ends when its input does."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", POD),
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert int(await process.stdout.readline()) == process.pid
            await until(lambda: self.room.lifelines)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def over_tls(folder, scenario):
    async def run():
        bench = Bench(folder)

        async def load(_):
            return bench.by

        context, _ = await tls.context(tls.Own(load, ["127.0.0.1"]))
        runner = web.AppRunner(bench.coordinator.application(), shutdown_timeout=0.1)
        await runner.setup()
        door = connections.Door(runner, "127.0.0.1", 0, connections.limits(1024), context)
        bench.trust(bench.by)
        (folder / api.ACCESS_URL).write_text(f"https://127.0.0.1:{door.port}")
        (folder / api.ACCESS_TOKEN).write_text(TOKEN)
        bench.runner = runner
        door.open()
        try:
            await asyncio.wait_for(scenario(bench), 60)
        finally:
            await door.close()
            await runner.cleanup()

    asyncio.run(run())


def test_a_pod_that_is_killed_has_vanished(tmp_path):
    async def scenario(bench):
        async with bench.pod() as process:
            assert not bench.room.vanished
            process.kill()
            await until(lambda: bench.room.vanished)
            assert bench.wakes == [(JOB, 0.0)]

    over_tls(tmp_path, scenario)


def test_a_pod_answers_when_it_is_asked_and_not_while_it_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        ear = bench.coordinator.ear

        async def asked(times=1):
            for _ in range(times):
                at = ear.at(REPORT.uid)
                bench.room.lifelines[REPORT.uid].ask()
                async with asyncio.timeout(0.3 if times > 1 else None):
                    await until(lambda at=at: ear.at(REPORT.uid) > at)

        async with bench.pod() as process:
            at = ear.at(REPORT.uid)
            await until(lambda: ear.at(REPORT.uid) > at)  # what it says when it was let in
            for _ in range(20):
                await asked()
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            with pytest.raises(TimeoutError):
                await asked(times=3)  # an answer or two may have been on their way
            assert REPORT.uid in bench.room.lifelines, "its kernel still holds the connection"
            at = ear.at(REPORT.uid)
            process.send_signal(signal.SIGCONT)
            await until(lambda: ear.at(REPORT.uid) > at)

    over_tls(tmp_path, scenario)


def test_a_pod_that_is_through_says_goodbye(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETURN", 0.0)

    async def scenario(bench):
        async with bench.pod() as process:
            process.stdin.close()
            assert await process.wait() == 0
            await until(lambda: not bench.room.lifelines)
            await asyncio.sleep(0)
            assert not bench.room.vanished, "nobody says that it was lost"

    over_tls(tmp_path, scenario)


def test_an_agent_believes_the_authority_in_its_secret_as_that_is_at_the_moment(tmp_path):
    async def scenario(bench):
        client = Client(from_environment(bench.environment))
        bench.trust(certificates.authority(datetime.now(UTC)))
        with pytest.raises(CoordinatorError, match="certificate verify failed"):
            await asyncio.to_thread(client.report, REPORT)
        bench.trust(bench.by)
        await asyncio.to_thread(client.report, REPORT)
        assert REPORT.uid in bench.room.agents

    over_tls(tmp_path, scenario)


def test_a_connection_that_was_closed_meanwhile_costs_an_agent_no_report(tmp_path):
    async def scenario(bench):
        client = Client(from_environment(bench.environment))
        for _ in range(3):
            await asyncio.to_thread(client.report, REPORT)
            (connection,) = bench.runner.server.connections
            connection.transport.abort()
            await until(lambda: not bench.runner.server.connections)

    over_tls(tmp_path, scenario)
