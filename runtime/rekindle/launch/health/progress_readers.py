"""What scripts without our trainer say of their progress, read: functions of bytes and lines.

Four ways to say it. ``rekindle.report`` and a JSON-lines file give documents, a log gives lines in
which a pattern (or a preset, a few patterns for a well-known library) finds numbers, and files of
TensorBoard are read by ``events``. All end as a ``Reading``, and ``Course`` makes of the readings
of a round what the operator is told.

Whatever stands there was written by somebody's program, or by two of them at once: what makes no
sense is no reading, and never an error.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rekindle.api import ENV_PROGRESS, Progress

LINE = 4096
"""Characters of a line that are looked at."""
LARGEST = 1 << 53
"""No count is larger; what a file says beyond it is not meant."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one document or line says; None for what it does not."""

    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    loss: float | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProgressSource:
    """``spec.progress``: at most one of these is set."""

    file: str | None = None
    tensorboard: str | None = None
    pattern: re.Pattern[str] | None = None
    preset: str | None = None

    @property
    def log(self) -> bool:
        """Whether lines are wanted that a worker prints."""
        return self.pattern is not None or self.preset is not None


PRESETS = ("huggingface",)
"""Libraries whose lines are known."""
GROUPS = ("step", "total", "epoch", "loss", "samples")
"""Names that groups of a pattern may have."""


def source_of(text: str | None) -> ProgressSource:
    """Read ``REKINDLE_PROGRESS``; raises ValueError saying what is wrong and what is allowed."""
    if not text:
        return ProgressSource()
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{ENV_PROGRESS} is no JSON: {error}") from error
    given = {key: value for key, value in given.items() if value} if _is_map(given) else given
    match given:
        case {"file": str(path)} if len(given) == 1:
            return ProgressSource(file=path)
        case {"tensorboard": str(path)} if len(given) == 1:
            return ProgressSource(tensorboard=path)
        case {"log": {"pattern": str(pattern), **rest}} if len(given) == 1 and not any(
            rest.values()
        ):
            return ProgressSource(pattern=_compiled(pattern))
        case {"log": {"preset": str(preset), **rest}} if len(given) == 1 and not any(rest.values()):
            if preset not in PRESETS:
                raise ValueError(
                    f"spec.progress.log.preset is {preset!r}, must be one of: {', '.join(PRESETS)}"
                )
            return ProgressSource(preset=preset)
    if given == {}:
        return ProgressSource()
    raise ValueError(
        f"{ENV_PROGRESS} is {text[:200]}, must hold one of file, tensorboard, log.pattern or "
        "log.preset"
    )


def _is_map(value: object) -> bool:
    return isinstance(value, dict)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        found = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"spec.progress.log.pattern {pattern!r} is no regular expression: {error}"
        ) from error
    if "step" not in found.groupindex:
        raise ValueError(
            f"spec.progress.log.pattern {pattern!r} has no group named step: write "
            r"(?P<step>\d+) around the number of the step"
        )
    return found


