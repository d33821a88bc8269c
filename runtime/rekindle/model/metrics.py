"""torchmetrics objects that a module owns: their state, over ranks and over restarts.

torchmetrics keeps metric states out of ``state_dict``, so a run that stops in the middle of an
epoch would forget the first half of its epoch metrics. Here the states are read out, saved per rank
and also merged over the ranks by each state's own reduction, so that they survive a change of the
world size. So do tensors and numbers that a metric keeps without having declared them, and the
metrics that a `MetricTracker` has made, one for each time it was asked.

At the end of an epoch torchmetrics gathers every state of every metric by itself, one collective
each. Nearly all states are sums, and those travel together here: one all-reduce of one buffer of
float64. A float32 sum loses nothing in there. An int64 is cut into its upper and its lower 32 bits,
whose sums over up to two million ranks are exact, so counts stay exact where a float would not.

torchmetrics is optional: when it was never imported, no module can hold one of its objects.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from rekindle.errors.requirement import RequirementError

States = dict[str, dict[str, Any]]
"""Path of a metric in its module -> ``{"count": updates, "states": {name: tensor or list}}``."""


def is_metric(value: object) -> bool:
    """Whether the value is a torchmetrics object."""
    torchmetrics = sys.modules.get("torchmetrics")
    # Not isinstance: of a class that is none of them, it asks each of their hundred subclasses.
    return torchmetrics is not None and torchmetrics.Metric in type(value).__mro__


def entries(values: Any) -> Iterable[tuple[str, Any]]:
    """Name and value of each entry of a mapping, or of a collection of metrics."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None and torchmetrics.MetricCollection in type(values).__mro__:
        # Not copies: these are the metrics that the module owns, under their full names.
        found: Iterable[tuple[str, Any]] = values.items(keep_base=False, copy_state=False)
        return found
    pairs: Iterable[tuple[str, Any]] = values.items()
    return pairs


def owned(module: nn.Module) -> dict[str, Any]:
    """Path -> metric, for every metric inside the module."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return {}
    found = {}
    for path, child in module.named_modules():
        if torchmetrics.MetricCollection in type(child).__mro__:
            # Metrics of a collection may share a state, of which some releases let all but the
            # first one keep an old tensor until somebody asks.
            child.items(keep_base=True, copy_state=False)
        elif is_metric(child):
            found[path] = child
    return found


def states(module: nn.Module) -> States:
    """What all metrics know that have seen data, since their last reset or ever."""
    found: States = {}
    tracked = tuple(f"{path}." for path in _trackers(module))
    for path, metric in owned(module).items():
        more = {name: _plain_copy(value) for name, value in _undeclared(metric).items()}
        if not metric._update_count and not more and not path.startswith(tracked):
            continue
        values = {}
        if metric._update_count:
            values = {name: _copy(value) for name, value in metric.metric_state.items()}
        found[path] = {"count": int(metric._update_count), "states": values}
        if more:
            found[path]["more"] = more
    return found


def _undeclared(metric: Any) -> dict[str, Any]:
    """Tensors and numbers that a metric keeps beside its states, such as the extremes of a
    `MinMaxMetric`: what is neither torchmetrics' own nor named by an argument of a constructor."""
    makers = [vars(kind).get("__init__") for kind in type(metric).__mro__]
    known = {n for make in makers if make is not None for n in inspect.signature(make).parameters}
    known |= _base() | set(metric._defaults)
    return {
        name: value
        for name, value in vars(metric).items()
        if name not in known
        and name.lstrip("_") not in known
        and (value is None or isinstance(value, torch.Tensor | bool | int | float))
    }


@cache
def _base() -> frozenset[str]:
    """Attributes that every metric has."""
    base = sys.modules["torchmetrics"].Metric
    methods = {"update": lambda self: None, "compute": lambda self: None}
    return frozenset(vars(type("Bare", (base,), methods)()))


def restore(module: nn.Module, saved: States) -> None:
    """Bring metrics back to saved states; metrics without one start empty.

    Raises RequirementError (R11) for states of metrics that the module does not have.
    """
    for path, tracker in _trackers(module).items():
        _grow(tracker, path, saved)
    metrics = owned(module)
    unknown = sorted(set(saved) - set(metrics))
    if unknown:
        raise RequirementError(
            f"R11 the checkpoint has running values of the metric {unknown[0]!r}, and the model "
            f"has no such metric. Make it in __init__ or configure_model, or use resume='never'."
        )
    for path, metric in metrics.items():
        metric.reset()
        if path not in saved:
            continue
        for name, value in saved[path]["states"].items():
            setattr(metric, name, _to(value, metric.device))
        for name, value in saved[path].get("more", {}).items():
            setattr(metric, name, value.clone() if isinstance(value, torch.Tensor) else value)
        metric._update_count = saved[path]["count"]


