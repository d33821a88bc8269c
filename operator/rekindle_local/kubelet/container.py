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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp

from rekindle_local import timestamps
from rekindle_local.client import ApiError, Manifest
from rekindle_local.images import Image, find_image, unknown_image
from rekindle_local.kubelet import environment, logs, probes
from rekindle_local.kubelet.backoff import Backoff
from rekindle_local.kubelet.environment import ConfigError, Placement
from rekindle_local.kubelet.expansion import expand
from rekindle_local.kubelet.host import Host
from rekindle_local.kubelet.pathmap import PathMap
from rekindle_local.kubelet.processes import (
    ID_VARIABLE,
    ROOT_VARIABLE,
    Command,
    Process,
    StartError,
)
from rekindle_local.kubelet.status import Container, Running, Terminated, Waiting
from rekindle_local.kubelet.volumes import PodVolumes, VolumeError
from rekindle_local.quantity import parse_quantity

MESSAGE_VARIABLE = "TERMINATION_LOG"
"""In every container: where its termination message is read from, as a path that can be opened."""

_MESSAGE_BYTES = 4096
_FALLBACK_BYTES, _FALLBACK_LINES = 2048, 80


@dataclass(frozen=True, kw_only=True)
class PodPlace:
    """Where the containers of one pod live."""

    host: Host
    pod: Manifest
    placement: Placement
    volumes: PodVolumes
    directory: Path
    tmp: Path
    logs: Path

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
        self._place = place
        self._spec = spec
        self._changed = changed
        self._stop = asyncio.Event()
        self._killed = False
        self._out_of_memory = False
        self._backoff = Backoff(base=timings.restart_backoff, cap=timings.restart_backoff_cap)
        self._probes: list[asyncio.Task[None]] = []
        self._gpus: tuple[str, ...] = ()
        self._liveness_kill: asyncio.TimerHandle | None = None
        policy = place.pod["spec"].get("restartPolicy") or "Always"
        self._policy = "OnFailure" if init and policy == "Always" else policy
        self.process: Process | None = None
        """What runs."""
        self.latest: Process | None = None
        """What runs or ran last."""
        self.record = Container(
            name=spec["name"],
            image=spec.get("image", ""),
            state=Waiting(reason="PodInitializing" if not init else "ContainerCreating"),
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

    def creating(self) -> None:
        """The pod's init containers are done."""
        self._set(state=Waiting(reason="ContainerCreating"))

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
            self._set(state=ended, ready=False, started=False)
            if not again or self._stop.is_set():
                return
            ran = (ended.finished_at - ended.started_at).total_seconds()
            self._backoff = self._backoff.after_run(ran)
            if not await self._rest(ended):
                return
            self._set(state=Waiting(reason="ContainerCreating"), restarts=self.record.restarts + 1)

    def terminate(self) -> None:
        """Ask PID 1 to end (SIGTERM) and start nothing more."""
        self._stop.set()
        if self.process is not None:
            self.process.signal(signal.SIGTERM)

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

    async def _configure(self) -> tuple[Command, str] | None:
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
                self._set(state=Waiting(reason=problem.reason, message=problem.message))
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                self._set(state=Waiting(reason="CreateContainerConfigError", message=str(error)))
            if await self._stopped_within(delay):
                return None
            delay = min(delay * 2, longest)
            state = self.record.state
            if isinstance(state, Waiting) and state.reason == "ErrImagePull":
                message = f'Back-off pulling image "{self.record.image}": {state.message}'
                self._set(state=Waiting(reason="ImagePullBackOff", message=message))
                if await self._stopped_within(delay):
                    return None

    def _image_event(self, first: bool, message: str) -> bool:
        if first:
            self._event("Normal", "Pulling", f'Pulling image "{self.record.image}"')
        self._event("Warning", "Failed", message)
        return False

    async def _command(self) -> tuple[Command, str]:
        place, host = self._place, self._place.host
        image = find_image(host.images, self.record.image)
        if image is None:
            raise _NotYet("ErrImagePull", unknown_image(host.images, self.record.image))
        namespace = place.pod["metadata"].get("namespace", "default")
        sources = await fetch(host, namespace, environment.references(self._spec))
        try:
            variables = environment.build(place.pod, self._spec, sources, place.placement)
            mounts = place.volumes.mounts(self._spec)
        except (ConfigError, VolumeError, ValueError) as error:
            raise _NotYet("CreateContainerConfigError", str(error)) from error
        message_file = self._message_file()
        message_path = self._spec.get("terminationMessagePath") or "/dev/termination-log"
        inside = [(path, str(target)) for path, target in image.paths.items()]
        paths = PathMap([*inside, *mounts, (message_path, str(message_file))])
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
            "HOSTNAME": place.pod["metadata"]["name"],
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
            Command(
                argv=argv,
                env=env,
                cwd=Path(paths.rewrite(workdir)) if workdir else image.workdir,
                log=log,
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

    async def _once(self, command: Command, container_id: str) -> Terminated:
        started_at = timestamps.now()
        self._out_of_memory = False
        try:
            process = await Process.start(command)
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
        startup = bool(self._spec.get("startupProbe"))
        self._set(
            state=Running(started_at=started_at),
            container_id=container_id,
            started=not startup,
            ready=not startup and not self._spec.get("readinessProbe"),
        )
        self._start_probes(command, startup=startup)
        try:
            ended = await process.ended()
        finally:
            self._stop_probes()
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
            self._set(state=Waiting(reason="CrashLoopBackOff", message=message))
            if await self._stopped_within(delay):
                self._set(state=ended)
                return False
        return True

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()

    # --- probes ------------------------------------------------------------------------------

    def _start_probes(self, command: Command, *, startup: bool) -> None:
        ports = {
            port["name"]: int(port["containerPort"])
            for port in self._spec.get("ports") or ()
            if port.get("name")
        }

        async def run(argv: object, seconds: float) -> str | None:
            paths = [str(word) for word in argv] if isinstance(argv, list) else []
            return await probes.run_beside(paths, command.env, command.cwd, seconds)

        target = probes.Target(host=self._place.placement.pod_ip, ports=ports, run=run)
        if startup:
            self._watch("startupProbe", target, partial(self._startup_turned, target))
        else:
            self._start_lasting_probes(target)

    def _start_lasting_probes(self, target: probes.Target) -> None:
        self._watch("readinessProbe", target, self._readiness_turned)
        self._watch("livenessProbe", target, self._liveness_turned)

    def _watch(self, key: str, target: probes.Target, turned: Callable[[bool, str], None]) -> None:
        if probe := self._spec.get(key):
            session = self._place.host.session
            self._probes.append(asyncio.create_task(probes.watch(probe, target, session, turned)))

    def _stop_probes(self) -> None:
        for task in self._probes:
            task.cancel()
        self._probes.clear()
        if self._liveness_kill is not None:
            self._liveness_kill.cancel()
            self._liveness_kill = None

    def _startup_turned(self, target: probes.Target, healthy: bool, why: str) -> None:
        if not healthy:
            self._unhealthy("Startup", why)
        elif not self.record.started:
            self._probes.pop(0).cancel()
            self._set(started=True, ready=not self._spec.get("readinessProbe"))
            self._start_lasting_probes(target)

    def _readiness_turned(self, healthy: bool, why: str) -> None:
        if not healthy:
            self._event("Warning", "Unhealthy", f"Readiness probe failed: {why}")
        if self.record.ready != healthy:
            self._set(ready=healthy)

    def _liveness_turned(self, healthy: bool, why: str) -> None:
        if not healthy:
            self._unhealthy("Liveness", why)

    def _unhealthy(self, kind: str, why: str) -> None:
        """Restart the container: SIGTERM, and SIGKILL after the grace period."""
        self._event("Warning", "Unhealthy", f"{kind} probe failed: {why}")
        if self._liveness_kill is not None or self.process is None:
            return
        self._event(
            "Normal",
            "Killing",
            f"Container {self.name} failed {kind.lower()} probe, will be restarted",
        )
        probe = self._spec.get(f"{kind.lower()}Probe") or {}
        pod_grace = self._place.pod["spec"].get("terminationGracePeriodSeconds", 30)
        grace = float(probe.get("terminationGracePeriodSeconds") or pod_grace)
        self.process.signal(signal.SIGTERM)
        self._liveness_kill = asyncio.get_running_loop().call_later(grace, self.process.kill)

    # --- telling -----------------------------------------------------------------------------

    def _set(self, **fields: object) -> None:
        self.record = replace(self.record, **fields)  # type: ignore[arg-type]
        self._changed()

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._place.host.events.record(self._place.pod, kind, reason, message)


class _NotYet(Exception):
    """The container cannot be created now: a waiting reason and its message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
