"""How many processors this process may really use.

`os.cpu_count()` counts the machine's, and may be None. A pod is limited by its CPU mask and by the
quota of its cgroup; more loader workers than that only take each other's time.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def usable(root: Path = ROOT, membership: Path = Path("/proc/self/cgroup")) -> tuple[int, str]:
    """Processors, at least 1, and what they are limited by, in words."""
    count = _mask() or os.cpu_count() or 1
    quota = _quota(root, membership)
    if quota is not None and quota < count:
        return max(1, int(quota)), "cgroup quota"
    return count, "CPU mask" if count < (os.cpu_count() or 1) else "all there are"


def _mask() -> int | None:
    own = getattr(os, "process_cpu_count", None)
    if own is not None:
        found: int | None = own()
        return found
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


def _quota(root: Path, membership: Path) -> float | None:
    """Processors by the tightest quota from this cgroup up to the root; None without one."""
    paths = {""}
    try:
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                own = path.strip("/")
                while own:
                    paths.add(own)
                    own = own.rpartition("/")[0]
    except (OSError, ValueError):
        pass
    found = [q for path in paths for q in (_v2(root / path), _v1(root / "cpu" / path)) if q]
    return min(found, default=None)


def _v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
