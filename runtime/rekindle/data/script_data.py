"""What a script gives as data, taken apart into what the trainer can read in an order of its own.

Anything that Lightning takes is taken: a DataLoader with any sampler, collections of loaders, any
iterable. The question is each time whether the batches of an epoch can be made anew from numbers:

- a dataset with a length and a known sampler: samples, in the trainer's own order;
- a sampler of the script's own that gives the same whenever it is asked: samples, in its order;
- a `batch_sampler`, several loaders together, a sequence of batches: whole batches, by number;
- everything else is a stream, which is read from its beginning.

A stream without a state of its own is where exactness ends. `LoaderSource.loose` says so; whether
that is accepted is decided where the run is made. To evaluate, anything will do: a pass that was
cut short is run again from its start.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import default_collate
from torch.utils.data.distributed import DistributedSampler

from rekindle.data.batches import WHOLE, BatchSamplerDataset, together
from rekindle.data.combined import CombinedLoader, Mode, collected
from rekindle.data.iterated import iterated
from rekindle.data.loader import BatchedItems, LoaderSource, WorkerStart
from rekindle.data.loader_config import LoaderConfig, OrderFunction
from rekindle.data.sampling.samplers import Custom, Draw, Weighted
from rekindle.data.sampling.script_samplers import Passes
from rekindle.data.streams import ShardedStream

Role = Literal["train", "validation"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation reads: one loader after the other."""

    sources: tuple[LoaderSource, ...]
    several: bool
    """Whether steps and hooks are told which loader a batch is from."""
    given: Any
    """What the script gave."""


def take_apart_all(loaders: object) -> Evaluation:
    """The loaders of an evaluation: each by itself, or by the rule of a `CombinedLoader`."""
    if _is_configured(loaders) or not collected(loaders):
        found = [take_apart(loaders, "validation")]
        return Evaluation(sources=tuple(found), several=False, given=loaders)
    combined = loaders if isinstance(loaders, CombinedLoader) else None
    if combined is not None and combined.mode != "sequential":
        found = [take_apart(combined, "validation")]
        return Evaluation(sources=tuple(found), several=False, given=loaders)
    if combined is None:
        combined = CombinedLoader(loaders, "sequential")
    parts = tuple(take_apart(one, "validation") for one in combined.flattened)
    return Evaluation(sources=parts, several=len(parts) > 1, given=loaders)


def take_apart(loader: object, role: Role) -> LoaderSource:
    """Keep what describes the data and its reading."""
    if isinstance(loader, tuple) and _is_configured(loader):
        return _configured(loader[0], loader[1], role)
    if collected(loader):
        return _combined(loader, role)
    if isinstance(loader, ShardedStream):
        loader = DataLoader(loader)
    if isinstance(loader, DataLoader):
        return _loaded(loader, role)
    if isinstance(loader, IterableDataset):
        return _streamed(loader, loader, role)
    if isinstance(loader, Sequence | torch.Tensor | np.ndarray) or (
        isinstance(loader, Dataset) and hasattr(loader, "__len__")
    ):
        return LoaderSource(
            dataset=loader,
            batch_size=1,
            shuffle=False,
            drop_last=False,
            collate=WHOLE,
            options=_options(),
            given=loader,
        )
    if not isinstance(loader, Iterable):
        raise TypeError(
            f"the {role} data is a {type(loader).__name__}; give a torch.utils.data.DataLoader, "
            f"any iterable of batches, a list or dict of these, or (dataset, "
            f"rekindle.LoaderConfig(batch_size=...))"
        )
    return _streamed(loader, loader, role)


def _is_configured(loader: object) -> bool:
    return isinstance(loader, tuple) and len(loader) == 2 and isinstance(loader[1], LoaderConfig)


def _combined(loader: object, role: Role) -> LoaderSource:
    """Several loaders together, the rest of their meaning in `Several`."""
    if not isinstance(loader, CombinedLoader):
        loader = CombinedLoader(loader, "max_size_cycle")
    mode: Mode = loader.mode
    if mode == "sequential":
        raise ValueError(
            "fit() does not take CombinedLoader(mode='sequential') for training; allowed are "
            "'min_size', 'max_size_cycle' and 'max_size'. To read one dataset after the other use "
            "torch.utils.data.ConcatDataset."
        )
    parts = [take_apart(one, role) for one in loader.flattened]
    if any(part.streamed for part in parts):
        return _streamed(loader, loader, role)
    return together(parts, mode, loader.restructured, loader)


