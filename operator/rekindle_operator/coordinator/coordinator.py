"""Where agents report and hear of rounds: the HTTP side of `rekindle.api`.

The coordinator decides nothing. It keeps the newest report of each pod, wakes up the job's
reconcile when a report says something new, and answers with the view that the last plan made: the
current round and a directive. All of it is memory only, and all of it comes back after a restart
from the agents themselves, since every report repeats the round that the agent is in: the highest
number reported is the current round.

A pod also holds a connection open on which nothing is said, its lifeline, from a first process that
is small: the kernel closes it within a millisecond of that process's end, while the kubelet may
need a second or more to tell. A lifeline that breaks without a goodbye, and is not there again at
once, is thus the first word of a lost pod; the kubelet's comes later and says why. When all of them
break together it is rather the way to here that broke, a proxy for example: then nothing is made of
it, and the kubelet is waited for.

A machine that loses its power, or its network, breaks no connection: it only says nothing any more.
So a pod that has not reported for a moment is asked over its lifeline, and when that stays silent,
too, its peers are shown whom they should try to reach (`View.suspects`). What follows from all of
that is decided in `contact`.

A pod proves with its job's secret that it belongs to the job; the secret's value comes from the API
server and is compared in constant time. A pod that the operator does not see as a live pod of the
job is answered 409 and tries again: after a restart the caches are not filled yet.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from aiohttp import ClientError, web

from rekindle.api import (
    LIFELINE,
    MOST_SUSPECTS,
    PROBED,
    AgentReport,
    Directive,
    Round,
    Suspect,
    View,
)
from rekindle_operator import metrics
from rekindle_operator.coordinator import connections
from rekindle_operator.coordinator.rate_limit import Allowance
from rekindle_operator.observed.liveness import REANNOUNCE, SILENT
from rekindle_operator.observed.liveness_tracker import SUSPECT_AFTER, Ear, Heard, JobKey
from rekindle_operator.observed.observations import AgentState

logger = logging.getLogger(__name__)

MAX_WAIT = 60.0
"""Longest time in seconds that a watch is held open."""
MAX_BODY = 256 * 1024
"""A report is a few kilobytes; more is refused."""
SILENCE = 60.0
"""Seconds without a beat after which a pod's lifeline means nothing any more."""
RETURN = 0.02
"""Seconds for a pod whose lifeline broke to come back: one that lives does so at once."""
LAST_WORDS = 0.5
"""Seconds after the break of a lifeline in which a report may still be on its way."""
PROGRESS_INTERVAL = 1.0
"""Seconds between two reconciles of a job of which only the progress has changed."""
LOOK = 0.25
"""Seconds between two looks at who has fallen silent."""
UNREAD = 1024
"""Bytes of questions that nobody reads, after which a lifeline is asked no more."""

BODY_SECONDS = 5.0
"""For a report to arrive."""
REPORTS = 10.0, 50.0
"""So many reports a second a pod may make in the long run, and so many at once."""
NEWS = 1.0, 30.0
"""So many times a second, and at once, the news of a pod make its job be reconciled at once."""
LEAP = 1000
"""So far a status may be behind, one that was restored from a copy for example."""
STRANGE = {400, 401, 404, 405, 408, 413}
"""Answers after which the connection is closed: whoever gets them had better begin anew."""


class Lifeline:
    """An open one; each is an object of its own."""

    def __init__(self, transport: asyncio.Transport | None = None) -> None:
        self._transport = transport
        """Where it can be asked; None for a launcher that would not understand."""

    def ask(self) -> None:
        """Ask whether anybody is there: one chunk of an answer that has no end."""
        transport = self._transport
        if transport and not transport.is_closing() and transport.get_write_buffer_size() < UNREAD:
            transport.write(b"1\r\n?\r\n")


