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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from rekindle.loggers.feed import Known
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


class JSONLLogger(DirectoryLogger):
    """Writes ``metrics.jsonl``: one object per record, with ``step``, ``time`` and the values.

    A value that is not finite is written as null, which is what JSON has for it.
    """

    FILE = "metrics.jsonl"

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str = "logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._file: IO[str] | None = None

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        path = self._directory / self.FILE
        known: dict[str, int] = {}
        if path.exists():
            rows = _surviving(_objects(path), attempt.step, known)
            _replace(path, (json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")
        return known

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a line."""
        assert self._file is not None
        values = {n: v if math.isfinite(v) else None for n, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": round(at, 3), **values}) + "\n")
        self._file.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()


class CSVLogger(DirectoryLogger):
    """Writes ``metrics.csv``: a row per record, a column per name, empty where there is no value.

    A name that appears later gets its column then: the file is written anew, once per such name.
    """

    FILE = "metrics.csv"

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str = "logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._columns: list[str] = ["step", "time"]
        self._file: IO[str] | None = None

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        known: dict[str, int] = {}
        path = self._directory / self.FILE
        rows = list(_surviving(_rows(path), attempt.step, known)) if path.exists() else []
        self._columns = ["step", "time", *known]
        self._renew(rows)
        return known

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a row."""
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._columns += new
            self._renew(_rows(self._directory / self.FILE))
        assert self._file is not None
        self._file.write(_line([{"step": step, "time": round(at, 3), **metrics}], self._columns))
        self._file.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def _renew(self, rows: Iterable[dict[str, Any]]) -> None:
        if self._file is not None:
            self._file.close()
        path = self._directory / self.FILE
        header = dict(zip(self._columns, self._columns, strict=True))
        _replace(path, (_line([row], self._columns) for row in [header, *rows]))
        self._file = path.open("a", encoding="utf-8", newline="")


def _free(directory: Path) -> str:
    """The next version that no directory has."""
    names = os.listdir(directory) if directory.exists() else []
    taken = [int(match[1]) for name in names if (match := _VERSION.match(name))]
    return f"version_{max(taken, default=-1) + 1}"


def _surviving(
    rows: Iterable[dict[str, Any]], step: int, known: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The rows up to a step; notes in `known` how far each name has come."""
    for row in rows:
        at = int(row["step"])
        if at <= step:
            for name in row:
                if name not in ("step", "time"):
                    known[name] = max(at, known.get(name, at))
            yield row


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by the end of the process that wrote it
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file; a torn last one lacks its line end, or its first columns."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(whole, newline="")):
        if (row.get("step") or "").isdecimal():
            yield {name: value for name, value in row.items() if name and value}


def _line(rows: list[dict[str, Any]], columns: list[str]) -> str:
    out = io.StringIO(newline="")
    csv.DictWriter(out, columns, restval="", lineterminator="\n").writerows(rows)
    return out.getvalue()


def _replace(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
    temporary.replace(path)
