"""Functions that do something on rank 0 only.

Which rank this process is, is asked at the call: a decorator is applied while a script is imported,
when the process may not have been told yet, and a process keeps running when ranks are dealt anew.
"""

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)
_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class LightningDeprecationWarning(DeprecationWarning):
    """Something is going to be removed."""


class _Rank:
    """``rank_zero_only.rank``: set by a script, else as the environment says."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._set: int | None = None

    def __call__(self, fn: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        """Make a function that runs on rank 0, and gives `default` on others."""
        made: Callable[P, T | None] = self._function(fn, default)
        return made

    @property
    def rank(self) -> int:
        """Rank of this process."""
        if self._set is not None:
            return self._set
        given = (os.environ.get(name) for name in _VARIABLES)
        return next((int(value) for value in given if value), 0)

    @rank.setter
    def rank(self, value: int | None) -> None:
        self._set = value


@_Rank
def rank_zero_only(fn: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
    """Make a function that runs on rank 0, and gives `default` on others."""

    @functools.wraps(fn)
    def on_zero(*arguments: P.args, **options: P.kwargs) -> T | None:
        return fn(*arguments, **options) if rank_zero_only.rank == 0 else default

    return on_zero


def rank_zero_debug(*arguments: Any, stacklevel: int = 2, **options: Any) -> None:
    """Log for debugging, on rank 0."""
    if rank_zero_only.rank == 0:
        _log.debug(*arguments, stacklevel=stacklevel, **options)


def rank_zero_info(*arguments: Any, stacklevel: int = 2, **options: Any) -> None:
    """Log, on rank 0."""
    if rank_zero_only.rank == 0:
        _log.info(*arguments, stacklevel=stacklevel, **options)


def rank_zero_warn(message: str | Warning, stacklevel: int = 2, **options: Any) -> None:
    """Warn, on rank 0."""
    if rank_zero_only.rank == 0:
        warnings.warn(message, stacklevel=stacklevel + 1, **options)


def rank_zero_deprecation(message: str | Warning, stacklevel: int = 3, **options: Any) -> None:
    """Warn that something is going to be removed, on rank 0."""
    category = options.pop("category", LightningDeprecationWarning)
    rank_zero_warn(message, stacklevel=stacklevel, category=category, **options)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """The message with the rank before it, if there is one."""
    return message if rank is None else f"[rank: {rank}] {message}"


class WarningCache(set[str]):
    """Says each message once."""

    def warn(self, message: str, stacklevel: int = 3, **options: Any) -> None:
        """Warn, unless it was said before."""
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **options)

    def deprecation(self, message: str, stacklevel: int = 4, **options: Any) -> None:
        """Warn that something is going to be removed, unless it was said before."""
        if message not in self:
            self.add(message)
            rank_zero_deprecation(message, stacklevel=stacklevel, **options)

    def info(self, message: str, stacklevel: int = 3, **options: Any) -> None:
        """Log, unless it was said before."""
        if message not in self:
            self.add(message)
            rank_zero_info(message, stacklevel=stacklevel, **options)
