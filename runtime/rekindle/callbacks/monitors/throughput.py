"""How fast training is, over the log interval: samples, tokens, share of the machine, goodput.

Goodput is the share of the wall-clock time since the run first began that went into steps which
survive: restarts, repeated steps, saves and waiting for capacity all lower it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rekindle.callback import Callback
from rekindle.callbacks.monitors.batch_rates import BatchRates

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

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
    """Logs ``throughput/``: samples_per_second, tokens_per_second, mfu and goodput.

    With `batch_size_fn` it is Lightning's: totals and rates of each stage go to the loggers, as
    ``train/samples``, ``train/device/batches_per_sec`` and so on, and nothing else does.
    """

    optional = True

    def __init__(
        self,
        batch_size_fn: "Callable[[Any], int] | None" = None,
        length_fn: "Callable[[Any], int] | None" = None,
        *,
        flops_per_sample: float | None = None,
        tokens: Callable[[Any], int] | None = None,
        peak_flops: float | None = None,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        """Say how much work a sample is, and what there is to count.

        `flops_per_sample` is the work of forward and backward pass for one sample; `tokens` counts
        the tokens of a batch; `peak_flops` is what one device can do per second, known for common
        GPUs in 16-bit arithmetic. `batch_size_fn` and `length_fn` count the samples and the items
        of a batch; rates are those of the newest `window_size` batches, and the module's attribute
        `flops_per_batch` is the work of one.
        """
        if batch_size_fn is not None and (flops_per_sample is not None or tokens is not None):
            raise ValueError(
                "ThroughputMonitor(batch_size_fn=...) counts by length_fn= and the module's "
                "flops_per_batch; leave out flops_per_sample= and tokens="
            )
        self._rates: BatchRates | None = None
        if batch_size_fn is not None:
            self._rates = BatchRates(
                batch_size_fn, length_fn, window=window_size, separator=separator, peak=peak_flops
            )
        else:
            kind = ThroughputMonitor
            self.idle = (
                kind.on_validation_start, kind.on_validation_batch_end, kind.on_validation_end,
                kind.on_test_start, kind.on_test_batch_end,
                kind.on_predict_start, kind.on_predict_batch_end,
            )  # fmt: skip
        self._flops, self._tokens, self._peak = flops_per_sample, tokens, peak_flops
        self._count = 0
        self._seen = -1
        self._since: tuple[float, int, int] | None = None
        self._began: float | None = None
        self._validated = 0
        """Batches of validations so far."""

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
        if self._rates is not None:
            self._rates.begin(trainer)
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
        if self._rates is not None:
            self._rates.count(trainer, pl_module, batch)
            done = 0 if trainer._run is None else trainer._run.step
            if done != self._seen and done % trainer.flags.log_every_n_steps == 0:
                self._seen = done
                self._rates.report(trainer, max(0, done - 1))
            return
        if step != self._seen and step % trainer.flags.log_every_n_steps == 0:
            self._seen = step
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin to measure."""
        if self._rates is not None and not trainer.sanity_checking:
            self._rates.begin(trainer)

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count, and log in batches that are reported."""
        if self._rates is None or trainer.sanity_checking:
            return
        self._rates.count(trainer, pl_module, batch)
        self._validated += 1
        run, number = trainer._run, self._validated
        if run is not None and trainer.state.fn == "fit":
            number = run.step
        if number % trainer.flags.log_every_n_steps == 0:
            self._rates.report(trainer, self._validated)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Take the validation's time out of training's."""
        if self._rates is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._rates.pause(time.perf_counter() - self._rates.finished())

    def on_test_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin to measure."""
        if self._rates is not None:
            self._rates.begin(trainer)

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count, and log in batches that are reported."""
        if self._rates is not None:
            self._rates.count(trainer, pl_module, batch)
            if (batch_idx + 1) % trainer.flags.log_every_n_steps == 0:
                self._rates.report(trainer, batch_idx + 1)

    on_predict_start = on_test_start
    on_predict_batch_end = on_test_batch_end

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
