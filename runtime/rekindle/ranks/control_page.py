"""The page of shared memory between a pod's agent and its workers.

The agent has to tell workers that they should save and stop, and workers have to tell the agent how
far they are. Signals are wrong for the first (a Python handler runs between two bytecodes, never
inside a blocked collective) and pipes or HTTP are wrong for the second (they cost microseconds per
step on the hot path). So both sides map one small file and store 64-bit words in it: a step counter
costs tens of nanoseconds, and a worker looks at the stop word before every step.

Each word has one writer (the agent, or the pod's first worker) and is aligned, so a reader sees the
old or the new value, never half of one. Values that belong together may be one step apart; nothing
rests on them being from the same instant.

A script may fit several times. The page counts them as one training: what fits before this one have
done in this process is added to whatever a fit says, so that steps never fall back while nothing
is lost.

Files beside the page in the round's private directory (``REKINDLE_RUN_DIR``):
``outcome-{rank}.json``, which a failing worker leaves behind, ``restored.json`` and others. All are
written to a temporary name and renamed, so they are there whole or not at all.
"""

import contextlib
import json
import math
import mmap
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rekindle.api import (
    ENV_RUN_DIR,
    CheckpointReport,
    Outcome,
    Progress,
    RestoredFrom,
    Rollback,
)

PAGE_SIZE = 4096
PAGE_NAME = "control"

# Words written by the agent.
_STOP = 0  # 1: agree on a step, save, stop
_STOP_DEADLINE = 1  # f64, time.monotonic() of this machine
_STAYS = 2  # 1: asked to stop for a new round, of which this pod will be a member
# Words written by the pod's first worker.
_ATTACHED = 8  # 1: a trainer watches this page
_STEP = 9
_TOTAL_STEPS = 10
_EPOCH = 11
_SAMPLES = 12
_ROUND_STEPS = 13
_COMMIT_STEP = 14  # -1: none
_USEFUL_WORLD = 15  # 0: not said
_LOSS = 16  # f64, nan: none
_SAMPLES_PER_SECOND = 17  # f64, nan: none
_PRODUCTIVE = 18  # f64, seconds
_STALL = 19  # f64, seconds
_COMMIT_AT = 20  # f64, unix seconds
_COMMIT_SECONDS = 21  # f64, what the newest save took until it was committed; nan: unknown
_GROUPED = 22  # f64, time.monotonic() of this machine, as the next two; 0: not yet
_RESTORED = 23
_STEPPED = 24
_LEAST_WORLD = 27  # i64; 0: any number of workers can go on
# Words that any worker of the pod may write, all with the same meaning.
_FORMED = 25  # f64, time.monotonic(): torch's process group was there, whoever made it
_AWAITED = 26  # 1: a trainer has been made, and will attach to this page

METRICS_FILE = "metrics.json"


@dataclass(slots=True)
class _Past:
    """What fits of this process have done that have ended."""

    steps: int = 0
    samples: int = 0
    productive: float = 0.0
    stall: float = 0.0


_pasts: dict[Path, _Past] = {}
"""By the directory of the page."""


