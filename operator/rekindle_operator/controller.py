"""The shell around `reconcile`: caches, one queue per job, and the order in which a plan is
applied.

Events only fill the caches and wake up the job they are about. Each job has one task, so that no
two reconciles of a job overlap, and a burst of events becomes one reconcile. A plan is applied in
the order that makes dying in between harmless: children, then one status write, then the round and
the directives are shown to agents.

The status that this process has written is newer than what the watch delivers; it is kept and used,
since there is one writer. Caches are replaced by a fresh list now and then, because a watch that
was interrupted does not tell what was deleted meanwhile.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rekindle.contract import LABEL_JOB, DirectiveKind
from rekindle_operator import metrics, resources, spec, status
from rekindle_operator.cluster import TROUBLE, ApiError, Cluster, Refused
from rekindle_operator.coordinator import Coordinator, JobKey
from rekindle_operator.incidents import stamp
from rekindle_operator.observed import (
    Node,
    Observed,
    Pod,
    gone,
    parse_node,
    parse_pod,
)
from rekindle_operator.plan import Deletion, Plan
from rekindle_operator.reconcile import reconcile
from rekindle_operator.status import condition
from rekindle_operator.timestamps import parse_time

logger = logging.getLogger(__name__)

RESYNC = 60.0
"""Seconds after which the caches of a job are replaced by fresh lists."""
STATUS_INTERVAL = 1.0
"""Seconds between two writes of a status in which only figures have changed."""
RETRY_LEAST, RETRY_MOST = 0.2, 30.0
"""Seconds before a failed reconcile is tried again: doubling from the first to the second."""
CREATE_LIMIT = 16
"""Requests of one plan that are under way at once."""
WISHES = {DirectiveKind.SAVE, DirectiveKind.DUMP}
"""Directives that rest on nothing that the status has to hold first."""
FIGURES = {"progress", "goodput", "accounting"}
"""Keys of the status that change without anything having happened."""


@dataclass
class JobState:
    """What this process knows of one job."""

    body: dict[str, Any]
    status: dict[str, Any]
    """As this process last wrote it, or as it was when first seen."""
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    parsed: dict[str, Pod] = field(default_factory=dict)
    """By uid, both."""
    heard: dict[str, dict[str, Any] | None] | None = None
    """While a list of pods is under way: what the watch tells, None for a pod that is gone."""
    token: str | None = None
    has_service: bool = False
    retired: set[str] = field(default_factory=set)
    refused: str | None = None
    hindered: str | None = None
    """What kept the last child from being created; it is tried again."""
    create_at: float = 0.0
    """time.monotonic() before which no child is created, after one could not be."""
    create_pause: float = 0.0
    has_secret: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    due: float = 0.0
    """time.monotonic() of the next reconcile."""
    synced_at: float = 0.0
    wrote_at: float = 0.0
    task: asyncio.Task[None] | None = None


class Controller:
    """All jobs of this operator."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        coordinator_url: str,
        watch_nodes: bool,
        runtime_image: str = resources.RUNTIME_IMAGE,
    ) -> None:
        self._cluster = cluster
        self._url = coordinator_url
        self._runtime_image = runtime_image
        self._jobs: dict[JobKey, JobState] = {}
        self._nodes: dict[str, Node] | None = {} if watch_nodes else None
        self._orphans: dict[JobKey, dict[str, dict[str, Any]]] = {}
        """Pods that were seen before their job was."""
        self._limit = asyncio.Semaphore(CREATE_LIMIT)
        self.coordinator = Coordinator(
            token_of=self._token_of, is_live=self._is_live, wake=self.wake
        )

    # What events tell.

    def job_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A job was seen, changed or deleted."""
        meta = body["metadata"]
        key = (meta["namespace"], meta["name"])
        state = self._jobs.get(key)
        if kind == "DELETED" or (state and state.body["metadata"]["uid"] != meta["uid"]):
            self._forget(key)
            state = None
        if kind == "DELETED":
            return
        plain = {"metadata": dict(meta), "spec": dict(body["spec"])}
        if state is None:
            state = JobState(body=plain, status=dict(body.get("status") or {}))
            self._jobs[key] = state
            for pod in self._orphans.pop(key, {}).values():
                self._note_pod(state, pod)
            state.task = asyncio.create_task(self._work(key, state), name=f"{key[0]}/{key[1]}")
            self.wake(key)
        elif state.body["metadata"].get("generation") != meta.get("generation") or meta.get(
            "deletionTimestamp"
        ):
            state.body = plain
            state.refused = None
            self.wake(key)

    def pod_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A pod of a job was seen, changed or deleted."""
        meta = body["metadata"]
        key = (meta["namespace"], (meta.get("labels") or {}).get(LABEL_JOB, ""))
        state = self._jobs.get(key)
        if state is None:
            if kind != "DELETED" and len(self._orphans) < 10_000:
                self._orphans.setdefault(key, {})[meta["uid"]] = dict(body)
            return
        if state.heard is not None:
            state.heard[meta["uid"]] = None if kind == "DELETED" else dict(body)
        if kind == "DELETED":
            state.pods.pop(meta["uid"], None)
            state.parsed.pop(meta["uid"], None)
        elif not self._note_pod(state, body):
            return
        self.wake(key)

    def node_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A node was seen, changed or deleted. Heartbeats that change nothing wake up nobody."""
        if self._nodes is None:
            return
        name = body["metadata"]["name"]
        old = self._nodes.get(name)
        node = gone(name) if kind == "DELETED" else parse_node(body, time.time(), old)
        if node == old:
            return
        self._nodes[name] = node
        for key, state in self._jobs.items():
            if any(pod.node == name for pod in state.parsed.values()):
                self.wake(key)

    def wake(self, key: JobKey, after: float = 0.0) -> None:
        """Reconcile a job after some seconds, or earlier if somebody has asked for that."""
        state = self._jobs.get(key)
        if state is None:
            return
        state.due = min(state.due, time.monotonic() + after)
        state.wake.set()

    async def close(self) -> None:
        """Stop all work. What was half done is found and continued by the next process."""
        tasks = [state.task for state in self._jobs.values() if state.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The caches.

    @staticmethod
    def _note_pod(state: JobState, body: Mapping[str, Any]) -> bool:
        """Take a pod into the cache; whether anything about it is new."""
        owners = {o["uid"] for o in body["metadata"].get("ownerReferences") or ()}
        pod = parse_pod(body)
        if pod is None or state.body["metadata"]["uid"] not in owners:
            return False
        news = state.parsed.get(pod.uid) != pod
        state.pods[pod.uid], state.parsed[pod.uid] = dict(body), pod
        return news

    def _forget(self, key: JobKey) -> None:
        state = self._jobs.pop(key, None)
        if state and state.task:
            state.task.cancel()
        self.coordinator.forget(key)
        self._count_phases()

    async def _sync(self, key: JobKey, state: JobState) -> None:
        """Replace the caches of a job by what the API server has now."""
        fresh = await self._cluster.job(*key)
        if fresh is None or fresh["metadata"]["uid"] != state.body["metadata"]["uid"]:
            self._forget(key)
            return
        state.heard = {}
        try:
            bodies = await self._cluster.pods(*key)
        finally:
            heard, state.heard = state.heard, None
        # What the watch has told meanwhile may be newer than the list.
        listed = {body["metadata"]["uid"]: body for body in bodies} | heard
        state.pods, state.parsed = {}, {}
        for listed_body in listed.values():
            if listed_body is not None:
                self._note_pod(state, listed_body)
        if self._nodes is not None:
            self._note_nodes(await self._cluster.nodes(), state)
        state.has_service = await self._cluster.has_service(key[0], resources.service_name(key[1]))
        await self._read_token(key, state)
        state.synced_at = time.monotonic()

    def _note_nodes(self, bodies: list[dict[str, Any]], state: JobState) -> None:
        """Take over a list of all nodes that is newer than the job's list of pods.

        Newer, so that a node which a pod is on and which is not in the list has been deleted.
        """
        assert self._nodes is not None
        old, now = self._nodes, time.time()
        fresh = (parse_node(body, now, old.get(body["metadata"]["name"])) for body in bodies)
        there = {node.name: node for node in fresh}
        used = {pod.node for other in self._jobs.values() for pod in other.parsed.values()}
        missed = {pod.node for pod in state.parsed.values() if pod.node} - there.keys()
        known = {name for name, node in self._nodes.items() if name in used and node == gone(name)}
        self._nodes = {**{name: gone(name) for name in missed | known}, **there}

    async def _read_token(self, key: JobKey, state: JobState) -> None:
        """See which token counts: the one in the secret, which somebody may have deleted."""
        uid = state.body["metadata"]["uid"]
        token = await self._cluster.token(key[0], resources.secret_name(key[1]), uid)
        state.has_secret = token is not None
        state.token = token or state.token

    async def _token_of(self, key: JobKey) -> str | None:
        state = self._jobs.get(key)
        if state is None:
            return None
        if state.token is None:
            await self._read_token(key, state)
        return state.token

    def _is_live(self, key: JobKey, name: str, uid: str) -> bool:
        state = self._jobs.get(key)
        pod = state.parsed.get(uid) if state else None
        return pod is not None and pod.name == name and pod.alive

    def _observe(self, key: JobKey, state: JobState, job: spec.TrainingJob, now: float) -> Observed:
        room = self.coordinator.room(key)
        # The last words of a member outlive its pod: they say why it went.
        known = set(state.parsed) | {m.uid for m in (room.round.members if room.round else ())}
        self.coordinator.keep_agents(key, known)
        state.retired &= known
        return Observed(
            pods=tuple(
                replace(pod, vanished_at=room.vanished.get(pod.uid))
                for pod in sorted(state.parsed.values(), key=lambda p: (p.slot, p.incarnation))
            ),
            nodes=dict(self._nodes) if self._nodes is not None else None,
            agents=dict(room.agents),
            round=room.round,
            retired=frozenset(state.retired),
            has_secret=state.has_secret,
            has_service=state.has_service,
            listening_since=self.coordinator.since,
            refused=state.refused,
            hindered=state.hindered,
            now=now,
            notice_seconds=job.notice_seconds,
        )

    # The work.

    async def _work(self, key: JobKey, state: JobState) -> None:
        """Reconcile one job whenever it is due, until it is gone."""
        failures = 0
        while self._jobs.get(key) is state:
            left = state.due - time.monotonic()
            if left > 0:
                state.wake.clear()
                # Not wait_for: in Python 3.11 it swallows a cancellation that meets a result.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await state.wake.wait()
                continue
            state.due = time.monotonic() + RESYNC
            try:
                with metrics.RECONCILE_SECONDS.time():
                    await self._reconcile(key, state)
                failures = 0
            except TROUBLE as error:
                failures += 1
                pause = min(RETRY_LEAST * 2**failures, RETRY_MOST)
                metrics.RECONCILE_ERRORS.inc()
                logger.warning("%s/%s: %s; again in %.1f s", *key, _brief(error), pause)
                await asyncio.sleep(pause)
                self.wake(key)
            except Exception:
                # A fault of ours must not end the job's task: say so and go on, slowly.
                failures += 1
                metrics.RECONCILE_ERRORS.inc()
                logger.exception("%s/%s: reconcile failed", *key)
                await asyncio.sleep(min(RETRY_LEAST * 4**failures, RETRY_MOST))
                self.wake(key)

    async def _reconcile(self, key: JobKey, state: JobState) -> None:
        if state.body["metadata"].get("deletionTimestamp"):
            return
        if not state.synced_at:
            await self._sync(key, state)
            if self._jobs.get(key) is not state:
                return
        await self._token_of(key)
        created = parse_time(state.body["metadata"].get("creationTimestamp")) or time.time()
        try:
            job = spec.parse(state.body, created)
        except spec.SpecError as error:
            await self._report_bad_spec(key, state, str(error))
            return
        now = time.time()
        plan = reconcile(
            job,
            state.status,
            self._observe(key, state, job, now),
            coordinator_url=self._url,
            token=state.token or secrets.token_urlsafe(32),
            now=now,
            runtime_image=self._runtime_image,
        )
        await self._apply(key, state, plan, now)
        if self._jobs.get(key) is state and time.monotonic() - state.synced_at >= RESYNC:
            # Afterwards: a round must not wait for lists that only confirm what watches told.
            await self._sync(key, state)
            self.wake(key)

    async def _apply(self, key: JobKey, state: JobState, plan: Plan, now: float) -> None:
        """Wishes, then children, then the status, then what agents see (see reconcile)."""
        room = self.coordinator.room(key)
        if plan.directives and all(d.kind in WISHES for d in plan.directives.values()):
            room.set(room.round, dict(plan.directives))
        await self._apply_children(key, state, plan)
        wait = await self._write_status(key, state, dict(plan.status), plan.publish is not None)
        current = None if plan.forget_round else plan.publish or room.round
        room.set(current, dict(plan.directives))
        if plan.publish:
            metrics.ROUNDS.inc()
            logger.info(
                "%s/%s: round %d: %s (%s)",
                *key,
                plan.publish.number,
                ", ".join(member.pod for member in plan.publish.members),
                plan.publish.reason,
            )
            self.wake(key)  # the view of the world has changed: look again with the round in it
        for incident in plan.incidents:
            metrics.INCIDENTS.labels(cause=str(incident.cause)).inc()
            logger.warning("%s/%s: %s: %s", *key, incident.cause, incident.evidence)
        for incident in plan.resolved:
            metrics.RECOVERY_SECONDS.observe(now - incident.at)
            metrics.LOST_SECONDS.labels(incident.klass).inc(incident.seconds_lost or 0.0)
        for incident in plan.measured:
            for phase, took in incident.recovery.items():
                metrics.RECOVERY_PHASE_SECONDS.labels(phase).observe(took)
        if plan.events:
            await self._cluster.post(state.body, plan.events, now)
        if plan.remove_job:
            await self._cluster.delete_job(*key, state.body["metadata"]["uid"])
        for seconds in (plan.requeue, wait):
            if seconds is not None:
                self.wake(key, seconds)
        self._count_phases()

    async def _apply_children(self, key: JobKey, state: JobState, plan: Plan) -> None:
        """Create and delete what a plan says.

        What cannot be created, because a quota is used up for example, must not keep the pods that
        are there from training: it is told in the status and tried again, ever more rarely.
        Everything else that goes wrong ends the reconcile, once all requests are through.
        """
        calls: list[Coroutine[Any, Any, str | None]] = []
        paused = state.create_at - time.monotonic()
        if paused <= 0:
            calls.extend(self._create(state, manifest) for manifest in plan.create)
        for doomed in plan.delete:
            state.retired.add(doomed.uid)
            calls.append(self._delete(key[0], doomed))
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if paused > 0:
            self.wake(key, paused)
            return
        hindered = next((result for result in results if isinstance(result, str)), None)
        if hindered:
            state.create_pause = min(2 * state.create_pause or RETRY_LEAST, RETRY_MOST)
            state.create_at = time.monotonic() + state.create_pause
            self.wake(key, state.create_pause)
            logger.warning("%s/%s: %s; again in %.1f s", *key, hindered, state.create_pause)
        else:
            state.create_pause = 0.0
        if hindered != state.hindered:
            state.hindered = hindered
            self.wake(key)

    async def _delete(self, namespace: str, doomed: Deletion) -> None:
        async with self._limit:
            await self._cluster.delete_pod(namespace, doomed)

    async def _create(self, state: JobState, manifest: dict[str, Any]) -> str | None:
        """Create a child; gives in words what kept it from being created for now."""
        what = f"{manifest['kind'].lower()} {manifest['metadata']['name']}"
        async with self._limit:
            try:
                made = await self._cluster.create(manifest)
            except Refused as error:
                state.refused = f"{what}: {error}"
                self.wake((manifest["metadata"]["namespace"], state.body["metadata"]["name"]))
                return None
            except TROUBLE as error:
                return f"{what} cannot be created: {_brief(error)}"
        if made is None:
            return None
        if manifest["kind"] == "Pod":
            self._note_pod(state, made)
        elif manifest["kind"] == "Service":
            state.has_service = True
        elif manifest["kind"] == "Secret":
            # Whose token counts is decided by the API server: read what is there.
            key = (manifest["metadata"]["namespace"], state.body["metadata"]["name"])
            await self._read_token(key, state)
        return None

    async def _write_status(
        self, key: JobKey, state: JobState, fresh: dict[str, Any], at_once: bool
    ) -> float | None:
        """Write what has changed; gives the seconds to wait if the write was put off."""
        old = state.status
        patch = merge_patch(old, fresh)
        if not patch:
            return None
        since = time.monotonic() - state.wrote_at
        if not at_once and set(patch) <= FIGURES and since < STATUS_INTERVAL:
            return STATUS_INTERVAL - since
        if await self._cluster.patch_status(*key, patch):
            state.status, state.wrote_at = fresh, time.monotonic()
        return None

    async def _report_bad_spec(self, key: JobKey, state: JobState, message: str) -> None:
        """A spec that this operator cannot read: say so, and wait for another one."""
        generation = state.body["metadata"].get("generation", 0)
        now = time.time()
        entry = condition("Degraded", True, "InvalidSpec", message)
        from_before = state.status.get("conditions") or []
        same = [c for c in from_before if c["type"] == "Degraded" and c["message"] == message]
        if same:
            return
        stamped = {**entry, "lastTransitionTime": stamp(now), "observedGeneration": generation}
        fresh = {**state.status, "conditions": [stamped], "message": message}
        await self._write_status(key, state, fresh, True)

    def _count_phases(self) -> None:
        phases = Counter(s.status.get("phase", status.PENDING) for s in self._jobs.values())
        metrics.JOBS.clear()
        for phase, number in phases.items():
            metrics.JOBS.labels(phase=phase).set(number)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) that turns one document into the other."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif before != value or key not in old:
            patch[key] = value
    return patch


def _brief(error: BaseException) -> str:
    if isinstance(error, ApiError):
        return f"API server: {error}"
    return f"{type(error).__name__}: {error}"
