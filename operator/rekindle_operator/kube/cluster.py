"""The only module that calls the Kubernetes API: every request that the operator makes is here.

The client library logs in (kubeconfig, service account, exec plugins) and keeps the connections;
its models and its generated methods are left out. They check what is sent by rules of their own,
which change with each release and know less than the API server: a whole number for a quantity or a
field that is newer than the library would never reach the one who is to judge it. So what goes out
is the JSON that is wanted, and what comes back is the JSON that the server has.

Each call has a timeout, and says what it means to the caller: an object that is gone needs no
deletion, and a pod that the API server will never accept (`ObjectRefused`) is told apart from
trouble that passes, which stays an `KubernetesError` and is retried by whoever asked. What there is
in the cluster is listed and watched, once for all jobs (see `reflectors`); reads of one object go
past that on purpose, and are rare.
"""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import ClientError, ClientTimeout
from kubernetes.aio import client, config

from rekindle.api import ACCESS_TOKEN, GROUP, KIND, LABEL_MANAGED_BY, PLURAL, VERSION
from rekindle_operator import metrics
from rekindle_operator.failures.pod_signs import AT_ONCE
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.plan import Deletion, Event

logger = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Seconds for one request."""
COMPONENT = "rekindle-operator"
AGENT = "rekindle-operator"
"""How the operator calls itself in the API server's audit log."""
MERGE = "application/merge-patch+json"
SELECTORS = {"Pod": f"{LABEL_MANAGED_BY}=rekindle"}
"""By kind: which of its objects are listed and watched; all of them where none is named."""
PAGE = 500
"""Objects in one page of a list."""
WATCH_SECONDS = 300
"""How long a watch lasts; the API server ends it, and the next one goes on where it was."""
WATCH_SILENCE = 120.0
"""Seconds without a word, not even a bookmark, after which a watch counts as broken."""
_WEBHOOK = 'admission webhook "'
"""How the API server begins to tell that somebody else's program has refused an object."""


class KubernetesError(Exception):
    """The API server has answered, and the answer is no: its HTTP status and its own words."""

    def __init__(self, status: int, reason: str = "", message: str = "") -> None:
        super().__init__(f"{status} {message or reason}".strip())
        self.status = status
        self.reason = reason
        """The server's word for programs, ``AlreadyExists`` for example."""
        self.message = message or reason or f"HTTP {status}"


class ObjectRefused(Exception):
    """The API server will not accept this object, however often it is asked."""


TROUBLE = (KubernetesError, ClientError, TimeoutError, OSError)
"""What a request may raise and another try may not: the server's no, or no answer at all."""


