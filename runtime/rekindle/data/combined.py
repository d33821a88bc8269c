"""`CombinedLoader`: several iterables read as one, by one of four rules.

What is combined may be nested in lists, tuples and dicts; batches come in the same structure. A
list, tuple or dict of plain numbers or texts is data and not a collection. Iterating reads the
iterables as they are; the trainer looks at them first, and where each one has an order that can be
made anew it reads them by that (see `rekindle.data.batches`), with the meaning that stands here.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from torch.utils._pytree import SUPPORTED_NODES, TreeSpec, tree_flatten, tree_unflatten

from rekindle.data import worker_shutdown

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
Limits = list[int | float]
Found = tuple[Any, int, int]
"""Batch, its number, and the number of the iterable that it is from (0 unless sequential)."""


def flatten(collection: Any) -> tuple[list[Any], TreeSpec]:
    """What is in a collection, and its structure."""
    return tree_flatten(collection, is_leaf=_plain)


def unflatten(values: Iterable[Any], spec: TreeSpec) -> Any:
    """The structure with other values in it."""
    return tree_unflatten(values, spec)


def collected(loader: object) -> bool:
    """Whether this is a collection of loaders, and not one."""
    return isinstance(loader, CombinedLoader) or (
        type(loader) in SUPPORTED_NODES and not _plain(loader)
    )


def _plain(value: object) -> bool:
    """Whether a container holds nothing but numbers and texts."""
    if type(value) is dict:
        return all(isinstance(one, int | float | str) for one in value.values())
    return isinstance(value, list | tuple) and all(isinstance(o, int | float | str) for o in value)


def length(mode: Mode, lengths: Sequence[int | float]) -> int | float:
    """Batches of the whole, given those of each."""
    if mode == "sequential":
        return sum(lengths)
    return (min if mode == "min_size" else max)(lengths, default=0)


class CombinedLoader(Iterable[Found]):
    """Iterates over several iterables together: ``(batch, batch_idx, dataloader_idx)``."""

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        """Modes: until the shortest has ended (``min_size``), until the longest has ended while
        the others begin again (``max_size_cycle``) or give None (``max_size``), or one after the
        other (``sequential``)."""
        if mode not in get_args(Mode):
            raise ValueError(
                f"CombinedLoader(mode={mode!r}) is not known; allowed are "
                f"{', '.join(map(repr, get_args(Mode)))}"
            )
        self._iterables, self._mode = iterables, mode
        self._flattened, self._spec = flatten(iterables)
        self._limits: Limits | None = None
        self._iterator: Iterator[Found] | None = None

    @property
    def iterables(self) -> Any:
        """The collection."""
        return self._iterables

    @property
    def mode(self) -> Mode:
        """The rule."""
        return self._mode

    @property
    def sampler(self) -> Any:
        """The samplers, in the structure of the collection."""
        return self._each("sampler")

    @property
    def batch_sampler(self) -> Any:
        """The batch samplers, in the structure of the collection."""
        return self._each("batch_sampler")

    def _each(self, name: str) -> Any:
        return unflatten([getattr(one, name, None) for one in self._flattened], self._spec)

    @property
    def flattened(self) -> list[Any]:
        """The iterables in a list."""
        return self._flattened

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        self._count(flattened, "iterables")
        self._iterables, self._flattened = unflatten(flattened, self._spec), flattened

    @property
    def limits(self) -> Limits | None:
        """The most batches of each iterable."""
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | Limits | None) -> None:
        if isinstance(limits, int | float):
            limits = [limits] * len(self._flattened)
        elif limits is not None:
            self._count(limits, "limits")
        self._limits = limits

    def _count(self, given: list[Any], what: str) -> None:
        if len(given) != len(self._flattened):
            raise ValueError(
                f"CombinedLoader has {len(self._flattened)} iterables, not {len(given)}: give as "
                f"many {what}"
            )

    def restructured(self, values: Iterable[Any]) -> Any:
        """One value for each iterable, in the structure of the collection."""
        return unflatten(values, self._spec)

    def __iter__(self) -> "CombinedLoader":
        self._iterator = {
            "min_size": self._shortest,
            "max_size_cycle": self._cycling,
            "max_size": self._longest,
            "sequential": self._sequential,
        }[self._mode]()
        return self

    def __next__(self) -> Found:
        if self._iterator is None:
            iter(self)
        assert self._iterator is not None
        return next(self._iterator)

    def __len__(self) -> int:
        if self._iterator is None:
            raise RuntimeError("CombinedLoader has no length before iter(loader)")
        lengths: list[int | float] = [len(one) for one in self._flattened]
        if self._limits is not None:
            lengths = list(map(min, lengths, self._limits))
        return int(length(self._mode, lengths))

    def reset(self) -> None:
        """Forget where it is, and end loader workers."""
        self._iterator = None
        for one in self._flattened:
            worker_shutdown.close(one)

    def _shortest(self) -> Iterator[Found]:
        for number, found in enumerate(zip(*self._flattened, strict=False)):
            yield self.restructured(found), number, 0

    def _longest(self) -> Iterator[Found]:
        for number, found in enumerate(itertools.zip_longest(*self._flattened)):
            yield self.restructured(found), number, 0

    def _cycling(self) -> Iterator[Found]:
        iterators = [iter(one) for one in self._flattened]
        ended = [False] * len(iterators)
        for number in itertools.count():
            found: list[Any] = [None] * len(iterators)
            for place, iterator in enumerate(iterators):
                try:
                    found[place] = next(iterator)
                except StopIteration:
                    ended[place] = True
                    if all(ended):
                        return
                    iterators[place] = iter(self._flattened[place])
                    try:
                        found[place] = next(iterators[place])
                    except StopIteration:
                        return  # it has nothing that could be repeated
            yield self.restructured(found), number, 0

    def _sequential(self) -> Iterator[Found]:
        for place, one in enumerate(self._flattened):
            limit = None if self._limits is None else self._limits[place]
            stop = None if limit is None or limit == float("inf") else int(limit)
            for number, found in enumerate(itertools.islice(one, stop)):
                yield found, number, place
