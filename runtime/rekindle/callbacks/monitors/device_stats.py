"""What the machine does beside the steps: memory and processors, as the process itself sees them.

Read at the log interval from the kernel's own files and from CUDA's counters, neither of which
waits for the device. Values of `DeviceStats` go through `log`, so they are means over the ranks;
those of `DeviceStatsMonitor` are rank 0's, at the begin and at the end of a batch, for the loggers
alone.
"""

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from rekindle.callback import Callback
from rekindle.errors.misconfiguration import MisconfigurationException
from rekindle.strategies.accelerators import CUDAAccelerator, get_cpu_stats

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


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


class DeviceStatsMonitor(Callback):
    """Gives loggers ``DeviceStatsMonitor.on_train_batch_start/...``, and so for other hooks.

    Figures are those of `trainer.accelerator`: CUDA's counters, or shares of memory and processors
    in use (psutil), which come beside the GPU's with ``cpu_stats=True`` and never with False.
    """

    # It holds nothing, so there is nothing to find in a checkpoint.
    optional = True

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu = cpu_stats
        self._step = 0

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Raises MisconfigurationException with ``Trainer(logger=False)``."""
        if stage == "fit" and trainer.flags.logger is False and not trainer.loggers:
            raise MisconfigurationException(
                "DeviceStatsMonitor and Trainer(logger=False) exclude each other: give a logger, "
                "or remove the callback"
            )

    def _log(self, trainer: "Trainer", module: "Module", hook: str, count: int) -> None:
        if not trainer.loggers or count % trainer.flags.log_every_n_steps:
            return
        device, found = module.device, dict[str, Any]()
        if device.type == "cuda":
            found = CUDAAccelerator().get_device_stats(device)
        elif self._cpu is False:
            return
        if self._cpu or device.type != "cuda":
            found |= get_cpu_stats()
        for logger in trainer.loggers:
            prefix = f"{type(self).__qualname__}.{hook}{logger.group_separator}"
            values = {f"{prefix}{name}": float(value) for name, value in found.items()}
            logger.log_metrics(values, step=self._step)

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Log, in steps that are reported."""
        self._step = 0 if trainer._run is None else trainer._run.step
        self._log(trainer, pl_module, "on_train_batch_start", self._step + 1)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, in steps that are reported."""
        self._log(trainer, pl_module, "on_train_batch_end", self._step + 1)

    def on_validation_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log, in batches that are reported."""
        self._log(trainer, pl_module, "on_validation_batch_start", self._batch(trainer, batch_idx))

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log, in batches that are reported."""
        self._log(trainer, pl_module, "on_validation_batch_end", self._batch(trainer, batch_idx))

    def on_test_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log, in batches that are reported."""
        self._log(trainer, pl_module, "on_test_batch_start", self._batch(trainer, batch_idx))

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log, in batches that are reported."""
        self._log(trainer, pl_module, "on_test_batch_end", self._batch(trainer, batch_idx))

    def _batch(self, trainer: "Trainer", batch_idx: int) -> int:
        """What is counted in an evaluation: within `fit` steps, else batches."""
        run = trainer._run
        if run is None or trainer.state.fn != "fit":
            self._step = trainer.global_step
            return batch_idx + 1
        self._step = max(0, run.step - 1)
        return self._step + 1


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
