"""Hyperparameters in YAML and CSV files."""

import ast
import csv
import os
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from enum import Enum
from pathlib import Path
from typing import Any

from rekindle.pytorch.utilities.rank_zero import rank_zero_warn

_Path = str | os.PathLike[str]


def save_hparams_to_yaml(
    config_yaml: _Path, hparams: Mapping[str, Any] | Namespace, use_omegaconf: bool = True
) -> None:
    """Write what YAML can hold, with a warning for the rest; RuntimeError without the folder."""
    import yaml

    path = _in_a_folder(config_yaml)
    values = {}
    for name, value in _mapping(hparams).items():
        plain = value.name if isinstance(value, Enum) else value
        try:
            yaml.safe_dump(plain)
        except (TypeError, ValueError, yaml.YAMLError):
            rank_zero_warn(f"hyperparameter {name!r} is left out: YAML cannot hold it")
        else:
            values[name] = plain
    path.write_text(yaml.safe_dump(values))


def load_hparams_from_yaml(config_yaml: _Path, use_omegaconf: bool = True) -> dict[str, Any]:
    """Read such a file; empty, with a warning, when there is none."""
    import yaml

    path = _existing(config_yaml)
    return {} if path is None else dict(yaml.safe_load(path.read_text()) or {})


def save_hparams_to_tags_csv(tags_csv: _Path, hparams: Mapping[str, Any] | Namespace) -> None:
    """Write names and values as rows; RuntimeError without the folder."""
    with _in_a_folder(tags_csv).open("w", newline="") as file:
        csv.writer(file).writerows([("key", "value"), *_mapping(hparams).items()])


def load_hparams_from_tags_csv(tags_csv: _Path) -> dict[str, Any]:
    """Read such a file; empty, with a warning, when there is none."""
    path = _existing(tags_csv)
    if path is None:
        return {}
    with path.open(newline="") as file:
        return {row[0]: convert(row[1]) for row in list(csv.reader(file))[1:]}


def convert(val: str) -> Any:
    """The value that a text of Python's syntax means, else the text."""
    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError):
        return val


def update_hparams(hparams: MutableMapping[str, Any], updates: Mapping[str, Any]) -> None:
    """Put new values into nested hyperparameters, in place."""
    for name, value in updates.items():
        if isinstance(value, Mapping) and name in hparams:
            update_hparams(hparams[name], value)
        else:
            hparams[name] = value


def _mapping(hparams: Mapping[str, Any] | Namespace) -> dict[str, Any]:
    return dict(vars(hparams) if isinstance(hparams, Namespace) else hparams)


def _in_a_folder(file: _Path) -> Path:
    path = Path(file)
    if not path.parent.is_dir():
        raise RuntimeError(f"{path} cannot be written: there is no folder {path.parent}")
    return path


def _existing(file: _Path) -> Path | None:
    path = Path(file)
    if path.exists():
        return path
    rank_zero_warn(f"there is no {path}", category=RuntimeWarning)
    return None
