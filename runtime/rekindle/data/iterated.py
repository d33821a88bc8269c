"""Anything that can be iterated over, as a stream of whole batches.

What an iterable gives is a batch each, as it is: nothing is collated, cut or put in another order.
It is iterated over once per epoch. Where it can say its position (``state_dict`` and
``load_state_dict``), that is what a resume goes on from.
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from rekindle.data.combined import CombinedLoader


class Iterated(IterableDataset[Any]):
    """A stream of what the iterable gives."""

    def __init__(self, iterable: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        # A generator: an iterator of a DataLoader draws a seed when it is made, which has to
        # happen where the draws of the first batch do.
        if isinstance(self.iterable, CombinedLoader):
            for batch, _, _ in self.iterable:
                yield batch
            return
        yield from self.iterable

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers that want to know which epoch begins."""
        whole = isinstance(self.iterable, CombinedLoader)
        for one in self.iterable.flattened if whole else [self.iterable]:
            for name in ("sampler", "batch_sampler"):
                held: Any = getattr(one, name, None)
                inner: Any = getattr(held, "sampler", None)
                for each in (held, inner):
                    if callable(getattr(each, "set_epoch", None)):
                        each.set_epoch(epoch)

    @property
    def batches(self) -> int | None:
        """How many there are, for what says so."""
        iterable = self.iterable
        if isinstance(iterable, CombinedLoader):
            iter(iterable)
        try:
            return len(iterable)
        except (TypeError, NotImplementedError):
            return None

    def __str__(self) -> str:
        one = self.iterable
        if isinstance(one, DataLoader):
            return f"DataLoader over {type(one.dataset).__name__}"
        return type(one).__name__


class Stateful(Iterated):
    """The same for an iterable that can say its position."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        found: dict[str, Any] = self.iterable.state_dict()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there at the next iteration."""
        self.iterable.load_state_dict(state_dict)


def iterated(iterable: Any) -> Iterated:
    """The stream of an iterable."""
    if hasattr(iterable, "state_dict") and hasattr(iterable, "load_state_dict"):
        return Stateful(iterable)
    return Iterated(iterable)
