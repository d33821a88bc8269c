"""Readiness, liveness and startup probes.

One task per probe and container. A probe turns after so many equal answers in a row; readiness
starts as "no", liveness and startup as "not yet known". Startup holds the other two back. What a
turn means (not ready, kill the container) is the container's business: it passes a callback.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from rekindle_local.client import Manifest

Run = Callable[[Sequence[str], float], Awaitable[str | None]]
"""Runs a command beside the container for at most so many seconds; None or what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Target:
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


async def check(probe: Manifest, target: Target, session: aiohttp.ClientSession) -> str | None:
    """One attempt; None when it succeeded, else why not. Never raises for a failing target."""
    seconds = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(seconds):
            if http := probe.get("httpGet"):
                return await _http(http, target, session)
            if tcp := probe.get("tcpSocket"):
                host = tcp.get("host") or target.host
                _, writer = await asyncio.open_connection(host, target.port(tcp["port"]))
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return None
        command = (probe.get("exec") or {}).get("command") or ()
        return await target.run(command, seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return str(error) or type(error).__name__


async def _http(http: Manifest, target: Target, session: aiohttp.ClientSession) -> str | None:
    scheme = str(http.get("scheme") or "HTTP").lower()
    host = http.get("host") or target.host
    path = str(http.get("path") or "/").lstrip("/")
    headers = {one["name"]: one["value"] for one in http.get("httpHeaders") or ()}
    url = f"{scheme}://{host}:{target.port(http['port'])}/{path}"
    async with session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer:
        if 200 <= answer.status < 400:
            return None
        return f"HTTP probe failed with statuscode: {answer.status}"


async def watch(
    probe: Manifest,
    target: Target,
    session: aiohttp.ClientSession,
    turned: Callable[[bool, str], None],
) -> None:
    """Probe for ever and call `turned(healthy, why)` after each decided attempt."""
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
        if row >= thresholds[healthy]:
            turned(healthy, problem or "")
        await asyncio.sleep(period)


async def run_beside(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float
) -> str | None:
    """An exec probe: None on exit code 0, else why not; nothing of it survives the timeout."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            code = await process.wait()
    except TimeoutError:
        return f"command timed out after {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
    return None if code == 0 else f"command exited with code {code}"
