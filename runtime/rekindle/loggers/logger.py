"""What a logger is: a name, a place, and a `write` that may take its time.

`log_metrics` and `log_hyperparams` are called by the trainer and may be called in any hook; they
hand the record over to a thread and return. That thread calls `open`, `write` and `flush`, which is
all that a logger of one's own has to define. So a service that is slow, or gone, costs the training
nothing.

Outside of a run the same is done by a thread of the logger's own, which is made when something is
to be written (`save`, `experiment`, a record after a run) and ended by the next run, by `finalize`
or with the process.

A run that resumes at step s does again what the attempt before did after s. A logger that can take
records back cuts them off in `open`; one that cannot says there how far each name has been written,
and what is not beyond that is not written again.
"""

import atexit
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rekindle.loggers.feed import Known, LoggerThread, MetricRecord

_EARLY = 100
"""Records that are kept before a run."""
_SECONDS = 20.0
"""How long is waited for what is written outside of a run."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a logger is told when it is opened."""

    root: str
    """Where the run's checkpoints go: an absolute path or an ``s3://`` URL."""
    step: int
    """Step that this attempt goes on from; records of later steps belong to a lost timeline."""
    resumed: bool
    """Whether there is a checkpoint; without one nothing of before survives."""
    repeats: bool = True
    """Whether steps may come that were written before; not in a `test` after training."""
    apart: Mapping[str, int] = field(default_factory=dict)
    """Names of step values of validations, whose steps count batches; each with its newest one."""
    now: Callable[[], int] = field(default=lambda: 0)
    """The newest step, for records that name none."""

    @property
    def directory(self) -> Path:
        """The root as a directory; raises ValueError when it is none."""
        if "://" in self.root:
            raise ValueError(f"save_dir= is needed, because the root {self.root} is no directory")
        return Path(self.root)