class KubernetesApi:
    """The API server, as far as this operator uses it."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> "KubernetesApi":
        """Use the pod's service account, or else the kubeconfig (KUBECONFIG, ~/.kube/config)."""
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
        return cls(client.ApiClient())

    async def close(self) -> None:
        """Give connections back."""
        await self._api.close()

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create a pod, secret or service; gives the object as the API server has it.

        Raises `ObjectRefused` if the object is invalid. One of that name is an `KubernetesError` of
        409.
        """
        kind, meta = str(manifest["kind"]), manifest["metadata"]
        try:
            # Strict: a field that nobody knows is told, where it would else be dropped in silence.
            return await self._call(
                "POST",
                _core(kind, meta["namespace"]),
                query={"fieldValidation": "Strict"},
                body=manifest,
            )
        except KubernetesError as error:
            # What a webhook forbids today it may allow tomorrow; what is invalid stays so.
            if error.status in {400, 422} and not error.message.startswith(_WEBHOOK):
                raise ObjectRefused(error.message) from error
            raise

    async def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """A pod, secret or service as it is now; None if there is none of that name."""
        return await self._find(_core(kind, namespace, name))

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Merge into a pod, secret or service; gives it as it is then, None if it is gone."""
        try:
            return await self._call("PATCH", _core(kind, namespace, name), body=patch, media=MERGE)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    async def delete_pod(self, namespace: str, doomed: Deletion) -> None:
        """Delete a pod if it still is the one that was meant."""
        options: dict[str, Any] = {"preconditions": {"uid": doomed.uid}}
        if doomed.force:
            options["gracePeriodSeconds"] = 0
        await self._delete(_core("Pod", namespace, doomed.name), options)

    async def patch_status(
        self, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Merge into a job's status; gives the job as it is then, None if it is gone."""
        path = _jobs(namespace, name) + "/status"
        try:
            return await self._call("PATCH", path, body={"status": patch}, media=MERGE)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete a job if it still is the one that was meant."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        await self._delete(_jobs(namespace, name), options)

    async def end_pod(self, namespace: str, meant: Deletion) -> None:
        """End what still runs in a pod, and keep the pod: with its logs and what its status says.

        Kubernetes has no call for that, but the deadline of a pod may be brought forward at any
        time. A pod that is gone, or another one by now, needs nothing.
        """
        patch = {"metadata": {"uid": meant.uid}, "spec": {"activeDeadlineSeconds": int(AT_ONCE)}}
        try:
            path = _core("Pod", namespace, meant.name)
            await self._call("PATCH", path, body=patch, media=MERGE)
        except KubernetesError as error:
            if error.status not in {404, 409}:
                raise

    async def pod_events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """What has been told about a pod."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
        return _items(await self._call("GET", _core("Event", namespace), query=query))

    async def pod_log(self, namespace: str, name: str, container: str, lines: int) -> str:
        """The end of a container's log."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": "16384"}
        path = _core("Pod", namespace, name) + "/log"
        status, data = await self._send("GET", path, query=query)
        if status != 200:
            _document(status, data)
        return data if isinstance(data, str) else data.decode("utf-8", "replace")

    async def job(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A job as it is now; None if it is gone."""
        return await self._find(_jobs(namespace, name))

    async def list_all(self, kind: str, namespace: str = "") -> tuple[list[dict[str, Any]], str]:
        """The pods of all jobs, or all nodes, and the version of that.

        Without a namespace those of all namespaces.
        """
        found: list[dict[str, Any]] = []
        query = {**_selected(kind), "limit": str(PAGE)}
        while True:
            page = await self._call("GET", _core(kind, namespace), query=query)
            found.extend(page.get("items") or ())
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion") or "")
            query["continue"] = meta["continue"]

    async def watch(
        self, kind: str, namespace: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What happens after a version to what `list_all` gives, until the API server ends it.

        Gives ADDED, MODIFIED, DELETED or BOOKMARK, and the object. Raises `KubernetesError` when
        the server has forgotten the version.
        """
        query = {
            **_selected(kind),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        rest: Any = self._api.rest_client
        answer = await rest.pool_manager.request(
            "GET",
            f"{self._api.configuration.host}{_core(kind, namespace)}?{urlencode(query)}",
            headers=await self._headers("application/json"),
            timeout=ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=WATCH_SILENCE),
            proxy=rest.proxy,
            proxy_headers=rest.proxy_headers,
            server_hostname=self._api.configuration.tls_server_name or None,
        )
        async with answer:
            if answer.status != 200:
                _document(answer.status, await answer.read())
            rest_of_line = b""
            async for chunk in answer.content.iter_any():
                *lines, rest_of_line = (rest_of_line + chunk).split(b"\n")
                for event in (json.loads(line) for line in lines if line.strip()):
                    if event["type"] == "ERROR":
                        code = int(event["object"].get("code") or 500)
                        _document(code, json.dumps(event["object"]))
                    yield event["type"], event["object"]

    async def post(self, body: Mapping[str, Any], events: Iterable[Event], now: float) -> bool:
        """Post events about a job; whether all are there. Losing one is counted, no error."""
        meta, lost = body["metadata"], 0
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
                await self._call("POST", _core("Event", meta["namespace"]), body=manifest)
            except TROUBLE as error:
                lost += 1
                metrics.EVENTS_LOST.inc()
                logger.warning("event %s could not be posted: %s", event.reason, error)
        return not lost

    async def _find(self, path: str) -> dict[str, Any] | None:
        """What is at a path; None if nothing is."""
        try:
            return await self._call("GET", path)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    async def _delete(self, path: str, options: Mapping[str, Any]) -> None:
        """Delete what is at a path, unless it is gone or another object by now."""
        try:
            await self._call("DELETE", path, body=options)
        except KubernetesError as error:
            if error.status not in {404, 409}:
                raise

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        media: str = "application/json",
    ) -> dict[str, Any]:
        """One request: JSON out, JSON back. Raises `KubernetesError` for an answer that is no
        success."""
        return _document(*await self._send(method, path, query=query, body=body, media=media))

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        media: str = "application/json",
    ) -> tuple[int, bytes | str]:
        """One request, and the answer as it comes: status and body.

        The releases of the client differ in who reads the body and who raises for a status, so both
        are taken as they come.
        """
        headers = await self._headers(media)
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        async with asyncio.timeout(TIMEOUT):
            try:
                answer = await self._api.rest_client.request(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    _request_timeout=ClientTimeout(total=TIMEOUT),
                )
                data = answer.data if answer.data is not None else await answer.read()
                status = int(answer.status)
            except client.ApiException as error:
                data, status = error.body or b"", int(error.status or 0)
        return status, data

    async def _headers(self, media: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": media, "User-Agent": AGENT}
        for setting in (await self._api.configuration.auth_settings()).values():
            headers[setting["key"]] = setting["value"]
        return headers


def _core(kind: str, namespace: str, name: str = "") -> str:
    where = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    path = f"/api/v1{where}/{kind.lower()}s"
    return f"{path}/{quote(name, safe='')}" if name else path


def _selected(kind: str) -> dict[str, str]:
    return {"labelSelector": SELECTORS[kind]} if kind in SELECTORS else {}


def _jobs(namespace: str, name: str) -> str:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace, safe='')}/{PLURAL}"
    return f"{path}/{quote(name, safe='')}"


def _document(status: int, data: bytes | str) -> dict[str, Any]:
    """The object in an answer; raises what the API server says when it is a refusal."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = None
    if 200 <= status < 300 and isinstance(found, dict):
        return found
    if isinstance(found, dict):
        raise KubernetesError(
            status, str(found.get("reason") or ""), str(found.get("message") or "")
        )
    # Not the API server itself: a proxy in front of it, most often.
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    raise KubernetesError(
        status, "NoStatus", f"the answer is no JSON: {' '.join(text.split())[:200]}"
    )


def _items(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(found.get("items") or ())


def token_in(secret: Mapping[str, Any]) -> str | None:
    """The token in a secret; None if it has none, or none that can be read."""
    try:
        return base64.b64decode((secret.get("data") or {})[ACCESS_TOKEN]).decode() or None
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