class ControlPage:
    """One side's view of the page. Created by the agent, opened by workers."""

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        """Map the page of a round's directory; raises OSError when there is none."""
        self.directory = directory
        if create:
            _pasts.pop(directory, None)
        self._past = _pasts.setdefault(directory, _Past())
        path = directory / PAGE_NAME
        if create:
            path.write_bytes(bytes(PAGE_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), PAGE_SIZE)
        view = memoryview(self._map)
        self._ints = view.cast("q")
        self._floats = view.cast("d")
        if create:
            self._ints[_TOTAL_STEPS] = -1
            self._ints[_COMMIT_STEP] = -1
            self._floats[_LOSS] = math.nan
            self._floats[_SAMPLES_PER_SECOND] = math.nan
            self._floats[_COMMIT_SECONDS] = math.nan

    @classmethod
    def from_environment(cls) -> Self | None:
        """Open the page that the agent has named, or None when no agent started this process."""
        directory = os.environ.get(ENV_RUN_DIR)
        return cls(Path(directory)) if directory else None

    # The agent's side.

    def request_stop(self, deadline: float, *, stays: bool = False) -> None:
        """Ask the workers to save and stop before ``deadline`` (time.monotonic()).

        Asking again moves the deadline, earlier or later. With ``stays`` this pod, and what lies in
        its memory, is there for the next round.
        """
        self._ints[_STAYS] = int(stays)
        self._floats[_STOP_DEADLINE] = deadline
        self._ints[_STOP] = 1

    @property
    def attached(self) -> bool:
        """Whether a trainer watches the page. A plain script does not."""
        return self._ints[_ATTACHED] == 1

    def progress(self) -> Progress:
        """How far the workers are."""
        total = self._ints[_TOTAL_STEPS]
        return Progress(
            step=self._ints[_STEP],
            total_steps=total if total >= 0 else None,
            epoch=self._ints[_EPOCH],
            loss=_number(self._floats[_LOSS]),
            metrics=self._metrics(),
            samples=self._ints[_SAMPLES],
            samples_per_second=_number(self._floats[_SAMPLES_PER_SECOND]),
            productive_seconds=self._floats[_PRODUCTIVE],
            stall_seconds=self._floats[_STALL],
            round_steps=self._ints[_ROUND_STEPS],
        )

    def checkpoint(self, uri: str) -> CheckpointReport | None:
        """The newest commit that the workers have announced."""
        step = self._ints[_COMMIT_STEP]
        if step < 0:
            return None
        return CheckpointReport(step=step, committed_at=self._floats[_COMMIT_AT], uri=uri)

    @property
    def save_seconds(self) -> float | None:
        """What the newest save took, from its step to its commit; None before the first."""
        return _number(self._floats[_COMMIT_SECONDS])

    def stamps(self) -> tuple[float | None, float | None, float | None]:
        """When the workers were grouped, restored, and through their first step.

        Values of time.monotonic(), None for what has not happened.
        """
        grouped, restored, stepped = (
            self._floats[word] or None for word in (_GROUPED, _RESTORED, _STEPPED)
        )
        return grouped, restored, stepped

    @property
    def formed_at(self) -> float | None:
        """When torch's process group was there, with or without a trainer of ours."""
        return self._floats[_FORMED] or None

    @property
    def awaited(self) -> bool:
        """Whether a trainer is about to attach."""
        return self._ints[_AWAITED] == 1

    def outcomes(self) -> list[Outcome]:
        """What failing workers of this pod have left behind, earliest first."""
        found = []
        for path in self.directory.glob("outcome-*.json"):
            found.append(Outcome.from_json(json.loads(path.read_text())))
        return sorted(found, key=lambda outcome: outcome.at)

    def restored(self) -> RestoredFrom | None:
        """Where the workers began, once they know."""
        path = self.directory / "restored.json"
        if not path.exists():
            return None
        return RestoredFrom.from_json(json.loads(path.read_text()))

    def waits(self) -> str | None:
        """What the workers wait for that others have to give, in words."""
        path = self.directory / "waits.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return str(found["for"]) if found.get("for") else None

    def rollback(self) -> Rollback | None:
        """The newest return to an older step, if there was one in this round."""
        path = self.directory / "rollback.json"
        if not path.exists():
            return None
        return Rollback.from_json(json.loads(path.read_text()))

    def _metrics(self) -> dict[str, float] | None:
        path = self.directory / METRICS_FILE
        if not path.exists():
            return None
        return {str(k): float(v) for k, v in json.loads(path.read_text()).items()}

    @property
    def worlds(self) -> tuple[int | None, int | None]:
        """The least workers that can go on, and of how many all have something to do.

        None: no limit, or not said.
        """
        return self._ints[_LEAST_WORLD] or None, self._ints[_USEFUL_WORLD] or None

    # The workers' side.

    def attach(self) -> None:
        """Tell the agent that a trainer obeys the stop word, and that its group is formed."""
        self._floats[_GROUPED] = time.monotonic()
        self._ints[_ATTACHED] = 1

    def formed(self) -> None:
        """Tell the agent that torch's process group is there."""
        self._floats[_FORMED] = time.monotonic()

    def await_trainer(self) -> None:
        """Tell the agent that a trainer has been made, whose first step is worth waiting for."""
        self._ints[_AWAITED] = 1

    @property
    def stop_requested(self) -> bool:
        """Whether to agree on a step, save and stop."""
        return self._ints[_STOP] == 1

    @property
    def stays(self) -> bool:
        """Whether this pod is there for the next round, as far as its agent knows."""
        return self._ints[_STOP] == 0 or self._ints[_STAYS] == 1

    @property
    def seconds_left(self) -> float:
        """Until the deadline of the stop request; infinite without a request."""
        if self._ints[_STOP] == 0:
            return math.inf
        return self._floats[_STOP_DEADLINE] - time.monotonic()

    def begin(
        self,
        *,
        step: int,
        samples: int,
        total_steps: int | None,
        epoch: int = 0,
        productive: float = 0.0,
        stall: float = 0.0,
    ) -> None:
        """Announce where a round begins, with the seconds that its checkpoint has counted.

        State is back in place by then.
        """
        past = self._past
        self._floats[_RESTORED] = time.monotonic()
        self._ints[_EPOCH] = epoch
        self._floats[_PRODUCTIVE] = past.productive + productive
        self._floats[_STALL] = past.stall + stall
        self._ints[_STEP] = past.steps + step
        self._ints[_SAMPLES] = past.samples + samples
        self._ints[_TOTAL_STEPS] = -1 if total_steps is None else past.steps + total_steps

    def step_done(
        self, *, step: int, epoch: int, samples: int, productive: float, stall: float
    ) -> None:
        """Announce a completed optimizer step (hot path: six stores and a look)."""
        ints, floats, past = self._ints, self._floats, self._past
        ints[_EPOCH] = epoch
        ints[_SAMPLES] = past.samples + samples
        floats[_PRODUCTIVE] = past.productive + productive
        floats[_STALL] = past.stall + stall
        if not ints[_ROUND_STEPS]:
            floats[_STEPPED] = time.monotonic()
        ints[_ROUND_STEPS] += 1
        ints[_STEP] = past.steps + step

    def fit_ended(self) -> None:
        """Take what has been announced until now as done, for the fits that follow."""
        past = self._past
        past.steps, past.samples = self._ints[_STEP], self._ints[_SAMPLES]
        past.productive, past.stall = self._floats[_PRODUCTIVE], self._floats[_STALL]

    def use(self, useful: int | None, *, least: int | None = None) -> None:
        """Announce of how many workers all have something to do, and how few can go on.

        None: any number.
        """
        self._ints[_USEFUL_WORLD] = useful or 0
        self._ints[_LEAST_WORLD] = least or 0

    def observe(self, *, loss: float | None, samples_per_second: float | None) -> None:
        """Announce values that are known only now and then."""
        self._floats[_LOSS] = math.nan if loss is None else loss
        self._floats[_SAMPLES_PER_SECOND] = (
            math.nan if samples_per_second is None else samples_per_second
        )

    def committed(self, *, step: int, at: float, seconds: float | None = None) -> None:
        """Announce a commit: ``at`` in unix seconds, and what the save took as a whole."""
        self._floats[_COMMIT_AT] = at
        if seconds is not None:
            self._floats[_COMMIT_SECONDS] = seconds
        self._ints[_COMMIT_STEP] = self._past.steps + step

    def write_metrics(self, metrics: dict[str, float]) -> None:
        """Leave the newest validation metrics for the agent; a dozen at most travel on."""
        self._write(METRICS_FILE, dict(list(metrics.items())[:12]))

    def write_outcome(self, outcome: Outcome) -> None:
        """Leave an outcome for the agent, one per worker."""
        past = self._past.steps
        if outcome.step is not None:
            outcome = replace(outcome, step=past + outcome.step)
        if outcome.checkpoint is not None:
            outcome = replace(outcome, checkpoint=past + outcome.checkpoint)
        self._write(f"outcome-{outcome.rank or 0}.json", outcome.to_json())

    def write_restored(self, restored: RestoredFrom) -> None:
        """Leave word of where this round began."""
        restored = replace(restored, step=self._past.steps + restored.step)
        self._write("restored.json", restored.to_json())

    def write_waits(self, words: str | None) -> None:
        """Leave word of what this round waits for, None for nothing any more."""
        self._write("waits.json", {"for": words})

    def write_rollback(self, rollback: Rollback) -> None:
        """Leave word that training went back by itself."""
        at, to = self._past.steps + rollback.at_step, self._past.steps + rollback.to_step
        self._write("rollback.json", replace(rollback, at_step=at, to_step=to).to_json())

    def _write(self, name: str, document: dict[str, object]) -> None:
        temporary = self.directory / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.directory / name)


def announce() -> None:
    """Tell the agent, if there is one, that a trainer has been made in this process."""
    with contextlib.suppress(OSError, ValueError):
        page = ControlPage.from_environment()
        if page is not None:
            page.await_trainer()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