class Logger:
    """Base class of loggers; define `write`, and `open` and `close` if there is something to open.

    Only rank 0's logger writes; on other ranks its methods do nothing. What is logged before the
    run begins is kept until then.
    """

    LOGGER_JOIN_CHAR: ClassVar[str] = "/"
    """What joins the prefix and a metric's name."""
    prefix: str = ""
    """Put before each name of a metric, together with what joins them."""
    _feed: LoggerThread | None = None
    _running = False
    _used = False
    """Whether this object has been opened before: what it goes on with is its own."""
    _early: tuple[MetricRecord, ...] = ()
    _alone: LoggerThread | None = None
    """What writes outside of a run."""
    _root = "."
    """Where a logger without a place of its own writes outside of a run."""
    _now = 0
    """The step that the last run has come to."""

    @property
    def name(self) -> str | None:
        """Name of the experiment."""
        return type(self).__name__

    @property
    def version(self) -> str | int | None:
        """What tells this run from others of the same experiment; None before it is known."""
        return None

    @property
    def save_dir(self) -> str | None:
        """Directory under which the logger writes; None when it writes to no directory."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Directory of the experiment, in which its runs lie."""
        return self.save_dir

    @property
    def log_dir(self) -> str | None:
        """Directory of this run; None before it is known."""
        return self.save_dir

    @property
    def group_separator(self) -> str:
        """What separates groups in the names of metrics."""
        return "/"

    @property
    def experiment(self) -> Any:
        """What the records are given to, for more than scalars; mute on ranks that do not write."""
        return self if self.ready() else Mute()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand over scalars of a step (by default the newest one)."""
        if self._feed is not None or not self._running:
            values = {f"{self.prefix}{name}": _number(value) for name, value in metrics.items()}
            self._put(MetricRecord(values=values, step=step))

    def log_hyperparams(self, params: Any = None, *arguments: Any, **options: Any) -> None:
        """Hand over hyperparameters: a mapping, or an object with attributes."""
        self._put(MetricRecord(hyperparameters=named(params)))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Show the model's operations, where a logger can; called when a run begins."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A `ModelCheckpoint` has written a file."""

    def save(self) -> None:
        """Wait until what was handed over is written."""
        feed = self._feed if self._running else self._opened()
        if feed is not None:
            feed.drained(_SECONDS)

    def finalize(self, status: str) -> None:
        """End what was opened outside of a run; a run ends its loggers by itself."""
        if not self._running:
            if self._early:
                self._opened()
            self._end_alone(status)

    def prepare(self, attempt: Attempt) -> None:
        """Decide on names, in the main thread of every rank; touch nothing, do nothing slow.

        Ranks other than 0 are given rank 0's state first, and an attempt that is `resumed`.
        """

    def open(self, attempt: Attempt) -> Known:
        """Open, and cut off what is later than `attempt.step`.

        Returns the last step per name that is written already, or one step for all names.
        """
        return {}

    def rewind(self, attempt: Attempt) -> Known | None:
        """Training went back to `attempt.step` within this process: cut off what is later.

        Returns what `open` would, or None when nothing can be cut off; then nothing is written
        again up to the last step that was.
        """
        return None

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Write scalars; `at` is the unix time at which they were logged."""
        raise NotImplementedError(f"{type(self).__name__} has no write(self, metrics, step, at)")

    def write_batch(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Write step values of a batch of an evaluation; `step` counts such batches."""
        self.write(metrics, step, at)

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Write hyperparameters, once per run; nested mappings of plain values."""

    def flush(self) -> None:
        """Nothing is waiting: a good moment to give buffers away."""

    def close(self, status: str) -> None:
        """End; `status` is ``finished``, ``failed``, or ``preempted`` when the run will go on."""

    def state_dict(self) -> dict[str, Any]:
        """What the next attempt needs to go on with the same record; plain values."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; called before `prepare`."""

    def begin(self, feed: LoggerThread | None) -> None:
        """A run begins; `feed` is the thread that writes, on rank 0 (called by the trainer)."""
        early, self._early = self._early, ()
        self._feed, self._running, self._used = feed, True, True
        for record in early:
            self._put(record)

    def end(self) -> None:
        """The run has ended (called by the trainer)."""
        if self._feed is not None:
            self._now = self._feed.now
        self._feed, self._running = None, False

    def ready(self) -> bool:
        """Whether this logger writes; waits until it is open."""
        feed = self._feed if self._running else self._opened()
        return feed is not None and feed.opened()

    def leave(self) -> None:
        """End what was opened outside of a run, before one begins (called by the trainer)."""
        self._end_alone("finished")

    def place(self, root: str) -> None:
        """Note the trainer's root (called by the trainer)."""
        self._root = root

    def _put(self, record: MetricRecord) -> None:
        if self._feed is not None:
            self._feed.put(record)
        elif self._running or os.environ.get("RANK", "0") != "0":
            return
        elif self._alone is not None or self._used:
            if (feed := self._opened()) is not None:
                feed.put(record)
        else:
            if not self._early:
                _at_exit(self)
            if len(self._early) < _EARLY:
                self._early = (*self._early, record)

    def _opened(self) -> LoggerThread | None:
        """The thread that writes outside of a run; None on ranks that do not write."""
        if self._alone is None and os.environ.get("RANK", "0") == "0":
            now = self._now
            attempt = Attempt(
                root=self._root, step=0, resumed=False, repeats=False, now=lambda: now
            )
            self.prepare(attempt)
            self._used = True
            self._alone = LoggerThread(self, attempt)
            _at_exit(self)
            early, self._early = self._early, ()
            for record in early:
                self._alone.put(record)
        return self._alone

    def _end_alone(self, status: str) -> None:
        feed, self._alone = self._alone, None
        if feed is not None:
            feed.close("finished" if status == "success" else status)
            feed.wait(_SECONDS)


def _at_exit(logger: Logger) -> None:
    """Write what a logger still has when the process ends, unless it is gone by then."""
    known = weakref.ref(logger)

    def end() -> None:
        found = known()
        if found is not None:
            found.finalize("success")

    atexit.register(end)


def overrides(logger: Logger, name: str) -> bool:
    """Whether a script's own class defines a method: one that none of the loggers here has."""
    module: str = getattr(getattr(type(logger), name, None), "__module__", "")
    return not module.startswith("rekindle.")


def _number(value: Any) -> float:
    """An integer as it is, anything else of one element as a float."""
    return value if type(value) is int else float(value)


def named(params: Any) -> dict[str, Any]:
    """Hyperparameters that were given as a mapping, as an object with attributes, or not at all."""
    given = {} if params is None else params
    return plain(given if isinstance(given, Mapping) else vars(given))


class Mute:
    """Takes any call and any attribute, and does nothing."""

    def __getattr__(self, name: str) -> "Mute":
        return self

    def __call__(self, *arguments: object, **options: object) -> "Mute":
        """Do nothing."""
        return self


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as values that every service takes: what is not plain becomes its text."""
    return {str(name): _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested hyperparameters by names joined with ``/``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value
    return found


def required(module: str, package: str, logger: str) -> Any:
    """Import a logger's package; raises ModuleNotFoundError naming what to install."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"{logger} needs the package {package}, which is not installed: pip install {package}",
            name=error.name,
        ) from None
