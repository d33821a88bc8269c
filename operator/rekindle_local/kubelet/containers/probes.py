"""Probes: one attempt by command, HTTP or TCP, and a task that repeats it.

A probe turns after so many equal answers in a row. What a turn means is the business of `health`.
Failures are worded as a kubelet words them, because people search for those words.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from rekindle_local.client import Manifest

Run = Callable[[Sequence[str], float], Awaitable[str | None]]
"""Runs a command beside the container for at most so many seconds; None or what went wrong."""


@dataclass(frozen=True, kw_only=True)
class ProbeTarget:
    """Where a container's probes go."""

    host: str
    ports: Mapping[str, int]
    run: Run

    def port(self, value: object) -> int:
        """A port by number or by the name the container gave it."""
        text = str(value)
        if text in self.ports:
            return self.ports[text]
        if text.isdigit():
            return int(text)
        raise ValueError(f"the container has no port named {text!r}")


async def check(probe: Manifest, target: ProbeTarget, session: aiohttp.ClientSession) -> str | None:
    """One attempt; None when it succeeded, else why not. Never raises for a failing target."""
    seconds = float(probe.get("timeoutSeconds") or 1)
    where = ""
    try:
        if http := probe.get("httpGet"):
            where = _url(http, target)
            async with asyncio.timeout(seconds):
                return await _http(http, where, session)
        if tcp := probe.get("tcpSocket"):
            host, port = tcp.get("host") or target.host, target.port(tcp["port"])
            where = f"{host}:{port}"
            async with asyncio.timeout(seconds):
                await _tcp(host, port)
            return None
        if pause := probe.get("sleep"):
            await asyncio.sleep(min(float(pause.get("seconds") or 0), seconds))
            return None
        command = (probe.get("exec") or {}).get("command") or ()
        return await target.run(command, seconds)
    except TimeoutError:
        if probe.get("httpGet"):
            return f'Get "{where}": context deadline exceeded: no answer within {seconds:g} s'
        return f"dial tcp {where}: i/o timeout"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return _reason(where, error, http=bool(probe.get("httpGet")))


def _reason(where: str, error: Exception, *, http: bool) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    text = str(error) or type(error).__name__
    if isinstance(error, ConnectionRefusedError):
        text = "connect: connection refused"
    if not where:
        return text
    return f'Get "{where}": {text}' if http else f"dial tcp {where}: {text}"


def _url(http: Manifest, target: ProbeTarget) -> str:
    scheme = str(http.get("scheme") or "HTTP").lower()
    host = http.get("host") or target.host
    path = str(http.get("path") or "/").lstrip("/")
    return f"{scheme}://{host}:{target.port(http['port'])}/{path}"


async def _http(http: Manifest, url: str, session: aiohttp.ClientSession) -> str | None:
    headers = {one["name"]: one["value"] for one in http.get("httpHeaders") or ()}
    async with session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer:
        if 200 <= answer.status < 400:
            return None
        return f"HTTP probe failed with statuscode: {answer.status}"


async def _tcp(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def watch(
    probe: Manifest,
    target: ProbeTarget,
    session: aiohttp.ClientSession,
    turned: Callable[[bool], None],
    failed: Callable[[str], None],
) -> None:
    """Probe for ever; `failed(why)` after each failure, `turned(healthy)` once it is decided."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period = float(probe.get("periodSeconds") or 10)
    thresholds = {
        True: int(probe.get("successThreshold") or 1),
        False: int(probe.get("failureThreshold") or 3),
    }
    last, row = None, 0
    while True:
        problem = await check(probe, target, session)
        healthy = problem is None
        row = row + 1 if healthy == last else 1
        last = healthy
        if problem is not None:
            failed(problem)
        if row >= thresholds[healthy]:
            turned(healthy)
        await asyncio.sleep(period)


_OUTPUT = 1024
"""Bytes of what a failing command says that are told."""


async def run_beside(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float
) -> str | None:
    """An exec probe: None on exit code 0, else why not; nothing of it survives the timeout."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    said = bytearray()
    reading = asyncio.create_task(_read(process, said))
    try:
        async with asyncio.timeout(seconds):
            code = await process.wait()
            await reading
    except TimeoutError:
        if process.returncode is None:
            return f'command timed out: "{shlex.join(argv)}" timed out after {seconds:g}s'
        code = process.returncode  # what it started holds its output open
    finally:
        reading.cancel()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
    text = said.decode(errors="replace").strip()
    return None if code == 0 else text or f"command exited with code {code}"


async def _read(process: asyncio.subprocess.Process, said: bytearray) -> None:
    assert process.stdout is not None
    while piece := await process.stdout.read(4096):
        said += piece[: max(0, _OUTPUT - len(said))]
