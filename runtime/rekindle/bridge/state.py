"""A Lightning run's state as trees that the store takes, and back.

What Lightning would have pickled into a ``.ckpt`` (`dump_checkpoint`: parameters, optimizers,
schedulers, loops, callbacks, precision, data module, hyperparameters, and what the script's own
``on_save_checkpoint`` hooks add) is the shared tree. Beside it every rank saves what only it has
and Lightning forgets: generators, place in the data, running metrics, buffers that differ between
ranks.

The store takes plain values and tensors only. Subclasses of these (an ``AttributeDict``, an enum, a
path, a NumPy scalar) are stored as what they are underneath; anything else is refused with its
path in the state before training begins. Hyperparameters alone may be left out, since resuming does
not need them: the script makes the module.

Metrics that ``self.log`` accumulates over an epoch are kept as long as the epoch: those of
torchmetrics objects of the module, and plain values under Lightning's mean, sum, min and max. A
custom ``reduce_fx``, and metrics of a validation that was under way, begin anew.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rekindle.checkpoint import EncodingError
from rekindle.checkpoint.format.encoding import encode
from rekindle.model import metrics
from rekindle.ranks.distributed import World
from rekindle.ranks.gradients import broadcast

if TYPE_CHECKING:
    import lightning.pytorch as pl

HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
_BASES: tuple[type[Any], ...] = (bool, int, float, str, bytes)


def plain(value: Any) -> Any:
    """The value with subclasses of plain types, containers included, as those types."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        items = {plain(key): plain(item) for key, item in value.items()}
        if type(value) is OrderedDict:
            return OrderedDict(items)
        return Counter(items) if type(value) is Counter else items
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, torch.Tensor):
        return value.detach()
    for base in _BASES:
        if isinstance(value, base):
            return base(value)
    return value


def collect(trainer: "pl.Trainer", world: World) -> tuple[dict[str, Any], list[str]]:
    """The shared tree, and the hyperparameters that cannot be stored; collective."""
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    model = dict(dumped.pop("state_dict"))
    optimizers = [dict(state) for state in dumped.pop("optimizer_states", [])]
    dropped: list[str] = []
    for key in HYPERPARAMETERS:
        if key in dumped:
            dumped[key], names = _storable(plain(dumped[key]))
            dropped += names
    rest = plain(dumped)
    if world.size > 1:
        shared = {name: buffer.detach().clone() for name, buffer in _buffers(trainer, model)}
        if shared:
            broadcast(shared.values())
        model |= shared
        # Each rank stores its share of one tree, so there must be one: rank 0's, as in Lightning.
        rest = world.share(rest)
    return {"model": model, "optimizers": plain(optimizers), "lightning": rest}, dropped


def checkpoint(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What Lightning restores from, given the shared tree."""
    return {
        **tree["lightning"],
        "state_dict": OrderedDict(tree["model"]),
        "optimizer_states": tree["optimizers"],
    }


def own(trainer: "pl.Trainer", world: World) -> dict[str, Any]:
    """What this rank alone has, generators and data aside."""
    module = trainer.lightning_module
    found: dict[str, Any] = {"metrics": metrics.states(module), "running": _running(trainer)}
    if world.size > 1:
        model = trainer.strategy.lightning_module_state_dict()
        found["buffers"] = {name: buffer.detach() for name, buffer in _buffers(trainer, model)}
    return found


def restore_own(trainer: "pl.Trainer", saved: Mapping[str, Any]) -> None:
    """Bring back what `own` gave; the running metrics follow with `merge`."""
    module = trainer.lightning_module
    metrics.restore(module, saved["metrics"])
    named = dict(module.named_buffers())
    with torch.no_grad():
        for name, value in saved.get("buffers", {}).items():
            named[name].copy_(value)


def _buffers(trainer: "pl.Trainer", model: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    named = trainer.lightning_module.named_buffers()
    return [(name, buffer) for name, buffer in named if name in model and buffer.numel()]


def _storable(hyperparameters: Any) -> tuple[dict[str, Any], list[str]]:
    kept, dropped = {}, []
    for key, value in dict(hyperparameters).items():
        try:
            encode(value)
        except EncodingError:
            dropped.append(str(key))
        else:
            kept[key] = value
    return kept, dropped


def _running(trainer: "pl.Trainer") -> dict[str, list[torch.Tensor]]:
    """Key -> sum and count (or extreme) so far of each value logged over the epoch."""
    found = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset:
            found[key] = [metric.value.detach().clone()]
            if metric.meta.is_mean_reduction:
                found[key].append(metric.cumulated_batch_size.detach().clone())
    return found


def merge(trainer: "pl.Trainer", pending: dict[str, list[torch.Tensor]]) -> None:
    """Add what was accumulated before a restart to metrics that have come into being since.

    Lightning makes the object of a name when it is first logged; what was merged leaves `pending`.
    """
    results = trainer.fit_loop.epoch_loop._results
    for key in [key for key in pending if key in results]:
        metric, (value, *count) = results[key], pending.pop(key)
        value = value.to(metric.value.device)
        if metric.meta.is_mean_reduction and count:
            metric.value = value + metric.value
            metric.cumulated_batch_size = metric.cumulated_batch_size + count[0].to(value.device)
        elif metric.meta.is_sum_reduction:
            metric.value = value + metric.value
        elif metric.meta.is_max_reduction or metric.meta.is_min_reduction:
            metric.value = metric.meta.reduce_fx(metric.value, value)
