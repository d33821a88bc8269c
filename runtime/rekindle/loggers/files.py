"""Loggers that write a file: JSON lines (our own form) and CSV.

A run has a directory ``save_dir/name/version``. A new logger takes the next free ``version_N``, so
that nothing of another run is ever overwritten; an attempt that resumes takes the one that its
checkpoint names, and cuts off the rows of steps that are done again. The trainer numbers its rows
from 0, so a checkpoint after s steps has those below s; a row of step s is a script's own, which
the trainer's ``epoch`` is missing in. The file is replaced by a
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

    NAME_HPARAMS_FILE: ClassVar[str] = "hparams.json"

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str | None = "logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        """Without `save_dir` the run's root is used; without `version` the next free one."""
        self._given = None if save_dir is None else os.fspath(save_dir)
        self._base = None if save_dir is None else _absolute(save_dir)
        self._name, self._sub = name or "", ""
        self._version = self._chosen = version
        self._hparams: dict[str, Any] = {}
        self.prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""

    @property
    def name(self) -> str:
        """Name of the experiment: the directory that holds its versions."""
        return self._name

    @property
    def version(self) -> int | str | None:
        """This run's number, or the text that was given; None while no root is known.

        Asked for before the run, it is the next free one. A run that resumes goes on in its own.
        """
        if self._chosen is None and self._base is not None:
            self._chosen = _free(Path(self._base) / self._name)
        return self._chosen

    @property
    def save_dir(self) -> str | None:
        """Directory of all experiments."""
        return self._base if self._given is None else self._given

    @property
    def root_dir(self) -> str | None:
        """Directory of the experiment, in which its versions lie."""
        return None if self.save_dir is None else os.path.join(self.save_dir, self._name)

    @property
    def log_dir(self) -> str | None:
        """This run's directory; None while no root is known."""
        return None if self.save_dir is None else self._below(self.save_dir)

    def _below(self, base: str) -> str:
        version = self.version
        folder = version if isinstance(version, str) else f"version_{version}"
        path = os.path.join(base, self._name, folder, self._sub) if self._sub else None
        return os.path.expanduser(
            os.path.expandvars(path or os.path.join(base, self._name, folder))
        )

    def place(self, root: str) -> None:
        """Note the trainer's root, and that it is the place where nothing else was given."""
        super().place(root)
        if self._base is None and "://" not in root:
            self._base = root

    def prepare(self, attempt: Attempt) -> None:
        """Choose the directory, and take it."""
        if self._base is None:
            self._base = str(attempt.directory)
        if self._chosen is None:
            self._directory.mkdir(parents=True, exist_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Which version is this run's."""
        return {"version": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same version, unless the script names one."""
        if self._version is None:
            found = state_dict.get("version")
            match = _VERSION.match(found) if isinstance(found, str) else None
            self._chosen = found if match is None else int(match[1])

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
        assert self._base is not None, "prepare() has chosen it"
        return Path(self._below(self._base))

    def write_hyperparameters(self, values: dict[str, Any], measured: Any = None) -> None:
        """Write ``hparams.json`` (``hparams.yaml``), with what was logged before."""
        path = self._directory / self.NAME_HPARAMS_FILE
        if path.suffix == ".json":
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**before, **values}, indent=2) + "\n")
            return
        import yaml

        before = yaml.safe_load(path.read_text()) if path.exists() else None
        path.write_text(yaml.safe_dump({**(before or {}), **values}))


class FileLogger(DirectoryLogger):
    """A logger with one file of rows, which is only ever appended to or replaced as a whole."""

    FILE: ClassVar[str]
    """Name of the file in the run's directory."""
    _file: IO[str] | None = None
    _before = 0
    """Rows that were there when the run began: of other runs with this object."""

    @property
    def _path(self) -> Path:
        return self._directory / self.FILE

    def prepare(self, attempt: Attempt) -> None:
        """Choose the directory; what this object has written before stays."""
        super().prepare(attempt)
        if not attempt.resumed:
            self._before = sum(1 for _ in self._rows()) if self._used else 0

    def state_dict(self) -> dict[str, Any]:
        """Which version is this run's, and how many of its rows are not."""
        return {**super().state_dict(), "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same version and the same rows."""
        super().load_state_dict(state_dict)
        self._before = int(state_dict.get("before", 0))

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the file; none where there is no file."""
        raise NotImplementedError

    def _kept(self, attempt: Attempt, known: dict[str, int]) -> Iterator[dict[str, Any]]:
        """The rows that survive; notes in `known` how far each name has come in this run.

        Rows of batches of a validation, which have no epoch, are counted by their own numbers.
        """
        epoch, rows = f"{self.prefix}epoch", list(self._rows())
        trained = {name for row in rows if epoch in row for name in row} | {"step", "time"}
        apart = {self.prefix + name: number for name, number in attempt.apart.items()}
        for number, row in enumerate(rows):
            at = int(row["step"])
            own = [apart[n] for n in row if n in apart] if epoch not in row else []
            if number < self._before or not attempt.repeats:
                yield row
            elif not attempt.resumed:
                continue
            elif own and at <= max(own):
                for name in row.keys() - {"step", "time"}:
                    known[name + BATCH] = max(at, known.get(name + BATCH, at))
                yield row
            elif not own and at <= attempt.step and (at < attempt.step or epoch not in row):
                for name in row:
                    # What only a script logs may be logged again for the steps that are done.
                    if (name not in trained or at < attempt.step) and name not in ("step", "time"):
                        known[name] = max(at, known.get(name, at))
                yield row

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
        if self._file is not None:
            self._file.close()
            self._file = None


class JSONLLogger(FileLogger):
    """Writes ``metrics.jsonl``: one object per record, with ``step``, ``time`` and the values.

    A value that is not finite is written as null, which is what JSON has for it.
    """

    FILE = "metrics.jsonl"

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        known: dict[str, int] = {}
        self._renew(json.dumps(row) + "\n" for row in self._kept(attempt, known))
        return known

    def _rows(self) -> Iterator[dict[str, Any]]:
        return _objects(self._path)

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a line."""
        values = {n: v if math.isfinite(v) else None for n, v in metrics.items()}
        self._append(json.dumps({"step": step, "time": round(at, 3), **values}) + "\n")


class CSVLogger(FileLogger):
    """Writes ``metrics.csv``: a row per record, a column per name, empty where there is no value.

    A name that appears later gets its column then: the file is written anew, once per such name.
    """

    FILE = "metrics.csv"
    NAME_HPARAMS_FILE = "hparams.yaml"
    LOGGER_JOIN_CHAR = "-"
    _columns: Sequence[str] = ("step",)

    def __init__(
        self,
        save_dir: "str | os.PathLike[str] | None" = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        """Rows are in the file at once, so there is nothing to flush."""
        super().__init__(save_dir, name, version, prefix)

    @property
    def metrics_file_path(self) -> str | None:
        """Where the rows are."""
        return None if self.log_dir is None else os.path.join(self.log_dir, self.FILE)

    def log_hparams(self, params: Any) -> None:
        """Hand over hyperparameters; `experiment` is this logger itself."""
        self.log_hyperparams(params)

    def open(self, attempt: Attempt) -> Known:
        """Cut the file off after the step, and open it."""
        super().open(attempt)
        known: dict[str, int] = {}
        rows = list(self._kept(attempt, known))
        self._columns = sorted({"step"}.union(*rows))
        if rows or self._path.exists():
            self._renew(self._lines(rows))
        return known

    def write(self, metrics: dict[str, float], step: int, at: float) -> None:
        """Append a row."""
        new = [name for name in metrics if name not in self._columns]
        if new or self._file is None:
            self._columns = sorted({*self._columns, *new})
            self._renew(self._lines(_rows(self._path)))
        self._append(_line({"step": step, **metrics}, self._columns))

    def _rows(self) -> Iterator[dict[str, Any]]:
        return _rows(self._path)

    def _lines(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        """The whole file: header and rows."""
        yield _line({name: name for name in self._columns}, self._columns)
        for row in rows:
            yield _line(row, self._columns)


def _absolute(path: "str | os.PathLike[str]") -> str:
    return os.path.abspath(os.path.expanduser(os.path.expandvars(os.fspath(path))))


def _free(directory: Path) -> int:
    """The next version that no directory has."""
    names = os.listdir(directory) if directory.exists() else []
    taken = [int(match[1]) for name in names if (match := _VERSION.match(name))]
    return max(taken, default=-1) + 1


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
