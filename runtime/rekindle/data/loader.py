"""Reading batches in the order that `rekindle.data.sampling.order` has decided.

A script's `DataLoader` is taken apart (see `apart`): dataset, batch size, shuffle flag, collate
function and worker settings are kept, and put together again around a sampler that yields whole
lanes of this rank. So a plain DataLoader still does the reading, with any number of stateless
workers: the number may differ between two attempts, and what was prefetched is no part of any
state.

Before each sample is read, the generators are seeded from ``(seed, epoch, sample id)``;
augmentation is then a property of the sample, whoever reads it. Datasets that cannot draw (a
`TensorDataset`, or a `Subset` of one) are spared that, and are indexed once per lane instead of
once per sample.

The ids travel with the batch, noted where the dataset is read: they are what the ledger counts.

Workers ignore SIGTERM and SIGINT. Both go to a whole process group, and a loader worker that dies
takes the rank with it, in the very moment in which it should save.
"""

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torch.utils.data.dataloader import default_collate, default_convert

from rekindle.data import worker_shutdown
from rekindle.data.iterated import Iterated
from rekindle.data.sampling.order import ENDLESS, Cursor
from rekindle.data.sampling.samplers import Draw, Ids
from rekindle.randomness import mixed, seed_all, seed_sample, watch


@dataclass(frozen=True, kw_only=True)
class LoaderSource:
    """A script's loader, taken apart."""

    dataset: Any
    batch_size: int
    shuffle: bool
    drop_last: bool
    collate: Callable[[list[Any]], Any]
    options: dict[str, Any] = field(default_factory=dict)
    """Settings for the DataLoader that reads: workers, pinning, prefetching."""
    draw: Callable[[int], Draw] | None = None
    """Makes the order from the run's seed, where it is neither shuffled nor sequential."""
    positions: int | None = None
    """Samples of an epoch, when the script wants fewer than there are."""
    given: Any = None
    """What the script gave."""
    loose: str | None = None
    """Why a resume cannot return to every position, for people; None where it can."""

    @property
    def whole(self) -> bool:
        """Whether the items of the dataset are batches already."""
        return isinstance(self.collate, BatchedItems)

    @property
    def streamed(self) -> bool:
        """Whether the dataset can only be iterated over; see `rekindle.data.streams`."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def samples(self) -> int:
        """Length of the dataset."""
        return ENDLESS if self.streamed else len(self.dataset)

    @property
    def batches(self) -> int:
        """Batches in one pass over everything."""
        return self.batches_of(self.positions or self.samples)

    def batches_of(self, positions: int) -> int:
        """Batches in so many samples."""
        whole, rest = divmod(positions, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)


class Batches(Dataset[Any]):
    """A dataset whose items are whole batches, which may be others in each epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        raise NotImplementedError

    def batch(self, seed: int, epoch: int, number: int) -> Any:
        """One of them: a function of these three."""
        raise NotImplementedError

    def mark(self, seed: int) -> str:
        """What identifies the data; see `fingerprint`."""
        raise NotImplementedError

    def unshuffled(self) -> "Batches":
        """The same batches in each epoch, in the order of the data where there is one."""
        raise NotImplementedError


class Share(NamedTuple):
    """One lane, as the sampler asks for it."""

    epoch: int
    ids: Ids


class Batch(NamedTuple):
    """One lane, as it was read: the ids of its samples and what `collate_fn` made of them."""

    ids: Any
    data: Any


_CUT = 256
"""Lanes that are cut at a time, about; measured."""


# Every lane takes one of each: no code of Python's runs for it.
_share: Callable[[tuple[int, Ids]], Share] = partial(tuple.__new__, Share)
_batch: Callable[[tuple[Any, Any]], Batch] = partial(tuple.__new__, Batch)
_TENSORS = {torch.Tensor}


