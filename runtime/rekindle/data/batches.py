"""Whole batches as the items of a dataset: those that a script cuts itself, and combinations.

A `batch_sampler` says which samples a batch has; several loaders that are read together give one
batch made of one of each. Neither can be cut into micro-batches of some size, so the position in
such data counts batches: batch number b of an epoch is a function of (seed, epoch, b), and that is
all that a resume on any number of processes needs.

Where several loaders are read together each one has an order of its own, and so a seed. One that
begins again within an epoch of the longest does so in another order.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rekindle.data.combined import Mode, length
from rekindle.data.loader import BatchedItems, Batches, LoaderSource, Reader, Share, fingerprint
from rekindle.data.sampling.order import GlobalOrder, Kind
from rekindle.data.sampling.samplers import Ids
from rekindle.data.sampling.script_samplers import Passes
from rekindle.randomness import mixed, seed_sample

_KEPT = 2
"""Epochs whose batches are remembered."""


def as_it_is(batch: Any) -> Any:
    """A batch needs no conversion."""
    return batch


WHOLE = BatchedItems(as_it_is)
"""Collates a batch into itself."""


class BatchSamplerDataset(Batches):
    """A dataset with a sampler of batches."""

    def __init__(self, source: LoaderSource, passes: Passes) -> None:
        """`source` has dataset and collate function; its own batch size does not count."""
        self._source, self._passes = source, passes
        self._known: dict[tuple[int, int], list[Any]] = {}
        self._reader: tuple[int, Reader] | None = None
        self._fixed = False
        self._length = len(passes(0, 0))

    def __len__(self) -> int:
        return self._length

    def _epoch(self, seed: int, epoch: int) -> list[Any]:
        epoch = 0 if self._fixed else epoch
        if (seed, epoch) not in self._known:
            found = self._passes(seed, epoch)
            if len(found) != self._length:
                raise ValueError(
                    f"{type(self._passes.sampler).__name__} gives {len(found)} batches in epoch "
                    f"{epoch} and {self._length} in epoch 0, so positions in it mean nothing. Give "
                    f"each epoch the same number, or Trainer(data={{'guarantee': 'approximate'}})"
                )
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[seed, epoch] = found
        return self._known[seed, epoch]

    def batch(self, seed: int, epoch: int, number: int) -> Any:
        """The samples of one batch, collated."""
        keys = self._epoch(seed, epoch)[number]
        keys = keys if isinstance(keys, list) else list(keys)
        if all(isinstance(key, int | np.integer) for key in keys):
            if self._reader is None or self._reader[0] != seed:
                self._reader = (seed, Reader(self._source, seed))
            return self._reader[1][Share(epoch, np.array(keys, dtype=np.int64))].data
        # Keys of the script's own have no number to be seeded by, but the batch has one.
        seed_sample(seed, epoch, number)
        return self._source.collate([self._source.dataset[key] for key in keys])

    def mark(self, seed: int) -> str:
        """Of the dataset, and of the batches of the first epoch."""
        return _hashed([fingerprint(self._source, seed), repr(self._passes(0, 0))])

    def unshuffled(self) -> "BatchSamplerDataset":
        """The batches of the first epoch in every epoch."""
        other = BatchSamplerDataset(self._source, self._passes)
        other._fixed = True
        return other


class Several(Batches):
    """Batches of several loaders, read together."""

    def __init__(
        self, parts: Sequence[LoaderSource], mode: Mode, structure: Callable[[Sequence[Any]], Any]
    ) -> None:
        self.parts, self._mode, self._structure = list(parts), mode, structure
        self._lengths = [part.batches for part in parts]
        self._readers: tuple[int, list[tuple[Reader, GlobalOrder]]] | None = None

    def __len__(self) -> int:
        return int(length(self._mode, self._lengths)) if all(self._lengths) else 0

    def batch(self, seed: int, epoch: int, number: int) -> Any:
        """One batch of each, in the structure of the collection."""
        if self._readers is None or self._readers[0] != seed:
            self._readers = (seed, [_opened(p, _own(seed, n)) for n, p in enumerate(self.parts)])
        found: list[Any] = []
        for part, many, (reader, order) in zip(
            self.parts, self._lengths, self._readers[1], strict=True
        ):
            if number >= many and self._mode == "max_size":
                found.append(None)
                continue
            again, place = divmod(number, many)
            passes = -(-len(self) // many) if self._mode == "max_size_cycle" else 1
            turn = epoch * passes + again
            start = place * part.batch_size
            stop = min(start + part.batch_size, order_length(part, order))
            found.append(reader[Share(turn, order.ids(turn, start, stop))].data)
        return self._structure(found)

    def mark(self, seed: int) -> str:
        """Of all parts, and of the rule."""
        marks = [fingerprint(part, seed) for part in self.parts]
        return _hashed([self._mode, *marks, repr(self._lengths)])

    def unshuffled(self) -> "Several":
        """Every part in the order of the data."""
        return Several([unshuffled(part) for part in self.parts], self._mode, self._structure)


def unshuffled(source: LoaderSource) -> LoaderSource:
    """The same data without an order of its own."""
    if isinstance(source.dataset, Batches):
        return replace(source, dataset=source.dataset.unshuffled())
    return replace(source, shuffle=False, draw=None)


def order_length(source: LoaderSource, order: GlobalOrder) -> int:
    """Positions in an epoch of a source."""
    return order.draw.length if order.draw is not None else source.positions or source.samples


def ordered(source: LoaderSource, seed: int) -> GlobalOrder:
    """The order of a source that is read by itself."""
    draw = None if source.draw is None else source.draw(seed)
    kind: Kind = "shuffle" if source.shuffle else "sequential"
    return GlobalOrder(
        n=source.samples, seed=seed, kind=kind if draw is None else draw.kind, draw=draw
    )


def ids_of(source: LoaderSource, seed: int) -> Ids | None:
    """Which samples an evaluation reads; None: all of them, in the order of the data."""
    if source.draw is None and source.positions is None:
        return None
    # Fewer than there are: any of them.
    order = ordered(replace(source, shuffle=True), seed)
    return order.ids(0, 0, order_length(source, order))


def together(
    parts: Sequence[LoaderSource], mode: Mode, structure: Callable[[Sequence[Any]], Any], given: Any
) -> LoaderSource:
    """The source of several that are read together."""
    options: dict[str, Any] = {}
    for part in parts:
        workers = options.get("num_workers", 0) + part.options["num_workers"]
        if part.options["num_workers"] or not options:
            options = {**part.options}
        options["num_workers"] = workers
    options["pin_memory"] = any(part.options["pin_memory"] for part in parts)
    return LoaderSource(
        dataset=Several(parts, mode, structure),
        batch_size=1,
        shuffle=False,
        drop_last=False,
        collate=WHOLE,
        options=options,
        given=given,
    )


def size_of(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it, 1 where there is none."""
    first = batch[0] if type(batch) is list and batch else batch
    if type(first) is torch.Tensor and first.ndim:
        return first.shape[0] or 1  # of most batches, in every step
    return _size(batch) or 1


def _size(batch: Any) -> int | None:
    if isinstance(batch, torch.Tensor):
        return int(batch.size(0)) if batch.ndim else 1
    if isinstance(batch, str):
        return len(batch)
    if hasattr(batch, "values") and callable(batch.values):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return next((size for item in batch if (size := _size(item)) is not None), None)
    return None


def _opened(part: LoaderSource, seed: int) -> tuple[Reader, GlobalOrder]:
    return Reader(part, seed), ordered(part, seed)


def _own(seed: int, place: int) -> int:
    """The seed of one of several, which the same data in another place must not share."""
    return mixed(seed, place) >> 1 if place else seed


def _hashed(texts: Sequence[str]) -> str:
    return hashlib.sha256("/".join(texts).encode()).hexdigest()[:16]
