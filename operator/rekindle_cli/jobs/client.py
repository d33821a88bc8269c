"""The Kubernetes API as this command uses it: a few calls on plain JSON, each with a time limit.

The official client knows how to log in anywhere (kubeconfig, exec plugins, in-cluster), so it makes
the connections. All above them is left out: its models, because jobs and pods are read leniently
(`snapshot`) and because turning every watch event into objects costs more CPU than all the rest of
a live view; its calls, because their arguments differ between its releases.
"""

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import urllib3.exceptions
import yaml
from kubernetes import client as kube
from kubernetes import config as kube_config

from rekindle import api
from rekindle_cli.output.failure import CommandFailure
from rekindle_cli.output.refusal import explain_refusal

Manifest = dict[str, Any]
"""One object of the Kubernetes API."""

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 20.0
_LOST = (urllib3.exceptions.HTTPError, OSError)


class ServerError(Exception):
    """The server answered, and the answer is no."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:500]}")
        self.status = status
        self.body = body


class Unavailable(Exception):
    """No usable answer came; trying again later may help."""


class Forgotten(Exception):
    """The server no longer knows the resourceVersion of a watch: list again."""


def jobs_path(namespace: str | None, name: str | None = None) -> str:
    """Path of all jobs, of one namespace's, or of one job."""
    root = f"/apis/{api.GROUP}/{api.VERSION}"
    if namespace is None:
        return f"{root}/{api.PLURAL}"
    path = f"{root}/namespaces/{namespace}/{api.PLURAL}"
    return f"{path}/{name}" if name else path


def namespace_path(namespace: str) -> str:
    """Path of a namespace."""
    return f"/api/v1/namespaces/{namespace}"


def pods_path(namespace: str) -> str:
    """Path of a namespace's pods."""
    return f"/api/v1/namespaces/{namespace}/pods"


class Api:
    """One API server. Thread safe; every call ends within seconds."""

    def __init__(self, connection: kube.ApiClient, where: str, namespace: str) -> None:
        self._connection = connection
        self.where = where
        """Base URL, for messages."""
        self.namespace = namespace
        """What the kubeconfig's context names, else ``default``."""

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._connection.close()  # type: ignore[no-untyped-call]
        self._connection.rest_client.pool_manager.clear()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Manifest:
        """GET an object or a list; raises ApiError or Unavailable."""
        return self._call("GET", path, query=query)

    def find(self, path: str) -> Manifest | None:
        """GET an object, None when it does not exist."""
        try:
            return self.get(path)
        except ServerError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: Manifest) -> Manifest:
        """POST with strict checking of field names, as ``kubectl apply`` does."""
        return self._call("POST", path, query={"fieldValidation": "Strict"}, body=body)

    def merge(self, path: str, body: Manifest) -> Manifest:
        """PATCH: what is in `body` replaces what is there, null removes it, all else stays."""
        return self._call("PATCH", path, body=body, media="application/merge-patch+json")

    def replace(self, path: str, body: Manifest) -> Manifest:
        """PUT."""
        return self._call("PUT", path, body=body)

    def apply(self, manifest: Manifest, namespace: str) -> Manifest:
        """Create an object of any kind the server has; replaces an older Secret or ConfigMap.

        Raises Failure in plain words when the server refuses.
        """
        kind, version = str(manifest.get("kind")), str(manifest.get("apiVersion"))
        metadata = manifest.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        name = metadata.get("name") or "without a name"
        what = f"{kind} {name}"
        try:
            path = self._collection(kind, version, metadata.get("namespace") or namespace)
            if path is None:
                raise CommandFailure(
                    f"{what}: this API server has no kind {kind} in {version}.",
                    "Correct the document, or apply it to a cluster that has it.",
                    reason="NotFound",
                )
            try:
                return self.create(path, manifest)
            except ServerError as error:
                if error.status != 409 or kind not in {"Secret", "ConfigMap", "Namespace"}:
                    raise
                if kind == "Namespace":
                    return manifest
                return self.replace(f"{path}/{name}", manifest)
        except ServerError as error:
            message, *facts = explain_refusal(error.body, error.status, what)
            reason = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict"}
            raise CommandFailure(
                message, facts=facts, reason=reason.get(error.status, "Invalid")
            ) from None

    def _collection(self, kind: str, version: str, namespace: object) -> str | None:
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        try:
            found = self.get(root).get("resources") or ()
        except ServerError as error:
            if error.status == 404:
                return None
            raise
        for resource in found:
            if resource.get("kind") == kind and "/" not in resource.get("name", "/"):
                if resource.get("namespaced"):
                    return f"{root}/namespaces/{namespace}/{resource['name']}"
                return f"{root}/{resource['name']}"
        return None

    def log_tail(
        self, namespace: str, pod: str, lines: int, *, timestamps: bool = False
    ) -> list[str]:
        """The last lines that the trainer of a pod has written; empty if there are none to get."""
        query = {"container": api.TRAINER_CONTAINER, "tailLines": str(lines)}
        if timestamps:
            query["timestamps"] = "true"
        try:
            path = f"{pods_path(namespace)}/{pod}/log"
            with closing(self._open("GET", path, query=query)) as answer:
                text = answer.read(1 << 20).decode("utf-8", "replace")
        except (ServerError, Unavailable, *_LOST):
            return []
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def watch(
        self, path: str, query: Mapping[str, str], version: str, stop: threading.Event
    ) -> Iterator[Manifest]:
        """The events after `version`, until the server ends the watch or `stop` is seen.

        Raises Forgotten when the version is too old, Unavailable when the connection breaks.
        """
        asked = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "60",
        }
        with closing(self._open("GET", path, query=asked, read=75.0)) as answer:
            buffer = b""
            try:
                # read1 gives what has arrived; stream() would wait for a full block.
                while not stop.is_set() and (chunk := answer.read1(1 << 16)):
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield _event(line)
            except _LOST as error:
                raise Unavailable(str(error)) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        media: str = "application/json",
    ) -> Manifest:
        with closing(self._open(method, path, query=query, body=body, media=media)) as answer:
            try:
                found: Manifest = json.loads(answer.read())
            except (ValueError, *_LOST) as error:
                raise Unavailable(f"{method} {path}: {error}") from error
            return found

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        media: str = "application/json",
        read: float = _READ_SECONDS,
    ) -> Any:
        """The urllib3 response of an answer below 400, its body unread."""
        headers = {"Accept": "application/json", "Content-Type": media}
        configuration = self._connection.configuration
        for setting in configuration.auth_settings().values():
            headers[setting["key"]] = setting["value"]
        url = configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._connection.rest_client.pool_manager.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=read),
                preload_content=False,
            )
            if response.status >= 400:
                raise ServerError(
                    response.status, response.read(1 << 20).decode("utf-8", "replace")
                )
        except _LOST as error:
            raise Unavailable(_plain(error)) from error
        return response


