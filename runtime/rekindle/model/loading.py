"""`load_from_checkpoint`: a model or a data module out of a checkpoint, without its run.

A path means a commit of a run, or a file that Lightning or `Trainer.save_checkpoint` wrote. Either
is looked at under Lightning's keys, so that `on_load_checkpoint` is the same for both.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from rekindle.checkpoint import resolving
from rekindle.interop import lightning_file
from rekindle.model import deferred
from rekindle.model.describing import recall
from rekindle.model.hyperparameters import arguments, from_file, recalled

_T = TypeVar("_T")
_CLASS = "_class_path"
_COMMANDS = {
    f"{package}.cli.instantiate_module"
    for package in ("rekindle.pytorch", "lightning.pytorch", "pytorch_lightning")
}
"""What makes the arguments of a command into objects: its own checkpoints name it."""
_Path = str | os.PathLike[str]


def opened(path: _Path) -> dict[str, Any]:
    """A checkpoint under Lightning's keys; FileNotFoundError, `Refused`, or R16 for damage."""
    if not lightning_file.is_file(path):
        restored = resolving.read(path)
        if "loop" not in restored.state:
            # Brought into a store from elsewhere: see `rekindle.interop.importing`.
            others = {key: value for key, value in restored.state.items() if key != "model"}
            return {"state_dict": restored.state["model"], **others}
        return lightning_file.view(restored.state, restored.meta, recalled)
    found = lightning_file.read(path)
    stored = lightning_file.meta_of(found).get("hyper_parameters", {})
    for owner, _, key in lightning_file.HYPERPARAMETERS:
        for name, theirs in found.get(key, {}).items():
            # A text in the file may be a class, a path: as it was, unless a hook has changed it.
            ours = recall(stored.get(owner, {}).get(name))
            if lightning_file.same(lightning_file.storable(ours), theirs, by_value=True):
                found[key][name] = ours
    return found


def made_again(
    cls: type, saved: Mapping[str, Any], name: str | None, override: Mapping[str, Any]
) -> Any:
    """An object with the arguments of a checkpoint, built as a command did if one has made it.

    A class in there has to be loaded already, so that nothing is run because a file says so; raises
    ValueError otherwise.
    """
    if saved.get("_instantiator") not in _COMMANDS:
        return cls(**arguments(cls, saved, name, override))
    given = {key: value for key, value in saved.items() if key != "_instantiator"}
    # As in Lightning, the class that was written counts where the one that is asked takes **kwargs.
    values = arguments(cls, given, name, override)
    for place, path in _class_paths("", values):
        part, _, kind = path.rpartition(".")
        found = getattr(sys.modules.get(part), kind, None)
        if found is None:
            raise ValueError(
                f"{cls.__name__}.load_from_checkpoint: the checkpoint names {path} for "
                f"{place}, which is not loaded. Import {part or path} first, or give {place}=."
            )
        if place == _CLASS and not (isinstance(found, type) and issubclass(found, cls)):
            raise ValueError(
                f"{cls.__name__}.load_from_checkpoint: the checkpoint is of {path}, which is no "
                f"{cls.__name__}. Call it on that class, or on one that it derives from."
            )
    # The command's parser lies above; only what a command has made needs it.
    command = importlib.import_module("rekindle.pytorch.cli")
    return command.instantiate_module(cls, values)


def _class_paths(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every class that is named in what a command was given, with the argument it is for."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("class_path", _CLASS) and isinstance(item, str):
                yield place or key, item
            else:
                yield from _class_paths(place or str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _class_paths(place, item)


def module(
    cls: type[_T],
    path: _Path,
    *,
    map_location: Any,
    hparams_file: _Path | None,
    strict: bool | None,
    override: Mapping[str, Any],
) -> _T:
    """A module with the weights of a checkpoint; see `Module.load_from_checkpoint`."""
    found = opened(path)
    saved = found.get("hyper_parameters", {})
    if hparams_file is not None:
        saved = from_file(os.fspath(hparams_file))
    found["hyper_parameters"] = {**saved, **override}
    made = made_again(cls, saved, found.get("hparams_name"), override)
    strict = getattr(made, "strict_loading", True) if strict is None else strict
    deferred.configure(made, torch.device("cpu"))
    made.on_load_checkpoint(found)
    keys = made.load_state_dict(found["state_dict"], strict=strict)
    for what, names in (("missing", keys.missing_keys), ("unexpected", keys.unexpected_keys)):
        if names:
            warnings.warn(f"{what} in {os.fspath(path)}: {', '.join(names)}", stacklevel=3)
    if map_location is None or callable(map_location):
        return made  # type: ignore[no-any-return]
    if isinstance(map_location, Mapping):
        map_location = map_location.get("cpu", "cpu")
    return made.to(map_location)  # type: ignore[no-any-return]


def datamodule(
    cls: type[_T], path: _Path, *, hparams_file: _Path | None, override: Mapping[str, Any]
) -> _T:
    """A data module with the arguments and the state that a checkpoint has."""
    found = opened(path)
    saved = found.get("datamodule_hyper_parameters", {})
    if hparams_file is not None:
        saved = from_file(os.fspath(hparams_file))
    made = made_again(cls, saved, found.get("datamodule_hparams_name"), override)
    if cls.__qualname__ in found:
        made.load_state_dict(found[cls.__qualname__])
    return made  # type: ignore[no-any-return]
