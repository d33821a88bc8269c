"""How fast training is, over the log interval: samples, tokens, share of the machine, goodput.

Goodput is the share of the wall-clock time since the run first began that went into steps which
survive: restarts, repeated steps, saves and waiting for capacity all lower it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer

PEAK = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "A10G": 7.0e13,
    "V100": 1.25e14,
    "T4": 6.5e13,
}
"""Dense 16-bit operations per second, by a part of the device's name."""


class ThroughputMonitor(Callback):
    """Logs ``throughput/``: samples_per_second, tokens_per_second, mfu and goodput."""

    optional = True

    def __init__(
        self,
        flops_per_sample: float | None = None,
        tokens: Callable[[Any], int] | None = None,
        peak_flops: float | None = None,
    ) -> None:
        """Say how much work a sample is, and what there is to count.

        `flops_per_sample` is the work of forward and backward pass for one sample; `tokens` counts
        the tokens of a batch; `peak_flops` is what one device can do per second, known for common
        GPUs in 16-bit arithmetic.
        """
        self._flops, self._tokens, self._peak = flops_per_sample, tokens, peak_flops
        self._count = 0
        self._seen = -1
        self._since: tuple[float, int, int] | None = None
        self._began: float | None = None

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Note when the run began, and find the device's peak."""
        if self._began is None:
            assert trainer.world is not None
            # What is saved has to be the same on every rank.
            self._began = trainer.world.share(time.time())
        if self._flops is not None and self._peak is None:
            self._peak = peak(pl_module.device)

    def on_train_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin to measure."""
        self._since = (time.perf_counter(), trainer.samples, 0)
        self._count = 0

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens."""
        if self._tokens is not None:
            self._count += self._tokens(batch)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, once per log interval."""
        step = trainer.global_step
        if step != self._seen and step % trainer.flags.log_every_n_steps == 0:
            self._seen = step
            self._log(trainer, pl_module)

    def _log(self, trainer: "Trainer", module: "Module") -> None:
        assert self._since is not None
        now, samples = time.perf_counter(), trainer.samples
        began, first, counted = self._since
        seconds = max(now - began, 1e-9)
        rate = (samples - first) / seconds
        module.log("throughput/samples_per_second", rate)
        if self._tokens is not None:
            # Each rank knows its own share; logged values are means.
            tokens = (self._count - counted) * trainer.world_size
            module.log("throughput/tokens_per_second", tokens / seconds)
        if self._flops is not None and self._peak is not None:
            share = rate * self._flops / (self._peak * trainer.world_size)
            module.log("throughput/mfu", share)
        if self._began is not None:
            age = max(time.time() - self._began, 1e-9)
            module.log("throughput/goodput", min(1.0, trainer.productive_seconds / age))
        self._since = (now, samples, self._count)

    def state_dict(self) -> dict[str, Any]:
        """When the run began."""
        return {"began": self._began or 0.0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._began = float(state_dict["began"]) or None


def peak(device: torch.device) -> float:
    """Operations per second of a device; raises ValueError when it is not a known GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for part, value in PEAK.items():
        if part in name:
            return value
    raise ValueError(
        f"ThroughputMonitor(flops_per_sample=...) does not know the peak of {name!r}: give "
        f"peak_flops=, the operations per second of one device"
    )
