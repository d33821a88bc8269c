"""The HTTP side: one catch-all handler that names the target, runs the verb, shapes the answer.

aiohttp's own routing is not used: Kubernetes paths are regular, the set of kinds changes while the
server runs, and an unknown path must answer with a Status. The handler runs in the caller's event
loop beside whatever else runs there, so nothing in it blocks: all operations are in memory and
take microseconds to a few milliseconds.

Without authorisation: pods are processes, so whoever may create one may do what this server's owner
may. With a token, every request must carry it as a bearer token, and nothing is answered without;
TLS goes with it, since kubectl sends no credential over plain HTTP. A server without a token, for
tests of programs that are in the same process, refuses requests that a browser was made to send (an
`Origin` header, or a host name that may have been bound to loopback by somebody else).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import json
import logging
import random
import ssl
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from rekindle_local.apiserver import errors
from rekindle_local.apiserver.controllers.disruption import Budgets
from rekindle_local.apiserver.controllers.garbage import Collector
from rekindle_local.apiserver.discovery import discovery, openapi
from rekindle_local.apiserver.errors import ApiError, Json
from rekindle_local.apiserver.http.logs import container_of, kubelet_url, relay
from rekindle_local.apiserver.http.requests import (
    Accepted,
    RequestTarget,
    accepted,
    as_object,
    delete_options,
    flag,
    number,
    parse_body,
    parse_path,
    write_options,
)
from rekindle_local.apiserver.http.tables import partial, table
from rekindle_local.apiserver.http.watches import WatchOptions, WatchStream, error_frame
from rekindle_local.apiserver.kinds.admission import system_classes
from rekindle_local.apiserver.kinds.quotas import Quotas
from rekindle_local.apiserver.registry import COMMON_FIELDS, Registry, Resource
from rekindle_local.apiserver.selectors import Predicate, parse_fields, parse_labels, predicate
from rekindle_local.apiserver.storage import Expired, ObjectTable
from rekindle_local.apiserver.writes.operations import PROTECTED_NAMESPACES, ApiOperations, Written
from rekindle_local.apiserver.writes.options import WriteOptions

_LOG = logging.getLogger(__name__)

BODY_LIMIT = 3 * 1024 * 1024
"""Bytes of a request body, as on a real server."""

STOP_SECONDS = 2.0
"""How long open requests may take to end when the server stops."""

BOOKMARK_SECONDS = 15.0
"""How often an idle watch gets a bookmark."""

_REMOTE = {
    "exec": "the container's processes are processes of this machine, run the command there",
    "attach": "read what the container prints with kubectl logs -f",
    "portforward": "connect to the address of the pod, kubectl get pod -o wide shows it",
    "proxy": "connect to the address of the pod, kubectl get pod -o wide shows it",
    "ephemeralcontainers": "the container's processes are processes of this machine",
    "resize": "delete the pod and create it with other resources",
}
"""Subresources that are not here, and what to do instead."""


class ApiServer:
    """An in-memory Kubernetes API server; starts empty but for the default namespaces."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._port = port
        self._token = token
        self._tls = tls
        self._clock = clock
        self._store = ObjectTable()
        self._registry = Registry()
        self._objects = ApiOperations(self._store, self._registry, clock)
        self._collector = Collector(self._objects)
        self._budgets = Budgets(self._objects)
        self._quotas = Quotas(self._store)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._background: list[asyncio.Task[None]] = []
        self._watches: set[WatchStream] = set()
        self.url = ""
        namespaces = self._registry.find("", "v1", "namespaces")
        assert namespaces is not None
        for name in PROTECTED_NAMESPACES:
            self._objects.create(namespaces, "", {"metadata": {"name": name}}, WriteOptions())
        self.load(system_classes())

    def load(self, objects: Iterable[Json]) -> None:
        """Create objects as a request would, in order; raises ApiError for one that is refused."""
        for obj in objects:
            resource = self._registry.find_kind(obj.get("apiVersion", ""), obj.get("kind", ""))
            if resource is None:
                raise errors.bad_request(
                    f"no kind {obj.get('kind')!r} is served in {obj.get('apiVersion')!r}"
                )
            namespace = (obj.get("metadata") or {}).get("namespace") or "default"
            self._objects.create(
                resource,
                namespace if resource.namespaced else "",
                obj,
                WriteOptions(validation="Strict", manager="load"),
            )

    async def start(self) -> str:
        """Bind, serve, and return the base URL."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Handlers end when their client goes: an abandoned watch must not wait for its next event.
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=STOP_SECONDS,
        )
        await runner.setup()
        assert runner.server is not None
        self._listener = await asyncio.get_running_loop().create_server(
            runner.server, self._host, self._port, backlog=512, ssl=self._tls
        )
        self._runner = runner
        # Also when it is started again.
        self._port = port = self._listener.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http{'s' if self._tls else ''}://{host}:{port}"
        self._background = [
            asyncio.create_task(self._collector.run(), name="apiserver-garbage"),
            asyncio.create_task(self._budgets.run(), name="apiserver-budgets"),
            asyncio.create_task(self._quotas.run(), name="apiserver-quotas"),
        ]
        return self.url

    async def stop(self) -> None:
        """Stop serving: open watches end, background work is cancelled."""
        for task in self._background:
            task.cancel()
        for task in self._background:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._background = []
        for watch in list(self._watches):
            watch.close()
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._runner is not None and self._listener is not None:
            # First nobody is let in any more: a transport that is made when its listener is closed
            # fails half-way, and one made while the runner ends the others is unknown to it.
            for listening in self._listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            await _turn()
            for task in asyncio.all_tasks():  # who is shaking hands is no connection yet
                if getattr(task.get_coro(), "__name__", "").startswith("_accept_connection"):
                    task.cancel()
            await _turn()
            self._listener.close()
            self._listener = None
            server = self._runner.server
            for connection in server.connections if server else []:
                if connection.transport is not None:
                    self._transports.add(connection.transport)
            await self._runner.cleanup()
            self._runner = None
            # TLS would wait for a goodbye of clients that may be gone; connections that the runner
            # is done with know their transport no more.
            for transport in list(self._transports):
                transport.abort()
            await _turn()

    # --- dispatch -------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        try:
            if self._token is None:
                _refuse_browsers(request, self._host)
            else:
                given = request.headers.get("Authorization", "")
                if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                    raise errors.unauthorized()
            return await self._route(request)
        except ApiError as error:
            return _failed(error)
        except web.HTTPRequestEntityTooLarge:
            return _failed(
                ApiError(
                    413,
                    "RequestEntityTooLarge",
                    f"Request entity too large: limit is {BODY_LIMIT} bytes",
                )
            )
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception as error:
            _LOG.exception("%s %s failed inside the server", request.method, request.path)
            return _failed(
                ApiError(
                    500,
                    "InternalError",
                    f"Internal error occurred: {type(error).__name__}: {error}",
                )
            )

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        if not parts:
            return _json(
                {
                    "paths": [
                        "/api",
                        "/apis",
                        "/healthz",
                        "/livez",
                        "/openapi/v2",
                        "/openapi/v3",
                        "/readyz",
                        "/version",
                    ]
                }
            )
        target = parse_path(parts)
        if target is None:
            return self._document(request, parts)
        resource = self._registry.find(target.group, target.version, target.plural)
        if resource is None:
            if target.subresource in _REMOTE:
                raise _not_here(target)
            raise errors.no_such_resource()
        if bool(target.namespace) and not resource.namespaced:
            raise errors.no_such_resource()
        if target.name and resource.namespaced and not target.namespace:
            raise errors.no_such_resource()
        if target.subresource:
            return await self._subresource(request, resource, target)
        if target.name:
            return await self._item(request, resource, target)
        return await self._collection(request, resource, target)

    def _document(self, request: web.Request, parts: list[str]) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            raise errors.method_not_allowed()
        found: Json | None = None
        match parts:
            case ["healthz" | "readyz" | "livez", *_]:
                return web.Response(text="ok")
            case ["version"]:
                found = discovery.version()
            case ["api"]:
                found = discovery.core_versions(request.host)
            case ["apis"]:
                found = discovery.groups(self._registry)
            case ["api", version]:
                found = discovery.resources(self._registry, "", version)
            case ["apis", group]:
                found = discovery.group(self._registry, group)
            case ["apis", group, version]:
                found = discovery.resources(self._registry, group, version)
            case ["openapi", "v2"]:
                return self._openapi_v2(request)
            case ["openapi", "v3"]:
                found = openapi.index(self._registry)
            case ["openapi", "v3", "api", version]:
                found = openapi.document(self._registry, "", version)
            case ["openapi", "v3", "apis", group, version]:
                found = openapi.document(self._registry, group, version)
        if found is None:
            raise errors.no_such_resource()
        return _json(found)

    def _openapi_v2(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        if "application/json" not in accept and "protobuf" in accept:
            # The name that is asked for is no valid media type; clients take this one for it.
            media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            return web.Response(body=openapi.V2_PROTOBUF, content_type=media)
        return _json(openapi.v2())

    # --- collections ----------------------------------------------------------------------------

    async def _collection(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        match request.method:
            case "GET" | "HEAD" if "list" in resource.verbs:
                if flag(request.query, "watch"):
                    return await self._watch(request, resource, target)
                return self._list(request, resource, target)
            case "POST" if "create" in resource.verbs:
                if resource.namespaced and not target.namespace:
                    raise errors.method_not_allowed()
                body, options = await self._body(request)
                if "list" not in resource.verbs:
                    return _json(_review(resource, as_object(body)), 201)
                written = self._objects.create(resource, target.namespace, as_object(body), options)
                return self._written(request, resource, written)
            case "DELETE" if "deletecollection" in resource.verbs:
                return await self._delete_collection(request, resource, target)
        raise errors.method_not_allowed()

    def _selection(self, request: web.Request, resource: Resource) -> tuple[Predicate, str]:
        """Return the predicate of the selectors, and the one name that they allow, if any."""
        labels = parse_labels(request.query.get("labelSelector", ""))
        fields = parse_fields(
            request.query.get("fieldSelector", ""),
            (*COMMON_FIELDS, *resource.selectable),
            f"{resource.group}/{resource.version}, Resource={resource.plural}",
        )
        name = next(
            (value for path, value, equal in fields if path == "metadata.name" and equal), ""
        )
        return predicate(labels, fields), name

    def _list(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.Response:
        form = accepted(request.headers.get("Accept", ""))
        matches, _ = self._selection(request, resource)
        query = request.query
        revision = self._store.revision
        token = query.get("continue", "")
        start = ("", "")
        if token:
            revision, start = self._continued(resource.store, token)
        else:
            self._check_revision(
                query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
            )
        objects = self._objects.select(resource, target.namespace, matches)
        if token:
            objects = [obj for obj in objects if _key(obj) > start]
        metadata: Json = {"resourceVersion": str(revision)}
        limit = number(query, "limit")
        if limit and len(objects) > limit:
            metadata["remainingItemCount"] = len(objects) - limit
            objects = objects[:limit]
            metadata["continue"] = _continue_token(revision, _key(objects[-1]))
        if form.table:
            include = query.get("includeObject", "Metadata")
            return _json(table(resource, objects, metadata, self._clock(), include=include))
        if form.partial:
            return _json(
                {
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                    "items": [partial(obj) for obj in objects],
                }
            )
        return _json(
            {
                "kind": resource.list_kind,
                "apiVersion": resource.api_version,
                "metadata": metadata,
                "items": objects,
            }
        )

    def _check_revision(self, text: str, match: str) -> None:
        """Refuse a list at a revision that is not the present one, when exactly that is asked."""
        if match and match not in {"Exact", "NotOlderThan"}:
            raise errors.bad_request(
                f"resourceVersionMatch is {match!r}: use Exact or NotOlderThan"
            )
        if match and not text:
            raise errors.bad_request(
                "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        revision = _revision(text)
        if revision is None:
            return
        if match == "Exact" and revision != self._store.revision:
            raise errors.gone(
                f"resource version {revision} is not available: only the present state "
                f"({self._store.revision}) is kept"
            )
        if revision > self._store.revision:
            raise ApiError(
                504,
                "Timeout",
                f"Too large resource version: {revision}, current: {self._store.revision}",
                details={"retryAfterSeconds": 1},
            )

    def _continued(self, bucket: str, token: str) -> tuple[int, tuple[str, str]]:
        """Return the revision and the last key of a list's first page; raises 410 when too old.

        Later pages show the present state and the first page's revision: a watch from there
        replays what changed in between, for which the history must still reach back.
        """
        try:
            raw = json.loads(base64.urlsafe_b64decode(token))
            revision, start = int(raw["rv"]), (str(raw["ns"]), str(raw["name"]))
        except (ValueError, KeyError, TypeError) as error:
            raise errors.bad_request("continue key is not valid") from error
        try:
            self._store.since(bucket, revision)
        except Expired as error:
            raise errors.gone(
                f"The provided continue parameter is too old ({error}): list again from the start"
            ) from error
        return revision, start

    async def _delete_collection(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.Response:
        if resource.namespaced and not target.namespace:
            raise errors.method_not_allowed()
        matches, _ = self._selection(request, resource)
        body, _ = await self._body(request)
        options = delete_options(request.query, body)
        removed = []
        for obj in self._objects.select(resource, target.namespace, matches):
            metadata = obj["metadata"]
            done = self._objects.delete(
                resource, metadata.get("namespace") or "", metadata["name"], options
            )
            removed.append(done.object)
        return _json(
            {
                "kind": resource.list_kind,
                "apiVersion": resource.api_version,
                "metadata": {"resourceVersion": str(self._store.revision)},
                "items": removed,
            }
        )

    async def _watch(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        query = request.query
        form = accepted(request.headers.get("Accept", ""))
        matches, name = self._selection(request, resource)
        initial = flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None
        if initial is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            raise errors.invalid(
                "ListOptions",
                "meta.k8s.io",
                "",
                [
                    errors.forbidden_field(
                        "resourceVersionMatch",
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    )
                ],
            )
        timeout = number(query, "timeoutSeconds") or int(1800 + random.random() * 1800)
        options = WatchOptions(
            namespace=target.namespace,
            name=name,
            revision=_revision(query.get("resourceVersion", "")),
            bookmarks=flag(query, "allowWatchBookmarks"),
            initial_events=initial,
            timeout=float(timeout),
            bookmark_seconds=BOOKMARK_SECONDS,
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        def drop() -> None:
            if request.transport is not None:
                request.transport.abort()

        shape = self._shape(resource, form, query.get("includeObject", "Metadata"))
        watch = WatchStream(self._store, resource, matches, options, shape, drop)
        self._watches.add(watch)
        frames = watch.frames()
        try:
            async for frame in frames:
                await response.write(frame)
            await response.write_eof()
        except ApiError as error:
            # Once the request is understood, a watch fails within its stream, as on a real server.
            await response.write(error_frame(error))
            await response.write_eof()
        except ConnectionError:
            _LOG.debug("a watcher of %s went away", resource.plural)
        finally:
            await frames.aclose()
            self._watches.discard(watch)
        return response

    def _shape(
        self, resource: Resource, form: Accepted, include: str
    ) -> Callable[[Json, bool], Json] | None:
        if form.table:

            def as_table(obj: Json, first: bool) -> Json:
                named = bool(obj["metadata"].get("name"))
                metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
                rows = [obj] if named else []
                return table(
                    resource, rows, metadata, self._clock(), include=include, headers=first
                )

            return as_table
        if form.partial:
            return lambda obj, first: partial(obj)
        return None

    # --- single objects -------------------------------------------------------------------------

    async def _item(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        objects, namespace, name = self._objects, target.namespace, target.name
        if "get" not in resource.verbs:
            raise errors.method_not_allowed()
        match request.method:
            case "GET" | "HEAD":
                if flag(request.query, "watch"):
                    raise errors.method_not_allowed(
                        "watch one object with fieldSelector=metadata.name=NAME on its collection"
                    )
                return self._shown(request, resource, objects.get(resource, namespace, name))
            case "PUT":
                body, options = await self._body(request)
                written = objects.update(resource, namespace, name, as_object(body), options)
                return self._written(request, resource, written)
            case "PATCH":
                body, options = await self._body(request)
                media = request.content_type
                written = objects.patch(resource, namespace, name, media, body, options)
                return self._written(request, resource, written)
            case "DELETE":
                body, _ = await self._body(request)
                done = objects.delete(
                    resource, namespace, name, delete_options(request.query, body)
                )
                returns_object = resource.kind in {"Pod", "Service", "ServiceAccount"}
                if done.gone and not (returns_object and not resource.custom):
                    return _json(
                        errors.success(
                            name=name,
                            group=resource.group,
                            kind=resource.plural,
                            uid=done.object["metadata"]["uid"],
                        )
                    )
                return self._shown(request, resource, done.object)
        raise errors.method_not_allowed()

    async def _subresource(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        if target.subresource not in resource.subresources:
            if target.subresource in _REMOTE:
                raise _not_here(target)
            raise errors.no_such_resource()
        handlers: dict[str, Callable[..., Awaitable[web.StreamResponse]]] = {
            "status": self._status,
            "scale": self._scale,
            "binding": self._binding,
            "eviction": self._eviction,
            "log": self._log,
        }
        return await handlers[target.subresource](request, resource, target)

    async def _status(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        objects, namespace, name = self._objects, target.namespace, target.name
        match request.method:
            case "GET":
                return self._shown(request, resource, objects.get(resource, namespace, name))
            case "PUT":
                body, options = await self._body(request)
                written = objects.update(
                    resource, namespace, name, as_object(body), options, "status"
                )
                return self._written(request, resource, written)
            case "PATCH":
                body, options = await self._body(request)
                written = objects.patch(
                    resource, namespace, name, request.content_type, body, options, "status"
                )
                return self._written(request, resource, written)
        raise errors.method_not_allowed()

    async def _scale(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        objects, namespace, name = self._objects, target.namespace, target.name
        match request.method:
            case "GET":
                return _json(objects.scale(resource, namespace, name))
            case "PUT":
                body, options = await self._body(request)
                return _json(objects.set_scale(resource, namespace, name, body, options))
            case "PATCH":
                body, options = await self._body(request)
                return _json(
                    objects.patch_scale(
                        resource, namespace, name, request.content_type, body, options
                    )
                )
        raise errors.method_not_allowed()

    async def _binding(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        if request.method != "POST":
            raise errors.method_not_allowed()
        body, options = await self._body(request)
        self._objects.bind(target.namespace, target.name, as_object(body), options)
        return _json({**errors.success(), "code": 201}, 201)

    async def _eviction(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        if request.method != "POST":
            raise errors.method_not_allowed()
        body, _ = await self._body(request)
        given = as_object(body).get("deleteOptions") or {}
        options = delete_options(request.query, given)
        pod = self._objects.get(resource, target.namespace, target.name)
        self._budgets.check(pod)
        self._objects.delete(resource, target.namespace, target.name, options)
        return _json({**errors.success(), "code": 201}, 201)

    async def _log(
        self, request: web.Request, resource: Resource, target: RequestTarget
    ) -> web.StreamResponse:
        if request.method != "GET":
            raise errors.method_not_allowed()
        if request.query.get("sinceTime"):
            raise errors.not_implemented("the log parameter sinceTime (use sinceSeconds)")
        pod = self._objects.get(resource, target.namespace, target.name)
        container = container_of(pod, request.query.get("container", ""))
        node_name = (pod.get("spec") or {}).get("nodeName")
        if not node_name:
            raise errors.bad_request(
                f"pod {target.name} does not have a host assigned: it has no log yet"
            )
        node = self._store.get("nodes", ("", node_name))
        url = kubelet_url(node, pod, container, request.query)
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return await relay(self._session, url, request, self._token)

    # --- answers --------------------------------------------------------------------------------

    async def _body(self, request: web.Request) -> tuple[Any, WriteOptions]:
        raw = await request.read()
        body, duplicates = parse_body(raw, request.headers.get("Content-Type", ""))
        agent = request.headers.get("User-Agent", "")
        return body, write_options(request.query, agent, duplicates)

    def _shown(self, request: web.Request, resource: Resource, obj: Json) -> web.Response:
        form = accepted(request.headers.get("Accept", ""))
        if form.table:
            metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            include = request.query.get("includeObject", "Metadata")
            return _json(table(resource, [obj], metadata, self._clock(), include=include))
        return _json(partial(obj) if form.partial else obj)

    def _written(self, request: web.Request, resource: Resource, written: Written) -> web.Response:
        response = self._shown(request, resource, written.object)
        if written.created:
            response.set_status(201)
        for warning in written.warnings:
            text = warning.replace("\\", "\\\\").replace('"', '\\"')
            response.headers.add("Warning", f'299 - "{text}"')
        return response


async def _turn() -> None:
    """Let transports that come to be or end get through with it: each takes a few callbacks."""
    for _ in range(4):
        await asyncio.sleep(0)


def _not_here(target: RequestTarget) -> ApiError:
    what = f"{target.plural}/{target.subresource}"
    return errors.not_implemented(what, _REMOTE[target.subresource])


def _refuse_browsers(request: web.Request, own: str) -> None:
    """Raise a 403 for a request that a web page may have caused."""
    name = urlsplit(f"//{request.host}").hostname or ""
    try:
        known = bool(ipaddress.ip_address(name))
    except ValueError:
        known = name in {"localhost", own}
    if "Origin" in request.headers or not known:
        raise ApiError(
            403,
            "Forbidden",
            f"a server without a token takes no requests from browsers (Origin "
            f"{request.headers.get('Origin', 'none')}, host {name}): use the server's IP address",
        )


def _json(value: Any, status: int = 200) -> web.Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json")


def _failed(error: ApiError) -> web.Response:
    response = _json(error.status(), error.code)
    response.headers.update(error.headers)
    return response


def _key(obj: Json) -> tuple[str, str]:
    metadata = obj["metadata"]
    return (metadata.get("namespace") or "", metadata["name"])


def _continue_token(revision: int, key: tuple[str, str]) -> str:
    raw = json.dumps({"rv": revision, "ns": key[0], "name": key[1]})
    return base64.urlsafe_b64encode(raw.encode()).decode()


def _revision(text: str) -> int | None:
    """Return a resourceVersion parameter; None for unset and 0, which mean "any present state"."""
    if text in {"", "0"}:
        return None
    if not text.isdigit():
        raise errors.bad_request(f"resourceVersion {text!r} is no number")
    return int(text)


def _review(resource: Resource, body: Json) -> Json:
    """Answer an access review: there is no authorisation, so everything is allowed."""
    spec = body.get("spec") or {}
    answer: Json = {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": {},
        "spec": spec,
    }
    if resource.kind == "SelfSubjectAccessReview":
        answer["status"] = {
            "allowed": True,
            "reason": "the embedded API server has no authorisation: everything is allowed",
        }
    else:
        everything: Json = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
        answer["status"] = {
            "resourceRules": [everything],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": False,
        }
    return answer