class LaneSampler:
    """Yields this rank's lanes from the cursor to the end of the epoch."""

    def __init__(
        self, cursor: Cursor, *, rank: int, world_size: int, draw: Draw | None = None
    ) -> None:
        self.cursor = cursor
        """Where the next pass begins; moved by the loop before each pass."""
        self.draw = draw
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Share]:
        return chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[Share]]:
        """The same lanes, those of some steps at a time."""
        cursor = self.cursor
        epoch, length, batch, micro = cursor.epoch, cursor.length, cursor.G, cursor.micro
        stride = self._world_size * micro
        first, ids = cursor.sample, np.empty(0, dtype=np.int64)
        for _, more in cursor.order_with(self.draw).stream(epoch, cursor.sample, length):
            ids = np.concatenate([ids, more])
            # Whole steps; what is left of the block waits for the next one. Some are cut at once:
            # one step at a time, NumPy's code would not stay in the processor's caches.
            stop = first + len(ids)
            stop = stop if stop == length else stop - (stop - cursor.sample) % batch
            few = max(batch, _CUT // cursor.lanes * batch)
            for begin in range(first, stop, few):
                yield [
                    _share((epoch, ids[at - first : min(at + micro, end) - first]))
                    for start in range(begin, min(begin + few, stop), batch)
                    for end in (min(start + batch, stop),)
                    for at in range(start + self._rank * micro, end, stride)
                ]
            first, ids = stop, ids[stop - first :]


class BatchSampler:
    """Yields this rank's validation batches: batch b belongs to rank b mod W, nothing is padded."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        batches: int,
        *,
        rank: int,
        world_size: int,
        ids: Ids | None = None,
    ) -> None:
        """`ids`: which samples, where it is not all of them in the order of the data."""
        self._samples, self._size, self._batches = samples, batch_size, batches
        self._rank, self._world_size, self._ids = rank, world_size, ids

    def __iter__(self) -> Iterator[Share]:
        for batch in range(self._rank, self._batches, self._world_size):
            start = batch * self._size
            stop = min(start + self._size, self._samples)
            places = np.arange(start, stop, dtype=np.int64)
            yield Share(0, places if self._ids is None else self._ids[places])


class Reader(Dataset[Batch]):
    """The dataset as the DataLoader sees it: its items are whole lanes."""

    def __init__(self, source: LoaderSource, seed: int) -> None:
        self._dataset = source.dataset
        self._collate = source.collate
        self._seed = seed
        self._tensors = _tensors(source)
        self._ready = _ready(source)
        self._batches = source.dataset if isinstance(source.dataset, Batches) else None
        self._draws = False
        """Whether reading has drawn from Python's or NumPy's generator; see `randomness.Watch`."""
        # A dataset that fetches many samples at once (as those over a database do) is seeded once
        # per lane: a lane's samples are fixed as well.
        self._many = (
            getattr(source.dataset, "__getitems__", None)
            if not isinstance(source.dataset, Subset)
            else None
        )

    @property
    def ready(self) -> bool:
        """Whether items are batches that lie in memory."""
        return self._ready is not None

    def __getitem__(self, share: Share) -> Batch:
        ids = share.ids
        if self._batches is not None:
            # These see to their seeds themselves, and have one number per lane.
            number = int(ids[0])
            return Batch(ids, self._collate([self._batches.batch(self._seed, share.epoch, number)]))
        if self._tensors is not None:
            tensors, indices = self._tensors
            where = torch.from_numpy(ids if indices is None else indices[ids])
            return Batch(ids, [tensor[where] for tensor in tensors])
        listed: list[int] = ids.tolist()
        if self._ready is not None:
            return Batch(ids, self._converted(self._ready[listed[0]]))
        seen = watch()
        if seen is None:
            return Batch(ids, self._read(share.epoch, listed, full=True))
        if not seen.clean:
            seed_all(mixed(self._seed))
        if not self._draws:
            batch = self._read(share.epoch, listed, full=False)
            if seen.clean:
                return Batch(ids, batch)
            self._draws = True
        touched = seen.touched
        batch = self._read(share.epoch, listed, full=True)
        # What a dataset draws is no draw of the training: workers would have done it elsewhere.
        seen.accept()
        seen.touched = touched
        return Batch(ids, batch)

    def several(self, shares: list[Share]) -> list[Batch]:
        """The batches of several lanes, where they lie `ready`."""
        assert self._ready is not None
        items, converted = self._ready, self._converted
        return [_batch((ids, converted(items[ids[0]]))) for _, ids in shares]

    def _converted(self, item: Any) -> Any:
        """What `default_convert` makes of a batch, at once where there is nothing to convert."""
        kind = type(item)
        if kind is torch.Tensor:
            return item
        if (kind is tuple or kind is list) and {*map(type, item)} == _TENSORS:
            return [*item]  # of a tuple too
        return self._collate([item])

    def _read(self, epoch: int, ids: list[int], *, full: bool) -> Any:
        if self._many is not None:
            seed_sample(self._seed, epoch, ids[0], full=full)
            return self._collate(self._many(ids))
        samples = []
        for index in ids:
            seed_sample(self._seed, epoch, index, full=full)
            samples.append(self._dataset[index])
        return self._collate(samples)


def _tensors(source: LoaderSource) -> tuple[tuple[torch.Tensor, ...], Ids | None] | None:
    """Tensors (and a subset's indices) that can be indexed directly with the same result."""
    dataset, indices = source.dataset, None
    if source.collate is not default_collate:
        return None
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        indices = np.asarray(dataset.indices, dtype=np.int64)
        dataset = dataset.dataset
    return (dataset.tensors, indices) if type(dataset) is TensorDataset else None


class BatchedItems:
    """The collate function of a dataset whose items are batches already."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self.convert = convert

    def __call__(self, items: list[Any]) -> Any:
        """The only item, converted."""
        return self.convert(items[0])


def _ready(source: LoaderSource) -> Sequence[Any] | None:
    """A list of batches: it cannot draw, so nothing is seeded to read it."""
    collate = source.collate
    if type(collate) is BatchedItems and collate.convert is default_convert:
        return source.dataset if type(source.dataset) in (list, tuple) else None
    return None


def _same(batch: Any) -> Any:
    return batch


class WorkerStart:
    """First thing a loader worker does: become deaf to signals meant for its parent."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then
        worker_shutdown.at_exit()

    def __call__(self, worker: int) -> None:
        """Run in the worker, before it reads anything."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._then is not None:
            self._then(worker)


class Direct:
    """Reads in this process: what a DataLoader without workers does, in a tenth of its time."""

    def __init__(self, reader: Reader, sampler: Iterable[Share]) -> None:
        self._reader, self._sampler = reader, sampler

    def __iter__(self) -> Iterator[Batch]:
        if self._reader.ready and isinstance(self._sampler, LaneSampler):
            # Nothing has to be read for them, so those of some steps are taken at a time.
            return chain.from_iterable(map(self._reader.several, self._sampler.blocks()))
        return map(self._reader.__getitem__, iter(self._sampler))


def build(source: LoaderSource, sampler: LaneSampler | BatchSampler, seed: int) -> Iterable[Batch]:
    """What reads lanes: a plain DataLoader, or `Direct` where that would do the same."""
    reader, options = Reader(source, seed), dict(source.options)
    if not options["num_workers"]:
        if not options["pin_memory"]:
            return Direct(reader, sampler)
        options["persistent_workers"] = False
    return worker_shutdown.WorkerLoader(
        reader,
        # The sampler's items are whole lanes, so the loader must not batch again.
        batch_size=None,
        sampler=sampler,
        collate_fn=_same,
        # A generator of its own: starting an iterator draws from the default one otherwise.
        generator=torch.Generator(),
        **options,
    )


def limited(amount: int | float, total: int) -> int:
    """How many of `total` batches a limit leaves."""
    return min(amount, total) if isinstance(amount, int) else int(total * amount)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a nested batch; tensors in pinned memory travel without waiting."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    if hasattr(value, "to"):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        moved = copy(value)
        for each in fields(value):
            # Also in frozen ones, and without running their checks again.
            object.__setattr__(moved, each.name, to_device(getattr(value, each.name), device))
        return moved
    return value


def describe(value: Any) -> str:
    """A batch by its shapes: ``(float32[32,1,8,8], int64[32])``."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}".replace(" ", "")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [describe(item) for item in value[:8]]
        return "(" + ", ".join(items + ["..."] * (len(value) > 8)) + ")"
    return type(value).__name__


def streams_name(dataset: Any) -> str:
    """What to call a stream."""
    return str(dataset) if isinstance(dataset, Iterated) else type(dataset).__qualname__


def fingerprint(source: LoaderSource, seed: int) -> str:
    """What identifies a dataset, on every rank and on resume: R9 and R12 compare it.

    Length, the indices of subsets, and eight samples: their structure, shapes, integers and
    strings. Floating-point contents count only where nothing is computed on the way (tensor
    datasets), because another CPU may round an augmentation differently. A dataset may give a
    string attribute ``fingerprint`` of its own instead.
    """
    dataset, samples = source.dataset, source.samples
    own = getattr(dataset, "fingerprint", None)
    if isinstance(own, str):
        return own
    if isinstance(dataset, Batches):
        return dataset.mark(seed)
    if source.streamed:
        text = f"{streams_name(dataset)}/{getattr(dataset, 'num_shards', None)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    digest = hashlib.sha256(str(samples).encode())
    inner = dataset
    while isinstance(inner, Subset):
        digest.update(np.asarray(inner.indices, dtype=np.int64).tobytes())
        inner = inner.dataset
    exact = type(inner) is TensorDataset
    for index in sorted({samples * part // 8 for part in range(8)} | {samples - 1}):
        seed_sample(seed, 0, index)
        _digest(dataset[index], digest, exact)
    return digest.hexdigest()[:16]


def _digest(value: Any, digest: Any, exact: bool) -> None:
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(np.asarray(value))
    if isinstance(value, torch.Tensor):
        digest.update(describe(value).encode())
        if exact or not (value.is_floating_point() or value.is_complex()):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(str(key).encode())
            _digest(item, digest, exact)
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for item in value:
            _digest(item, digest, exact)
    elif isinstance(value, str | int | bytes):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