def _trackers(module: nn.Module) -> dict[str, Any]:
    """Path -> `MetricTracker`."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return {}
    kind = torchmetrics.MetricTracker
    return {path: child for path, child in module.named_modules() if isinstance(child, kind)}


def _grow(tracker: Any, path: str, saved: States) -> None:
    """Give a tracker as many metrics as the saved one had."""
    names = [key.removeprefix(f"{path}.") for key in saved if key.startswith(f"{path}.")]
    heads = [name.partition(".")[0] for name in names]
    # They count from 1: the metric that is copied is the first of the list.
    count = max((int(head) for head in heads if head.isdigit()), default=0)
    for number in range(count + 1, len(tracker)):
        # Deleting an item of the list would give the first one another name.
        del tracker._modules[str(number)]
    while len(tracker) <= count:
        tracker.increment()
    tracker._increment_called = count > 0


def reset(module: nn.Module, paths: Iterable[str] | None = None) -> None:
    """Empty metrics: those at the given paths, or all."""
    chosen = owned(module)
    for path in chosen if paths is None else paths:
        chosen[path].reset()


def merged(module: nn.Module, parts: Sequence[States]) -> States:
    """The states as if one rank had seen everything, given each rank's own."""
    metrics = owned(module)
    found: States = {}
    for path in sorted({path for part in parts for path in part}):
        holders = [part[path] for part in parts if path in part]
        updated = [holder for holder in holders if holder["count"]]
        found[path] = {
            "count": sum(holder["count"] for holder in holders),
            "states": {
                name: _reduce(
                    [holder["states"][name] for holder in updated],
                    metrics[path]._reductions.get(name),
                    f"{path}.{name}",
                )
                for name in (updated[0]["states"] if updated else ())
            },
        }
        if "more" in holders[0]:
            # It comes from what was computed, which is the same on all ranks.
            found[path]["more"] = holders[0]["more"]
    return found


Held = tuple[Any, dict[str, Any], int, Any]
"""A metric, its states, how often it was updated, and what it has computed."""


def held(metrics: Iterable[Any]) -> list[Held]:
    """The metrics with what they are now, as long as nothing is added to it in place."""
    return [(m, dict(m.metric_state), m._update_count, m._computed) for m in metrics]


def put_back(kept: Iterable[Held], *, computed: bool = False) -> None:
    """Give metrics the states that they had; what they have `computed` since stays, or not."""
    for metric, states, count, value in kept:
        for name, state in states.items():
            setattr(metric, name, state)
        metric._update_count = count
        if computed:
            metric._computed = value


def forget(metrics: Iterable[Any]) -> None:
    """Have metrics compute anew when they are asked."""
    for metric in metrics:
        metric._computed = None


def sum_over_ranks(metrics: Sequence[Any], all_reduce: Callable[[torch.Tensor], Any]) -> set[int]:
    """Bring the states of those metrics that consist of sums together, in one call of `all_reduce`.

    `all_reduce` adds a float64 tensor up in place; it is called on every rank or on none. Returns
    the `id` of each metric that holds the sum over all ranks now; the others are torchmetrics' own
    business. Every rank must give the same metrics in the same order.
    """
    chosen = [metric for metric in metrics if _is_sum(metric)]
    states = [(m, n, getattr(m, n)) for m in chosen for n in sorted(m._reductions)]
    if not states:
        return set()
    buffer = torch.cat([_packed(value) for *_, value in states])
    all_reduce(buffer)
    at = 0
    for metric, name, value in states:
        size = value.numel() * (1 if value.is_floating_point() else 2)
        setattr(metric, name, _unpacked(buffer[at : at + size], value))
        metric._computed = None
        at += size
    return {id(metric) for metric in chosen}


def _is_sum(metric: Any) -> bool:
    """Whether all that the metric knows is sums, and nothing of its own says how ranks meet."""
    own = metric.dist_sync_fn is not None or metric.process_group is not None
    return (
        bool(metric._reductions)
        and metric.sync_on_compute
        and not own
        and all(
            getattr(reduction, "__name__", "") == "dim_zero_sum"
            and isinstance(getattr(metric, name), torch.Tensor)
            and not getattr(metric, name).is_complex()
            for name, reduction in metric._reductions.items()
        )
    )


def _packed(value: torch.Tensor) -> torch.Tensor:
    flat = value.detach().reshape(-1)
    if flat.is_floating_point():
        return flat.double()
    whole = flat.long()
    return torch.cat([(whole >> 32).double(), (whole & 0xFFFFFFFF).double()])


def _unpacked(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not like.is_floating_point():
        upper, lower = part.long().chunk(2)
        part = (upper << 32) + lower
    return part.to(like.dtype).reshape(like.shape)


def value_of(metric: Any, *, summed: bool = False) -> float:
    """The metric over all ranks; collective unless it is `summed` already (`sum_over_ranks`).

    Raises ValueError for one that is not a scalar.
    """
    with warnings.catch_warnings():
        # A rank that had no batch of its own has not updated, and takes part all the same.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        metric._to_sync = metric.sync_on_compute and not summed
        try:
            result = metric.compute()
        finally:
            metric._to_sync = metric.sync_on_compute
    if not isinstance(result, torch.Tensor) or result.numel() != 1:
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ValueError(f"{type(metric).__name__} gives {shape}, which is not a scalar")
    return float(result)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [item.detach().clone() for item in value]
    return value.detach().clone()


def _plain_copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [item.to(device) for item in value]
    return value.to(device)


def _reduce(values: list[Any], reduction: Any, name: str) -> Any:
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    if reduction is None:
        warnings.warn(
            f"metric state {name} has no reduction: a resume on another world size keeps one "
            f"rank's share of it",
            stacklevel=2,
        )
        return values[0]
    if getattr(reduction, "__name__", "") == "dim_zero_cat":
        return torch.cat(values)
    return reduction(torch.stack(values))
