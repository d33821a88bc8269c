"""Writes statuses: at once what something rests on, the rest at a bounded rate, mere clocks never.

Whatever is shown to agents or told in events stands in the status first. What only describes, a
message or the number of pods that are ready, comes in bursts while pods start, and one write tells
all of it. Figures of a job that trains as it should are written as often as all jobs together can
afford. And where nothing but time has passed there is nothing to write: who reads the status counts
on from when it was written.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from rekindle.api import DirectiveKind
from rekindle_operator.controller import operator_faults
from rekindle_operator.controller.job_state import JobState
from rekindle_operator.kube.cluster import KubernetesApi
from rekindle_operator.merge_patch import merge_patch
from rekindle_operator.observed.liveness_tracker import JobKey
from rekindle_operator.plan import Plan

STATUS_INTERVAL = 1.0
"""Seconds between two writes of a status that nothing rests on."""
STATUS_RATE = 20.0
"""Writes of mere figures in a second, of all jobs together: many jobs write more rarely."""
WISHES = {DirectiveKind.SAVE, DirectiveKind.DUMP}
"""Directives that rest on nothing that the status has to hold first."""
FIGURES = {"progress", "goodput", "accounting"}
"""Keys of the status that change while training goes on as it should."""
CLOCKS = {"goodput"}
"""Keys of the status that change when nothing but time has passed."""


def has_orders(plan: Plan) -> bool:
    """Whether a plan asks agents for something that only its status makes right."""
    return any(directive.kind not in WISHES for directive in plan.directives.values())


def is_news(plan: Plan) -> bool:
    """Whether something rests on the status of a plan: it is written before that is shown."""
    done = (plan.create, plan.delete, plan.end, plan.events)
    told = (plan.incidents, plan.resolved, plan.measured)
    ends = plan.publish is not None or plan.remove_job or plan.forget_round
    return ends or has_orders(plan) or any((*done, *told))


class StatusWriter:
    """Brings the statuses of all jobs to the API server."""

    def __init__(
        self, cluster: KubernetesApi, wake: Callable[..., None], jobs: Callable[[], int]
    ) -> None:
        """``wake`` asks for a reconcile of a job, ``jobs`` says how many there are."""
        self._cluster = cluster
        self._wake = wake
        self._jobs = jobs

    async def write(
        self, key: JobKey, state: JobState, fresh: dict[str, Any], *, urgent: bool
    ) -> float | None:
        """Write what has changed; gives the seconds to wait if the write was put off."""
        meta, now = state.body["metadata"], time.time()
        told = operator_faults.with_reconciled(
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
        left = 0.0 if urgent or "phase" in patch else self._left(state, set(patch))
        if left:
            state.status = (
                fresh  # what is put off is known all the same, and told by the next write
            )
            return left if left < math.inf else None
        state.writing = True
        try:
            written = await self._cluster.patch_status(*key, patch)
        finally:
            state.writing = False
        if written is None:
            state.bereft = True  # of itself: it is looked for, and forgotten
            self._wake(key)
            return None
        state.status, state.wrote_at = fresh, time.monotonic()
        state.futile = merge_patch(written.get("status") or {}, fresh)
        state.note_written(written)
        if state.served != (written.get("status") or {}):
            self._wake(key)  # somebody has written into it since
        return None

    def _left(self, state: JobState, changed: set[str]) -> float:
        """Seconds to wait before a write of these keys that nothing rests on."""
        if changed <= CLOCKS:
            return math.inf
        most = self._jobs() / STATUS_RATE if changed <= FIGURES else 0.0
        return max(0.0, state.wrote_at + max(STATUS_INTERVAL, most) - time.monotonic())
