"""The coordinator over real HTTP, in this process."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from rekindle import api
from rekindle.api import (
    AgentPhase,
    AgentReport,
    Directive,
    DirectiveKind,
    Member,
    Progress,
    Round,
    View,
)
from rekindle_operator.coordinator import coordinator as module
from rekindle_operator.coordinator.coordinator import Coordinator

JOB = ("ml", "digits")
TOKEN = "s3cret"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def report(pod="digits-0", **changes):
    fields = {
        "pod": pod,
        "uid": f"uid-{pod}",
        "address": "10.0.0.1",
        "store_port": 29400,
        "nproc": 1,
        "phase": AgentPhase.WAITING,
        **changes,
    }
    return AgentReport(**fields)


def round_of(*pods, number=1):
    members = tuple(
        Member(pod=p, uid=f"uid-{p}", address="10.0.0.1", store_port=29400, nproc=1) for p in pods
    )
    return Round(number=number, members=members, reason="first round", formed_at=1.0)


class Bench:
    """A coordinator, its questions to the operator, and a client."""

    def __init__(self):
        self.live = {("digits-0", "uid-digits-0"), ("digits-1", "uid-digits-1")}
        self.wakes, self.complaints, self.former, self.mistrusted = [], [], (), []
        self.coordinator = Coordinator(
            tokens_of=self.tokens_of,
            is_live=lambda job, name, uid: (name, uid) in self.live,
            wake=lambda job, after: self.wakes.append((job, after)),
            complain=lambda *told: self.complaints.append(told),
            mistrusted=self.mistrusted.append,
        )

    async def tokens_of(self, job):
        return (TOKEN, *self.former) if job == JOB else ()

    @property
    def room(self):
        return self.coordinator.room(JOB)

    @property
    def watching(self):
        """So many watches are held open."""
        return len(self.room.changed._waiters)

    async def post(self, body, pod="digits-0", headers=AUTH, job="digits"):
        data = body if isinstance(body, (bytes, str)) else json.dumps(body.to_json())
        url = api.pod_path("ml", job, pod)
        async with self.client.post(url, data=data, headers=headers) as answer:
            return answer.status, await answer.text()

    async def get(self, pod="digits-0", headers=AUTH, **query):
        url = api.pod_path("ml", "digits", pod)
        params = {key: str(value) for key, value in query.items()}
        async with self.client.get(url, params=params, headers=headers) as answer:
            return answer.status, await answer.text()

    async def view(self, body, **more):
        status, text = await self.post(body, **more)
        assert status == 200, text
        return View.from_json(json.loads(text))


def with_bench(scenario):
    """Run a scenario, a coroutine function, against a fresh coordinator."""

    async def run():
        bench = Bench()
        async with TestClient(TestServer(bench.coordinator.application())) as bench.client:
            return await asyncio.wait_for(scenario(bench), 10)

    return asyncio.run(run())


REFUSED = [
    ("no token", {"headers": {}}, 401),
    ("wrong token", {"headers": {"Authorization": "Bearer nope"}}, 401),
    ("bytes that are no UTF-8", {"headers": {"Authorization": "Bearer \udcff"}}, 401),
    ("token of nobody", {"headers": {"Authorization": "Bearer "}}, 401),
    ("unknown job", {"job": "other"}, 404),
]


@pytest.mark.parametrize(("how", "status"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_stranger_is_refused(how, status):
    async def scenario(bench):
        got, text = await bench.post(report(), **how)
        assert got == status
        assert TOKEN not in text
        assert not bench.room.agents

    with_bench(scenario)


BAD = [
    ("not JSON", "{"),
    ("a list", "[]"),
    ("null", "null"),
    ("nested too deeply", "[" * 100_000 + "]" * 100_000),
    ("no UTF-8", b"\xff\xfe\xff"),
    ("fields missing", '{"pod": "digits-0"}'),
    ("wrong types", json.dumps({**report().to_json(), "nproc": "many"})),
    ("unknown phase", json.dumps({**report().to_json(), "phase": "dancing"})),
    ("another pod's name", json.dumps(report("digits-1").to_json())),
]


@pytest.mark.parametrize("body", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_report_is_answered_400_and_changes_nothing(body):
    async def scenario(bench):
        status, text = await bench.post(body)
        assert status == 400
        assert json.loads(text)["error"]
        assert not bench.room.agents
        assert not bench.wakes

    with_bench(scenario)


def test_a_fault_of_the_coordinator_is_an_answer_for_the_agent_and_a_complaint_for_the_job():
    async def scenario(bench):
        note, bench.coordinator._note = bench.coordinator._note, None
        for _ in range(2):
            status, text = await bench.post(report())
            assert status == 500
            assert "TypeError" in json.loads(text)["error"]
        assert {told[:2] for told in bench.complaints} == {(JOB, "request POST of pod digits-0")}
        assert all(isinstance(told[2], TypeError) for told in bench.complaints)
        bench.complaints.clear()
        bench.coordinator._note = note
        for _ in range(2):
            assert (await bench.post(report()))[0] == 200
        assert bench.complaints == [(JOB, "request POST of pod digits-0", None)]

    with_bench(scenario)


def test_a_token_that_cannot_be_read_now_is_answered_503_and_is_no_fault_of_the_job():
    async def scenario(bench):
        async def no_answer(job):
            raise TimeoutError

        bench.coordinator._tokens_of = no_answer
        status, text = await bench.post(report())
        assert status == 503
        assert json.loads(text)["error"] == "the operator cannot read the job's secret now"
        assert not bench.complaints

    with_bench(scenario)


def test_a_pod_that_the_operator_does_not_know_yet_is_answered_409():
    async def scenario(bench):
        bench.live.clear()
        status, text = await bench.post(report())
        assert status == 409
        assert "digits-0" in text

    with_bench(scenario)


def test_an_earlier_pod_of_that_name_is_refused():
    async def scenario(bench):
        status, _ = await bench.post(report(uid="uid-of-the-one-before"))
        assert status == 409

    with_bench(scenario)


def test_a_body_that_is_too_large_is_refused():
    async def scenario(bench):
        status, _ = await bench.post("x" * (module.MAX_BODY + 1))
        assert status == 413

    with_bench(scenario)


def test_reporting_twice_is_harmless():
    async def scenario(bench):
        first = await bench.view(report())
        agents = dict(bench.room.agents)
        second = await bench.view(report())
        assert second == first
        assert bench.room.agents.keys() == agents.keys()
        assert bench.room.agents["uid-digits-0"].phase_since == agents["uid-digits-0"].phase_since
        assert bench.wakes == [(JOB, 0.0)], "the second said nothing new"

    with_bench(scenario)


def test_progress_wakes_the_job_at_a_bounded_rate():
    async def scenario(bench):
        running = {"phase": AgentPhase.RUNNING, "round": round_of("digits-0")}
        for step in range(1, 21):
            await bench.view(report(**running, progress=Progress(step=step, round_steps=step)))
        assert len(bench.wakes) == 2, "the first report and one for all the others"

    with_bench(scenario)


def test_a_watch_answers_at_once_when_its_version_is_old():
    async def scenario(bench):
        await bench.view(report())
        status, _ = await bench.get(version="older", wait=30)  # longer than a scenario may take
        assert status == 200

    with_bench(scenario)


def test_a_watch_is_held_until_there_is_a_round():
    async def scenario(bench):
        version = (await bench.view(report())).version
        watch = asyncio.create_task(bench.get(version=version, wait=30))
        await until(lambda: bench.watching == 1)
        assert not watch.done()
        bench.room.set(round_of("digits-0"), {})
        _, text = await watch
        assert View.from_json(json.loads(text)).round == round_of("digits-0")

    with_bench(scenario)


def test_a_watch_ends_when_its_time_is_over():
    async def scenario(bench):
        version = (await bench.view(report())).version
        status, text = await bench.get(version=version, wait=0.05)
        assert status == 200
        assert View.from_json(json.loads(text)).version == version

    with_bench(scenario)


@pytest.mark.parametrize("wait", ["soon", "nan", ""])
def test_a_watch_with_a_bad_wait_is_refused(wait):
    async def scenario(bench):
        version = (await bench.view(report())).version
        status, text = await bench.get(version=version, wait=wait)
        assert status == 400
        assert "wait" in text

    with_bench(scenario)


def test_a_watch_before_a_report_is_answered_409():
    async def scenario(bench):
        assert (await bench.get(wait=1))[0] == 409

    with_bench(scenario)


def test_a_directive_is_seen_by_its_pod_only():
    async def scenario(bench):
        await bench.view(report())
        other = (await bench.view(report("digits-1"), pod="digits-1")).version
        save = Directive(kind=DirectiveKind.SAVE, round=1, reason="r", seconds=5.0)
        bench.room.set(None, {"uid-digits-0": save})
        assert (await bench.view(report())).directive == save
        assert (await bench.view(report("digits-1"), pod="digits-1")).version == other

    with_bench(scenario)


def test_a_version_depends_on_the_content_alone():
    async def scenario(bench):
        bench.room.set(round_of("digits-0"), {})
        before = await bench.view(report())
        bench.room.set(round_of("digits-0", number=2), {})
        between = await bench.view(report())
        bench.room.set(round_of("digits-0"), {})
        assert (await bench.view(report())).version == before.version != between.version

    with_bench(scenario)


def test_a_new_coordinator_learns_the_round_from_its_members():
    async def scenario(bench):
        old, new = round_of("digits-0", "digits-1", number=6), round_of("digits-1", number=7)
        await bench.view(report(phase=AgentPhase.RUNNING, round=old))
        assert bench.room.round == old
        await bench.view(report("digits-1", phase=AgentPhase.RUNNING, round=new), pod="digits-1")
        assert bench.room.round == new
        await bench.view(report(phase=AgentPhase.RUNNING, round=old))
        assert bench.room.round == new, "a report of an older round changes nothing"

    with_bench(scenario)


def test_agents_of_pods_that_are_gone_are_forgotten():
    async def scenario(bench):
        await bench.view(report())
        await bench.view(report("digits-1"), pod="digits-1")
        bench.coordinator.keep_agents(JOB, {"uid-digits-1"})
        assert list(bench.room.agents) == ["uid-digits-1"]
        bench.coordinator.forget(JOB)
        assert not bench.room.agents

    with_bench(scenario)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    seen = []

    def compare(shown, token):
        seen.append((shown, token))
        return shown == token

    monkeypatch.setattr(module.hmac, "compare_digest", compare)

    async def scenario(bench):
        await bench.view(report())
        assert seen == [(TOKEN.encode(), TOKEN.encode())]

    with_bench(scenario)


def test_many_watches_are_served_at_once():
    @asynccontextmanager
    async def session():
        async with ClientSession() as found:
            yield found

    async def scenario(bench):
        names = [f"digits-{n}" for n in range(60)]
        bench.live = {(name, f"uid-{name}") for name in names}
        versions = [(await bench.view(report(n), pod=n)).version for n in names]
        watches = [
            asyncio.create_task(bench.get(pod=n, version=v, wait=30))
            for n, v in zip(names, versions, strict=True)
        ]
        await until(lambda: bench.watching == len(names))
        bench.room.set(round_of(*names), {})
        answers = await asyncio.gather(*watches)
        assert {status for status, _ in answers} == {200}

    with_bench(scenario)


def test_no_other_path_is_served():
    async def scenario(bench):
        async with bench.client.get("/v1/namespaces/ml/jobs") as answer:
            assert answer.status == web.HTTPNotFound.status_code

    with_bench(scenario)


def save(seconds, number=1, reason="digits-1: node goes"):
    return Directive(kind=DirectiveKind.SAVE, round=number, reason=reason, seconds=seconds)


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        (save(19.9), False),
        (save(19.9, reason="digits-1: node goes; digits-0: too"), False),
        (save(5.0), True),
        (save(20.0, number=2), True),
        (Directive(kind=DirectiveKind.STOP, round=1, reason="over"), True),
    ],
    ids=["time passes", "another reason", "less time", "another round", "another kind"],
)
def test_a_deadline_that_stays_is_told_once_and_an_earlier_one_at_once(fresh, told):
    room = module.JobRoom()
    room.set(round_of("digits-0"), {"uid-digits-0": save(20.0)})
    before = room.view("uid-digits-0").version
    changed = room.changed
    room.set(room.round, {"uid-digits-0": fresh})
    assert (room.view("uid-digits-0").version != before) is told
    assert changed.is_set() is told


def test_the_earliest_end_that_a_pod_has_told_counts_and_is_news_once():
    bench = Bench()
    for at, seconds in ((1000.0, 30.0), (1001.0, 19.0), (1002.0, 28.0)):
        told = report(notice="SIGTERM", notice_seconds=seconds)
        bench.coordinator._note(JOB, told, at)
    agent = bench.room.agents["uid-digits-0"]
    assert (agent.noticed_at, agent.leaves_at) == (1000.0, 1020.0)
    assert len(bench.wakes) == 1
    bench.coordinator._note(JOB, report(), 1003.0)
    agent = bench.room.agents["uid-digits-0"]
    assert (agent.noticed_at, agent.leaves_at) == (None, None)


@asynccontextmanager
async def lifeline(bench, *, pod="digits-0", uid=None, probe=""):
    """A pod's open connection: how to say goodbye, and how to break it."""
    server = bench.client.server
    reader, writer = await asyncio.open_connection(server.host, server.port)
    path = api.pod_path("ml", "digits", pod) + api.LIFELINE
    writer.write(
        f"POST {path}?uid={uid or f'uid-{pod}'}{probe} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {TOKEN}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n".encode()
    )
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_a_lifeline_that_breaks_tells_of_a_lost_pod():
    async def scenario(bench):
        async with lifeline(bench):
            await until(lambda: bench.room.lifelines)
            assert not bench.room.vanished
        await until(lambda: bench.room.vanished)
        assert list(bench.room.vanished) == ["uid-digits-0"]
        assert bench.wakes == [(JOB, 0.0)]

    with_bench(scenario)