@dataclass
class JobRoom:
    """What the coordinator holds for one job."""

    agents: dict[str, AgentState] = field(default_factory=dict)
    """By pod uid."""
    round: Round | None = None
    directives: dict[str, Directive] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    """time.monotonic() of the directives."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced and set whenever views may differ."""
    progress_due: float = 0.0
    lifelines: dict[str, Lifeline] = field(default_factory=dict)
    """By uid: one that is open."""
    suspects: tuple[Suspect, ...] = ()
    """Pods that are not heard, for the others to try to reach."""
    vanished: dict[str, float] = field(default_factory=dict)
    """By uid: when a lifeline broke, and did not come back."""
    allowed: dict[str, Allowance] = field(default_factory=dict)
    """By uid: how many reports more."""
    news: dict[str, Allowance] = field(default_factory=dict)
    """By uid: how many reconciles at once."""

    def view(self, uid: str) -> View:
        """What the pod with this uid may see. Its version is a digest of its content."""
        directive = self.directives.get(uid)
        text = json.dumps(
            [
                self.round.key if self.round else None,
                directive.to_json() if directive else None,
                [suspect.to_json() for suspect in self.suspects],
            ]
        )
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        return View(version=version, round=self.round, directive=directive, suspects=self.suspects)

    def set(self, current: Round | None, directives: dict[str, Directive]) -> None:
        """Take over what a plan decided, and wake up whoever waits for it."""
        now = time.monotonic()
        steady = {uid: self._steady(uid, directive, now) for uid, directive in directives.items()}
        if self.round == current and self.directives == steady:
            return
        for uid, directive in steady.items():
            if self.directives.get(uid) is not directive:
                self.asked_at[uid] = now
        self.asked_at = {uid: self.asked_at[uid] for uid in steady}
        self.round, self.directives = current, steady
        self._tell()

    def suspect(self, suspects: tuple[Suspect, ...]) -> None:
        """Show whom the others should try to reach."""
        if self.suspects != suspects:
            self.suspects = suspects
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _steady(self, uid: str, new: Directive, now: float) -> Directive:
        """The old directive where the new one asks for the same and hurries no more.

        What is left of a deadline is less in each plan; as long as the deadline is the same there
        is nothing to tell an agent.
        """
        old = self.directives.get(uid)
        if old is None or (old.kind, old.round, old.code) != (new.kind, new.round, new.code):
            return new
        if old.seconds is None or new.seconds is None:
            return old if old == new else new
        return old if self.asked_at[uid] + old.seconds <= now + new.seconds + 1.0 else new


