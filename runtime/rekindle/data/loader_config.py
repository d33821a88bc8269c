"""How a dataset is to be read, for scripts that leave the loader to the trainer.

A DataModule may return ``(dataset, LoaderConfig(batch_size=32))`` in place of a DataLoader. Workers
then follow the CPUs that this process really has (its cgroup's quota, not the machine's cores), and
orders are possible that a DataLoader has no word for.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MOST_WORKERS = 8
"""More readers than this rarely help one rank, and each holds a copy of the dataset."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

OrderFunction = Callable[[int, int], Sequence[int]]
"""``order(seed, epoch)``: all sample ids of an epoch, the same for the same arguments."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a DataLoader would be told, and the order."""

    batch_size: int = 1
    """Samples per micro-batch."""
    order: Literal["shuffle", "sequential", "weighted"] | OrderFunction = "shuffle"
    """Of training; validation is sequential. A function of (seed, epoch) gives all ids itself."""
    weights: Any = None
    """One number per sample, for ``order="weighted"``: drawn with replacement."""
    num_samples: int | None = None
    """Draws per epoch with ``order="weighted"``; by default as many as there are samples."""
    drop_last: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int | None = None
    """None: one less than there are CPUs for this process, at most `MOST_WORKERS`."""
    pin_memory: bool = True
    """Without an accelerator nothing is pinned."""
    prefetch_factor: int | None = None
    persistent_workers: bool = True
    timeout: float = 0
    worker_init_fn: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise ValueError(f"LoaderConfig(batch_size={self.batch_size!r}) must be at least 1")
        if not callable(self.order) and self.order not in ("shuffle", "sequential", "weighted"):
            raise ValueError(
                f"LoaderConfig(order={self.order!r}) is not known; allowed are 'shuffle', "
                f"'sequential', 'weighted' (with weights=) and a function of (seed, epoch)"
            )
        if (self.weights is None) == (self.order == "weighted"):
            raise ValueError("LoaderConfig: weights= and order='weighted' go together")
        if self.num_samples is not None and self.order != "weighted":
            raise ValueError("LoaderConfig: num_samples= goes with order='weighted'")

    @property
    def workers(self) -> int:
        """Loader workers of this process."""
        if self.num_workers is not None:
            return self.num_workers
        return max(0, min(MOST_WORKERS, cpus() - 1))


def cpus(quota: Path = _QUOTA) -> int:
    """CPUs for one of the processes on this machine: quota and affinity, shared by local ranks."""
    available = float(len(os.sched_getaffinity(0)))
    try:
        allowed, period = quota.read_text().split()
        if allowed != "max":
            available = min(available, int(allowed) / int(period))
    except (OSError, ValueError):
        pass  # no cgroup of the second version here
    return max(1, int(available) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
