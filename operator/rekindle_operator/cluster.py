"""The only module that calls the Kubernetes API: every request that the operator makes is here.

Each call has a timeout, and says what it means to the caller: a child that exists already is a
success, an object that is gone needs no deletion, and a pod that the API server will never accept
(`Refused`) is told apart from trouble that passes, which stays an `ApiException` and is retried by
whoever asked. Reads go past the operator's caches on purpose; they are rare.
"""

import base64
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import ClientError
from kubernetes.aio import client, config

from rekindle.contract import GROUP, KIND, LABEL_JOB, LABEL_MANAGED_BY, PLURAL, VERSION
from rekindle_operator.incidents import stamp
from rekindle_operator.plan import Deletion, Event
from rekindle_operator.resources import TOKEN_KEY

logger = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Seconds for one request."""
COMPONENT = "rekindle-operator"


class Refused(Exception):
    """The API server will not accept this object, however often it is asked."""


class Cluster:
    """The API server, as far as this operator uses it."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)

    @classmethod
    async def connect(cls) -> "Cluster":
        """Use the pod's service account, or else the kubeconfig (KUBECONFIG, ~/.kube/config)."""
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
        return cls(client.ApiClient())

    async def close(self) -> None:
        """Give connections back."""
        await self._api.close()

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a pod, secret or service; gives the object as the API server has it.

        An object of that name that belongs to the same owner is as good as a new one. Raises
        `Refused` if the object is invalid or its name belongs to somebody else.
        """
        kind = str(manifest["kind"]).lower()
        namespace = manifest["metadata"]["namespace"]
        call = getattr(self._core, f"create_namespaced_{kind}")
        try:
            made = await call(
                namespace, dict(manifest), field_validation="Strict", _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status == 409:
                return await self._adopt(kind, manifest)
            if error.status in {400, 422}:
                raise Refused(explanation(error)) from error
            raise
        return self._plain(made)

    async def _adopt(self, kind: str, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        meta = manifest["metadata"]
        read = getattr(self._core, f"read_namespaced_{kind}")
        try:
            there = await read(meta["name"], meta["namespace"], _request_timeout=TIMEOUT)
        except client.ApiException as error:
            if error.status == 404:
                return None  # gone again; the next reconcile sees to it
            raise
        found = self._plain(there)
        owners = {owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()}
        if meta["ownerReferences"][0]["uid"] in owners:
            return found
        if found["metadata"].get("deletionTimestamp") or owners:
            # Most likely a child of a job of that name that is being collected.
            raise client.ApiException(status=409, reason=f"{kind} {meta['name']} is going away")
        raise Refused(f"a {kind} named {meta['name']} exists that does not belong to the job")

    async def delete_pod(self, namespace: str, doomed: Deletion) -> None:
        """Delete a pod if it still is the one that was meant."""
        options = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=doomed.uid),
            grace_period_seconds=0 if doomed.force else None,
        )
        try:
            await self._core.delete_namespaced_pod(
                doomed.name, namespace, body=options, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status not in {404, 409}:
                raise

    async def patch_status(self, namespace: str, name: str, patch: Mapping[str, Any]) -> bool:
        """Merge into a job's status; False if the job is gone."""
        try:
            await self._custom.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                namespace,
                PLURAL,
                name,
                {"status": patch},
                _content_type="application/merge-patch+json",
                _request_timeout=TIMEOUT,
            )
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete a job if it still is the one that was meant."""
        options = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=uid), propagation_policy="Background"
        )
        try:
            await self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, body=options, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status not in {404, 409}:
                raise

    async def token(self, namespace: str, secret: str, owner: str) -> str | None:
        """The token in a job's secret; None if there is no such secret of this owner (a uid)."""
        try:
            found = await self._core.read_namespaced_secret(
                secret, namespace, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        parsed = self._plain(found)
        owners = {o["uid"] for o in parsed["metadata"].get("ownerReferences") or ()}
        value = (parsed.get("data") or {}).get(TOKEN_KEY)
        return base64.b64decode(value).decode() if value and owner in owners else None

    async def has_service(self, namespace: str, name: str) -> bool:
        """Whether a service exists."""
        try:
            await self._core.read_namespaced_service(name, namespace, _request_timeout=TIMEOUT)
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    async def pods(self, namespace: str, job: str) -> list[dict[str, Any]]:
        """The pods of a job."""
        selector = f"{LABEL_JOB}={job},{LABEL_MANAGED_BY}=rekindle"
        found = await self._core.list_namespaced_pod(
            namespace, label_selector=selector, _request_timeout=TIMEOUT
        )
        return [self._plain(item) for item in found.items]

    async def job(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A job as it is now; None if it is gone."""
        try:
            found = await self._custom.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return found if isinstance(found, dict) else self._plain(found)

    async def nodes(self) -> list[dict[str, Any]]:
        """All nodes."""
        found = await self._core.list_node(_request_timeout=TIMEOUT)
        return [self._plain(item) for item in found.items]

    async def post(self, body: Mapping[str, Any], events: Iterable[Event], now: float) -> None:
        """Post events about a job. Losing one costs nothing, so errors end here."""
        meta = body["metadata"]
        for event in events:
            manifest: Any = {
                "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
                "involvedObject": {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": KIND,
                    "name": meta["name"],
                    "namespace": meta["namespace"],
                    "uid": meta["uid"],
                },
                "type": event.kind,
                "reason": event.reason,
                "message": event.message[:1000],
                "firstTimestamp": stamp(now)[:19] + "Z",
                "lastTimestamp": stamp(now)[:19] + "Z",
                "count": 1,
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
                "reportingInstance": COMPONENT,
            }
            try:
                await self._core.create_namespaced_event(
                    meta["namespace"], manifest, _request_timeout=TIMEOUT
                )
            except (client.ApiException, ClientError, TimeoutError) as error:
                logger.warning("event %s could not be posted: %s", event.reason, error)

    def _plain(self, model: Any) -> dict[str, Any]:
        """A model of the client as the JSON that it came from."""
        return dict(self._api.sanitize_for_serialization(model))


def explanation(error: client.ApiException) -> str:
    """What the API server says, without the client's decoration."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
