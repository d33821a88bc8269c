"""A checkpoint under Lightning's keys, as hooks see it and as a file that Lightning opens.

The state of a run has names of its own (`training.state`). `view` shows it as ``state_dict``,
``optimizer_states``, ``lr_schedulers``, ``callbacks`` and so on; tensors are shared, not copied. A
hook may change the view: `changes` says how it did, which is stored beside the state, and `change`
makes the same change to the next view. So a resume loses nothing of the state, whatever hooks do.

A file holds the view, and under `OWN` the state itself, whose tensors are the same storages and
take no more room. It is written whole or not at all, and read by torch's interpreter for weights,
which knows tensors and plain containers and runs no code.
"""

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

from rekindle.checkpoint import CommitRef, Restored
from rekindle.checkpoint.format import encoding
from rekindle.checkpoint.format.tensors import flatten, rebuild

VERSION = "2.6.0"
"""Of Lightning, whose keys these are."""
OWN = "rekindle"
_GLOBAL = re.compile(r"GLOBAL ([\w.<>]+)|Unsupported class ([\w.<>]+)|operand ([\w.<>]+)")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
HYPERPARAMETERS = (
    ("module", "hparams_name", "hyper_parameters"),
    ("datamodule", "datamodule_hparams_name", "datamodule_hyper_parameters"),
)


class FileRefused(Exception):
    """The file cannot be read; the message says why and what to do."""


def view(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    recalled: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    *,
    weights_only: bool = False,
) -> dict[str, Any]:
    """State and meta under Lightning's keys; `recalled` makes hyperparameters of stored ones.

    With `weights_only` there are no optimizers, schedulers and callbacks.
    """
    cursor, manual = meta["cursor"], meta.get("manual_steps")
    ended = bool(meta["step"]) and cursor["sample"] == 0
    found: dict[str, Any] = {
        "epoch": cursor["epoch"] - ended,
        "global_step": meta["step"] if manual is None else manual,
        "pytorch-lightning_version": VERSION,
        "state_dict": dict(state["model"]),
        "loops": _loops(meta["step"], cursor["epoch"] - ended, _batches(cursor), ended, manual),
    }
    if not weights_only:
        found["callbacks"] = copied(state["callbacks"])
        found["optimizer_states"] = [_by_number(one) for one in state["optimizers"]]
        found["lr_schedulers"] = copied(state["schedulers"])
    names = meta.get("hparams_names", {})
    for owner, name, key in HYPERPARAMETERS:
        stored = meta.get("hyper_parameters", {}).get(owner)
        if stored:
            found[name], found[key] = names.get(owner), recalled(stored)
    if state.get("datamodule"):
        found[meta.get("datamodule_class", "DataModule")] = copied(state["datamodule"])
    change(found, state.get("hooks"))
    return found


