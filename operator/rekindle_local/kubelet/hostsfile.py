"""A pod's own /etc/hosts: its own name, its aliases, and what the cluster's names resolve to.

The file is laid over /etc/hosts in the mount namespace of the pod's containers (see `shim`), so it
is written in place: a file that replaced it would not be seen inside.
"""

import asyncio
import os
import sys
from pathlib import Path

from rekindle_local.client import Manifest
from rekindle_local.network.dns import DOMAIN, NameTable

_SHIM = str(Path(__file__).with_name("containers") / "shim.py")
_SECONDS = 10.0


def host_name(pod: Manifest) -> str:
    """What the pod calls itself."""
    spec, meta = pod["spec"], pod["metadata"]
    name = str(spec.get("hostname") or meta["name"])[:63].rstrip("-.")
    whole = full_name(pod)
    return whole if whole and spec.get("setHostnameAsFQDN") and len(whole) < 65 else name


def full_name(pod: Manifest) -> str:
    """Its name in the cluster's domain; empty for a pod without subdomain."""
    spec, meta = pod["spec"], pod["metadata"]
    if not spec.get("subdomain"):
        return ""
    name = str(spec.get("hostname") or meta["name"])[:63].rstrip("-.")
    return f"{name}.{spec['subdomain']}.{meta.get('namespace', 'default')}.{DOMAIN}"


def head(pod: Manifest, address: str, machine: str) -> str:
    """The lines that do not change: those of the machine, the pod's own, its aliases."""
    own = " ".join(part for part in (full_name(pod), host_name(pod)) if part)
    lines = [machine.rstrip("\n"), f"{address}\t{own}"]
    for alias in pod["spec"].get("hostAliases") or ():
        lines.append(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or ())}")
    return "\n".join(line for line in lines if line) + "\n"


class HostsFile:
    """The file of one pod, from `open` to `close`."""

    def __init__(self, pod: Manifest, address: str, path: Path, names: NameTable) -> None:
        self._pod = pod
        self._address = address
        self._names = names
        self._head = ""
        self._written = ""
        self.path = path
        self.hostname = host_name(pod)

    def open(self) -> None:
        """Write it, and keep it up to date from now on."""
        try:
            machine = Path("/etc/hosts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            machine = "127.0.0.1\tlocalhost\n"
        self._head = head(self._pod, self._address, machine)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._names.subscribe(self.refresh)
        self.refresh()

    def close(self) -> None:
        """Leave it as it is."""
        self._names.unsubscribe(self.refresh)

    def refresh(self) -> None:
        """Write what resolves now, if that has changed and the folder of the pod is still there."""
        text = self._head + self._names.lines(self._pod["metadata"].get("namespace", "default"))
        if text == self._written:
            return
        data = text.encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        except FileNotFoundError:
            self.close()
            return
        try:
            os.pwrite(file, data, 0)
            os.ftruncate(file, len(data))
        finally:
            os.close(file)
        self._written = text


async def problem(directory: Path) -> str:
    """Why containers on this machine cannot have an /etc/hosts of their own; empty if they can."""
    trial = directory / "names-trial"
    trial.write_text("127.0.0.1\tlocalhost\n", encoding="utf-8")
    try:
        return await _tried(trial)
    finally:
        trial.unlink(missing_ok=True)


async def _tried(trial: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", _SHIM, "--names", str(trial),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        return "the trial did not end"
    finally:
        if process.returncode is None:  # also when the node is gone again already
            process.kill()
            await process.wait()
    text = said.decode(errors="replace").strip()
    return text if process.returncode else ""
