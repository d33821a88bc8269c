"""One container: configure, start, watch, restart.

`run` returns when the container is over for good: ended and not to be restarted under the pod's
policy, or told to stop. Everything it knows at a moment is the frozen `record`, replaced as a whole
and announced through `changed`, so the pod's status can be built at any time without locks.
Waiting states follow the real kubelet: an unknown image alternates between ErrImagePull and
ImagePullBackOff, a missing secret is CreateContainerConfigError, a container that keeps ending is
CrashLoopBackOff with the last end beside it.
"""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import Manifest, RequestError
from rekindle_local.images import Image, find_image, unknown_image
from rekindle_local.kubelet import environment, logs
from rekindle_local.kubelet.containers import probes
from rekindle_local.kubelet.containers.backoff import Backoff
from rekindle_local.kubelet.containers.health import Health
from rekindle_local.kubelet.containers.path_map import PathMap
from rekindle_local.kubelet.containers.processes import (
    ID_VARIABLE,
    ROOT_VARIABLE,
    ContainerCommand,
    ContainerProcess,
    StartError,
)
from rekindle_local.kubelet.environment import CreateContainerConfigError, PodPlacement
from rekindle_local.kubelet.expansion import expand
from rekindle_local.kubelet.host import Host
from rekindle_local.kubelet.hostsfile import HostsFile
from rekindle_local.kubelet.status import ContainerState, Running, Terminated, WaitingState
from rekindle_local.kubelet.volumes import PodVolumes, VolumeError
from rekindle_local.quantity import parse_quantity

MESSAGE_VARIABLE = "TERMINATION_LOG"
"""In every container: where its termination message is read from, as a path that can be opened."""

_MESSAGE_BYTES = 4096
_FALLBACK_BYTES, _FALLBACK_LINES = 2048, 80
_HOOK_SECONDS = 300.0
"""A postStart hook that takes longer has failed."""


@dataclass(frozen=True, kw_only=True)
class PodPlace:
    """Where the containers of one pod live."""

    host: Host
    pod: Manifest
    placement: PodPlacement
    volumes: PodVolumes
    directory: Path
    tmp: Path
    logs: Path
    hosts: HostsFile | None = None
    """The pod's own /etc/hosts; None for a pod that has the machine's."""

    def log(self, container: str, restart: int) -> Path:
        """The log of one run of a container."""
        return self.logs / container / f"{restart}.log"


async def fetch(
    host: Host, namespace: str, wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], Manifest | None]:
    """Read secrets and config maps; a missing one is None."""
    plural = {"Secret": "secrets", "ConfigMap": "configmaps"}
    found: dict[tuple[str, str], Manifest | None] = {}
    for kind, name in sorted(wanted):
        path = f"/api/v1/namespaces/{namespace}/{plural[kind]}/{name}"
        found[kind, name] = await host.client.find(path)
    return found


def command_line(
    container: Manifest, image: Image, variables: Mapping[str, str], paths: PathMap
) -> tuple[str, ...]:
    """`command` and `args` over ENTRYPOINT and CMD, expanded and with paths rewritten.

    The image's own words are taken as they are: they name places on this machine.
    """

    def own(key: str) -> tuple[str, ...]:
        return tuple(paths.rewrite(expand(word, variables)) for word in container.get(key) or ())

    head = own("command") if container.get("command") else image.entrypoint
    if container.get("args"):
        return head + own("args")
    return head if container.get("command") else head + image.cmd


