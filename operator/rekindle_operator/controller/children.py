"""The children of a job, as they are made and unmade: pods, the secret and the service.

The names of children follow from the job, so that creating one twice is harmless; whose an object
of such a name is, `belonging` says.

What cannot be created, because a quota is used up for example, must not keep the pods that are
there from training: it is told in the status and tried again, ever more rarely.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rekindle.api import ACCESS_TOKEN
from rekindle.api.spec import TrainingJob
from rekindle_operator.controller import operator_faults
from rekindle_operator.controller.job_state import JobState
from rekindle_operator.kube.cluster import (
    TROUBLE,
    KubernetesApi,
    KubernetesError,
    ObjectRefused,
    token_in,
)
from rekindle_operator.observed.liveness_tracker import JobKey
from rekindle_operator.plan import Deletion, Plan
from rekindle_operator.pods import manifests
from rekindle_operator.pods.manifests import PodAccess
from rekindle_operator.pods.ownership import Claim, claim, mend

logger = logging.getLogger(__name__)

LIMIT = 16
"""Requests that are under way at once, of all jobs."""


class Children:
    """Makes what plans ask for."""

    def __init__(
        self,
        cluster: KubernetesApi,
        wake: Callable[..., None],
        url: str,
        authority: Callable[[], str],
    ) -> None:
        """Make them for an operator that is reached at ``url``; ``authority`` vouches for it."""
        self._cluster = cluster
        self.wake = wake
        self._url = url
        self._authority = authority
        self._limit = asyncio.Semaphore(LIMIT)

    async def apply(self, key: JobKey, state: JobState, plan: Plan) -> bool:
        """Create and delete what a plan says; whether all that was tried is there.

        Everything else that goes wrong ends the reconcile, once all requests are through.
        """
        paused = state.create_at - time.monotonic()
        wanted = plan.create if paused <= 0 else ()
        first = [self._create(state, child) for child in wanted if child["kind"] != "Pod"]
        for doomed in plan.delete:
            state.retired.add(doomed.uid)
            first.append(self._delete(key[0], doomed))
        first.extend(self._end(key[0], meant) for meant in plan.end)
        results = await self._all(first)
        if state.has_secret:  # a pod without it would wait for ever, or show somebody else's token
            pods = [child for child in wanted if child["kind"] == "Pod"]
            # What keeps one from being made keeps all: one tries, the others follow it.
            tried = pods[:1] if state.hindered else pods
            results += await self._all([self._create(state, child) for child in tried])
        if paused > 0 or plan.publish:
            # Nothing was tried. A plan that forms a round puts all else off.
            self.wake(key, max(paused, 0.0))
            return True
        hindered = next((result for result in results if result), None)
        if hindered:
            state.create_pause = min(
                2 * state.create_pause or operator_faults.RETRY_LEAST, operator_faults.RETRY_MOST
            )
            state.create_at = time.monotonic() + state.create_pause
            self.wake(key, state.create_pause)
            text = "%s/%s: %s; again in %.1f s"
            logger.warning(text, *key, hindered, state.create_pause)
        else:
            state.create_pause = 0.0
        if hindered != state.hindered:
            state.hindered = hindered
            self.wake(key)
        return not hindered and not state.refused

    @staticmethod
    async def _all(
        calls: list[Coroutine[Any, Any, str | None]],
    ) -> list[str | None]:
        """Wait for all; then raise what went wrong in one of them."""
        results: list[str | None] = []
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    async def _delete(self, namespace: str, doomed: Deletion) -> None:
        async with self._limit:
            await self._cluster.delete_pod(namespace, doomed)

    async def _end(self, namespace: str, meant: Deletion) -> None:
        async with self._limit:
            await self._cluster.end_pod(namespace, meant)

    async def _create(self, state: JobState, manifest: dict[str, Any]) -> str | None:
        """Create a child; gives in words what kept it from being created for now."""
        kind, meta = manifest["kind"], manifest["metadata"]
        what = f"{kind.lower()} {meta['name']}"
        async with self._limit:
            try:
                made = await self._make(state, manifest, what)
            except ObjectRefused as error:
                state.refused = f"{what}: {error}"
                self.wake((meta["namespace"], state.body["metadata"]["name"]))
                return None
            except TROUBLE as error:
                return f"{what} cannot be created: {_brief(error)}"
        if isinstance(made, str):
            return made
        if kind == "Pod":
            if not state.note_pod(made) and made["metadata"]["uid"] not in state.parsed:
                fault = state.complaints.get(f"pod {meta['name']}")
                raise ValueError(f"{what} cannot be read: {fault.message if fault else 'why?'}")
        elif kind == "Service":
            state.has_service = True
        elif kind == "Secret":
            state.token, state.has_secret = token_in(made), True
        return None

    async def _make(
        self, state: JobState, manifest: dict[str, Any], what: str
    ) -> dict[str, Any] | str:
        """Create a child, or take over the one that is there already."""
        kind, meta = manifest["kind"], manifest["metadata"]
        try:
            return await self._cluster.create(manifest)
        except KubernetesError as error:
            found = await self._cluster.find(kind, meta["namespace"], meta["name"])
            if error.status != 409 or found is None:
                raise
        whose = claim(found, manifest)
        if whose is Claim.GOING:
            return f"{what} of an earlier job of this name is going away"
        if whose is Claim.TAKEN:
            return f"{what} exists and is not part of this job"
        key = (meta["namespace"], state.body["metadata"]["name"])
        if whose is Claim.ORPHAN and not await self._stays(key, state):
            return f"{what} is left over by the job, which is being deleted"
        if kind != "Pod":
            made = await self._put_right(found, _keeping(found, manifest, state.token))
            return made or f"{what} was deleted a moment ago"
        if whose is Claim.ORPHAN:
            # It shows another token and reports under another uid: it cannot be of this job.
            doomed = Deletion(name=meta["name"], uid=found["metadata"]["uid"])
            await self._cluster.delete_pod(meta["namespace"], doomed)
            return f"{what} of an earlier job of this name is being deleted"
        return found

    async def _put_right(
        self, found: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Bring a secret or service to what it should be; None if it is gone."""
        patch = mend(found, wanted)
        if not patch:
            return found
        kind, meta = wanted["kind"], wanted["metadata"]
        logger.warning(
            "%s/%s: %s %s is put right: %s",
            meta["namespace"],
            meta["ownerReferences"][0]["name"],
            kind.lower(),
            meta["name"],
            ", ".join(sorted(patch.get("metadata", {}) | patch.get("spec", {}) | patch)),
        )
        return await self._cluster.patch(kind, meta["namespace"], meta["name"], patch)

    async def _stays(self, key: JobKey, state: JobState) -> bool:
        """Whether the job is not being deleted: a deletion that leaves the children sets them free.

        It is marked before they are, so that whoever sees a child that is free sees the mark, too.
        """
        fresh = await self._cluster.job(*key)
        if fresh is None or fresh["metadata"]["uid"] != state.uid:
            return False
        if state.note_body(fresh):
            self.wake(key)
        return not fresh["metadata"].get("deletionTimestamp")

    async def look(self, key: JobKey, state: JobState, job: TrainingJob) -> None:
        """See whether secret and service are there, and put right what others have changed.

        They are not watched: whoever may list secrets may read those of everybody.
        """
        if state.body["metadata"].get("deletionTimestamp"):
            return
        before = (state.has_secret, state.has_service)
        found = await self._own("Secret", key, manifests.secret_name(key[1]), state)
        if found:
            state.token = state.token or token_in(found) or secrets.token_urlsafe(32)
            found = await self._put_right(found, manifests.secret(job, self.access(state)))
        if not found:
            state.retire_token(time.monotonic())
        state.has_secret = found is not None
        found = await self._own("Service", key, manifests.service_name(key[1]), state)
        if found:
            found = await self._put_right(found, manifests.service(job))
        state.has_service = found is not None
        state.bereft |= (state.has_secret, state.has_service) < before
        state.looked_at = time.monotonic()

    async def put_right(self, key: JobKey, state: JobState) -> None:
        """See to pods that somebody has edited or left over, before anything is decided."""
        for uid, name in list(state.suspects.items()):
            found = await self._cluster.find("Pod", key[0], name)
            if found and found["metadata"]["uid"] == uid:
                state.suspects.pop(uid, None)
                state.note_pod(found)
            elif uid in state.suspects:
                state.drop_pod(uid, name)
        freed = any("ownerReferences" in patch["metadata"] for _, patch in state.mends.values())
        if freed and not await self._stays(key, state):
            state.mends.clear()
        for uid, (name, patch) in list(state.mends.items()):
            logger.warning("%s/%s: pod %s is put right", *key, name)
            guarded = {**patch, "metadata": {**patch["metadata"], "uid": uid}}
            try:
                await self._cluster.patch("Pod", key[0], name, guarded)
            except KubernetesError as error:
                if error.status != 409:  # another pod of that name by now
                    raise
            state.mends.pop(uid, None)
        if state.strays and not await self._stays(key, state):
            state.strays.clear()
        for uid, name in list(state.strays.items()):
            logger.warning("%s/%s: pod %s of an earlier job is deleted", *key, name)
            await self._cluster.delete_pod(key[0], Deletion(name=name, uid=uid))
            state.strays.pop(uid, None)

    def access(self, state: JobState) -> PodAccess:
        """What the pods of a job are told, with a fresh token if it has none."""
        token = state.token or secrets.token_urlsafe(32)
        return PodAccess(token=token, url=self._url, authority=self._authority())

    async def read_token(self, key: JobKey, state: JobState) -> None:
        """See which token counts: the one in the secret, unless one is known already."""
        found = await self._own("Secret", key, manifests.secret_name(key[1]), state)
        token = token_in(found) if found else None
        state.has_secret = token is not None
        state.token = state.token or token

    async def _own(
        self, kind: str, key: JobKey, name: str, state: JobState
    ) -> dict[str, Any] | None:
        """A child as it is now; None if there is none, or none that belongs to the job."""
        found = await self._cluster.find(kind, key[0], name)
        wanted = {"metadata": {"ownerReferences": [state.owner]}}
        return found if found and claim(found, wanted) is Claim.OURS else None


def _keeping(found: dict[str, Any], wanted: dict[str, Any], token: str | None) -> dict[str, Any]:
    """The secret that is wanted, with the token that is there while none is known: pods may run."""
    if wanted["kind"] != "Secret" or token or not token_in(found):
        return wanted
    return {**wanted, "data": {**wanted["data"], ACCESS_TOKEN: found["data"][ACCESS_TOKEN]}}


def _brief(error: BaseException) -> str:
    if isinstance(error, KubernetesError):
        return f"API server: {error}"
    return f"{type(error).__name__}: {error}"
