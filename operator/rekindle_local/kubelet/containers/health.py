"""What the probes of a container say about it: has it started, is it ready, must it be killed.

Startup holds the other two back. Readiness starts as "no" where it is asked for, liveness as "yes".
Every attempt that fails is news (the event `Unhealthy`), as a real kubelet posts it; only as many
failures in a row as the threshold says turn into a consequence, which is the container's business.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import aiohttp

from rekindle_local.client import Manifest
from rekindle_local.kubelet.containers import probes


class Health:
    """The probes of one run of a container; `watch` begins, `stop` ends them."""

    def __init__(
        self,
        spec: Manifest,
        target: probes.ProbeTarget,
        session: aiohttp.ClientSession,
        *,
        started: Callable[[bool], None],
        ready: Callable[[bool], None],
        unhealthy: Callable[[str], None],
        failed: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._target = target
        self._session = session
        self._on_started = started
        self._on_ready = ready
        self._on_unhealthy = unhealthy
        self._on_failed = failed
        self._tasks: list[asyncio.Task[None]] = []
        self.started = not spec.get("startupProbe")
        """Whether the container counts as started; at first, as long as nothing says otherwise."""
        self.ready = self.started and not spec.get("readinessProbe")
        """Whether it counts as ready."""

    def watch(self) -> None:
        """Begin to probe."""
        if self.started:
            self._watch_lasting()
        else:
            self._watch("Startup", self._startup_turned)

    def stop(self) -> None:
        """Probe no more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _watch_lasting(self) -> None:
        self._watch("Readiness", self._readiness_turned)
        self._watch("Liveness", partial(self._must_live, "Liveness"))

    def _watch(self, kind: str, turned: Callable[[bool], None]) -> None:
        def failed(why: str) -> None:
            self._on_unhealthy(f"{kind} probe failed: {why}")

        if probe := self._spec.get(f"{kind.lower()}Probe"):
            work = probes.watch(probe, self._target, self._session, turned, failed)
            self._tasks.append(asyncio.create_task(work))

    def _startup_turned(self, healthy: bool) -> None:
        if not healthy:
            self._on_failed("Startup")
        elif not self.started:
            self.started, self.ready = True, not self._spec.get("readinessProbe")
            self.stop()
            self._on_started(self.ready)
            self._watch_lasting()

    def _readiness_turned(self, healthy: bool) -> None:
        if self.ready != healthy:
            self.ready = healthy
            self._on_ready(healthy)

    def _must_live(self, kind: str, healthy: bool) -> None:
        if not healthy:
            self._on_failed(kind)
