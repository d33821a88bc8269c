"""What a logger is: a name, a place, and a `write` that may take its time.

`log_metrics` and `log_hyperparams` are called by the trainer and may be called in any hook; they
hand the record over to a thread and return. That thread calls `open`, `write` and `flush`, which is
all that a logger of one's own has to define. So a service that is slow, or gone, costs the training
nothing.

A run that resumes at step s does again what the attempt before did after s. A logger that can take
records back cuts them off in `open`; one that cannot says there how far each name has been written,
and what is not beyond that is not written again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekindle.loggers.feed import Feed, Known, Record

_EARLY = 100
"""Records that are kept before a run."""


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

    prefix: str = ""
    """Put before each name of a metric, with a slash."""
    _feed: Feed | None = None
    _running = False
    _early: tuple[Record, ...] = ()

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
    def log_dir(self) -> str | None:
        """Directory of this run; None before it is known."""
        return self.save_dir

    @property
    def experiment(self) -> Any:
        """What the records are given to, for more than scalars; mute on ranks that do not write.

        Raises RuntimeError outside of a run.
        """
        return self if self.ready() else Mute()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand over scalars of a step (by default the newest one)."""
        if self._feed is not None or not self._running:
            values = {f"{self.prefix}{name}": float(value) for name, value in metrics.items()}
            self._put(Record(values=values, step=step))

    def log_hyperparams(self, params: Any) -> None:
        """Hand over hyperparameters: a mapping, or an object with attributes."""
        given = params if isinstance(params, Mapping) else vars(params)
        self._put(Record(hyperparameters=plain(given)))

    def save(self) -> None:
        """Nothing is kept back for this call; it is here for scripts that make it."""

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

    def begin(self, feed: Feed | None) -> None:
        """A run begins; `feed` is the thread that writes, on rank 0 (called by the trainer)."""
        early, self._early = self._early, ()
        self._feed, self._running = feed, True
        for record in early:
            self._put(record)

    def end(self) -> None:
        """The run has ended (called by the trainer)."""
        self._feed, self._running = None, False

    def ready(self) -> bool:
        """Whether this logger writes; waits until it is open. RuntimeError outside of a run."""
        if not self._running:
            raise RuntimeError(
                f"{type(self).__name__} is open while a run is going on: use its experiment in a "
                f"hook, for example on_fit_start"
            )
        return self._feed is not None and self._feed.opened()

    def _put(self, record: Record) -> None:
        if self._feed is not None:
            self._feed.put(record)
        elif not self._running and len(self._early) < _EARLY:
            self._early = (*self._early, record)


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