class Coordinator:
    """The rooms of all jobs, and the HTTP application in front of them."""

    def __init__(
        self,
        *,
        tokens_of: Callable[[JobKey], Awaitable[tuple[str, ...]]],
        is_live: Callable[[JobKey, str, str], bool],
        wake: Callable[[JobKey, float], None],
        complain: Callable[[JobKey, str, BaseException | None], None],
        last_round: Callable[[JobKey], int] = lambda _: 0,
        mistrusted: Callable[[JobKey], None] = lambda _: None,
    ) -> None:
        """Build it around what it asks of the rest of the operator.

        ``tokens_of`` gives the tokens of a job that count (none: unknown job), ``is_live`` says
        whether a pod (name, uid) is a live pod of it, and ``wake`` asks for a reconcile after some
        seconds. ``complain`` tells the job of a request that could not be answered, and with None
        that the same can be again. ``last_round`` is the newest round in the job's status.
        ``mistrusted`` is told of a job for which somebody has shown another token.
        """
        self._tokens_of = tokens_of
        self._is_live = is_live
        self._wake = wake
        self._complain = complain
        self._last_round = last_round
        self._mistrusted = mistrusted
        self._failing: set[tuple[JobKey, str]] = set()
        """Jobs and what of them could not be answered when last asked."""
        self._rooms: dict[JobKey, JobRoom] = {}
        self._breaks: deque[float] = deque(maxlen=1000)
        """When lifelines broke, in unix seconds."""
        self.since = time.time()
        self.ear = Ear(self.since)

    def room(self, job: JobKey) -> JobRoom:
        """The room of a job; an empty one if nobody has been there."""
        return self._rooms.setdefault(job, JobRoom())

    def forget(self, job: JobKey) -> None:
        """The job is gone."""
        self._failing = {entry for entry in self._failing if entry[0] != job}
        room = self._rooms.pop(job, None)
        if room:
            room.changed.set()

    def keep_agents(self, job: JobKey, uids: set[str]) -> None:
        """Drop the reports of all other pods."""
        room = self.room(job)
        room.agents = {uid: agent for uid, agent in room.agents.items() if uid in uids}
        room.vanished = {uid: at for uid, at in room.vanished.items() if uid in uids}
        room.allowed = {uid: left for uid, left in room.allowed.items() if uid in uids}
        room.news = {uid: left for uid, left in room.news.items() if uid in uids}
        metrics.AGENTS.set(sum(len(room.agents) for room in self._rooms.values()))

    def application(self) -> web.Application:
        """The HTTP application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._answer])
        path = "/v1/namespaces/{namespace}/jobs/{job}/pods/{pod}"
        app.router.add_post(path, self._report)
        app.router.add_get(path, self._watch)
        app.router.add_post(path + LIFELINE, self._lifeline)
        app.cleanup_ctx.append(self._listening)
        return app

    async def _listening(self, _: web.Application) -> AsyncIterator[None]:
        """Look for pods that have fallen silent for as long as the application runs."""
        # Silence counts from here on: before, there may have been a wait for a certificate.
        self.since = time.time()
        self.ear = Ear(self.since)
        task = asyncio.create_task(self._listen(), name="listening")
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _listen(self) -> None:
        while True:
            try:
                self.look(time.time())
            except Exception:
                # Whatever is wrong with one look, nobody would notice that there are no more.
                logger.exception("cannot look for pods that have fallen silent")
            await asyncio.sleep(LOOK)

    def look(self, now: float) -> None:
        """Ask those that have said nothing for a while, and their peers about them."""
        silent: dict[JobKey, list[Heard]] = {}
        for found in self.ear.look(now):
            room = self._rooms.get(found.job)
            if room is None or not self._is_live(found.job, found.pod, found.uid):
                self.ear.forget(found.uid)
                continue
            if found.uid in room.lifelines:
                room.lifelines[found.uid].ask()
            if now - found.at >= SUSPECT_AFTER:
                silent.setdefault(found.job, []).append(found)
            if now - found.at > SILENT and not found.told:
                found.told = True
                self._wake(found.job, 0.0)
        for job, room in self._rooms.items():
            if room.suspects or job in silent or now - self.since < 2 * REANNOUNCE:
                room.suspect(self._suspects(job, room, silent.get(job, []), now))

    def _suspects(
        self, job: JobKey, room: JobRoom, silent: list[Heard], now: float
    ) -> tuple[Suspect, ...]:
        """Pods of a job that are not heard, as far as it is known where to reach them."""
        found: dict[str, Suspect] = {}
        for heard in silent:
            agent = room.agents.get(heard.uid)
            if agent and agent.report.reach_port:
                found[heard.uid] = Suspect(
                    pod=heard.pod,
                    uid=heard.uid,
                    address=agent.report.address,
                    reach_port=agent.report.reach_port,
                )
        if now - self.since >= SUSPECT_AFTER:
            # Members that have never been heard here: the operator is a new one.
            for member in room.round.members if room.round else ():
                never = self.ear.at(member.uid) is None and member.reach_port
                if never and self._is_live(job, member.pod, member.uid):
                    found[member.uid] = Suspect(
                        pod=member.pod,
                        uid=member.uid,
                        address=member.address,
                        reach_port=member.reach_port,
                    )
        return tuple(found.values())[:MOST_SUSPECTS]

    @web.middleware
    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Turn a fault of ours into an answer for the agent and a complaint for its job."""
        about = f"request {request.method} of pod {request.match_info.get('pod', '')[:253]}"
        job = (request.match_info.get("namespace", ""), request.match_info.get("job", ""))
        try:
            response = await handler(request)
        except (web.HTTPException, ClientError, ConnectionError) as error:
            if isinstance(error, web.HTTPException) and error.status in STRANGE:
                error.force_close()
            raise  # refused on purpose, or nobody is there any more
        except Exception as error:
            logger.exception("%s failed", about)
            metrics.REFUSED.labels(code="500").inc()
            # Whoever gets as far as to make something fail has shown the job's token.
            self._failing.add((job, about))
            self._complain(job, about, error)
            text = f"the coordinator failed: {type(error).__name__}; its log has more"
            return web.json_response({"error": text}, status=500)
        if (job, about) in self._failing:
            self._failing.discard((job, about))
            self._complain(job, about, None)
        return response

    async def _admit(self, request: web.Request) -> JobKey:
        """The job of a request, if it shows the job's token; raises the refusal otherwise."""
        job = (request.match_info["namespace"], request.match_info["job"])
        try:
            tokens = await self._tokens_of(job)
        except Exception as error:
            # The job's reconcile needs it, too, and tells.
            logger.warning("%s/%s: its token cannot be read: %s", *job, error)
            raise _refusal(503, "the operator cannot read the job's secret now") from error
        if not tokens:
            raise _refusal(404, f"no TrainingJob {job[0]}/{job[1]} is known here (yet)")
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Headers may hold any bytes; aiohttp keeps those that are no UTF-8 as surrogates.
        given = shown.encode("utf-8", "surrogateescape")
        if not any([hmac.compare_digest(given, token.encode()) for token in tokens]):
            self._mistrusted(job)
            raise _refusal(401, f"this is not the token of job {job[0]}/{job[1]}")
        return job

    def _know(self, request: web.Request, job: JobKey, pod: str, uid: str) -> None:
        """Let a live pod of the job in, and no other; raises the refusal."""
        if not self._is_live(job, pod, uid):
            raise _refusal(409, f"{pod} ({uid}) is no live pod of this job (yet)")
        connections.recognise(request, (*job, uid))

    async def _report(self, request: web.Request) -> web.Response:
        job = await self._admit(request)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            report = AgentReport.from_json(json.loads(body))
        except TimeoutError as error:
            raise _refusal(408, f"the report took longer than {BODY_SECONDS:g} s") from error
        except web.RequestPayloadError as error:
            raise _refusal(400, "the body is not what its head says") from error
        except RecursionError as error:
            raise _refusal(400, "the report is nested too deeply") from error
        except ValueError as error:
            raise _refusal(400, str(error)) from error
        if report.pod != request.match_info["pod"]:
            raise _refusal(400, f"report of pod {report.pod!r} under the path of another")
        self._know(request, job, report.pod, report.uid)
        allowed = self.room(job).allowed.setdefault(report.uid, Allowance(*REPORTS))
        if not allowed.take(time.monotonic()):
            raise _refusal(429, f"{report.pod} reports more than {REPORTS[0]:g} times a second")
        self._note(job, report, time.time())
        return web.json_response(self.room(job).view(report.uid).to_json())

    async def _lifeline(self, request: web.Request) -> web.StreamResponse:
        """Hold the connection for as long as a pod lives; the body's end says goodbye."""
        job = await self._admit(request)
        pod, uid = request.match_info["pod"], request.query.get("uid", "")
        self._know(request, job, pod, uid)
        room, answer = self.room(job), None
        if request.query.get(PROBED) == "1" and request.transport is not None:
            answer = web.StreamResponse()
            answer.enable_chunked_encoding()
            await answer.prepare(request)
            await answer.write(b"?")
        own = Lifeline(request.transport if answer else None)
        room.lifelines[uid] = own
        self.ear.hear(job, pod, uid, time.time())
        if room.vanished.pop(uid, None) is not None:
            logger.warning("%s/%s: %s is there again", *job, pod)
            self._wake(job, 0.0)
        try:
            async with asyncio.timeout(SILENCE) as limit:
                while await request.content.readany():
                    self.ear.hear(job, pod, uid, time.time())
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE)
        except TimeoutError:
            pass  # Half of a connection, or a proxy that holds beats back: it says nothing.
        except (OSError, ClientError, asyncio.CancelledError) as error:
            if request.transport is None and room.lifelines.get(uid) is own:
                del room.lifelines[uid]
                self._breaks.append(time.time())
                loop = asyncio.get_running_loop()
                loop.call_later(RETURN, self._vanished, job, pod, uid, self._breaks[-1])
            if isinstance(error, asyncio.CancelledError):
                raise  # A runner may cancel those whose client is gone.
            return answer or web.Response()
        if room.lifelines.get(uid) is own:
            del room.lifelines[uid]
        return answer or web.Response()

    def _vanished(self, job: JobKey, pod: str, uid: str, at: float) -> None:
        """A lifeline broke a moment ago: unless it is there again, so did the pod."""
        room = self._rooms.get(job)
        if room is None or uid in room.lifelines or not self._is_live(job, pod, uid):
            return
        together = sum(abs(other - at) <= RETURN for other in self._breaks)
        if together > 1 and not any(other.lifelines for other in self._rooms.values()):
            logger.warning(
                "%s/%s: the lifelines of %s and of all other pods broke at once: the way to here "
                "did, or all pods ended; the kubelets will tell",
                *job,
                pod,
            )
            return
        room.vanished[uid] = at
        self._wake(job, 0.0)

    def _note(self, job: JobKey, report: AgentReport, now: float) -> None:
        """Keep a report; ask for a reconcile at once if it says something new, else soon."""
        room = self.room(job)
        before = self.ear.at(report.uid)
        self.ear.hear(job, report.pod, report.uid, now)
        if before is not None and now - before > SILENT:
            self._wake(job, 0.0)  # it is heard again
        if room.vanished.get(report.uid, now) < now - LAST_WORDS:
            # Contact beats hearsay: only its lifeline was cut.
            del room.vanished[report.uid]
            logger.warning("%s/%s: %s speaks although its lifeline broke", *job, report.pod)
            self._wake(job, 0.0)
        old = room.agents.get(report.uid)
        same_phase = old is not None and old.report.phase is report.phase
        same_phase = same_phase and old is not None and _key(old.report) == _key(report)
        since = old.phase_since if old and same_phase else now
        hang_since = None
        if report.hang is not None:
            hung_before = old is not None and old.report.hang is not None and same_phase
            hang_since = old.hang_since if old is not None and hung_before else now
        room.agents[report.uid] = AgentState(
            report=report,
            seen_at=now,
            phase_since=since,
            hang_since=hang_since,
            leaves_at=_leaves_at(old, report, now),
            noticed_at=_noticed_at(old, report, now),
        )
        told, current = report.round, room.round
        newer = told is not None and (current is None or told.number > current.number)
        if told and newer and told.number <= self._last_round(job) + LEAP:
            # An operator that has just started learns the current round from its members. Its
            # number was written into the status before anybody heard of it: what is far beyond
            # that is not true, and numbers would soon be used up.
            room.set(told, room.directives)
        if old is None or _news(old.report) != _news(report):
            # Not at once for a pod that has something new to say all the time.
            spared = room.news.setdefault(report.uid, Allowance(*NEWS)).take(time.monotonic())
            self._wake(job, 0.0 if spared else PROGRESS_INTERVAL)
        elif old.report.progress != report.progress and now >= room.progress_due:
            room.progress_due = now + PROGRESS_INTERVAL
            self._wake(job, PROGRESS_INTERVAL)

    async def _watch(self, request: web.Request) -> web.Response:
        job = await self._admit(request)
        try:
            wait = float(request.query.get("wait", "25"))
            if math.isnan(wait):
                raise ValueError
            wait = min(wait, MAX_WAIT)
        except ValueError as error:
            raise _refusal(400, "wait must be a number of seconds") from error
        version, pod = request.query.get("version"), request.match_info["pod"]
        deadline = time.monotonic() + wait
        while True:
            room = self.room(job)
            uid = next((u for u, a in room.agents.items() if a.report.pod == pod), None)
            if uid is None:
                raise _refusal(409, f"pod {pod} has not reported to this operator process")
            connections.recognise(request, (*job, uid))
            view, changed = room.view(uid), room.changed
            left = deadline - time.monotonic()
            if view.version != version or left <= 0:
                return web.json_response(view.to_json())
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                continue