def from_json(line: bytes) -> Reading | None:
    """Read a JSON document with a step; None for anything else."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    return _reading(
        {
            "step": given.get("step"),
            "total": given.get("totalSteps", given.get("total_steps")),
            "epoch": given.get("epoch"),
            "loss": given.get("loss"),
            "samples": given.get("samples"),
        }
    )


def _reading(given: Mapping[str, object]) -> Reading | None:
    """Keep what can be used; None without a step."""
    step = count(given.get("step"))
    if step is None:
        return None
    return Reading(
        step=step,
        total=count(given.get("total")),
        epoch=count(given.get("epoch")),
        loss=number(given.get("loss")),
        samples=count(given.get("samples")),
    )


def number(value: object) -> float | None:
    """Give a finite number, also one that is text; None for anything else."""
    if isinstance(value, str):
        value = value.strip().replace(",", "") if len(value) <= 64 else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int | None:
    """Give a whole number from 0 up; what is after the point of an epoch is left out."""
    found = number(value)
    return int(found) if found is not None and 0 <= found <= LARGEST else None


Reader = Callable[[str], Reading | None]
"""What makes of a line what it says."""


def reader_of(source: ProgressSource) -> Reader:
    """Give what reads the lines of a log."""
    if source.preset is not None:
        return HuggingFace()
    pattern = source.pattern
    assert pattern is not None, "only a source of lines has a reader"

    def read(line: str) -> Reading | None:
        found = pattern.search(line[:LINE])
        return _reading(found.groupdict()) if found else None

    return read


_BAR = re.compile(r"^\s*\d{1,3}%\|[^|]*\|\s*(\d+)/(\d+)\s*\[")
"""tqdm's bar without a description: the trainer's, or an evaluation's; a data set's has one."""
_LOGGED = re.compile(
    r"['\"](loss|epoch|step|global_step|train_loss)['\"]:\s*['\"]?([-+0-9.eE]+|nan|inf)"
)


class HuggingFace:
    """Lines of transformers' Trainer: its progress bar has the step, its logs loss and epoch.

    An evaluation has a bar of the same kind. The trainer's is the one that was there before a loss
    of training was logged; until then, it is the first.
    """

    def __init__(self) -> None:
        self._total: int | None = None
        self._newest: Reading | None = None

    def __call__(self, line: str) -> Reading | None:
        """Read one line."""
        line = line[:LINE]
        if (bar := _BAR.match(line)) is not None:
            step, total = count(bar[1]), count(bar[2])
            if step is None or not total or step > total:
                return None
            self._newest = Reading(step=step, total=total)
            self._total = total if self._total is None else self._total
            return self._newest if total == self._total else None
        if "{" not in line:
            return None
        logged = dict(_LOGGED.findall(line))
        if "loss" not in logged and "train_loss" not in logged:
            return None
        step = count(logged.get("step", logged.get("global_step")))
        newest = self._newest
        if newest is not None and "loss" in logged and step is None:
            self._total = newest.total
        mine = newest if newest is not None and newest.total == self._total else None
        return Reading(
            step=step if step is not None else mine.step if mine else None,
            total=mine.total if mine else None,
            epoch=count(logged.get("epoch")),
            loss=number(logged.get("loss")),
        )


@dataclass(frozen=True, kw_only=True)
class Course:
    """How far the workers of a round have come, by what has been read so far."""

    progress: Progress | None = None
    first: int | None = None
    """The first step that was read in this round: a script that goes on begins late."""

    def read(self, new: Reading, *, forward: bool = False) -> "Course":
        """Take in a reading; with ``forward``, an older step than the newest is not believed.

        Lines of a log may come from several bars. Who reports or writes a file means what it says,
        also when training goes back.
        """
        if new.step is None and self.progress is None:
            return self  # What is known of a run without a step is not worth telling.
        before = self.progress or Progress()
        step = before.step if new.step is None else new.step
        if forward:
            step = max(step, before.step)
        first = step if self.first is None else min(self.first, step)
        # Who begins with a step has done one since the round began; who begins with 0, none.
        steps = step - first + (1 if first else 0)
        return Course(
            first=first,
            progress=replace(
                before,
                step=step,
                total_steps=before.total_steps if new.total is None else new.total,
                epoch=before.epoch if new.epoch is None else new.epoch,
                loss=before.loss if new.loss is None else new.loss,
                samples=before.samples if new.samples is None else new.samples,
                round_steps=max(before.round_steps, steps),
            ),
        )


def text(line: bytes) -> str:
    """Give a line of a log as text, without the colours of a terminal."""
    return _COLOUR.sub("", line[: 4 * LINE].decode(errors="replace"))


_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines_of(rest: bytes, data: bytes) -> tuple[list[bytes], bytes]:
    """Split what came into whole lines and the beginning of the next; a bar ends with ``\\r``.

    A line that does not end is cut: what is kept is bounded.
    """
    *whole, rest = re.split(rb"[\r\n]+", rest + data)
    return [line for line in whole if line], rest[-(1 << 16) :]
