"""torchmetrics objects that a module owns: their state, over ranks and over restarts.

torchmetrics keeps metric states out of ``state_dict``, so a run that stops in the middle of an
epoch would forget the first half of its epoch metrics. Here the states are read out, saved per rank
and also merged over the ranks by each state's own reduction, so that they survive a change of the
world size.

torchmetrics is optional: when it was never imported, no module can hold one of its objects.
"""

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

States = dict[str, dict[str, Any]]
"""Path of a metric in its module -> ``{"count": updates, "states": {name: tensor or list}}``."""


def is_metric(value: object) -> bool:
    """Whether the value is a torchmetrics object."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def owned(module: nn.Module) -> dict[str, Any]:
    """Path -> metric, for every metric inside the module."""
    if "torchmetrics" not in sys.modules:
        return {}
    return {path: child for path, child in module.named_modules() if is_metric(child)}


def states(module: nn.Module) -> States:
    """The states of all metrics that have seen data since their last reset."""
    found: States = {}
    for path, metric in owned(module).items():
        if metric._update_count:
            values = {name: _copy(value) for name, value in metric.metric_state.items()}
            found[path] = {"count": int(metric._update_count), "states": values}
    return found


def restore(module: nn.Module, saved: States) -> None:
    """Bring metrics back to saved states; metrics without one start empty."""
    for path, metric in owned(module).items():
        metric.reset()
        if path not in saved:
            continue
        for name, value in saved[path]["states"].items():
            setattr(metric, name, _to(value, metric.device))
        metric._update_count = saved[path]["count"]


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
        found[path] = {
            "count": sum(holder["count"] for holder in holders),
            "states": {
                name: _reduce(
                    [holder["states"][name] for holder in holders],
                    metrics[path]._reductions.get(name),
                    f"{path}.{name}",
                )
                for name in holders[0]["states"]
            },
        }
    return found


def value_of(metric: Any) -> float:
    """The metric over all ranks; collective. Raises ValueError for one that is not a scalar."""
    with warnings.catch_warnings():
        # A rank that had no batch of its own has not updated, and takes part all the same.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        result = metric.compute()
    if not isinstance(result, torch.Tensor) or result.numel() != 1:
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ValueError(f"{type(metric).__name__} gives {shape}, which is not a scalar")
    return float(result)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [item.detach().clone() for item in value]
    return value.detach().clone()


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
