"""One pod on this node, from the moment it is bound until nothing of it is left.

`PodWorker.run` is the whole life in order: admission, volumes, init containers, containers, the
end, the wait for deletion, clean-up. What comes from outside (a deletion, a deadline, an eviction
by the node) only sets a kill time and signals; the order of things stays in one place. Status is
written by a second task that always writes the newest state, so a burst of changes is one request.
A deleted pod is confirmed with a DELETE of grace 0 after its last status: that is how the API
server learns that no process of it can still be running.
"""

import asyncio
import contextlib
import logging
import shutil
from fractions import Fraction
from typing import Protocol

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import STRATEGIC, Manifest, RequestError, pod_path
from rekindle_local.kubelet import admission, status, volumes
from rekindle_local.kubelet.claims import bound_volumes
from rekindle_local.kubelet.containers.container import ContainerRunner, PodPlace, fetch
from rekindle_local.kubelet.environment import PodPlacement
from rekindle_local.kubelet.host import Host
from rekindle_local.kubelet.hostsfile import HostsFile
from rekindle_local.kubelet.status import PodState, Terminated
from rekindle_local.scheduling import demands

_FORCED_GRACE = 2.0
"""Seconds a pod has whose object was removed by force."""
_EVICTION_GRACE = 1.0
"""Seconds a pod has that exceeds a limit of the node."""
_log = logging.getLogger(__name__)


class Forget(Protocol):
    """Told when nothing of a pod is left; `removed` says that its object is gone, too."""

    def __call__(self, *, removed: bool) -> None:
        """Forget the pod."""