def _loaded(loader: "DataLoader[Any]", role: Role) -> LoaderSource:
    dataset, training = loader.dataset, role == "train"
    if isinstance(dataset, IterableDataset) and not training:
        return _streamed(_once(loader), loader, role)
    if isinstance(dataset, ShardedStream) and loader.drop_last:
        raise ValueError(
            f"drop_last=True and the stream {type(dataset).__name__}: a short batch at the end "
            f"counts with its true size. Remove drop_last."
        )
    size, sampler, drop_last = loader.batch_size, loader.sampler, bool(loader.drop_last)
    if size is None and loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return _cut(loader, loader.batch_sampler, role)
        # The one that a DataLoader makes of its other arguments.
        inner = loader.batch_sampler
        size, sampler, drop_last = inner.batch_size, inner.sampler, inner.drop_last
    streamed = isinstance(dataset, IterableDataset)
    shuffle, draw, positions = False, None, None
    if not streamed and not _known(sampler):
        found = _asked_sampler(loader, sampler, role)
        if found is None:
            whole = BatchSampler(sampler, size, drop_last) if size else None
            if whole is None:
                return _streamed(loader, loader, role, _unsteady(sampler))
            return _cut(loader, whole, role)
        draw, positions = found
    elif not streamed:
        shuffle, draw, positions = _shuffled(sampler) and training, _drawn(sampler), _fewer(sampler)
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, [int(index) for index in sampler.indices])
    return LoaderSource(
        dataset=dataset,
        batch_size=size or 1,
        shuffle=shuffle,
        drop_last=drop_last,
        collate=loader.collate_fn if size else BatchedItems(loader.collate_fn),
        options=_options(loader),
        draw=draw,
        positions=positions,
        given=loader,
    )


def _options(loader: "DataLoader[Any] | None" = None) -> dict[str, Any]:
    """Settings for the DataLoader that reads."""
    if loader is None:
        return {
            "num_workers": 0,
            "pin_memory": False,
            "timeout": 0,
            "worker_init_fn": None,
            "persistent_workers": False,
        }
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory and torch.cuda.is_available(),
        "timeout": loader.timeout,
        "worker_init_fn": WorkerStart(loader.worker_init_fn),
        "persistent_workers": loader.persistent_workers,
    }
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
        options["multiprocessing_context"] = loader.multiprocessing_context
    return options


def _streamed(iterable: Any, given: Any, role: Role, why: str | None = None) -> LoaderSource:
    """Whatever it is, read as it comes."""
    loaders = iterable.flattened if isinstance(iterable, CombinedLoader) else [iterable]
    for one in loaders:
        if isinstance(one, DataLoader) and not isinstance(one.worker_init_fn, WorkerStart):
            one.worker_init_fn = WorkerStart(one.worker_init_fn)
    stream = iterated(iterable)
    loose = None
    if role == "train" and not hasattr(stream, "state_dict"):
        loose = f"{stream} has no state_dict" if why is None else why
    return LoaderSource(
        dataset=stream,
        batch_size=1,
        shuffle=False,
        drop_last=False,
        collate=WHOLE,
        options=_options(),
        given=given,
        loose=loose,
    )


def _once(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """A loader of which no two workers read the same shards."""
    if not isinstance(loader.dataset, ShardedStream) or loader.num_workers < 2:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        num_workers=1,
        worker_init_fn=loader.worker_init_fn,
    )


def _cut(loader: "DataLoader[Any]", batch_sampler: Any, role: Role) -> LoaderSource:
    """A loader whose batches are cut by the script."""
    passes = Passes(batch_sampler)
    if not hasattr(loader.dataset, "__len__") or not (passes.repeatable() and passes.even()):
        return _streamed(loader, loader, role, _unsteady(batch_sampler))
    options = _options(loader)
    inner = LoaderSource(
        dataset=loader.dataset,
        batch_size=1,
        shuffle=False,
        drop_last=False,
        collate=loader.collate_fn,
        options=options,
    )
    return LoaderSource(
        dataset=BatchSamplerDataset(inner, passes),
        batch_size=1,
        shuffle=False,
        drop_last=False,
        collate=WHOLE,
        options=options,
        given=loader,
    )


