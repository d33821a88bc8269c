"""Loggers that write a file: JSON lines (our own form) and CSV.

A run has a directory ``save_dir/name/version``. A new run takes the next free ``version_N``, so
that nothing of another run is ever overwritten; an attempt that resumes takes the one that its
checkpoint names, and cuts off the rows of steps that are done again. The file is replaced by a
renamed copy for that, so a process that is killed meanwhile loses nothing. Every row is given to
the system at once: rows survive a killed process, and a row that was torn is dropped by the next.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from rekindle.loggers.feed import BATCH, Known
from rekindle.loggers.logger import Attempt, Logger

_VERSION = re.compile(r"^version_(\d+)$")


class DirectoryLogger(Logger):
    """A logger with a directory per run."""

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str = "logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        """Without `save_dir` the run's root is used; without `version` the next free one."""
        self._base = None if save_dir is None else os.path.abspath(os.fspath(save_dir))
        self._name = name
        self._version = f"version_{version}" if isinstance(version, int) else version
        self._chosen = self._version
        self.prefix = f"{prefix}/" if prefix else ""

    @property
    def name(self) -> str:
        """Name of the experiment: the directory that holds its versions."""
        return self._name

    @property
    def version(self) -> str | None:
        """This run's directory under the name; None before the run has begun."""
        return self._chosen

    @property
    def save_dir(self) -> str | None:
        """Directory of all experiments."""
        return self._base

    @property
    def log_dir(self) -> str | None:
        """This run's directory; None before the run has begun."""
        if self._base is None or self._chosen is None:
            return None
        return os.path.join(self._base, self._name, self._chosen)

    def prepare(self, attempt: Attempt) -> None:
        """Choose the directory."""
        if self._base is None:
            self._base = str(attempt.directory)
        if self._version is None and not (attempt.resumed and self._chosen):
            self._chosen = _free(Path(self._base) / self._name)

    def state_dict(self) -> dict[str, Any]:
        """Which version is this run's."""
        return {"version": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same version, unless the script names one."""
        if self._version is None:
            self._chosen = state_dict.get("version")

    def open(self, attempt: Attempt) -> Known:
        """Make the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return {}

    def rewind(self, attempt: Attempt) -> Known:
        """Close, and open again at the step."""
        self.close("failed")
        return self.open(attempt)

    @property
    def _directory(self) -> Path:
        assert self.log_dir is not None, "prepare() has chosen it"
        return Path(self.log_dir)

    def write_hyperparameters(self, values: dict[str, Any]) -> None:
        """Write ``hparams.json``."""
        (self._directory / "hparams.json").write_text(json.dumps(values, indent=2) + "\n")


class FileLogger(DirectoryLogger):
    """A logger with one file of rows, which is only ever appended to or replaced as a whole."""

    FILE: ClassVar[str]
    """Name of the file in the run's directory."""
    _file: IO[str] | None = None

    @property
    def _path(self) -> Path:
        return self._directory / self.FILE

    def _append(self, line: str) -> None:
        """Give a row to the system at once, so that it outlives this process."""
        assert self._file is not None
        self._file.write(line)
        self._file.flush()

    def _renew(self, lines: Iterable[str]) -> None:
        """Put lines in the place of what the file holds, in one go, and open it for more."""
        if self._file is not None:
            self._file.close()
        temporary = self._path.with_name(f".{self.FILE}.new")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def close(self, status: str) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()


class JSONLLogger(FileLogger):
    """Writes ``metrics.jsonl``: one object per record, with ``step``, ``time`` and the values.

    A value that is not finite is written as null, which is what JSON has for it.
    """

    FILE = "metrics.jsonl"

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        known: dict[str, int] = {}
        rows = _surviving(_objects(self._path), attempt, known, self.prefix)
        self._renew(json.dumps(row) + "\n" for row in rows)
        return known

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a line."""
        values = {n: v if math.isfinite(v) else None for n, v in metrics.items()}
        self._append(json.dumps({"step": step, "time": round(at, 3), **values}) + "\n")


class CSVLogger(FileLogger):
    """Writes ``metrics.csv``: a row per record, a column per name, empty where there is no value.

    A name that appears later gets its column then: the file is written anew, once per such name.
    """

    FILE = "metrics.csv"
    _columns: Sequence[str] = ("step", "time")

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        known: dict[str, int] = {}
        rows = list(_surviving(_rows(self._path), attempt, known, self.prefix))
        self._columns = [*dict.fromkeys(["step", "time", *(name for row in rows for name in row)])]
        self._renew(self._lines(rows))
        return known

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a row."""
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._columns = [*self._columns, *new]
            self._renew(self._lines(_rows(self._path)))
        self._append(_line({"step": step, "time": round(at, 3), **metrics}, self._columns))

    def _lines(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        """The whole file: header and rows."""
        yield _line({name: name for name in self._columns}, self._columns)
        for row in rows:
            yield _line(row, self._columns)


def _free(directory: Path) -> str:
    """The next version that no directory has."""
    names = os.listdir(directory) if directory.exists() else []
    taken = [int(match[1]) for name in names if (match := _VERSION.match(name))]
    return f"version_{max(taken, default=-1) + 1}"


def _surviving(
    rows: Iterable[dict[str, Any]], attempt: Attempt, known: dict[str, int], prefix: str
) -> Iterator[dict[str, Any]]:
    """The rows up to a step; notes in `known` how far each name has come.

    Rows of batches of a validation, which have no epoch, are counted by their own numbers.
    """
    apart = {prefix + name: number for name, number in attempt.apart.items()}
    for row in rows:
        at = int(row["step"])
        own = [apart[n] for n in row if n in apart] if f"{prefix}epoch" not in row else []
        if at <= (max(own) if own else attempt.step):
            for name in row:
                if name not in ("step", "time"):
                    key = name + (BATCH if own else "")
                    known[key] = max(at, known.get(key, at))
            yield row


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, none where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by the end of the process that wrote it
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file, if there is one; a torn last one lacks its end or first columns."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(whole, newline="")):
        if (row.get("step") or "").isdecimal():
            yield {name: value for name, value in row.items() if name and value}


def _line(row: dict[str, Any], columns: Sequence[str]) -> str:
    out = io.StringIO(newline="")
    csv.DictWriter(out, columns, restval="", lineterminator="\n").writerow(row)
    return out.getvalue()
