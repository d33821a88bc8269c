"""The shell around `reconcile`: caches, one queue per job, and the order in which a plan is
applied.

Events only fill the caches and wake up the job they are about. Each job has one task, so that no
two reconciles of a job overlap, and a burst of events becomes one reconcile. A plan is applied in
the order that makes dying in between harmless: children, then one status write, then the round and
the directives are shown to agents.

The status that this process has written is newer than what the watch delivers; it is kept and used,
since there is one writer. Of each object the newest form counts, whichever way it came. Nothing is
decided before everything that there is was listed once; from then on events tell (see `reflectors`)
and nobody asks again.

At rest nothing is written. A status changes when something has happened; what grows with time alone
is counted anew by whoever reads it, and goes along with the next change that counts.

Whatever goes wrong on the way, in a reconcile or with an event that cannot be understood, is a
fault that its job tells (see `faults`), and a gauge for alerts counts the jobs that have one.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rekindle.api import LABEL_JOB, spec
from rekindle.api.timestamps import parse_time
from rekindle_operator import metrics
from rekindle_operator.controller import operator_faults, pod_lookups
from rekindle_operator.controller.children import Children
from rekindle_operator.controller.job_state import JobState
from rekindle_operator.controller.node_watch import NodeWatch
from rekindle_operator.controller.status_writer import StatusWriter, has_orders, is_news
from rekindle_operator.coordinator.coordinator import Coordinator
from rekindle_operator.kube.cluster import KubernetesApi, KubernetesError
from rekindle_operator.observed.liveness_tracker import JobKey
from rekindle_operator.observed.observations import Observed
from rekindle_operator.observed.run_claims import RunClaims
from rekindle_operator.plan import Plan
from rekindle_operator.pods import manifests, reserved_names
from rekindle_operator.reconcile.deletion import leave
from rekindle_operator.reconcile.reconcile import reconcile
from rekindle_operator.status import milestones, status

logger = logging.getLogger(__name__)

LOOK = 60.0
"""Seconds after which a job is looked at although nothing has happened; it costs no request."""
LOOK_AT_CHILDREN = 600.0
"""Seconds after which secret and service are read again, in case that somebody has changed them."""
MISTRUST = 10.0
"""The same when somebody shows another token than that of the secret; anybody can do that."""
LIST_PATIENCE = 20.0
"""Seconds after which a job tells that nothing can be listed."""
BUG = "InternalError"
"""Reason of a fault whose traceback belongs into the log."""


class Controller:
    """All jobs of this operator."""

    def __init__(
        self,
        cluster: KubernetesApi,
        *,
        coordinator_url: str,
        watch_nodes: bool,
        authority: Callable[[], str] = str,
        runtime_image: str = manifests.RUNTIME_IMAGE,
    ) -> None:
        self._cluster = cluster
        self._runtime_image = runtime_image
        self._jobs: dict[JobKey, JobState] = {}
        self._nodes = (
            NodeWatch(self._used_nodes, self._odd_node, self._node_changed) if watch_nodes else None
        )
        self._runs = RunClaims(self.wake)
        self._orphans: dict[JobKey, dict[str, Mapping[str, Any]]] = {}
        """Pods that were seen before their job was, by uid."""
        self.listed = asyncio.Event()
        """Set once everything that there is was told; nothing is decided before."""
        self._obstacles: dict[str, Exception] = {}
        """By kind, what keeps it from being listed or watched."""
        self._children = Children(cluster, self.wake, coordinator_url, authority)
        self._writer = StatusWriter(cluster, self.wake, lambda: len(self._jobs))
        metrics.FLEET.jobs = self._described
        metrics.FLEET.troubled = self._troubled
        self.coordinator = Coordinator(
            tokens_of=self._tokens_of,
            is_live=self._is_live,
            wake=self.wake,
            complain=self.complain,
            last_round=self._last_round,
            mistrusted=self._mistrusted,
        )

    def authority_changed(self) -> None:
        """Somebody else vouches for the coordinator: it is written into all secrets at once."""
        for key, state in self._jobs.items():
            state.looked_at = -math.inf
            self.wake(key)

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
            with contextlib.suppress(Exception):  # told by the reconcile
                self._runs.note(key, state.use(_parsed(state.body)))
            for pod in self._orphans.pop(key, {}).values():
                state.note_pod(pod)
            for told, error in self._obstacles.items():
                state.complain(f"watch of {told.lower()}s", error)
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
            early = self._orphans.setdefault(key, {})
            if kind == "DELETED":
                early.pop(meta["uid"], None)
            elif len(self._orphans) < 10_000:
                early[meta["uid"]] = body
            if not early:
                del self._orphans[key]
            return
        if kind == "DELETED":
            state.lose_pod(body)
        elif not state.note_pod(body):
            return
        self.wake(key)

    def node_event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A node was seen, changed or deleted."""
        if self._nodes is not None:
            self._nodes.event(kind, body)

    def known_pods(self) -> dict[str, Mapping[str, Any]]:
        """The pods that were told of and whose end was not, by uid; at least their metadata."""
        found = {uid: pod for early in self._orphans.values() for uid, pod in early.items()}
        for state in self._jobs.values():
            found |= state.pods
        return found

    def known_nodes(self) -> dict[str, Mapping[str, Any]]:
        """The same of nodes, by name."""
        names = self._nodes.known() if self._nodes else ()
        return {name: {"metadata": {"name": name}} for name in names}

    def obstacle(self, kind: str, error: Exception | None) -> None:
        """A kind cannot be listed or watched; None: it can be again. Each job tells.

        Not while the API server is away: nobody could read it, and it passes.
        """
        lasts = isinstance(error, KubernetesError) and not operator_faults.fault_of(error).passes
        before = self._obstacles.pop(kind, None)
        if error is not None and lasts:
            self._obstacles[kind] = error
        if before is not None or kind in self._obstacles:
            for key in list(self._jobs):
                self.complain(key, f"watch of {kind.lower()}s", self._obstacles.get(kind))

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
        """The job is gone. Its pods may stay, for another one of its name to find."""
        state = self._jobs.pop(key, None)
        if state and state.pods:
            self._orphans[key] = dict(state.pods)
        if state and state.task:
            state.task.cancel()
        self.coordinator.forget(key)
        self._runs.note(key, None)

    def _used_nodes(self) -> set[str]:
        """The nodes that pods of ours are on."""
        used = {pod.node for state in self._jobs.values() for pod in state.parsed.values()}
        early = [body for found in self._orphans.values() for body in found.values()]
        used |= {(body.get("spec") or {}).get("nodeName") for body in early}
        return {name for name in used if name}

    def _on(self, node: str) -> list[JobKey]:
        """The jobs that have a pod on a node."""
        return [
            key
            for key, state in self._jobs.items()
            if any(pod.node == node for pod in state.parsed.values())
        ]

    def _node_changed(self, node: str) -> None:
        for key in self._on(node):
            self.wake(key)

    def _odd_node(self, node: str, error: Exception | None) -> None:
        for key in self._on(node) if error else list(self._jobs):
            self.complain(key, f"node {node}", error)

    async def _tokens_of(self, key: JobKey) -> tuple[str, ...]:
        """The token of a job, and one that it has replaced a moment ago."""
        state = self._jobs.get(key)
        if state is None:
            return ()
        if state.token is None:
            await self._children.read_token(key, state)
        return state.tokens(time.monotonic())

    def _mistrusted(self, key: JobKey) -> None:
        """Somebody shows another token: has the secret been edited, and do pods read that now?"""
        state = self._jobs.get(key)
        if state is not None and time.monotonic() - state.looked_at >= MISTRUST:
            state.looked_at = -math.inf
            self.wake(key)

    def _last_round(self, key: JobKey) -> int:
        state = self._jobs.get(key)
        found = state.status.get("round", 0) if state else 0
        return found if isinstance(found, int) else 0

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
                for pod in sorted(state.parsed.values(), key=lambda p: (p.index, p.generation))
            ),
            nodes=dict(self._nodes.nodes) if self._nodes is not None else None,
            agents=dict(room.agents),
            heard={uid: at for uid in known if (at := self.coordinator.ear.at(uid)) is not None},
            lifelines=frozenset(room.lifelines),
            hearing=self.coordinator.ear.hearing(),
            round=room.round,
            retired=frozenset(state.retired),
            gone=tuple(state.vanished.values()),
            has_secret=state.has_secret,
            has_service=state.has_service,
            listening_since=self.coordinator.since,
            refused=state.refused,
            hindered=state.hindered,
            holder=self._runs.holder(key),
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
            state.due = time.monotonic() + LOOK
            state.edited.clear()
            try:
                await self._until_listed()
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
        fault = operator_faults.fault_of(error, state.tokens(time.monotonic()))
        metrics.RECONCILE_ERRORS.inc()
        fresh, unwritten = operator_faults.is_reconciled(state.status), ""
        if failures > 1 or not fault.passes:  # trouble that passes is told if it does not
            try:
                await self._tell(key, state, fault)
            except Exception as another:
                unwritten = f"; and its status cannot be written: {another}"
        arrived = fresh and not operator_faults.is_reconciled(state.status)
        pause = operator_faults.pause(failures, fault, arrived=arrived)
        text = "%s/%s: %s%s; again in %.1f s"
        trace = error if fault.reason == BUG else None
        logger.warning(text, *key, fault.message, unwritten, pause, exc_info=trace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await state.edited.wait()
        self.wake(key)

    async def _tell(
        self, key: JobKey, state: JobState, fault: operator_faults.Fault | None
    ) -> None:
        """Bring condition Reconciled to what is true now; an event for what is new.

        The event comes first: where it is the status that cannot be written, it is all there is.
        """
        state.fault = fault
        trouble = state.trouble
        if trouble and state.is_news(trouble):
            posted = await self._cluster.post(state.body, [trouble.event()], time.time())
            state.told |= {trouble.message} if posted else set()
        fresh = state.status
        if trouble and not fresh.get("phase"):
            # Nobody has come to look at it: people must not take that for an operator that is off.
            fresh = {**fresh, "phase": status.PENDING, "message": trouble.message}
        if trouble or (fresh.get("phase") and not operator_faults.is_reconciled(fresh)):
            await self._writer.write(key, state, fresh, urgent=True)

    async def _reconcile(self, key: JobKey, state: JobState) -> None:
        job = _parsed(state.body)
        if state.fault and state.fault.reason == operator_faults.INVALID_SPEC:
            state.fault = None
        if time.monotonic() - state.looked_at >= LOOK_AT_CHILDREN:
            await self._children.look(key, state, job)
        if state.bereft and not await self._is_there(key, state):
            return
        await self._children.put_right(key, state)
        gone = set(state.vanished)
        plan, now = await self._plan(key, state, job)
        if plan.create and time.monotonic() - state.looked_at >= LOOK:
            # New pods begin with what the secret holds now.
            await self._children.look(key, state, job)
            if state.bereft and not await self._is_there(key, state):
                return
            plan, now = await self._plan(key, state, job)
        if not await self._children.apply(key, state, plan):
            # What could not be created is as if it had not been planned: its name is still free.
            plan, now = await self._plan(key, state, job)
        await self._apply(key, state, plan, now)
        state.vanished = {u: p for u, p in state.vanished.items() if u not in gone}

    async def _until_listed(self) -> None:
        """Wait until all that there is was told; raises what keeps it from being so."""
        if self.listed.is_set():
            return
        try:
            async with asyncio.timeout(LIST_PATIENCE):
                await self.listed.wait()
        except TimeoutError:
            raise next(iter(self._obstacles.values()), None) or TimeoutError(
                "the pods of all jobs are yet to be listed"
            ) from None

    async def _is_there(self, key: JobKey, state: JobState) -> bool:
        """Whether a job is there that has lost its secret or service, which go with it.

        A watch of jobs that was interrupted does not tell which have been deleted meanwhile.
        """
        state.bereft = False
        fresh = await self._cluster.job(*key)
        if fresh is None or fresh["metadata"]["uid"] != state.uid:
            self._forget(key)
            return False
        state.note_body(fresh)
        state.note_status(fresh)
        return True

    async def _plan(
        self, key: JobKey, state: JobState, job: spec.TrainingJob
    ) -> tuple[Plan, float]:
        """Decide, and show wishes to save at once: they rest on nothing that is written."""
        now = time.time()
        self._runs.note(key, state.use(job))
        meta = state.body["metadata"]
        if meta.get("deletionTimestamp"):
            seen = self._observe(key, state, job, now)
            return leave(job, state.status, seen, meta.get("finalizers") or (), now), now
        observed = await state.inquiries.complete(
            self._cluster,
            key[0],
            self._observe(key, state, job, now),
            pod_lookups.told(state.status),
        )
        plan = reconcile(
            job,
            state.status,
            observed,
            access=self._children.access(state),
            runtime_image=self._runtime_image,
            now=now,
        )
        room = self.coordinator.room(key)
        if plan.directives and not has_orders(plan):
            room.set(room.round, dict(plan.directives))
        return plan, now

    async def _apply(self, key: JobKey, state: JobState, plan: Plan, now: float) -> None:
        """The status, then what agents see (see reconcile); children are there already."""
        room, before = self.coordinator.room(key), state.status
        wait = await self._writer.write(key, state, dict(plan.status), urgent=is_news(plan))
        current = None if plan.forget_round else plan.publish or room.round
        room.set(current, dict(plan.directives))
        self._runs.note(key, state.use(_parsed(state.body)))
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

    def _described(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The spec and the status of each job."""
        for state in self._jobs.values():
            given = state.body.get("spec")
            yield given if isinstance(given, Mapping) else {}, state.status

    def _troubled(self) -> int:
        """Jobs whose condition Reconciled is False."""
        return sum(state.trouble is not None for state in self._jobs.values())


def _parsed(body: Mapping[str, Any]) -> spec.TrainingJob:
    """The job; SpecError for whatever cannot be read in it."""
    created = parse_time(body["metadata"].get("creationTimestamp")) or time.time()
    try:
        job = spec.parse(body, created)
        reserved_names.check(job)
        return job
    except spec.SpecError:
        raise
    except Exception as error:
        text = f"the spec cannot be read ({type(error).__name__}: {error})"
        raise spec.SpecError(f"{text}: is the CRD of this operator installed?") from error
