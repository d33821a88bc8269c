"""The embedded cluster and the operator, started and ended as one.

The cluster lives in this process, in a thread of its own; the operator is a process under a
supervisor, reached by nothing but the Kubernetes API and its health endpoint, exactly as in a real
cluster. Its ports are chosen once, since pods keep the coordinator's address over its restarts.

Nothing of the caller's AWS settings reaches a pod, unless asked for: on a laptop those are
somebody's real account. Instead the image brings an identity that the embedded object store knows,
as a cloud gives one to a pod.
"""

import os
import random
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from rekindle_cli import places
from rekindle_cli.jobs import client
from rekindle_cli.jobs.client import Api
from rekindle_cli.local.supervisor import Supervisor
from rekindle_cli.manifest import S3Access
from rekindle_cli.output.failure import CommandFailure
from rekindle_local.cluster import ClusterConfig, ClusterThread
from rekindle_local.images import Image, python_image
from rekindle_local.state_lock import StateDirectoryInUse

_OPERATOR_SECONDS = 60.0
_PORTS = range(20_000, 30_000)
LAUNCHER = ("python", "-m", "rekindle.launch")
"""ENTRYPOINT of the runtime image."""
_RUNTIME_IMAGE = "rekindle/runtime:this-environment"
"""What spec.launcher.inject copies the launcher from, unless the job names an image."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a stack is made of."""

    nodes: int = 3
    port: int = 0
    """Of the API server; 0 picks a free one."""
    state_dir: Path | None = None
    """Logs and volumes; a temporary folder, removed at the end, when None."""
    workdirs: Mapping[str, Path] = field(default_factory=dict)
    """Patterns of image names to the folder that containers start in: every image is this Python
    environment here."""
    real_s3: bool = False
    """Give pods the caller's AWS settings instead of the embedded object store's."""
    buckets: Sequence[str] = ("rekindle",)
    verbose: bool = False


def runtime_image(workdir: Path, s3: S3Access | None) -> Image:
    """The runtime image as this machine has it: this Python environment, started in `workdir`.

    Its identity is the embedded store's, or the caller's own when `s3` is None.
    """
    env = {"PYTHONPATH": os.pathsep.join(places.python_path())}
    if s3 is None:
        env |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    else:
        env |= {
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        }
    return python_image(workdir, entrypoint=LAUNCHER, env=env)


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without anybody's AWS account and endpoint."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


class LocalStack:
    """A running cluster with its operator; a context manager."""

    def __init__(self, options: Options, tell: Callable[[str], None]) -> None:
        self._options = options
        self._tell = tell
        self._cluster: ClusterThread | None = None
        self.operator: Supervisor | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            # Also Ctrl-C: whatever runs by now would outlive this process.
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def cluster(self) -> ClusterThread:
        """The embedded cluster; RuntimeError before the start and after the end."""
        if self._cluster is None:
            raise RuntimeError("the stack is not running")
        return self._cluster

    @property
    def kubeconfig(self) -> Path:
        """For KUBECONFIG."""
        return self.cluster.kubeconfig

    @property
    def s3(self) -> S3Access:
        """The embedded object store."""
        access, secret = self.cluster.s3_credentials
        return S3Access(endpoint=self.cluster.s3_endpoint, access_key=access, secret_key=secret)

    def api(self) -> Api:
        """A client of the cluster."""
        return client.connect(self.kubeconfig)

    def stop(self) -> None:
        """End operator and cluster; safe to call twice."""
        operator, self.operator = self.operator, None
        if operator is not None:
            operator.stop()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.stop()

    def _start(self) -> None:
        options = self._options
        self._start_cluster()
        port, health = free_ports(2)
        folder = self.cluster.cluster.state_dir
        operator = Supervisor(
            "operator",
            _operator_command(port, health, folder / "tls", verbose=options.verbose),
            env=_operator_environment(self.kubeconfig),
            log=folder / "operator.log",
            health=f"http://127.0.0.1:{health}/healthz",
            tell=self._tell,
        )
        self.operator = operator
        operator.start()
        if not operator.wait_until_healthy(_OPERATOR_SECONDS):
            raise CommandFailure(
                f"The operator does not become ready; the end of its log ({operator.log}):",
                facts=operator.last_words(),
                reason="JobFailed",
                code=1,
            )

    def _start_cluster(self) -> None:
        options = self._options
        images: dict[str, Image] = {}
        cluster = ClusterThread(
            ClusterConfig(
                nodes=options.nodes,
                port=options.port,
                state_dir=options.state_dir,
                images=images,
                buckets=tuple(options.buckets),
                crds=_definitions(),
            )
        )
        # Known before it is started, so that an interrupted start is stopped too.
        self._cluster = cluster
        try:
            cluster.start()
        except StateDirectoryInUse as error:
            raise CommandFailure(f"{error}.") from None
        except OSError as error:
            if error.filename is not None:
                raise CommandFailure(
                    f"--state-dir {error.filename} cannot be used: {error.strerror}.",
                    "Name a directory that can be written, or one that does not exist yet.",
                ) from None
            raise CommandFailure(
                f"The embedded cluster cannot start on port {options.port}: {error}.",
                "Choose another port with --port, or leave it out for a free one.",
            ) from None
        # The object store's address and secret are known only now, and there is no pod yet.
        s3 = None if options.real_s3 else self.s3
        images |= {name: runtime_image(where, s3) for name, where in options.workdirs.items()}
        images.setdefault(_RUNTIME_IMAGE, runtime_image(cluster.cluster.state_dir, s3))


def _definitions() -> tuple[dict[str, Any], ...]:
    found = []
    for path in sorted(places.crds().glob("*.yaml")):
        found += [entry for entry in yaml.safe_load_all(path.read_text()) if entry]
    return tuple(found)


def _operator_command(port: int, metrics_port: int, tls: Path, *, verbose: bool) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "rekindle_operator",
        "--coordinator-url",
        f"https://127.0.0.1:{port}",
        "--tls-directory",
        str(tls),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--metrics-port",
        str(metrics_port),
        "--runtime-image",
        _RUNTIME_IMAGE,
    ]
    return [*command, "--verbose"] if verbose else command


def _operator_environment(kubeconfig: Path) -> dict[str, str]:
    environment = without_aws(os.environ)
    path = [*places.python_path(), environment.get("PYTHONPATH", "")]
    return {
        **environment,
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
    }


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that are free now and stay so while the operator is down for a moment.

    Not those that the system would pick: any outgoing connection may take one of them meanwhile.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise CommandFailure(f"No free ports between {_PORTS[0]} and {_PORTS[-1]} on {host}.")