class ContainerRunner:
    """The life of one container of a pod."""

    def __init__(
        self, place: PodPlace, spec: Manifest, *, init: bool, changed: Callable[[], None]
    ) -> None:
        timings = place.host.timings
        initializing = bool(place.pod["spec"].get("initContainers"))
        self._place = place
        self._spec = spec
        self._changed = changed
        self._stop = asyncio.Event()
        self._killed = False
        self._out_of_memory = False
        self._backoff = Backoff(base=timings.restart_backoff, cap=timings.restart_backoff_cap)
        self._gpus: tuple[str, ...] = ()
        self._liveness_kill: asyncio.TimerHandle | None = None
        self._hooks: asyncio.Task[None] | None = None
        self._command_now: ContainerCommand | None = None
        self._paths = PathMap(())
        self.up = asyncio.Event()
        """The container has started, as its startup probe sees it."""
        policy = place.pod["spec"].get("restartPolicy") or "Always"
        self._field = f"spec.{'initContainers' if init else 'containers'}{{{spec['name']}}}"
        self._step = init and spec.get("restartPolicy") != "Always"
        if self._step and policy == "Always":
            policy = "OnFailure"
        self._policy = "Always" if init and not self._step else policy
        self.process: ContainerProcess | None = None
        """What runs."""
        self.latest: ContainerProcess | None = None
        """What runs or ran last."""
        self.record = ContainerState(
            name=spec["name"],
            image=spec.get("image", ""),
            state=WaitingState(reason="PodInitializing" if initializing else "ContainerCreating"),
            sidecar=init and not self._step,
        )

    @property
    def name(self) -> str:
        """The container's name."""
        return self.record.name

    @property
    def memory_limit(self) -> int | None:
        """Bytes of resources.limits.memory."""
        limit = ((self._spec.get("resources") or {}).get("limits") or {}).get("memory")
        return int(parse_quantity(limit)) if limit else None

    @property
    def sidecar(self) -> bool:
        """An init container that runs beside the others: started before them, ended after them."""
        return self.record.sidecar

    def creating(self) -> None:
        """It is this container's turn."""
        self._set(state=WaitingState(reason="ContainerCreating"))

    async def run(self) -> None:
        """Run to the end; cancellation leaves processes to their shim's end of file."""
        while not self._stop.is_set():
            configured = await self._configure()
            if configured is None:
                break
            ended = await self._once(*configured)
            again = self._policy == "Always" or (
                self._policy == "OnFailure" and ended.exit_code != 0
            )
            # An init container counts as ready when it has done its work.
            done = self._step and ended.exit_code == 0
            self._set(state=ended, ready=done, started=False)
            if not again or self._stop.is_set():
                return
            ran = (ended.finished_at - ended.started_at).total_seconds()
            self._backoff = self._backoff.after_run(ran)
            if not await self._rest(ended):
                return
            self._set(
                state=WaitingState(reason="ContainerCreating"), restarts=self.record.restarts + 1
            )

    def terminate(self, grace: float) -> None:
        """Ask PID 1 to end (SIGTERM) and start nothing more; within `grace` it will be killed."""
        self._stop.set()
        if self.process is not None:
            self._event("Normal", "Killing", f"Stopping container {self.name}")
            self._ask_to_end(self.process, grace)

    def kill(self) -> None:
        """End everything in the container now and start nothing more."""
        self._stop.set()
        self._killed = True
        if self.process is not None:
            self.process.kill()

    def out_of_memory(self) -> None:
        """The container exceeded its memory limit: kill it as the kernel would."""
        if self.process is not None and not self._out_of_memory:
            self._out_of_memory = True
            self.process.kill()

    # --- configure ---------------------------------------------------------------------------

    async def _configure(self) -> tuple[ContainerCommand, str] | None:
        """Image, environment and command; waits for what is missing. None when stopped."""
        delay = self._place.host.timings.config_retry
        longest = delay * 10
        first = True
        while True:
            try:
                return await self._command()
            except _NotYet as problem:
                if problem.reason == "ErrImagePull":
                    first = self._image_event(first, problem.message)
                else:
                    self._event("Warning", "Failed", f"Error: {problem.message}")
                self._set(state=WaitingState(reason=problem.reason, message=problem.message))
            except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
                self._set(
                    state=WaitingState(reason="CreateContainerConfigError", message=str(error))
                )
            if await self._stopped_within(delay):
                return None
            delay = min(delay * 2, longest)
            state = self.record.state
            if isinstance(state, WaitingState) and state.reason == "ErrImagePull":
                message = f'Back-off pulling image "{self.record.image}": {state.message}'
                self._set(state=WaitingState(reason="ImagePullBackOff", message=message))
                if await self._stopped_within(delay):
                    return None

    def _image_event(self, first: bool, message: str) -> bool:
        if first:
            self._event("Normal", "Pulling", f'Pulling image "{self.record.image}"')
        self._event("Warning", "Failed", message)
        return False

    async def _command(self) -> tuple[ContainerCommand, str]:
        place, host = self._place, self._place.host
        image = find_image(host.images, self.record.image)
        if image is None:
            raise _NotYet("ErrImagePull", unknown_image(host.images, self.record.image))
        namespace = place.pod["metadata"].get("namespace", "default")
        sources = await fetch(host, namespace, environment.references(self._spec))
        try:
            variables = environment.build(place.pod, self._spec, sources, place.placement)
            mounts = place.volumes.mounts(self._spec, variables)
        except (CreateContainerConfigError, VolumeError, ValueError) as error:
            raise _NotYet("CreateContainerConfigError", str(error)) from error
        message_file = self._message_file()
        message_path = self._spec.get("terminationMessagePath") or "/dev/termination-log"
        inside = [(path, str(target)) for path, target in image.paths.items()]
        paths = PathMap([*inside, *mounts, (message_path, str(message_file))])
        self._paths = paths
        argv = command_line(self._spec, image, variables, paths)
        if not argv:
            raise _NotYet(
                "CreateContainerError",
                f'no command specified: image "{self.record.image}" has no entrypoint here; '
                "set command or args",
            )
        container_id = secrets.token_hex(16)
        env = {
            "HOME": str(place.directory / "home"),
            "TMPDIR": str(place.tmp),
            **image.env,
            "HOSTNAME": place.hosts.hostname if place.hosts else place.pod["metadata"]["name"],
            **self._gpu_env(),
            **{key: paths.rewrite(value) for key, value in variables.items()},
            MESSAGE_VARIABLE: str(message_file),
            ROOT_VARIABLE: str(host.state_dir),
            ID_VARIABLE: container_id,
        }
        workdir = self._spec.get("workingDir")
        message_file.parent.mkdir(parents=True, exist_ok=True)
        message_file.write_bytes(b"")
        log = place.log(self.name, self.record.restarts)
        log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the run before the last is forgotten
            place.log(self.name, self.record.restarts - 2).unlink()
        return (
            ContainerCommand(
                argv=argv,
                env=env,
                cwd=Path(paths.rewrite(workdir)) if workdir else image.workdir,
                log=log,
                hosts=place.hosts.path if place.hosts else None,
                hostname=place.hosts.hostname if place.hosts else "",
            ),
            container_id,
        )

    def _gpu_env(self) -> dict[str, str]:
        resources = self._spec.get("resources") or {}
        limits = resources.get("limits") or {}
        wanted = int(parse_quantity(limits.get("nvidia.com/gpu", "0")))
        if wanted > len(self._gpus):
            try:
                self._gpus = self._place.host.take_gpus(wanted)
            except RuntimeError as error:
                raise _NotYet("CreateContainerConfigError", str(error)) from error
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)}

    def release(self) -> None:
        """Give back what the container reserved on the node."""
        self._place.host.give_gpus(self._gpus)
        self._gpus = ()

    def _message_file(self) -> Path:
        return self._place.directory / "containers" / self.name / "termination-log"

    # --- run ---------------------------------------------------------------------------------

    async def _once(self, command: ContainerCommand, container_id: str) -> Terminated:
        started_at = timestamps.now()
        self._out_of_memory = False
        try:
            process = await ContainerProcess.start(command)
        except (StartError, TimeoutError, OSError) as error:
            self._event("Warning", "Failed", f"Error: {error}")
            return Terminated(
                exit_code=128,
                signal=0,
                reason="StartError",
                message=str(error),
                started_at=started_at,
                finished_at=timestamps.now(),
                container_id=container_id,
            )
        self.process = self.latest = process
        if self._killed:
            process.kill()
        elif self._stop.is_set():
            process.signal(signal.SIGTERM)
        self._event("Normal", "Started", f"Started container {self.name}")
        self._command_now = command
        health = self._watch_health(process, command)
        try:
            await self._after_start(process, command)
            self._set(
                state=Running(started_at=started_at),
                container_id=container_id,
                started=health.started,
                ready=health.ready,
            )
            health.watch()
            ended = await process.ended()
        finally:
            health.stop()
            self._forget_timers()
        self.process = None
        code = 137 if self._out_of_memory else ended.code
        reason = "Completed" if code == 0 else "Error"
        return Terminated(
            exit_code=code,
            signal=9 if self._out_of_memory else ended.signal,
            reason="OOMKilled" if self._out_of_memory else reason,
            message=self._message(code),
            started_at=started_at,
            finished_at=timestamps.now(),
            container_id=container_id,
        )

    def _forget_timers(self) -> None:
        if self._liveness_kill is not None:
            self._liveness_kill.cancel()
            self._liveness_kill = None
        if self._hooks is not None:
            self._hooks.cancel()
            self._hooks = None

    def _message(self, code: int) -> str:
        try:
            with self._message_file().open("rb") as file:
                message = file.read(_MESSAGE_BYTES).decode(errors="replace")
        except OSError:
            message = ""
        fallback = self._spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if message or code == 0 or not fallback:
            return message
        log = self._place.log(self.name, self.record.restarts)
        return logs.tail(log, _FALLBACK_LINES, _FALLBACK_BYTES)

    async def _rest(self, ended: Terminated) -> bool:
        """Wait before the next start; False when stopped meanwhile."""
        self._set(last=ended)
        delay = self._backoff.delay
        if delay > 0:
            name = self._place.pod["metadata"]["name"]
            message = f"back-off {delay:g}s restarting failed container={self.name} pod={name}"
            self._event("Warning", "BackOff", f"Back-off restarting failed container {self.name}")
            self._set(state=WaitingState(reason="CrashLoopBackOff", message=message))
            if await self._stopped_within(delay):
                self._set(state=ended)
                return False
        return True

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()

    # --- health ------------------------------------------------------------------------------

    def _watch_health(self, process: ContainerProcess, command: ContainerCommand) -> Health:
        """Probe the process; what comes of it is done here."""

        def failed(kind: str) -> None:
            if self._liveness_kill is not None or self._stop.is_set():
                return
            message = f"Container {self.name} failed {kind.lower()} probe"
            if self._policy != "Never":
                message += ", will be restarted"
            elif len(self._place.pod["spec"]["containers"]) == 1:
                # Nothing is left that would run: the pod ends, of which no more is said.
                message = f"Stopping container {self.name}"
            self._event("Normal", "Killing", message)
            probe = self._spec.get(f"{kind.lower()}Probe") or {}
            pod_grace = self._place.pod["spec"].get("terminationGracePeriodSeconds", 30)
            own = probe.get("terminationGracePeriodSeconds")
            grace = float(pod_grace if own is None else own)
            self._ask_to_end(process, grace)
            self._liveness_kill = asyncio.get_running_loop().call_later(grace, process.kill)

        return Health(
            self._spec,
            self._target(command),
            self._place.host.session,
            started=lambda ready: self._set(started=True, ready=ready),
            ready=lambda healthy: self._set(ready=healthy),
            unhealthy=lambda message: self._event("Warning", "Unhealthy", message),
            failed=failed,
        )

    def _target(self, command: ContainerCommand) -> probes.ProbeTarget:
        async def run(argv: Sequence[str], seconds: float) -> str | None:
            words = [self._paths.rewrite(str(word)) for word in argv]
            return await probes.run_beside(words, command.env, command.cwd, seconds)

        ports = {
            port["name"]: int(port["containerPort"])
            for port in self._spec.get("ports") or ()
            if port.get("name")
        }
        return probes.ProbeTarget(host=self._place.placement.pod_ip, ports=ports, run=run)

    # --- hooks -------------------------------------------------------------------------------

    def _hook(self, name: str) -> Manifest | None:
        hook: Manifest | None = (self._spec.get("lifecycle") or {}).get(name)
        return hook

    def _ask_to_end(self, process: ContainerProcess, grace: float) -> None:
        """SIGTERM, after the preStop hook where there is one and time for it."""
        if self._hook("preStop") is None or grace <= 0 or self._command_now is None:
            process.signal(signal.SIGTERM)
        elif self._hooks is None:
            work = self._stop_by_hook(process, self._command_now, grace)
            self._hooks = asyncio.create_task(work)

    async def _stop_by_hook(
        self, process: ContainerProcess, command: ContainerCommand, grace: float
    ) -> None:
        problem = await self._run_hook("preStop", command, grace)
        if problem:
            self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {problem}")
        process.signal(signal.SIGTERM)

    async def _run_hook(self, name: str, command: ContainerCommand, seconds: float) -> str | None:
        hook = {**(self._hook(name) or {}), "timeoutSeconds": seconds}
        return await probes.check(hook, self._target(command), self._place.host.session)

    async def _after_start(self, process: ContainerProcess, command: ContainerCommand) -> None:
        """The postStart hook: the container is not running before it has ended."""
        if self._hook("postStart") is None:
            return
        hook = asyncio.create_task(self._run_hook("postStart", command, _HOOK_SECONDS))
        end = asyncio.create_task(process.ended())
        try:
            await asyncio.wait({hook, end}, return_when=asyncio.FIRST_COMPLETED)
            if hook.done() and (problem := hook.result()):
                self._event("Warning", "FailedPostStartHook", f"PostStartHook failed: {problem}")
                process.kill()
        finally:
            hook.cancel()
            end.cancel()

    # --- telling -----------------------------------------------------------------------------

    def _set(self, **fields: object) -> None:
        self.record = replace(self.record, **fields)  # type: ignore[arg-type]
        if self.record.started:
            self.up.set()
        self._changed()

    def _event(self, kind: str, reason: str, message: str) -> None:
        pod = self._place.pod
        self._place.host.events.record(pod, kind, reason, message, field=self._field)


class _NotYet(Exception):
    """The container cannot be created now: a waiting reason and its message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