class PodWorker:
    """Runs one pod; `task` ends when the pod is gone from the node."""

    def __init__(self, host: Host, pod: Manifest, forget: Forget) -> None:
        self._host = host
        self._pod = pod
        self._forget = forget
        meta, spec = pod["metadata"], pod["spec"]
        self.uid: str = meta["uid"]
        self.namespace: str = meta.get("namespace", "default")
        self.name: str = meta["name"]
        shared = bool(spec.get("hostNetwork"))
        node_ip = host.addresses.node_ip
        self._own_ip = None if shared else host.addresses.take()
        placement = PodPlacement(
            pod_ip=self._own_ip or node_ip, host_ip=node_ip, allocatable=host.allocatable
        )
        directory = host.state_dir / "pods" / self.uid
        self.place = PodPlace(
            host=host,
            pod=pod,
            placement=placement,
            volumes=volumes.PodVolumes(
                pod, directory / "volumes", f"{host.memory_prefix}{self.uid[:8]}-"
            ),
            directory=directory,
            tmp=host.tmp / self.uid[:8],
            logs=host.state_dir / "logs" / self.uid,
            hosts=None
            if shared or host.names is None
            else HostsFile(pod, placement.pod_ip, directory / "etc" / "hosts", host.names),
        )
        self._dirty = asyncio.Event()
        self._init = [self._runner(one, init=True) for one in spec.get("initContainers") or ()]
        self._main = [self._runner(one, init=False) for one in spec["containers"]]
        self._started_at = timestamps.now()
        self._phase: str | None = None
        self._reason = self._message = ""
        self._disruption: tuple[str, str] | None = None
        self._stopping = asyncio.Event()
        self._deleted = asyncio.Event()
        self._gone = False
        self._kill_at: float | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._deadline_seconds: int | None = None
        self._written: Manifest = {}
        self._writing = asyncio.Lock()
        self.task = asyncio.create_task(self.run(), name=f"pod {self.namespace}/{self.name}")

    def _runner(self, spec: Manifest, *, init: bool) -> ContainerRunner:
        return ContainerRunner(self.place, spec, init=init, changed=self._dirty.set)

    @property
    def pod(self) -> Manifest:
        """The object as it was last seen."""
        return self._pod

    @property
    def storage_limit(self) -> Fraction | None:
        """Bytes that everything of the pod on disk may take together."""
        return demands.total(self._pod["spec"], demands.limited).get("ephemeral-storage")

    def stored_bytes(self) -> int:
        """What everything of the pod on disk takes; blocks."""
        place = self.place
        return sum(volumes.used_bytes(path) for path in (place.directory, place.tmp, place.logs))

    @property
    def runners(self) -> list[ContainerRunner]:
        """All containers, init containers first."""
        return [*self._init, *self._main]

    # --- what comes from outside -------------------------------------------------------------

    def update(self, pod: Manifest) -> None:
        """A newer version of the object: only a deletion or a deadline changes what runs."""
        self._pod = pod
        meta = pod["metadata"]
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            self._set_deadline(pod["spec"].get("activeDeadlineSeconds"))
        if pod["spec"].get("readinessGates"):
            self._dirty.set()  # conditions that others have set may have opened them
        if meta.get("deletionTimestamp"):
            self._deleted.set()
            grace = meta.get("deletionGracePeriodSeconds")
            self.terminate(30.0 if grace is None else float(grace))

    def removed(self) -> None:
        """The object is gone: end what runs without telling anybody."""
        self._gone = True
        self._deleted.set()
        self.terminate(_FORCED_GRACE)

    def terminate(self, grace: float) -> None:
        """SIGTERM now and SIGKILL after `grace` seconds; a later call can only shorten it."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + max(grace, 0.0)
        first = self._kill_at is None
        if not first and self._kill_at is not None and kill_at >= self._kill_at - 0.01:
            return
        self._kill_at = kill_at
        self._stopping.set()
        if first:
            for runner in self.runners:
                if not runner.sidecar:  # those are ended last
                    runner.terminate(grace)
        if grace <= 0:
            self.kill()
        else:
            self._timers.append(loop.call_at(kill_at, self.kill))

    def kill(self) -> None:
        """SIGKILL everything of the pod now."""
        self._stopping.set()
        for runner in self.runners:
            runner.kill()

    def evict(self, message: str) -> None:
        """End the pod because it exceeds a limit of the node."""
        if self._phase is None and not self._stopping.is_set():
            self._phase, self._reason, self._message = "Failed", "Evicted", message
            self._disruption = ("TerminationByKubelet", message)
            self._event("Warning", "Evicted", message)
            self.terminate(_EVICTION_GRACE)

    def _set_deadline(self, seconds: int | None) -> None:
        """Make the pod's own deadline this one; it can only come nearer."""
        if seconds is None or seconds == self._deadline_seconds:
            return
        self._deadline_seconds = seconds
        passed = (timestamps.now() - self._started_at).total_seconds()
        left = max(0.0, float(seconds) - passed)
        self._timers.append(asyncio.get_running_loop().call_later(left, self._deadline))

    def _deadline(self) -> None:
        if self._phase is None and not self._stopping.is_set():
            self._phase, self._reason = "Failed", "DeadlineExceeded"
            self._message = "Pod was active on the node longer than the specified deadline"
            self._event("Normal", "DeadlineExceeded", self._message)
            self.terminate(float(self._pod["spec"].get("terminationGracePeriodSeconds", 30)))

    # --- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """The pod's life; see the module docstring."""
        writer = asyncio.create_task(self._write_changes())
        try:
            self.update(self._pod)
            # A pod that ended under an earlier kubelet only waits for its deletion.
            if (self._pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                await self._live()
                self._release()
                self._phase = self._phase or self._final_phase()
                await self._flush()
            await self._deleted.wait()
            if not self._gone:
                await self._confirm()
        finally:
            writer.cancel()
            for timer in self._timers:
                timer.cancel()
        await self._clean_up()

    async def _live(self) -> None:
        problem = admission.unsupported(self._pod)
        if problem:
            self._phase, self._reason, self._message = "Failed", admission.REASON, problem
            self._event("Warning", admission.REASON, problem)
            return
        self._dirty.set()
        if not await self._set_up_volumes():
            return
        refreshing = asyncio.create_task(self._refresh_volumes())
        sidecars: list[tuple[ContainerRunner, asyncio.Task[None]]] = []
        try:
            if await self._initialize(sidecars):
                async with asyncio.TaskGroup() as group:
                    for runner in self._main:
                        group.create_task(runner.run())
            await self._end_sidecars(sidecars)
        finally:
            refreshing.cancel()
            for _, task in sidecars:
                task.cancel()

    async def _initialize(self, sidecars: list[tuple[ContainerRunner, asyncio.Task[None]]]) -> bool:
        """Run the init containers in order; False when one failed or the pod is to end.

        A sidecar is not waited for to end but to have started, and runs on from there.
        """
        for runner in self._init:
            if self._stopping.is_set():
                return False
            runner.creating()
            if runner.sidecar:
                task = asyncio.create_task(runner.run())
                sidecars.append((runner, task))
                await self._until_up(runner, task)
                continue
            await runner.run()
            if not runner.record.done:
                return False
        return not self._stopping.is_set()

    async def _until_up(self, runner: ContainerRunner, task: asyncio.Task[None]) -> None:
        waits = {asyncio.create_task(runner.up.wait()), asyncio.create_task(self._stopping.wait())}
        try:
            await asyncio.wait({*waits, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _end_sidecars(
        self, sidecars: list[tuple[ContainerRunner, asyncio.Task[None]]]
    ) -> None:
        """End the sidecars, the last one first, within what the pod has left to stop."""
        loop = asyncio.get_running_loop()
        grace = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
        end = loop.time() + grace if self._kill_at is None else self._kill_at
        for runner, task in reversed(sidecars):
            runner.terminate(max(0.0, end - loop.time()))
            try:
                async with asyncio.timeout_at(end):
                    await asyncio.shield(task)
            except TimeoutError:
                runner.kill()
                await task

    async def _set_up_volumes(self) -> bool:
        """Create directories and volumes, waiting for what is missing; False when stopped."""
        for path in (self.place.directory / "home", self.place.tmp):
            path.mkdir(parents=True, exist_ok=True)
        if self.place.hosts is not None:
            self.place.hosts.open()
        elif self._pod["spec"].get("subdomain") or self._pod["spec"].get("hostAliases"):
            text = f"names do not resolve in pods on this machine: {self._host.names_problem}"
            self._event("Warning", "NamesNotResolved", text)
        for text in admission.remarks(self._pod, self.place.placement.pod_ip):
            self._event("Normal", admission.REMARK, text)
        delay = self._host.timings.config_retry
        longest = delay * 10
        while not self._stopping.is_set():
            try:
                wanted = volumes.references(self._pod)
                sources = {
                    **await fetch(self._host, self.namespace, wanted),
                    **await bound_volumes(self._host, self.namespace, self._pod),
                }
                self.place.volumes.setup(sources, self.place.placement)
                return True
            except volumes.VolumeError as error:
                self._event("Warning", "FailedMount", str(error))
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                self._event("Warning", "FailedMount", f"Unable to attach or mount: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            delay = min(delay * 2, longest)
        return False

    async def _refresh_volumes(self) -> None:
        """Bring what secrets and config maps hold by now into the volumes, as long as they change.

        What is gone meanwhile, or cannot be asked for, stays as it was.
        """
        wanted = volumes.references(self._pod)
        while wanted:
            await asyncio.sleep(self._host.timings.volume_refresh)
            try:
                sources = await fetch(self._host, self.namespace, wanted)
                self.place.volumes.refresh(sources, self.place.placement)
            except (volumes.VolumeError, RequestError, aiohttp.ClientError, TimeoutError, OSError):
                continue

    def _final_phase(self) -> str | None:
        """A pod that was stopped will not run again: Always counts as Never."""
        records = [runner.record for runner in self.runners if not runner.sidecar]
        if all(isinstance(one.state, Terminated) for one in records):
            codes = [one.state.exit_code for one in records if isinstance(one.state, Terminated)]
            return "Failed" if any(codes) else "Succeeded"
        started = any(one.last or isinstance(one.state, Terminated) for one in records)
        return "Failed" if started else None

    def _release(self) -> None:
        """Give accelerators and the address back: an ended pod needs neither, and no names."""
        if self.place.hosts is not None:
            self.place.hosts.close()
        for runner in self.runners:
            runner.release()
        if self._own_ip is not None:
            self._host.addresses.release(self._own_ip)
            self._own_ip = None

    async def _confirm(self) -> None:
        """Tell the API server that nothing of the pod runs any more."""
        for delay in (0.1, 0.5, 2.0, 5.0, None):
            try:
                path = pod_path(self.namespace, self.name)
                await self._host.client.delete(path, grace=0, uid=self.uid)
                return
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if delay is None:
                    _log.warning("pod %s was not confirmed as deleted: %s", self.name, error)
                    return
                await asyncio.sleep(delay)

    async def _clean_up(self) -> None:
        self._release()

        def remove() -> None:
            self.place.volumes.remove()
            for path in (self.place.directory, self.place.tmp, self.place.logs):
                shutil.rmtree(path, ignore_errors=True)

        for runner in self.runners:
            if runner.latest is not None:
                await runner.latest.wait()
        await asyncio.to_thread(remove)
        self._forget(removed=self._gone)

    # --- status ------------------------------------------------------------------------------

    def _state(self) -> PodState:
        # A pod that is being ended by the node is Failed when its processes are gone, not before.
        over = not any(runner.process is not None for runner in self.runners)
        return PodState(
            init=tuple(runner.record for runner in self._init),
            containers=tuple(runner.record for runner in self._main),
            pod_ip=self.place.placement.pod_ip,
            host_ip=self.place.placement.host_ip,
            started_at=self._started_at,
            phase=self._phase if over else None,
            reason=self._reason if over else "",
            message=self._message if over else "",
            disruption=self._disruption,
        )

    async def _write_changes(self) -> None:
        delay = 0.1
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._write()
                delay = 0.1
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if self._gone or (isinstance(error, RequestError) and error.code == 404):
                    continue
                _log.debug("status of %s not written: %s", self.name, error)
                self._dirty.set()
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    def rewrite(self) -> None:
        """Write the status again although it has not changed here."""
        self._written = {}
        self._dirty.set()

    async def _flush(self) -> None:
        """Write the present state and wait for it, within reason."""
        for delay in (0.1, 0.5, 2.0, 0.0):
            try:
                await self._write()
                return
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if self._gone or (isinstance(error, RequestError) and error.code == 404):
                    return
                await asyncio.sleep(delay)

    async def _write(self) -> None:
        async with self._writing:
            wanted = status.build(self._pod, self._state(), timestamps.now())
            if wanted == self._written or self._gone:
                return
            answer = await self._host.client.patch(
                pod_path(self.namespace, self.name, "status"),
                {"metadata": {"uid": self.uid}, "status": wanted},
                STRATEGIC,
            )
            self._written = wanted
            if answer.get("status"):
                # Transition times of the next status follow from this one.
                self._pod = {**self._pod, "status": answer["status"]}

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._host.events.record(self._pod, kind, reason, message)
