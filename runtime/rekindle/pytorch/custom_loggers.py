"""What loggers of one's own are made with."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rekindle.loggers.logger import Mute
from rekindle.pytorch.utilities.rank_zero import rank_zero_only


def rank_zero_experiment(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A property `experiment` that is made on rank 0, and takes any call on others."""

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        return fn(self) if rank_zero_only.rank == 0 else Mute()

    return experiment


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Any] | None = None,
    default_func: Callable[[Sequence[float]], float] = statistics.mean,
) -> dict[str, Any]:
    """One dict of the values that dicts have by each key, put together by a function.

    `agg_key_funcs` has a function for a key, or for a nested dict such a mapping.
    """
    functions = agg_key_funcs or {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in dicts for key in each):
        values = [each[key] for each in dicts if each.get(key) is not None]
        function = functions.get(key)
        if isinstance(values[0], Mapping):
            merged[key] = merge_dicts(values, function, default_func)
        else:
            merged[key] = (function or default_func)(values)
    return merged
