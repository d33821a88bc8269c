"""How often the kernel has killed something in this container for its memory.

A worker that dies of SIGKILL may have been killed by anybody. The kernel counts its own kills per
cgroup, so a count that has grown since the round began tells an out-of-memory kill from the rest.
The count is of the container as a whole, which is what the memory limit is about.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where cgroups are mounted, version 2 and, in folders, version 1."""


def oom_kills(root: Path = ROOT, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Give the kernel's count, or None where there is none (no cgroup, no Linux)."""
    for path in _candidates(root, membership):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdecimal():
                return int(value)
    return None


def _candidates(root: Path, membership: Path) -> list[Path]:
    found = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        relative = path.lstrip("/")
        if controllers == "":
            found.append(root / relative / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(root / "memory" / relative / "memory.oom_control")
    # Inside a container its own cgroup is usually mounted at the root.
    return [*found, root / "memory.events", root / "memory" / "memory.oom_control"]
