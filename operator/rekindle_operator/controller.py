"""The shell around `reconcile`: caches, one queue per job, and the order in which a plan is
applied.

Events only fill the caches and wake up the job they are about. Each job has one task, so that no
two reconciles of a job overlap, and a burst of events becomes one reconcile. A plan is applied in
the order that makes dying in between harmless: children, then one status write, then the round and
the directives are shown to agents.

The status that this process has written is newer than what the watch delivers; it is kept and used,
since there is one writer. Caches are replaced by a fresh list now and then, because a watch that
was interrupted does not tell what was deleted meanwhile.

Whatever goes wrong on the way, in a reconcile or with an event that cannot be understood, is a
fault that its job tells (see `faults`), and a gauge for alerts counts the jobs that have one.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rekindle.contract import LABEL_JOB, DirectiveKind
from rekindle_operator import (
    faults,
    inquiries,
    metrics,
    milestones,
    reserved,
    resources,
    spec,
    status,
)
from rekindle_operator.children import Children
from rekindle_operator.cluster import Cluster
from rekindle_operator.coordinator import Coordinator, JobKey
from rekindle_operator.jobstate import JobState
from rekindle_operator.leaving import leave
from rekindle_operator.observed import Node, Observed, gone, parse_node
from rekindle_operator.patches import merge_patch
from rekindle_operator.plan import Plan
from rekindle_operator.reconcile import reconcile
from rekindle_operator.timestamps import parse_time

logger = logging.getLogger(__name__)

RESYNC = 60.0
"""Seconds after which the caches of a job are replaced by fresh lists."""
STATUS_INTERVAL = 1.0
"""Seconds between two writes of a status in which only figures have changed."""
BUG = "InternalError"
"""Reason of a fault whose traceback belongs into the log."""
WISHES = {DirectiveKind.SAVE, DirectiveKind.DUMP}
"""Directives that rest on nothing that the status has to hold first."""
FIGURES = {"progress", "goodput", "accounting"}
"""Keys of the status that change without anything having happened."""


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
        self._children = Children(cluster, self.wake)
        metrics.FLEET.jobs = self._described
        self.coordinator = Coordinator(
            token_of=self._token_of, is_live=self._is_live, wake=self.wake, complain=self.complain
        )

    # What events tell.

    def job_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A job was seen, changed or deleted."""
        meta = body["metadata"]
        key = (meta["namespace"], meta["name"])
        state = self._jobs.get(key)
        if kind == "DELETED" or (state and state.uid != meta["uid"]):
            self._forget(key)
            state = None
        if kind == "DELETED":
            return
        if state is None:
            # Whatever its spec holds is for the reconcile to read: that tells what it cannot.
            plain = {"metadata": dict(meta), "spec": body.get("spec")}
            state = JobState(body=plain, status=dict(body.get("status") or {}))
            state.note_status(body)
            state.served = state.status
            self._jobs[key] = state
            for pod in self._orphans.pop(key, {}).values():
                state.note_pod(pod)
            state.task = asyncio.create_task(self._work(key, state), name=f"{key[0]}/{key[1]}")
            self.wake(key)
            return
        self.complain(key, f"job {key[1]}", None)
        news, overwritten = state.note_body(body), state.note_status(body)
        if news or (overwritten and not state.writing):
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
            state.lose_pod(body)
        elif not state.note_pod(body):
            return
        self.wake(key)

    def node_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A node was seen, changed or deleted. Heartbeats that change nothing wake up nobody."""
        if self._nodes is None:
            return
        name = body["metadata"]["name"]
        node = gone(name) if kind == "DELETED" else self._read_node(body)
        if node is None or node == self._nodes.get(name):
            return
        self._nodes[name] = node
        for key, state in self._jobs.items():
            if any(pod.node == name for pod in state.parsed.values()):
                self.wake(key)

    def complain(self, key: JobKey, about: str, error: BaseException | None) -> None:
        """Something about a job could not be understood or done; None: it is well again."""
        state = self._jobs.get(key)
        if state is None:
            return
        if error is None:
            news = state.complaints.pop(about, None) is not None
        else:
            news = state.complain(about, error)
        if news:
            self.wake(key)

    def event_failed(self, what: str, body: Mapping[str, Any], error: BaseException) -> None:
        """A watch has told of an object that cannot even be filed: its job tells, if it has one."""
        metrics.EVENT_ERRORS.inc()
        logger.error("an event about a %s failed", what, exc_info=error)
        meta = body.get("metadata")
        if not isinstance(meta, Mapping):
            return
        labels = meta.get("labels")
        job = labels.get(LABEL_JOB) if isinstance(labels, Mapping) else None
        name = meta.get("name") if what == "job" else job
        key = (str(meta.get("namespace")), str(name))
        self.complain(key, f"{what} {meta.get('name')}", error)

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

    def _forget(self, key: JobKey) -> None:
        state = self._jobs.pop(key, None)
        if state and state.task:
            state.task.cancel()
        self.coordinator.forget(key)
        self._count()

    async def _sync(self, key: JobKey, state: JobState, job: spec.TrainingJob) -> None:
        """Replace the caches of a job by what the API server has now."""
        fresh = await self._cluster.job(*key)
        if fresh is None or fresh["metadata"]["uid"] != state.uid:
            self._forget(key)
            return
        state.note_body(fresh)
        state.note_status(fresh)
        state.heard = {}
        try:
            bodies = await self._cluster.pods(*key)
        finally:
            heard, state.heard = state.heard, None
        # What the watch has told meanwhile may be newer than the list.
        listed = {body["metadata"]["uid"]: body for body in bodies} | heard
        state.pods, state.parsed = {}, {}
        state.complaints = {k: v for k, v in state.complaints.items() if not k.startswith("pod ")}
        for listed_body in listed.values():
            if listed_body is not None:
                state.note_pod(listed_body)
        if self._nodes is not None:
            self._note_nodes(await self._cluster.nodes(), state)
        await self._children.look(key, state, job)
        state.synced_at = time.monotonic()

    def _read_node(self, body: Mapping[str, Any]) -> Node | None:
        """A node; None for one that cannot be understood, of which the jobs on it tell."""
        assert self._nodes is not None
        name = body["metadata"]["name"]
        try:
            node, fault = parse_node(body, time.time(), self._nodes.get(name)), None
        except Exception as error:
            node, fault = None, error
        for key, state in self._jobs.items():
            if fault is None or any(pod.node == name for pod in state.parsed.values()):
                self.complain(key, f"node {name}", fault)
        return node

    def _note_nodes(self, bodies: list[dict[str, Any]], state: JobState) -> None:
        """Take over a list of all nodes that is newer than the job's list of pods.

        Newer, so that a node which a pod is on and which is not in the list has been deleted.
        """
        assert self._nodes is not None
        fresh = map(self._read_node, bodies)
        there = {node.name: node for node in fresh if node is not None}
        used = {pod.node for other in self._jobs.values() for pod in other.parsed.values()}
        missed = {pod.node for pod in state.parsed.values() if pod.node} - there.keys()
        known = {name for name, node in self._nodes.items() if name in used and node == gone(name)}
        self._nodes = {**{name: gone(name) for name in missed | known}, **there}

    async def _token_of(self, key: JobKey) -> str | None:
        state = self._jobs.get(key)
        if state is None:
            return None
        if state.token is None:
            await self._children.read_token(key, state)
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
            state.edited.clear()
            try:
                with metrics.RECONCILE_SECONDS.time():
                    await self._reconcile(key, state)
                if self._jobs.get(key) is state:
                    await self._tell(key, state, None)
                failures = 0
            except Exception as error:
                # Not even a fault of ours may end the job's task, or be known to a log alone.
                failures += 1
                await self._failed(key, state, error, failures)

    async def _failed(self, key: JobKey, state: JobState, error: Exception, failures: int) -> None:
        """Tell why a reconcile has failed, and wait for the next try, or for another spec."""
        fault = faults.fault_of(error, [state.token])
        pause = faults.pause(failures, fault)
        metrics.RECONCILE_ERRORS.inc()
        text = "%s/%s: %s; again in %.1f s"
        logger.warning(
            text, *key, fault.message, pause, exc_info=error if fault.reason == BUG else None
        )
        if failures > 1 or not fault.passes:  # trouble that passes is told if it does not
            try:
                await self._tell(key, state, fault)
            except Exception as another:
                logger.warning("%s/%s: and its status cannot be written: %s", *key, another)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await state.edited.wait()
        self.wake(key)

    async def _tell(self, key: JobKey, state: JobState, fault: faults.Fault | None) -> None:
        """Bring condition Reconciled and the gauge to what is true now; an event for what is new.

        The event comes first: where it is the status that cannot be written, it is all there is.
        """
        state.fault = fault
        self._count()
        trouble = state.trouble
        if trouble and state.is_news(trouble):
            posted = await self._cluster.post(state.body, [trouble.event()], time.time())
            state.told |= {trouble.message} if posted else set()
        fresh = state.status
        if trouble and not fresh.get("phase"):
            # Nobody has come to look at it: people must not take that for an operator that is off.
            fresh = {**fresh, "phase": status.PENDING, "message": trouble.message}
        if trouble or fresh.get("phase"):
            await self._write_status(key, state, fresh, True)

    async def _reconcile(self, key: JobKey, state: JobState) -> None:
        job = _parsed(state.body)
        if state.fault and state.fault.reason == faults.INVALID_SPEC:
            state.fault = None
        if not state.synced_at:
            await self._sync(key, state, job)
            if self._jobs.get(key) is not state:
                return
        await self._children.put_right(key, state)
        plan, now = await self._plan(key, state, job)
        if not await self._children.apply(key, state, plan):
            # What could not be created is as if it had not been planned: its name is still free.
            plan, now = await self._plan(key, state, job)
        await self._apply(key, state, plan, now)
        if self._jobs.get(key) is state and time.monotonic() - state.synced_at >= RESYNC:
            # Afterwards: a round must not wait for lists that only confirm what watches told.
            await self._sync(key, state, job)
            self.wake(key)

    async def _plan(
        self, key: JobKey, state: JobState, job: spec.TrainingJob
    ) -> tuple[Plan, float]:
        """Decide, and show wishes to save at once: they rest on nothing that is written."""
        now = time.time()
        meta = state.body["metadata"]
        if meta.get("deletionTimestamp"):
            seen = self._observe(key, state, job, now)
            return leave(job, state.status, seen, meta.get("finalizers") or (), now), now
        observed = await state.inquiries.complete(
            self._cluster,
            key[0],
            self._observe(key, state, job, now),
            inquiries.told(state.status),
        )
        plan = reconcile(
            job,
            state.status,
            observed,
            coordinator_url=self._url,
            token=state.token or secrets.token_urlsafe(32),
            runtime_image=self._runtime_image,
            now=now,
        )
        room = self.coordinator.room(key)
        if plan.directives and all(d.kind in WISHES for d in plan.directives.values()):
            room.set(room.round, dict(plan.directives))
        return plan, now

    async def _apply(self, key: JobKey, state: JobState, plan: Plan, now: float) -> None:
        """The status, then what agents see (see reconcile); children are there already."""
        room, before = self.coordinator.room(key), state.status
        wait = await self._write_status(key, state, dict(plan.status), plan.publish is not None)
        current = None if plan.forget_round else plan.publish or room.round
        room.set(current, dict(plan.directives))
        if plan.publish:
            metrics.ROUNDS.inc()
            self.wake(key)  # the view of the world has changed: look again with the round in it
        for incident in plan.incidents:
            metrics.INCIDENTS.labels(cause=str(incident.cause)).inc()
        for incident in plan.resolved:
            metrics.RECOVERY_SECONDS.observe(now - incident.at)
            metrics.LOST_SECONDS.labels(incident.klass).inc(incident.seconds_lost or 0.0)
        for incident in plan.measured:
            for phase, took in incident.recovery.items():
                metrics.RECOVERY_PHASE_SECONDS.labels(phase).observe(took)
        for line in milestones.lines(before, plan):
            logger.log(line.level, "%s/%s: %s", *key, line.message, extra=dict(line.fields))
        edits, state.edits = milestones.edits(state.edits, plan), {}
        for edit in edits:
            logger.info("%s/%s: %s", *key, edit.message, extra={"reason": edit.reason})
        if edits or plan.events:
            await self._cluster.post(state.body, (*edits, *plan.events), now)
        if plan.remove_job:
            await self._cluster.delete_job(*key, state.uid)
        for seconds in (plan.requeue, wait):
            if seconds is not None:
                self.wake(key, seconds)
        self._count()

    async def _write_status(
        self, key: JobKey, state: JobState, fresh: dict[str, Any], at_once: bool
    ) -> float | None:
        """Write what has changed; gives the seconds to wait if the write was put off."""
        meta, now = state.body["metadata"], time.time()
        told = faults.with_reconciled(
            fresh.get("conditions") or (),
            state.status.get("conditions") or (),
            state.trouble,
            meta.get("generation", 0),
            now,
        )
        fresh = {**fresh, "conditions": told}
        futile = state.futile.items()
        patch = dict(e for e in merge_patch(state.served, fresh).items() if e not in futile)
        if not patch:
            state.status = fresh
            return None
        since = time.monotonic() - state.wrote_at
        if not at_once and set(patch) <= FIGURES and since < STATUS_INTERVAL:
            return STATUS_INTERVAL - since
        state.writing = True
        try:
            written = await self._cluster.patch_status(*key, patch)
        finally:
            state.writing = False
        if written is not None:
            state.status, state.wrote_at = fresh, time.monotonic()
            state.futile = merge_patch(written.get("status") or {}, fresh)
            state.note_written(written)
            if state.served != (written.get("status") or {}):
                self.wake(key)  # somebody has written into it since
        return None

    def _described(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The spec and the status of each job."""
        for state in self._jobs.values():
            given = state.body.get("spec")
            yield given if isinstance(given, Mapping) else {}, state.status

    def _count(self) -> None:
        phases = Counter(s.status.get("phase", status.PENDING) for s in self._jobs.values())
        metrics.JOBS.clear()
        for phase, number in phases.items():
            metrics.JOBS.labels(phase=phase).set(number)
        metrics.NOT_RECONCILED.set(sum(s.trouble is not None for s in self._jobs.values()))


def _parsed(body: Mapping[str, Any]) -> spec.TrainingJob:
    """The job; SpecError for whatever cannot be read in it."""
    created = parse_time(body["metadata"].get("creationTimestamp")) or time.time()
    try:
        job = spec.parse(body, created)
        reserved.check(job)
        return job
    except spec.SpecError:
        raise
    except Exception as error:
        text = f"the spec cannot be read ({type(error).__name__}: {error})"
        raise spec.SpecError(f"{text}: is the CRD of this operator installed?") from error
