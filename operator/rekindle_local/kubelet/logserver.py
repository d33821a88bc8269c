"""The node's port: `/containerLogs/...`, which the API server asks for `kubectl logs`.

It answers to whoever shows the cluster's token, as the API server does: other users of the machine
reach the port as well.
"""

import contextlib
import hmac
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from aiohttp import web

from rekindle_local import timestamps
from rekindle_local.kubelet.containers.container import ContainerRunner
from rekindle_local.kubelet.logs import LogOptions, stream
from rekindle_local.kubelet.pod import PodWorker
from rekindle_local.kubelet.status import WaitingState

FindPod = Callable[[str, str], PodWorker | None]


def log_options(query: Mapping[str, str], now: datetime) -> LogOptions:
    """The options of a request; raises ValueError that names the bad parameter."""

    def number(name: str) -> int | None:
        text = query.get(name)
        if text is None or text == "":
            return None
        if not text.isdigit():
            raise ValueError(f"{name}={text!r} must be a whole number that is not negative")
        return int(text)

    def flag(name: str) -> bool:
        return query.get(name, "").lower() in ("true", "1")

    since = number("sinceSeconds")
    moment = now - timedelta(seconds=since) if since is not None else None
    if query.get("sinceTime"):
        moment = timestamps.parse(query["sinceTime"])
    return LogOptions(
        follow=flag("follow"),
        timestamps=flag("timestamps"),
        tail_lines=number("tailLines"),
        limit_bytes=number("limitBytes"),
        since=moment,
    )


class LogServer:
    """Serves the logs of one node's pods; `port` is known after `start`."""

    def __init__(self, find: FindPod, token: str | None = None) -> None:
        self._find = find
        self._token = token
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str) -> None:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port; readers that follow are cut off."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if self._token and not hmac.compare_digest(shown, f"Bearer {self._token}".encode()):
            return web.Response(status=401, text="Unauthorized")
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        container = request.match_info["container"]
        worker = self._find(namespace, name)
        if worker is None:
            return web.Response(status=404, text=f'pod "{namespace}/{name}" is not on this node')
        runner = next((one for one in worker.runners if one.name == container), None)
        if runner is None:
            text = f"container {container} is not valid for pod {name}"
            return web.Response(status=400, text=text)
        try:
            options = log_options(dict(request.query), timestamps.now())
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        previous = request.query.get("previous", "").lower() == "true"
        path = _which(worker, runner, previous)
        if path is None:
            kind = "previous terminated container" if previous else "container"
            state = runner.record.state
            why = "not found"
            if isinstance(state, WaitingState) and not previous:
                why = f"is waiting to start: {state.reason}"
            text = f'{kind} "{container}" in pod "{name}" {why}'
            return web.Response(status=400, text=text)
        return await _send(request, path, options, runner, previous)


def _which(worker: PodWorker, runner: ContainerRunner, previous: bool) -> Path | None:
    """The log of the run that is meant: the present one, or the last when none runs now."""
    restart = runner.record.restarts
    current = worker.place.log(runner.name, restart)
    older = worker.place.log(runner.name, restart - 1)
    if previous:
        return older if older.exists() else None
    if current.exists():
        return current
    return older if older.exists() else None


async def _send(
    request: web.Request, path: Path, options: LogOptions, runner: ContainerRunner, previous: bool
) -> web.StreamResponse:
    process = runner.process
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    await response.prepare(request)

    def running() -> bool:
        listening = request.transport is not None and not request.transport.is_closing()
        return listening and not previous and process is not None and process.running

    with contextlib.suppress(ConnectionResetError):  # the reader has seen enough
        async for piece in stream(path, options, running):
            await response.write(piece)
        await response.write_eof()
    return response