def _batches(cursor: Mapping[str, Any]) -> int:
    return -(-int(cursor["sample"]) // int(cursor["m"]))


def _by_number(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with parameters by their numbers, as `Optimizer.state_dict` has it."""
    numbers: dict[str, int] = {}
    groups = []
    for group in saved["groups"]:
        own = [numbers.setdefault(name, len(numbers)) for name in group["params"]]
        groups.append({**group, "params": own})
    states = {numbers[name]: dict(values) for name, values in saved["state"].items()}
    return {"state": dict(sorted(states.items())), "param_groups": groups}


def _loops(step: int, epoch: int, batches: int, ended: bool, manual: int | None) -> dict[str, Any]:
    """Lightning's counters of progress, after a step or at the end of an epoch.

    With manual optimization so many steps of all optimizers are counted in place of the batches'.
    """

    def count(number: int, *names: str, last: int | None = None) -> dict[str, int]:
        done = dict.fromkeys(names or ("ready", "started", "processed", "completed"), number)
        return done if last is None else done | {"completed": last}

    def progress(total: int, current: int) -> dict[str, Any]:
        return {"total": count(total), "current": count(current)}

    def optimizer(number: int) -> dict[str, Any]:
        stepped = count(number, "ready", "completed")
        cleared = count(number, "ready", "started", "completed")
        return {"step": stepped, "zero_grad": cleared}

    own, now = (step, batches) if manual is None else (0, 0)
    total, current = optimizer(own), optimizer(now)
    fitting: dict[str, Any] = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
        "epoch_loop.batch_progress": {**progress(step, batches), "is_last_batch": ended},
        "epoch_loop.scheduler_progress": {
            "total": count(0, "ready", "completed"),
            "current": count(0, "ready", "completed"),
        },
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {each: {"total": total[each], "current": current[each]} for each in total}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": {
            "total": count(manual or 0, "ready", "completed"),
            "current": count(0, "ready", "completed"),
        },
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {**progress(0, 0), "is_last_batch": False},
    }
    begun = {"ready": epoch + 1, "started": epoch + 1}
    here = begun | {"processed": epoch + ended, "completed": epoch}
    fitting["epoch_progress"] = {"total": dict(here), "current": dict(here)}
    passes = {"state_dict": {}, "batch_progress": {**progress(0, 0), "is_last_batch": False}}
    return {
        "fit_loop": fitting,
        "validate_loop": copied(passes),
        "test_loop": copied(passes),
        "predict_loop": {"state_dict": {}, "batch_progress": progress(0, 0)},
    }


# What hooks change.


def copied(tree: Any) -> Any:
    """The tree with containers of its own; leaves are shared."""
    if isinstance(tree, dict):
        same = type(tree)()
        same.update({key: copied(value) for key, value in tree.items()})
        return same
    if type(tree) in (list, tuple):
        return type(tree)(copied(value) for value in tree)
    return tree


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What is different in a view: ``set`` to other values, and ``removed`` (paths)."""
    removed: list[list[Any]] = []
    found = _changed(before, after, [], removed)
    named = {"set": found, "removed": removed}
    return {key: value for key, value in named.items() if value}


def _changed(
    before: Mapping[Any, Any], after: Mapping[Any, Any], path: list[Any], removed: list[list[Any]]
) -> dict[Any, Any]:
    removed += [[*path, key] for key in before if key not in after]
    found: dict[Any, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if key in before and isinstance(value, dict) and isinstance(old, dict):
            if inner := _changed(old, value, [*path, key], removed):
                found[key] = inner
        elif key not in before or not same(old, value):
            found[key] = value
    return found


def same(one: Any, other: Any, *, by_value: bool = False) -> bool:
    """Whether two trees are equal; tensors only if they are one, or `by_value`."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and by_value:
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other) or isinstance(one, torch.Tensor):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key], by_value=by_value) for key in one
        )
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(same(a, b, by_value=by_value) for a, b in pairs)
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False


def change(found: dict[str, Any], by: Mapping[str, Any] | None) -> None:
    """Make to a view what `changes` has found."""
    if not by:
        return
    for path in by.get("removed", ()):
        inside: Any = found
        for key in path[:-1]:
            inside = inside.get(key, {}) if isinstance(inside, dict) else {}
        if isinstance(inside, dict):
            inside.pop(path[-1], None)
    _set(found, by.get("set", {}))


def _set(found: dict[Any, Any], values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _set(found[key], value)
        else:
            found[key] = copied(value)


# Files.


_PLAIN = (str, int, float, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


def storable(value: Any, path: str = "hyper_parameters") -> Any:
    """The value in types that a file of weights may have; what is no such type goes as its text.

    Only hyperparameters may be texts: what else a hook has added has to come back as it was.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        items = {key: storable(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
        return kind(items) if kind in (OrderedDict, Counter) else items
    if isinstance(value, list):
        return [storable(item, f"{path}.{n}") for n, item in enumerate(value)]
    if kind in (tuple, set, frozenset):
        return kind(storable(item, path) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if "hyper_parameters" not in path.partition(".")[0]:
        return encoding.refuse(value, path)
    if isinstance(value, Namespace):
        return storable(vars(value), path)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", str(value))


def write(
    path: str, content: Mapping[str, Any], *, meta: Mapping[str, Any], state: Restored | None = None
) -> None:
    """Write a file, whole or not at all; with the state itself if it is given.

    Raises OSError, and `EncodingError` for what a file of weights cannot hold.
    """
    held: dict[str, Any] = storable(dict(content), "")
    own: dict[str, Any] = {"meta": json.dumps(encoding.encode(dict(meta), "meta"))}
    if state is not None:
        flat = flatten({"state": state.state, "rank_state": state.rank_state})
        own |= {"step": state.ref.step, "fence": state.ref.fence, "world_size": state.world_size}
        own |= {"tree": json.dumps(flat.tree), "tensors": dict(flat.tensors)}
    held[OWN] = own
    unfinished = f"{path}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            torch.save(held, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise


def meta_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of ours says beside the tensors; empty for files of others."""
    held = content.get(OWN)
    if not isinstance(held, dict) or "meta" not in held:
        return {}
    return dict(encoding.decode(json.loads(held["meta"])))


def state_of(content: Mapping[str, Any]) -> Restored | None:
    """The state in a file of ours; None for a file of weights, or of others."""
    held = content.get(OWN)
    if not isinstance(held, dict) or "tree" not in held:
        return None
    tree = rebuild(json.loads(held["tree"]), held["tensors"])
    return Restored(
        ref=CommitRef(step=held["step"], fence=held["fence"]),
        state=tree["state"],
        rank_state=tree["rank_state"],
        meta=meta_of(content),
        world_size=held["world_size"],
    )


def is_file(path: "str | os.PathLike[str]") -> bool:
    """Whether a path of a checkpoint is a file, and not a name within a run."""
    local = os.fspath(path).removeprefix("file://")
    # Objects of a run are documents.
    return os.path.isfile(local) and not local.endswith(".json")


def read(path: "str | os.PathLike[str]", map_location: Any = None) -> dict[str, Any]:
    """What a file of Lightning's holds; raises `FileRefused`, and OSError."""
    source = os.fspath(path).removeprefix("file://")
    value = load(source, source, mmap=False, map_location=map_location or "cpu")
    if not isinstance(value, dict):
        raise FileRefused(f"{source} holds a {type(value).__name__}, and is no checkpoint.")
    if "state_dict" not in value:
        value = {"state_dict": value}
    return value


def load(
    source: str | io.BytesIO, what: str, *, mmap: bool | None = None, map_location: Any = "cpu"
) -> Any:
    """What `torch.save` wrote, as far as it is data; `what` is its name for people."""
    if mmap is None:
        mmap = isinstance(source, str) and zipfile.is_zipfile(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, map_location=map_location, weights_only=True, mmap=mmap)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        name = next(filter(None, match.groups()), "") if match else ""
        if name:
            raise FileRefused(
                f"{what} needs {name}, which is code and not data; it was not run. Where you trust "
                f"the file, load it and save the tensors and plain values again: "
                f"torch.save(checkpoint['state_dict'], ...)."
            ) from None
        raise FileRefused(f"{what} is not a file of torch.save: {_first(error)}") from None
    except Exception as error:  # a damaged or hostile file can raise anything
        raise FileRefused(
            f"{what} cannot be read: {type(error).__name__}: {_first(error)}"
        ) from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