def _plain(error: BaseException) -> str:
    """The innermost reason of a failed connection, without the objects around it."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _plain(reason)
    return re.sub(r"^<.*?>: |^HTTPS?Connection(Pool)?\(.*?\): ", "", str(error)) or repr(error)


def _event(line: bytes) -> Manifest:
    event: Manifest = json.loads(line)
    if event.get("type") == "ERROR":
        status = event.get("object") or {}
        if status.get("code") == 410:
            raise Forgotten
        raise Unavailable(str(status.get("message") or status))
    return event


def connect(kubeconfig: Path | None = None) -> Api:
    """The cluster of a kubeconfig: the given one, else $KUBECONFIG, else ~/.kube/config, else the
    pod's own. Raises Failure with one clear line when there is none, or it does not answer.
    """
    configuration, namespace = _configuration(kubeconfig)
    # A live view tries again by itself; a person wants to know soon.
    configuration.retries = 1
    api = Api(kube.ApiClient(configuration), str(configuration.host), namespace)
    try:
        api.get("/version")
    except Unavailable as error:
        raise CommandFailure(
            f"The cluster at {api.where} does not answer: {error}.",
            "Start one with 'rekindle up', or name another kubeconfig with --kubeconfig.",
            reason="Unreachable",
        ) from None
    except ServerError as error:
        if error.status in {401, 403}:
            raise CommandFailure(
                f"The cluster at {api.where} does not let you in (HTTP {error.status}).",
                "Renew the credentials of the kubeconfig, or name another one with --kubeconfig.",
                reason="Unauthorized" if error.status == 401 else "Forbidden",
            ) from None
        raise CommandFailure(
            f"The cluster at {api.where} is in trouble: {error}.", reason="Unreachable"
        ) from None
    return api


def _configuration(kubeconfig: Path | None) -> tuple[Any, str]:
    named = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or ""
    files = [name for name in named.split(os.pathsep) if name]
    if not files:
        files = [str(Path("~/.kube/config").expanduser())]
        if not Path(files[0]).exists():
            return _inside_a_pod()
    missing = [name for name in files if not Path(name).expanduser().exists()]
    if missing and len(missing) == len(files):
        raise CommandFailure(
            f"The kubeconfig {missing[0]} does not exist.",
            "'rekindle up' prints the one of the embedded cluster.",
            reason="NotFound",
        )
    configuration = kube.Configuration()
    where = os.pathsep.join(str(Path(name).expanduser()) for name in files)
    try:
        kube_config.load_kube_config(  # type: ignore[no-untyped-call]
            where, client_configuration=configuration
        )
        _, context = kube_config.list_kube_config_contexts(where)  # type: ignore[no-untyped-call]
    except (kube_config.ConfigException, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise CommandFailure(f"The kubeconfig {where} cannot be used: {error}.") from None
    return configuration, str(context.get("context", {}).get("namespace") or "default")


def _inside_a_pod() -> tuple[Any, str]:
    configuration = kube.Configuration()
    try:
        kube_config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    except kube_config.ConfigException:
        raise CommandFailure(
            "There is no cluster: neither --kubeconfig nor KUBECONFIG is set and ~/.kube/config "
            "does not exist.",
            "Start one with 'rekindle up', or run a job here with 'rekindle run JOB.yaml'.",
            reason="NotFound",
        ) from None
    namespace = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return configuration, namespace.read_text() if namespace.exists() else "default"
