"""All loggers of a trainer, through one run.

Rank 0 has a feed (a thread) per logger, the other ranks have none. What each logger needs to go on
with the same record after a restart is in the checkpoint's `meta`, under ``loggers``.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rekindle.loggers.feed import LoggerThread, MetricRecord
from rekindle.loggers.files import JSONLLogger
from rekindle.loggers.logger import Attempt, Logger, overrides
from rekindle.plugins import named
from rekindle.ranks.distributed import World

_SECONDS = 20.0
"""How long the end of a pass waits for its records to be written."""


def chosen(given: object) -> list[Logger]:
    """What the trainer's flag `logger` means; raises TypeError for anything else."""
    given = named("logger", given, ())
    if given is None or given is False:
        return []
    if given is True:
        return [JSONLLogger()]
    found = [given] if isinstance(given, Logger) else given
    if not isinstance(found, Iterable) or isinstance(found, str | Mapping):
        found = [given]
    found = list(found)
    for logger in found:
        if not isinstance(logger, Logger):
            raise TypeError(
                f"logger={logger!r} must be a rekindle.loggers.Logger, a list of them, True (JSON "
                f"lines under a local root), False or None"
            )
    return found


class Journal:
    """Gives the values of a run to its loggers; does nothing on ranks other than 0."""

    def __init__(self, loggers: Sequence[Logger], world: World, say: Callable[[str], None]) -> None:
        self._loggers, self._world, self._say = list(loggers), world, say
        self._saving = [(logger, overrides(logger, "save")) for logger in loggers]
        """Loggers, and whether they are to be told to save after each record."""
        self._feeds: dict[str, LoggerThread] = {}
        self._told: list[Logger] = []
        self._described = False
        self._counts: dict[int, int] = {}
        """Batches of each loader that were validated with step values."""
        self._apart: dict[str, int] = {}
        """The last such number of each name."""

    def begin(self, attempt: Attempt, saved: Sequence[Mapping[str, Any]] = ()) -> None:
        """Open the loggers, in their threads; `saved` is what `state` gave. Collective."""
        # Loggers are told apart by their kind and place among those of that kind.
        before = {str(entry["logger"]): entry for entry in saved}
        names = _names(self._loggers)
        for logger in self._loggers:
            logger.leave()
        self._restore(saved)
        attempt = replace(attempt, apart=dict(self._apart))
        self.recall(saved)
        if self._world.first:
            ready = [logger for logger in self._loggers if self._prepared(logger, attempt)]
            for name, logger in zip(names, self._loggers, strict=True):
                feed = None
                if logger in ready:
                    waiting = before.get(name, {}).get("waiting", ())
                    feed = LoggerThread(logger, _earlier(attempt, waiting))
                    for record in waiting:
                        feed.put(MetricRecord(**record, again=True))
                    self._feeds[name] = feed
                try:
                    logger.begin(feed)
                except Exception as error:
                    # A logger's own code (W&B puts hooks into a model here); no run depends on it.
                    self._say(f"logger {type(logger).__name__} failed: {error}. Training goes on.")
        states: list[Any] = []
        if self._loggers:
            states = self._world.share([logger.state_dict() for logger in self._loggers])
        if not self._world.first:
            for logger, state in zip(self._loggers, states, strict=True):
                logger.load_state_dict(state)
                with contextlib.suppress(ValueError):
                    logger.prepare(replace(attempt, resumed=True))
                logger.begin(None)
        self._described = bool(saved) and all(entry.get("described") for entry in saved)

    def recall(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Have the loggers go on with what a checkpoint names."""
        before = {str(entry["logger"]): entry for entry in saved}
        for name, logger in zip(_names(self._loggers), self._loggers, strict=True):
            if name in before:
                logger.load_state_dict(dict(before[name]["state"]))

    def graph(self, module: Any) -> None:
        """Show the module's operations, at loggers that can."""
        for logger in self._loggers:
            if type(logger).log_graph is not Logger.log_graph and self._world.first:
                self._guarded(logger, partial(logger.log_graph, module))

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        """Log the run's hyperparameters, unless an attempt before has done so."""
        if not self._described and hyperparameters:
            for logger in self._loggers:
                self._guarded(logger, partial(logger.log_hyperparams, hyperparameters))
        self._described = True

    def record(self, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Log values of a step; never waits."""
        if not self._feeds:
            return
        self._hand_over({**values, "epoch": epoch}, step)
        self._tell()

    def _hand_over(self, values: Mapping[str, float], step: int) -> None:
        if not self._feeds:
            return
        for logger, saves in self._saving:
            self._guarded(logger, partial(logger.log_metrics, values, step))
            if saves:
                self._guarded(logger, logger.save)

    def _guarded(self, logger: Logger, call: Callable[[], Any]) -> None:
        """A logger of the user's that overrides a method does its work right here."""
        try:
            call()
        except Exception as error:
            if logger not in self._told:
                self._told.append(logger)
                self._say(f"logger {type(logger).__name__} failed: {error}. Training goes on.")

    def record_batches(
        self, batches: Mapping[tuple[int, int], Mapping[str, float]], *, counted: bool
    ) -> dict[str, float]:
        """Log values of an evaluation's batches, by loader and number; returns the newest.

        With `counted` the numbers go on from those of the evaluation before, for each loader.
        """
        counts, newest = self._counts if counted else {}, dict[str, float]()
        first = dict(counts)
        for (loader, index), values in sorted(batches.items()):
            number = first.get(loader, 0) + index
            counts[loader] = number + 1
            if not values:
                continue
            newest |= values
            if counted:
                self._apart |= dict.fromkeys(values, number)
            for feed in self._feeds.values():
                feed.apart = True
            self._hand_over(values, number)
            for feed in self._feeds.values():
                feed.apart = False
        self._tell()
        return newest

    def rewind(self, step: int, saved: Sequence[Mapping[str, Any]] = ()) -> None:
        """Training goes back within this process to a step where `state` gave `saved`."""
        self._restore(saved)
        for feed in self._feeds.values():
            feed.put(MetricRecord(rewind=step, numbers=dict(self._apart)))

    @contextlib.contextmanager
    def briefly(self, attempt: Attempt, saved: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Have the loggers open for a pass outside of training; collective."""
        self.begin(attempt, saved)
        status = "failed"
        try:
            yield
            status = "finished"
        finally:
            self.close(status, _SECONDS)

    def _restore(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Count batches of validations from where they were."""
        for entry in saved[:1]:
            self._counts = {int(loader): int(n) for loader, n in entry.get("counts", ())}
            self._apart = dict(entry.get("apart", {}))

    def state(self) -> list[dict[str, Any]]:
        """What goes into a checkpoint."""
        found = []
        for name, logger in zip(_names(self._loggers), self._loggers, strict=True):
            waiting = self._feeds[name].waiting() if name in self._feeds else []
            told = not any(record.hyperparameters for record in waiting)
            found.append(
                {
                    "logger": name,
                    "state": logger.state_dict(),
                    "described": self._described and told,
                    "waiting": [_saved(record) for record in waiting if record.values],
                    "counts": [[loader, count] for loader, count in sorted(self._counts.items())],
                    "apart": dict(self._apart),
                }
            )
        return found

    def close(self, status: str, seconds: float) -> None:
        """Write out what is waiting and close all loggers, in at most `seconds` together."""
        limit = time.monotonic() + seconds
        for feed in self._feeds.values():
            feed.close(status)
        for feed in self._feeds.values():
            feed.wait(max(0.0, limit - time.monotonic()))
        self._tell()
        for logger in self._loggers:
            if overrides(logger, "finalize"):
                ended = "success" if status == "finished" else "failed"
                self._guarded(logger, partial(logger.finalize, ended))
            logger.end()
        self._feeds = {}

    def _prepared(self, logger: Logger, attempt: Attempt) -> bool:
        try:
            logger.prepare(attempt)
        except Exception as error:
            # A logger's own code, about its own names and places; the run needs none of them.
            self._say(
                f"logger {type(logger).__name__} is not used: {error}. Training goes on without it."
            )
            return False
        return True

    def _tell(self) -> None:
        for feed in self._feeds.values():
            for line in feed.news():
                self._say(line)


def _earlier(attempt: Attempt, waiting: Sequence[Mapping[str, Any]]) -> Attempt:
    """The attempt of a logger that has to go back for what was waiting."""
    return replace(attempt, step=min([attempt.step, *(int(r["now"]) - 1 for r in waiting)]))


def _saved(record: MetricRecord) -> dict[str, Any]:
    return {
        "values": record.values,
        "step": record.step,
        "at": record.at,
        "now": record.now,
        "apart": record.apart,
    }


def _names(loggers: Sequence[Logger]) -> list[str]:
    kinds = [type(logger).__qualname__ for logger in loggers]
    return [f"{kind}.{kinds[:i].count(kind)}" for i, kind in enumerate(kinds)]