def _leaves_at(old: AgentState | None, report: AgentReport, now: float) -> float | None:
    """When a pod that was told to go ends: each report tells what is left, the earliest counts."""
    if report.notice is None or report.notice_seconds is None:
        return None
    known = old.leaves_at if old else None
    told = now + report.notice_seconds
    return told if known is None else min(known, told)


def _noticed_at(old: AgentState | None, report: AgentReport, now: float) -> float | None:
    if report.notice is None:
        return None
    return now if old is None or old.noticed_at is None else old.noticed_at


def _key(report: AgentReport) -> str | None:
    return report.round.key if report.round else None


def _news(report: AgentReport) -> tuple[AgentReport, bool, int]:
    """What is worth a reconcile at once: all but the numbers that change all the time.

    Of those, the first step of a round and a new commit count.
    """
    stepping = report.progress is not None and report.progress.round_steps > 0
    committed = report.checkpoint.step if report.checkpoint else -1
    hang = report.hang and replace(report.hang, idle=0.0)
    timings = report.timings and replace(report.timings, age=0.0)
    steady = replace(
        report,
        progress=None,
        checkpoint=None,
        ranks=(),
        failed_for=None,
        notice_seconds=None,
        hang=hang,
        timings=timings,
    )
    return steady, stepping, committed


def _refusal(code: int, message: str) -> web.HTTPException:
    metrics.REFUSED.labels(code=str(code)).inc()
    kinds: dict[int, type[web.HTTPException]] = {
        400: web.HTTPBadRequest,
        401: web.HTTPUnauthorized,
        404: web.HTTPNotFound,
        408: web.HTTPRequestTimeout,
        409: web.HTTPConflict,
        429: web.HTTPTooManyRequests,
        503: web.HTTPServiceUnavailable,
    }
    return kinds[code](text=json.dumps({"error": message}), content_type="application/json")
