"""What the machine does beside the steps: memory and processors, as the process itself sees them.

Read at the log interval from the kernel's own files and from CUDA's counters, neither of which
waits for the device. Values go through `log`, so they are means over the ranks.
"""

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer


class DeviceStats(Callback):
    """Logs ``device/...``: memory and CPU of the process, memory and load of its GPU."""

    def __init__(self, cpu_stats: bool | None = None) -> None:
        """`cpu_stats` False leaves the process's own values out where there is a GPU."""
        self._cpu = cpu_stats
        self._seen = -1
        self._before: tuple[float, float] | None = None

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, once per log interval."""
        step = trainer.global_step
        if step == self._seen or step % trainer.flags.log_every_n_steps:
            return
        self._seen = step
        device = pl_module.device
        if device.type == "cuda":
            for name, value in gpu(device).items():
                pl_module.log(f"device/{name}", value)
        if self._cpu or (self._cpu is None or device.type == "cpu"):
            for name, value in self._process().items():
                pl_module.log(f"device/{name}", value)

    def _process(self) -> dict[str, float]:
        now, used = time.perf_counter(), time.process_time()
        before, self._before = self._before, (now, used)
        found = {"memory_resident_bytes": resident()}
        if before is not None and now > before[0]:
            found["cpu_percent"] = 100 * (used - before[1]) / (now - before[0])
        return found


DeviceStatsMonitor = DeviceStats


def resident() -> float:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gpu(device: torch.device) -> dict[str, float]:
    """What CUDA's allocator counts, and the load if the driver tells it."""
    stats = torch.cuda.memory_stats(device)
    found = {
        "gpu_memory_allocated_bytes": float(stats.get("allocated_bytes.all.current", 0)),
        "gpu_memory_peak_bytes": float(stats.get("allocated_bytes.all.peak", 0)),
        "gpu_memory_reserved_bytes": float(stats.get("reserved_bytes.all.current", 0)),
    }
    # Needs the package nvidia-ml-py.
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):
        found["gpu_percent"] = float(torch.cuda.utilization(device))
    return found