def test_two_that_break_at_once_are_lost_while_others_stand():
    async def scenario(bench):
        bench.live.add(("digits-2", "uid-digits-2"))
        async with lifeline(bench):
            async with (
                lifeline(bench, pod="digits-1") as (_, one),
                lifeline(bench, pod="digits-2") as (_, other),
            ):
                await until(lambda: len(bench.room.lifelines) == 3)
                one.transport.abort()
                other.transport.abort()
            await until(lambda: len(bench.room.vanished) == 2)
            assert "uid-digits-0" not in bench.room.vanished

    with_bench(scenario)


def test_all_that_break_at_once_tell_of_the_way_and_of_no_pod(monkeypatch, caplog):
    monkeypatch.setattr(module, "RETURN", 0.2)

    async def scenario(bench):
        async with lifeline(bench) as (_, one), lifeline(bench, pod="digits-1") as (_, other):
            await until(lambda: len(bench.room.lifelines) == 2)
            one.transport.abort()
            other.transport.abort()
        await until(lambda: len(caplog.records) == 2)
        assert "the way to here" in caplog.text
        assert not bench.room.vanished
        assert not bench.wakes

    with_bench(scenario)


def test_one_that_is_back_at_once_tells_nothing(monkeypatch):
    monkeypatch.setattr(module, "RETURN", 60.0)

    async def scenario(bench):
        async with lifeline(bench):
            await until(lambda: bench.room.lifelines)
        await until(lambda: not bench.room.lifelines)
        async with lifeline(bench):
            await until(lambda: bench.room.lifelines)
            bench.coordinator._vanished(JOB, "digits-0", "uid-digits-0", time.time())
            assert not bench.room.vanished
            assert not bench.wakes

    with_bench(scenario)


