"""How much memory a snapshot may take without ending the training.

Two limits count, whichever is lower: what the machine can give without swapping (`MemAvailable`)
and what is left below the limit of the container's cgroup, where pages of the file cache, which the
kernel gives back on demand, do not count as used. Where neither is known the answer is None and
nothing is refused.
"""

from pathlib import Path

SHARE = 0.9
"""Of what is available; the rest is for what the training itself still wants."""

_CGROUP2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_CGROUP1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.stat",
    "total_inactive_file",
)


def available(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken now; None where the system does not tell."""
    found = [_machine(root / "proc/meminfo"), *_cgroups(root)]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _machine(path: Path) -> int | None:
    values = _table(path, 1024)
    return values.get("MemAvailable:")


def _cgroups(root: Path) -> list[int | None]:
    """Of the own group and, in a container, of the one that is mounted as the root."""
    mount = root / "sys/fs/cgroup"
    folders = [(mount, _CGROUP2), (mount / "memory", _CGROUP1)]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            folders += [(folder, _CGROUP2) for folder in _upward(mount, path)]
        elif "memory" in controllers.split(","):
            folders += [(folder, _CGROUP1) for folder in _upward(mount / "memory", path)]
    return [_group(folder, names) for folder, names in folders]


def _upward(mount: Path, path: str) -> list[Path]:
    """A group and all above it: each may have a limit of its own."""
    folder = mount / path.lstrip("/")
    return [folder, *[parent for parent in folder.parents if parent.is_relative_to(mount)]]


def _group(folder: Path, names: tuple[str, str, str, str]) -> int | None:
    limit, used = _number(folder / names[0]), _number(folder / names[1])
    if limit is None or used is None or limit >= 2**60:
        return None
    return limit - used + _table(folder / names[2], 1).get(names[3], 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _table(path: Path, factor: int) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {r[0]: int(r[1]) * factor for r in rows if len(r) > 1 and r[1].isdecimal()}
