"""What a pod is told by its environment, read once and checked before anything starts.

Two cases only. With ``REKINDLE_ACCESS_DIR``, or ``REKINDLE_COORDINATOR_URL`` for whoever is started
by hand, there is an operator, and everything that names the pod to it must be there: a pod that
cannot say who it is would wait for ever. Without, the pod is the whole job (a laptop,
``docker run``), and the names are made up.
"""

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rekindle import api
from rekindle.launch.pod.access import AccessFiles, access_to

DEFAULT_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL when nobody says; the default of Kubernetes."""
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes looks for the termination message unless the container says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment of one pod."""

    job: str
    namespace: str
    pod: str
    uid: str
    address: str
    """Where other pods reach this one."""
    access: AccessFiles | None
    """How the coordinator is reached; None when there is no operator."""
    grace: float
    """Seconds between SIGTERM and SIGKILL."""
    nproc: int
    """Workers in this pod."""
    metrics_port: int | None
    """None serves nothing, 0 picks a free port."""
    termination_log: Path | None
    checkpoint_uri: str
    hang_timeout: float | None = None
    """Seconds without a sign of life that a worker may have; None: learned, infinite: any."""

    def in_round(self, variables: Mapping[str, str] | None) -> "Settings":
        """Give what holds in a round that brings these along; raises ValueError naming one."""
        told = variables or {}
        given = self
        if api.ENV_GRACE in told:
            given = replace(given, grace=_seconds(told, api.ENV_GRACE, self.grace))
        if api.ENV_HANG_TIMEOUT in told:
            given = replace(given, hang_timeout=_hang_timeout(told[api.ENV_HANG_TIMEOUT]))
        return given


def from_environment(environment: Mapping[str, str], nproc: str | None = None) -> Settings:
    """Read the settings; raises ValueError naming the variable, what is wrong, what is allowed.

    ``nproc`` is how many workers the command asks for, where the environment leaves it open.
    """
    wanted = environment.get(api.ENV_PROC_PER_NODE) or "auto"
    if wanted == "auto" and nproc is not None:
        wanted = nproc
    access = access_to(environment)
    names = {
        "job": api.ENV_JOB,
        "namespace": api.ENV_NAMESPACE,
        "pod": api.ENV_POD,
        "uid": api.ENV_POD_UID,
        "address": api.ENV_POD_IP,
    }
    values = {field: environment.get(name, "") for field, name in names.items()}
    if access is not None:
        set_ = api.ENV_ACCESS if access.directory else api.ENV_COORDINATOR
        missing = [names[field] for field, value in values.items() if not value]
        if access.given and not access.given.token:
            missing.append(api.ENV_TOKEN)
        if missing:
            raise ValueError(
                f"{set_} is set, so these must be set too: {', '.join(missing)}"
                f". The operator sets all; unset {set_} to run without one"
            )
    return Settings(
        job=values["job"] or "local",
        namespace=values["namespace"] or "local",
        pod=values["pod"] or socket.gethostname(),
        uid=values["uid"] or uuid.uuid4().hex,
        address=values["address"] or "127.0.0.1",
        access=access,
        grace=_seconds(environment, api.ENV_GRACE, DEFAULT_GRACE),
        nproc=_nproc(wanted),
        metrics_port=_port(environment.get(api.ENV_METRICS_PORT)),
        termination_log=termination_log(environment),
        checkpoint_uri=environment.get(api.ENV_CHECKPOINT_URI, ""),
        hang_timeout=_hang_timeout(environment.get(api.ENV_HANG_TIMEOUT)),
    )


def termination_log(environment: Mapping[str, str]) -> Path | None:
    """Give the file for the termination message.

    The default is taken only where a kubelet has put it: elsewhere, a root user would leave a file
    in /dev.
    """
    named = environment.get(api.ENV_TERMINATION_LOG)
    if named:
        return Path(named)
    usable = DEFAULT_TERMINATION_LOG.exists() and os.access(DEFAULT_TERMINATION_LOG, os.W_OK)
    return DEFAULT_TERMINATION_LOG if usable else None


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {text!r}, must be a number of seconds, 0 or more")
    return value


def _hang_timeout(text: str | None) -> float | None:
    if not text or text == "auto":
        return None
    if text == "never":
        return float("inf")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 1 <= value < float("inf"):
        raise ValueError(
            f"{api.ENV_HANG_TIMEOUT} is {text!r}, must be auto, never, or a number of seconds "
            "from 1 up"
        )
    return value


def _port(text: str | None) -> int | None:
    if text is None:
        return api.POD_METRICS_PORT
    if text == "":
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(
            f"{api.ENV_METRICS_PORT} is {text!r}, must be a port number, 0 for a free port, "
            "or empty to serve no metrics"
        )
    return int(text)


def _nproc(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    if text == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cpus()
    if text in {"auto", "gpu"}:
        gpus = _gpus()
        if gpus or text == "auto":
            return max(1, gpus)
        raise ValueError(
            f"{api.ENV_PROC_PER_NODE} is 'gpu', but this pod sees no GPU; request one in the "
            "pod template (resources.limits), or use 'auto'"
        )
    raise ValueError(
        f"{api.ENV_PROC_PER_NODE} is {text!r}, must be auto, gpu, cpu or a number from 1 up"
    )


def _cpus() -> int:
    return os.cpu_count() or 1


def gpus() -> tuple[str, ...]:
    """Give the names of the GPUs that this pod sees, as CUDA_VISIBLE_DEVICES has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name for name in given.split(",") if name)
    return tuple(str(number) for number in range(_gpus()))


def _gpus() -> int:
    # Counted through NVML: the CUDA driver must not be initialised in a process that starts others.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count()
