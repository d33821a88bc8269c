"""What the parts of a kubelet share: its node's identity, places on disk, clocks and images."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from rekindle_local.client import KubeClient
from rekindle_local.events import EventRecorder
from rekindle_local.images import Image
from rekindle_local.network.addresses import NodeAddresses
from rekindle_local.network.dns import NameTable

_LONGEST_TMP = 60


@dataclass(frozen=True, kw_only=True)
class KubeletTimings:
    """Seconds between things; a real cluster is about ten times slower than these defaults."""

    heartbeat: float = 1.0
    """Between renewals of the node's lease."""
    restart_backoff: float = 1.0
    """Before the second restart of a container; doubles each time (10 s in a real cluster)."""
    restart_backoff_cap: float = 30.0
    """No restart waits longer (300 s in a real cluster)."""
    config_retry: float = 0.5
    volume_refresh: float = 30.0
    """Between attempts to find a missing secret, config map or image; doubles up to ten times."""
    resource_poll: float = 1.0
    """Between measurements of memory and volume use against limits."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One node as its pods and containers see it."""

    node_name: str
    addresses: NodeAddresses
    state_dir: Path
    images: Mapping[str, Image]
    timings: KubeletTimings
    allocatable: Mapping[str, str]
    client: KubeClient
    session: aiohttp.ClientSession
    """For probes."""
    events: EventRecorder
    take_gpus: Callable[[int], tuple[str, ...]]
    """Reserves that many accelerators and names them; raises RuntimeError when too few are free."""
    names: NameTable | None
    """What the cluster's names resolve to; None where containers cannot be told."""
    names_problem: str
    """Why they cannot."""
    give_gpus: Callable[[tuple[str, ...]], None]
    """Gives accelerators back."""

    @property
    def tmp(self) -> Path:
        """Where pods' TMPDIRs are.

        Short, because programs put Unix sockets there, whose paths end at 108 bytes.
        """
        return tmp_root(self.state_dir)

    @property
    def memory_prefix(self) -> str:
        """How the names of this node's directories under /dev/shm begin."""
        return memory_prefix(self.state_dir)


def memory_prefix(state_dir: Path) -> str:
    """How names under /dev/shm begin: by state directory, and by the process that owns them."""
    return f"{_memory_mark(state_dir)}{os.getpid()}-"


def stale_memory(state_dir: Path, shm: Path) -> list[Path]:
    """Directories in memory whose owner is gone: an earlier kubelet here, a killed one elsewhere.

    Memory that nobody can free any more would be missing until the machine is restarted.
    """
    mark = _memory_mark(state_dir)
    return [
        path
        for path in shm.glob("kubelet-*-*-*")
        if path.name.startswith(mark) or not psutil.pid_exists(_owner(path))
    ]


def _memory_mark(state_dir: Path) -> str:
    return f"kubelet-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}-"


def _owner(path: Path) -> int:
    number = path.name.split("-")[2]
    return int(number) if number.isdigit() else os.getpid()  # not ours to judge: alive


def tmp_root(state_dir: Path) -> Path:
    """`tmp` in the state directory, or a short path of its own when that would be too long."""
    inside = state_dir / "tmp"
    short = len(str(inside)) <= _LONGEST_TMP
    return inside if short else Path("/tmp") / _memory_mark(state_dir).rstrip("-")
