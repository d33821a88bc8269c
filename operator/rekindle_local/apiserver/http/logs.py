"""`pods/log`: ask the kubelet of the pod's node, and hand its answer through as it comes.

As on a real server the node says in its status where its kubelet listens. No kubelet, no node or no
container is an error with the reason, never an empty log.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

from rekindle_local.apiserver.errors import ApiError, Json, bad_request, not_found
from rekindle_local.apiserver.http.requests import flag, number

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"

CONNECT_SECONDS = 5.0
"""How long a kubelet may take to accept a connection."""

_PASSED = ("follow", "previous", "timestamps", "sinceSeconds", "tailLines", "limitBytes")


def container_of(pod: Json, wanted: str) -> str:
    """Return the container whose log is asked for; raises 400 when that is not clear."""
    spec, metadata = pod.get("spec") or {}, pod["metadata"]
    groups = [spec.get(key) or [] for key in ("containers", "initContainers")]
    own = [[item["name"] for item in group] for group in groups]
    if wanted:
        if wanted not in [*own[0], *own[1]]:
            raise bad_request(f"container {wanted} is not valid for pod {metadata['name']}")
        return wanted
    default = (metadata.get("annotations") or {}).get(DEFAULT_CONTAINER)
    if default in own[0]:
        return str(default)
    if len(own[0]) == 1:
        return str(own[0][0])
    text = (
        f"a container name must be specified for pod {metadata['name']}, choose one of: "
        f"[{' '.join(own[0])}]"
    )
    if own[1]:
        text += f" or one of the init containers: [{' '.join(own[1])}]"
    raise bad_request(text)


def kubelet_url(node: Json | None, pod: Json, container: str, query: Mapping[str, str]) -> str:
    """Return where the kubelet serves a container's log; raises 500 when its node does not say."""
    name = (pod.get("spec") or {}).get("nodeName", "")
    if node is None:
        raise not_found("nodes", "", name)
    status = node.get("status") or {}
    port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
    addresses = status.get("addresses") or []
    address = next(
        (item["address"] for item in addresses if item.get("type") == "InternalIP"), None
    )
    if not port or not address:
        raise ApiError(
            500,
            "InternalError",
            f"node {name} reports no kubelet address (status.addresses InternalIP and "
            "status.daemonEndpoints.kubeletEndpoint.Port): its logs cannot be read",
        )
    for key in ("tailLines", "sinceSeconds", "limitBytes"):
        number(query, key)
    for key in ("follow", "previous", "timestamps"):
        flag(query, key)
    passed = {key: query[key] for key in _PASSED if query.get(key)}
    host = f"[{address}]" if ":" in address else address
    path = f"/containerLogs/{pod['metadata']['namespace']}/{pod['metadata']['name']}/{container}"
    return f"http://{host}:{port}{path}" + (f"?{urlencode(passed)}" if passed else "")


async def relay(
    session: aiohttp.ClientSession, url: str, request: web.Request, token: str | None
) -> web.StreamResponse:
    """Send the kubelet's answer to the client; raises 500 when the kubelet cannot be reached."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    try:
        async with session.get(url, timeout=timeout, headers=headers) as answer:
            if answer.status >= 400:
                text = (await answer.text())[:2000]
                code = answer.status if answer.status in {400, 404} else 500
                reasons = {400: "BadRequest", 404: "NotFound"}
                raise ApiError(
                    code,
                    reasons.get(code, "InternalError"),
                    text.strip() or f"the kubelet answered {answer.status}",
                )
            response = web.StreamResponse(headers={"Content-Type": "text/plain"})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except aiohttp.ClientConnectorError as error:
        raise ApiError(
            500, "InternalError", f"Get {url}: the kubelet cannot be reached: {error}"
        ) from error