def test_one_that_comes_back_late_makes_the_pod_live_again(monkeypatch):
    monkeypatch.setattr(module, "RETURN", 0.0)

    async def scenario(bench):
        async with lifeline(bench):
            await until(lambda: bench.room.lifelines)
        await until(lambda: bench.room.vanished)
        async with lifeline(bench):
            await until(lambda: not bench.room.vanished)
            assert bench.wakes == [(JOB, 0.0)] * 2

    with_bench(scenario)


def test_a_goodbye_is_no_loss(monkeypatch):
    monkeypatch.setattr(module, "RETURN", 0.0)

    async def scenario(bench):
        async with lifeline(bench) as (reader, writer):
            writer.write(b"0\r\n\r\n")
            assert b"200" in await reader.readline()
        assert not bench.room.lifelines
        assert not bench.room.vanished
        assert not bench.wakes

    with_bench(scenario)


def test_silence_ends_a_lifeline_and_tells_nothing(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(module, "RETURN", 0.0)

    async def scenario(bench):
        async with lifeline(bench) as (reader, _):
            assert b"200" in await reader.readline()
        assert not bench.room.vanished

    with_bench(scenario)


def test_the_lifeline_of_an_unknown_pod_is_refused():
    async def scenario(bench):
        async with lifeline(bench, uid="uid-of-another") as (reader, _):
            assert b"409" in await reader.readline()
        assert not bench.room.lifelines

    with_bench(scenario)


async def told(reader, word):
    """Read until a word has come."""
    said = b""
    while word not in said:
        said += await reader.read(100)
    return said


def test_a_pod_that_does_not_report_is_asked_over_its_lifeline_and_heard_by_its_answer(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        async with lifeline(bench, probe="&probe=1") as (reader, writer):
            assert b"HTTP/1.1 200" in await told(reader, b"1\r\n?\r\n")
            ear, first = bench.coordinator.ear, bench.coordinator.ear.at("uid-digits-0")
            bench.coordinator.look(first + 0.5)
            bench.coordinator.look(first + 1.5)
            assert await told(reader, b"?") == b"1\r\n?\r\n", (
                "asked once, and not while it was heard"
            )
            writer.write(b"1\r\n\n\r\n")
            await until(lambda: ear.at("uid-digits-0") > first)
            assert not bench.room.suspects

    with_bench(scenario)


def test_a_launcher_that_does_not_know_of_questions_is_asked_none(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        async with lifeline(bench) as (reader, writer):
            await until(lambda: bench.room.lifelines)
            bench.coordinator.look(bench.coordinator.ear.at("uid-digits-0") + 1.5)
            writer.write(b"0\r\n\r\n")
            assert b"?" not in await reader.readline()

    with_bench(scenario)


def test_the_others_are_shown_who_is_not_heard_until_it_is(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        silent = report("digits-1", address="10.0.0.2", reach_port=4711)
        await bench.view(silent, pod="digits-1")
        at = bench.coordinator.ear.at("uid-digits-1")
        version = (await bench.view(report())).version
        watch = asyncio.create_task(bench.get(version=version, wait=30))
        await until(lambda: bench.watching == 1)
        bench.coordinator._note(JOB, report(), at + 2.0)
        bench.wakes.clear()
        bench.coordinator.look(at + 2.5)
        shown = View.from_json(json.loads((await watch)[1])).suspects
        assert [(s.pod, s.address, s.reach_port) for s in shown] == [("digits-1", "10.0.0.2", 4711)]
        assert not bench.wakes
        bench.coordinator.look(at + 3.1)
        bench.coordinator.look(at + 3.2)
        assert bench.wakes == [(JOB, 0.0)], "once it is silent for long enough to decide"
        bench.coordinator._note(JOB, silent, at + 3.9)
        bench.coordinator.look(at + 4.0)
        assert bench.wakes == [(JOB, 0.0)] * 2, "and once more when it is heard again"
        assert not bench.room.suspects

    with_bench(scenario)


def test_a_new_operator_asks_about_members_that_it_has_never_heard(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        current = round_of("digits-0", "digits-1")
        members = tuple(replace(member, reach_port=4711) for member in current.members)
        current = replace(current, members=members)
        await bench.view(report(phase=AgentPhase.RUNNING, round=current))
        bench.coordinator.look(bench.coordinator.since + 1.0)
        assert not bench.room.suspects
        bench.coordinator._note(JOB, report(), bench.coordinator.since + 2.0)
        bench.coordinator.look(bench.coordinator.since + 2.5)
        assert [suspect.pod for suspect in bench.room.suspects] == ["digits-1"]

    with_bench(scenario)


def test_who_is_no_live_pod_any_more_is_not_missed(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 60.0)

    async def scenario(bench):
        await bench.view(report("digits-1", reach_port=4711), pod="digits-1")
        at = bench.coordinator.ear.at("uid-digits-1")
        bench.live.remove(("digits-1", "uid-digits-1"))
        bench.wakes.clear()
        bench.coordinator.look(at + 30.0)
        assert (bench.room.suspects, bench.wakes) == ((), [])
        assert bench.coordinator.ear.at("uid-digits-1") is None

    with_bench(scenario)


def test_a_pod_that_reports_although_its_lifeline_broke_is_alive():
    bench = Bench()
    bench.coordinator._note(JOB, report(), 1000.0)
    bench.room.vanished["uid-digits-0"] = 1001.0
    bench.coordinator._note(JOB, report(), 1001.0 + module.LAST_WORDS)
    assert bench.room.vanished, "its last words may come after the break"
    bench.coordinator._note(JOB, report(), 1002.0)
    assert not bench.room.vanished
    assert bench.wakes[-1] == (JOB, 0.0)


@pytest.mark.parametrize(("known", "number", "taken"), [(5, 6, True), (5, 10**9, False)])
def test_a_round_far_beyond_the_status_is_not_believed(known, number, taken):
    async def scenario(bench):
        bench.coordinator._last_round = lambda job: known
        told = round_of("digits-0", number=number)
        await bench.view(report(phase=AgentPhase.RUNNING, round=told))
        assert (bench.room.round == told) is taken

    with_bench(scenario)


def test_a_pod_that_reports_all_the_time_is_slowed_down(monkeypatch):
    monkeypatch.setattr(module, "REPORTS", (1e-6, 5.0))

    async def scenario(bench):
        assert [(await bench.post(report()))[0] for _ in range(7)] == [200] * 5 + [429] * 2
        assert (await bench.post(report("digits-1"), pod="digits-1"))[0] == 200, "others are not"

    with_bench(scenario)


def test_a_pod_that_has_news_all_the_time_makes_no_more_than_a_reconcile_a_second():
    bench = Bench()
    phases = [AgentPhase.WAITING, AgentPhase.WARMING]
    for n in range(100):
        bench.coordinator._note(JOB, report(phase=phases[n % 2]), 1000.0)
    assert sum(after == 0.0 for _, after in bench.wakes) <= module.NEWS[1] + 1
    assert len(bench.wakes) == 100, "each is looked at soon"


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)

    async def scenario(bench):
        server = bench.client.server
        reader, writer = await asyncio.open_connection(server.host, server.port)
        path = api.pod_path("ml", "digits", "digits-0")
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.transport.abort()
        assert not bench.complaints

    with_bench(scenario)


@pytest.mark.parametrize(
    "head", ["Content-Encoding: gzip\r\nContent-Length: 2", "Transfer-Encoding: chunked"]
)
def test_a_body_that_is_not_what_its_head_says_is_no_fault_of_ours(head):
    async def scenario(bench):
        server = bench.client.server
        reader, writer = await asyncio.open_connection(server.host, server.port)
        path = api.pod_path("ml", "digits", "digits-0")
        start = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(f"{start}{head}\r\n\r\nzz\r\n".encode())
        assert b" 400 " in await reader.readline()
        writer.transport.abort()
        assert not bench.complaints

    with_bench(scenario)


def test_a_token_that_was_replaced_counts_for_a_while():
    async def scenario(bench):
        old = {"Authorization": "Bearer of-before"}
        assert (await bench.post(report(), headers=old))[0] == 401
        assert bench.mistrusted == [JOB], "the secret may have been edited"
        bench.former = ("of-before",)
        assert (await bench.post(report(), headers=old))[0] == 200
        assert (await bench.post(report()))[0] == 200

    with_bench(scenario)
