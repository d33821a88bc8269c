"""The children of a job, as they are made and unmade: pods, the secret and the service.

What cannot be created, because a quota is used up for example, must not keep the pods that are
there from training: it is told in the status and tried again, ever more rarely.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rekindle_operator import faults, resources
from rekindle_operator.cluster import TROUBLE, ApiError, Cluster, Refused
from rekindle_operator.coordinator import JobKey
from rekindle_operator.jobstate import JobState
from rekindle_operator.plan import Deletion, Plan

logger = logging.getLogger(__name__)

LIMIT = 16
"""Requests that are under way at once, of all jobs."""


class Children:
    """Makes what plans ask for."""

    def __init__(self, cluster: Cluster, wake: Callable[..., None]) -> None:
        self._cluster = cluster
        self.wake = wake
        self._limit = asyncio.Semaphore(LIMIT)

    async def apply(self, key: JobKey, state: JobState, plan: Plan) -> bool:
        """Create and delete what a plan says; whether all that was tried is there.

        Everything else that goes wrong ends the reconcile, once all requests are through.
        """
        calls: list[Coroutine[Any, Any, str | None]] = []
        paused = state.create_at - time.monotonic()
        if paused <= 0:
            calls.extend(self._create(state, manifest) for manifest in plan.create)
        for doomed in plan.delete:
            state.retired.add(doomed.uid)
            calls.append(self._delete(key[0], doomed))
        calls.extend(self._end(key[0], meant) for meant in plan.end)
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if paused > 0 or plan.publish:
            # Nothing was tried. A plan that forms a round puts all else off.
            self.wake(key, max(paused, 0.0))
            return True
        hindered = next((result for result in results if isinstance(result, str)), None)
        if hindered:
            state.create_pause = min(
                2 * state.create_pause or faults.RETRY_LEAST, faults.RETRY_MOST
            )
            state.create_at = time.monotonic() + state.create_pause
            self.wake(key, state.create_pause)
            logger.warning("%s/%s: %s; again in %.1f s", *key, hindered, state.create_pause)
        else:
            state.create_pause = 0.0
        if hindered != state.hindered:
            state.hindered = hindered
            self.wake(key)
        return not hindered and not state.refused

    async def _delete(self, namespace: str, doomed: Deletion) -> None:
        async with self._limit:
            await self._cluster.delete_pod(namespace, doomed)

    async def _end(self, namespace: str, meant: Deletion) -> None:
        async with self._limit:
            await self._cluster.end_pod(namespace, meant)

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
            return f"{what} was deleted a moment ago"
        if manifest["kind"] == "Pod":
            if not state.note_pod(made) and made["metadata"]["uid"] not in state.parsed:
                fault = state.complaints.get(f"pod {manifest['metadata']['name']}")
                raise ValueError(f"{what} cannot be read: {fault.message if fault else 'why?'}")
        elif manifest["kind"] == "Service":
            state.has_service = True
        elif manifest["kind"] == "Secret":
            # Whose token counts is decided by the API server: read what is there.
            key = (manifest["metadata"]["namespace"], state.body["metadata"]["name"])
            await self.read_token(key, state)
        return None

    async def read_token(self, key: JobKey, state: JobState) -> None:
        """See which token counts: the one in the secret, which somebody may have deleted."""
        token = await self._cluster.token(key[0], resources.secret_name(key[1]), state.uid)
        state.has_secret = token is not None
        state.token = token or state.token


def _brief(error: BaseException) -> str:
    if isinstance(error, ApiError):
        return f"API server: {error}"
    return f"{type(error).__name__}: {error}"
