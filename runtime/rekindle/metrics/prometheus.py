"""The metrics that a worker exports.

Workers only write; the pod's agent serves. With ``PROMETHEUS_MULTIPROC_DIR`` set (by the agent)
prometheus_client keeps values in files that the agent reads, so no worker needs a port and a dead
one leaves its counts behind. Values are written at the log interval and not in every step: one
update costs microseconds. Gauges about the run come from the pod's first worker only.

Label values are bounded: phases are a fixed list, and of logged metrics the first `MAX_NAMES` names
are exported.
"""

import sys

from prometheus_client import Counter, Gauge, Histogram

MAX_NAMES = 100
"""Logged metrics that become time series, at most."""

STEP_SECONDS = Histogram(
    "rekindle_step_seconds",
    "Seconds per optimizer step.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
"""How long steps take: data, forward, backward, sum of gradients, optimizer."""
STEPS = Counter("rekindle_steps", "Optimizer steps done by this pod.")
"""Steps, lost ones included."""
SAMPLES = Counter("rekindle_samples", "Samples handed to training_step by this pod.")
"""Samples, those of lost steps included."""
PHASE_SECONDS = Counter("rekindle_phase_seconds", "Seconds spent per phase.", ["phase"])
"""phase is data, transfer (to the device), forward, backward, comm_wait (for the sum over ranks),
optimizer, validation, checkpoint or log."""
STEP = Gauge("rekindle_step", "Optimizer steps in the surviving timeline.", multiprocess_mode="max")
"""The global step."""
EPOCH = Gauge("rekindle_epoch", "Epoch that is running.", multiprocess_mode="max")
"""0-based."""
LOSS = Gauge("rekindle_loss", "Newest training loss.", multiprocess_mode="mostrecent")
"""Mean over the step, as of the last log interval."""
METRIC = Gauge(
    "rekindle_metric", "Newest value of a logged metric.", ["name"], multiprocess_mode="mostrecent"
)
"""Whatever the module logs."""
CHECKPOINT_SECONDS = Histogram(
    "rekindle_checkpoint_seconds",
    "Seconds from the start of a save to its commit.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
"""How long a checkpoint is on its way, beside the training."""
CHECKPOINT_BYTES = Gauge(
    "rekindle_checkpoint_bytes", "Size of the newest checkpoint.", multiprocess_mode="mostrecent"
)
"""All ranks together."""
CHECKPOINT_STEP = Gauge(
    "rekindle_checkpoint_last_step", "Step of the newest commit.", multiprocess_mode="max"
)
"""What a crash would fall back to."""
CHECKPOINT_TIME = Gauge(
    "rekindle_checkpoint_last_timestamp_seconds",
    "Unix time of the newest commit.",
    multiprocess_mode="max",
)
"""``time() -`` this is the age of the newest checkpoint."""
CHECKPOINT_ERRORS = Counter("rekindle_checkpoint_errors", "Saves that were not committed.")
"""Training goes on after these; an alert should not."""
COMPILED_GRAPHS = Gauge(
    "rekindle_compiled_graphs",
    "Graphs that torch.compile has made.",
    multiprocess_mode="mostrecent",
)
"""More and more of them: something in the batches changes that code is compiled for."""
COMPILED_GUARDS = Gauge(
    "rekindle_compiled_guards",
    "Guards of the graphs that torch.compile has made.",
    multiprocess_mode="mostrecent",
)
"""What compiled code checks before it may be used; each check costs time in each step."""


PHASES = ("data", "transfer", "forward", "backward", "comm_wait", "optimizer")
"""The phases of a step; together they are its time."""


class Meter:
    """Collects what the loop measures and writes it out at the log interval."""

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._names: set[str] = set()
        self.durations: list[float] = []
        """Seconds of the steps since the last `flush`."""
        self.samples = 0
        """Samples of this rank since the last `flush`."""
        self.data = self.transfer = self.forward = self.backward = self.optimizer = 0.0
        self.comm_wait = 0.0
        """Part of `optimizer` until the next `flush`."""
        self._totals: dict[str, tuple[float, int]] = {}

    @property
    def before_optimizer(self) -> float:
        """Seconds since the last `flush` that steps have spent before their optimizer's part."""
        return self.data + self.transfer + self.forward + self.backward

    @property
    def step_seconds(self) -> float:
        """Mean duration of the steps since the last `flush`; 0 without one."""
        return sum(self.durations) / len(self.durations) if self.durations else 0.0

    @property
    def busy_seconds(self) -> float:
        """The same without waiting for other ranks' gradients.

        Some of these may have been waited for in a step that was gone back from, and is no step.
        """
        return max(0.0, self.step_seconds - self.comm_wait / max(1, len(self.durations)))

    def flush(self, *, step: int, epoch: int, loss: float | None) -> None:
        """Write out and begin anew."""
        SAMPLES.inc(self.samples)
        steps = len(self.durations)
        # A step that was not finished has waited, too, and has no time of an optimizer.
        self.optimizer = max(0.0, self.optimizer - self.comm_wait)
        for phase in PHASES:
            self._add(phase, getattr(self, phase), steps)
        self._add("steps", sum(self.durations), steps)
        if self._first:
            for seconds in self.durations:
                STEP_SECONDS.observe(seconds)
            STEPS.inc(len(self.durations))
            for phase in PHASES:
                PHASE_SECONDS.labels(phase).inc(getattr(self, phase))
            STEP.set(step)
            EPOCH.set(epoch)
            if loss is not None:
                LOSS.set(loss)
            guards = guard_counts()
            COMPILED_GRAPHS.set(len(guards))
            COMPILED_GUARDS.set(sum(guards))
        self.samples, self.durations = 0, []
        self.data = self.transfer = self.forward = self.backward = self.optimizer = 0.0
        self.comm_wait = 0.0

    def metrics(self, values: dict[str, float]) -> None:
        """Export logged metrics, up to the bound."""
        if not self._first:
            return
        for name, value in values.items():
            if name not in self._names and len(self._names) >= MAX_NAMES:
                continue
            self._names.add(name)
            METRIC.labels(name).set(value)

    def phase(self, name: str, seconds: float) -> None:
        """Add to one of the rare phases: validation, checkpoint, log."""
        self._add(name, seconds, 1)
        if self._first:
            PHASE_SECONDS.labels(name).inc(seconds)

    def phases(self) -> dict[str, tuple[float, int]]:
        """Phase -> (seconds, how often), as of the last flush; ``steps`` is the whole of them."""
        return dict(self._totals)

    def _add(self, phase: str, seconds: float, count: int) -> None:
        total, times = self._totals.get(phase, (0.0, 0))
        self._totals[phase] = (total + seconds, times + count)


def guard_counts() -> list[int]:
    """Guards of each graph that this process has compiled, of the newest 64 of them."""
    # Nobody compiles without it, and its import takes a second.
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return []
    return [m.guard_count for m in dynamo.get_compilation_metrics() if m.guard_count is not None]


def committed(*, step: int, seconds: float, size: int, now: float) -> None:
    """Note a commit (`now` in unix seconds)."""
    CHECKPOINT_SECONDS.observe(seconds)
    CHECKPOINT_BYTES.set(size)
    CHECKPOINT_STEP.set(step)
    CHECKPOINT_TIME.set(now)