def _unsteady(sampler: Any) -> str:
    return f"{type(sampler).__name__} gives another order, or another number, each time it is asked"


def _known(sampler: Any) -> bool:
    """Whether the trainer has such an order too, of the same meaning and other numbers."""
    if type(sampler) is RandomSampler:
        return bool(sampler.replacement or sampler.num_samples <= len(sampler.data_source))
    if type(sampler) is WeightedRandomSampler:
        return bool(sampler.replacement)
    return type(sampler) in (SequentialSampler, DistributedSampler, SubsetRandomSampler)


def _asked_sampler(
    loader: "DataLoader[Any]", sampler: Any, role: Role
) -> tuple[Callable[[int], Draw], int] | None:
    """The order of a sampler that gives the same samples of a dataset when asked again."""
    passes, n = Passes(sampler), len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    if not (passes.repeatable() and passes.even()):
        return None
    ids = passes(0, 0)
    if not ids or not all(isinstance(i, int | np.integer) and 0 <= i < n for i in ids):
        return None
    return _asked(passes, n), len(ids)


def _shuffled(sampler: Any) -> bool:
    if type(sampler) is DistributedSampler:
        return bool(sampler.shuffle)
    return type(sampler) is not SequentialSampler


def _drawn(sampler: Any) -> Callable[[int], Draw] | None:
    if type(sampler) is WeightedRandomSampler:
        return _constant(Weighted(sampler.weights, sampler.num_samples))
    if type(sampler) is RandomSampler and sampler.replacement:
        return _constant(Weighted(np.ones(len(sampler.data_source)), sampler.num_samples))
    return None


def _fewer(sampler: Any) -> int | None:
    if type(sampler) is WeightedRandomSampler:
        return int(sampler.num_samples)
    if type(sampler) is RandomSampler and (
        sampler.replacement or sampler.num_samples < len(sampler.data_source)
    ):
        return sampler.num_samples
    return None


def _configured(dataset: Any, config: LoaderConfig, role: str) -> LoaderSource:
    """The same as for a DataLoader, out of what a script says without one."""
    options: dict[str, Any] = {
        "num_workers": config.workers,
        "pin_memory": config.pin_memory and torch.cuda.is_available(),
        "timeout": config.timeout,
        "worker_init_fn": WorkerStart(config.worker_init_fn),
        "persistent_workers": config.persistent_workers and config.workers > 0,
    }
    if config.workers:
        options["prefetch_factor"] = config.prefetch_factor
    order, draw = config.order, None
    if isinstance(dataset, IterableDataset):
        if order != "shuffle":
            raise ValueError(
                f"LoaderConfig(order={order!r}) is for datasets with a length; the order of a "
                f"stream is its own"
            )
        loader = DataLoader(
            dataset,
            batch_size=config.batch_size,
            drop_last=config.drop_last,
            collate_fn=config.collate_fn,
            num_workers=min(config.workers, 1),
            worker_init_fn=config.worker_init_fn,
        )
        return _loaded(loader, "train" if role == "train" else "validation")
    if role == "train" and config.weights is not None:
        if len(config.weights) != len(dataset):
            raise ValueError(
                f"LoaderConfig has {len(config.weights)} weights for {len(dataset)} samples; give "
                f"one per sample"
            )
        draw = _constant(Weighted(config.weights, config.num_samples))
    elif role == "train" and callable(order):
        draw = _asked(order, len(dataset))
    return LoaderSource(
        dataset=dataset,
        batch_size=config.batch_size,
        shuffle=role == "train" and order != "sequential",
        drop_last=config.drop_last,
        collate=config.collate_fn or default_collate,
        options=options,
        draw=draw,
        given=(dataset, config),
    )


def _constant(draw: Draw) -> Callable[[int], Draw]:
    return lambda _seed: draw


def _asked(function: OrderFunction, n: int) -> Callable[[int], Draw]:
    return lambda seed: Custom(function, n, seed)
