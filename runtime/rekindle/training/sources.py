"""From what a script gives to loaders: data modules, loaders, and what stands in for a missing one.

`prepare_data` downloads, so it runs on one process and the others wait for its word, however long
it takes: a thread of the process that works sends a sign of life in between, because a collective
gives up after minutes. What it raises is raised everywhere.

A script that validates but has no test data can still be tested: the numbers are then those of the
validation, and that is said once.
"""

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import RandomSampler, Subset

from rekindle import threads
from rekindle.data import cpus
from rekindle.data.batches import ids_of, unshuffled
from rekindle.data.loader import (
    Batch,
    BatchSampler,
    LoaderSource,
    build,
    limited,
    streams_name,
)
from rekindle.data.script_data import Evaluation, take_apart, take_apart_all
from rekindle.datamodule import DataModule
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Flags
from rekindle.model.module import Module
from rekindle.randomness import seed_sample
from rekindle.ranks.distributed import World
from rekindle.training.run import EvaluationPart, Validation

Stage = Literal["fit", "validate", "test", "predict"]
Asked = tuple[LoaderSource | None, Evaluation | None]
"""What to train with, and what to evaluate."""

SIGN_OF_LIFE = 30.0
"""Seconds between two signs of life of the process that prepares the data."""
_INSTEAD = {
    "validate": ("val_dataloader",),
    "test": ("test_dataloader", "val_dataloader"),
    "predict": ("predict_dataloader", "test_dataloader", "val_dataloader"),
}


def prepare(module: Module, datamodule: Any, world: World) -> None:
    """Run what downloads, on one process (of each node, if the data module says so); collective."""
    tasks: list[Callable[[], None]] = []
    everywhere = bool(getattr(datamodule, "prepare_data_per_node", False))
    for owner, each_node in ((datamodule, everywhere), (module, False)):
        chosen = world.local_rank == 0 if each_node else world.first
        for name in ("prepare_data", "prepare"):
            if owner is not None and chosen and _own(owner, name):
                tasks.append(getattr(owner, name))
    if world.size == 1:
        for task in tasks:
            task()
        return
    if not any(world.gather(bool(tasks))):
        return
    error: Exception | None = None
    done = threading.Event()
    signs = threads.task(lambda: _signs(world, done, bool(tasks)), name="rekindle-signs")
    try:
        for task in tasks:
            task()
    except Exception as failure:
        error = failure
    done.set()
    signs.join()
    world.agree(error)


def _own(owner: object, name: str) -> bool:
    base = Module if isinstance(owner, Module) else DataModule
    return getattr(type(owner), name, None) is not getattr(base, name)


def _signs(world: World, done: threading.Event, busy: bool) -> None:
    """Take part in rounds until nobody is busy any more."""
    while True:
        if busy:
            busy = not done.wait(SIGN_OF_LIFE)
        if not any(world.gather(busy)):
            return


def load(
    module: Module,
    datamodule: Any,
    given: dict[str, Any],
    world: World,
    flags: Flags,
    stage: Stage,
    ready: Callable[[], None] = lambda: None,
) -> tuple[LoaderSource | None, Evaluation | None]:
    """The training source (only to fit) and what to evaluate; collective.

    `given` holds the loaders that the script passed itself, as ``train`` and ``evaluation``. A data
    module's come before the module's own, which is asked once it is `ready` (after its `setup`).
    Afterwards those that are used are in it as ``found``.
    """
    prepare(module, datamodule, world)
    error: Exception | None = None
    sources: Asked = (None, None)
    try:
        if not flags.use_distributed_sampler and world.size > 1:
            raise ValueError(
                f"use_distributed_sampler=False is not supported on {world.size} processes: the "
                f"trainer deals out the samples, which is what makes a resume exact. Give the "
                f"whole dataset and remove the flag."
            )
        if datamodule is not None:
            datamodule.setup(stage)
        ready()
        sources = ask(module, datamodule, given, world, flags, stage)
        if world.first:
            _warn_if_shared(*sources)
            _warn_of_shuffling(sources[1], stage)
            if stage == "fit":
                _warn_of_pinning(*(one.given for one in sources if one is not None))
    except Exception as failure:
        error = failure
    world.agree(error)
    return sources


def ask(
    module: Module, datamodule: Any, given: dict[str, Any], world: World, flags: Flags, stage: Stage
) -> Asked:
    """Ask whoever has the loaders for them; nothing here is collective."""
    train, evaluation = given.get("train"), given.get("evaluation")
    if datamodule is not None and stage == "fit":
        train, evaluation = datamodule.train_dataloader(), datamodule.val_dataloader()
    elif datamodule is not None and evaluation is None:
        evaluation = _substituted(datamodule, stage, world)
    elif datamodule is None:
        if stage == "fit" and train is None:
            train = _own_loader(module, "train_dataloader")
        if evaluation is None:
            name = "val_dataloader" if stage == "fit" else _INSTEAD[stage][0]
            evaluation = _own_loader(module, name)
    if stage == "fit" and evaluation is not None and not _overridden(module, "validation_step"):
        if world.first:
            warnings.warn(
                f"there are data to validate with, and {type(module).__name__} has no "
                f"validation_step: no validation is done. Define validation_step(self, batch, "
                f"batch_idx) to have one.",
                stacklevel=2,
            )
        evaluation = None
    given["found"] = train, evaluation
    source = None if train is None else _micro(_fixed(take_apart(train, "train"), flags), flags)
    found = None if evaluation is None else take_apart_all(evaluation)
    if found is not None and stage == "predict":
        # Every sample has a prediction.
        whole = tuple(replace(one, drop_last=False) for one in found.sources)
        found = replace(found, sources=whole)
    return _workers(source, world), _all_workers(found, world)


def _own_loader(module: Module, name: str) -> Any:
    """What the module's own method of this name gives; None where it has none."""
    return getattr(module, name)() if _overridden(module, name) else None


def _fixed(source: LoaderSource, flags: Flags) -> LoaderSource:
    """With `overfit_batches` there is one order for all epochs."""
    return unshuffled(source) if flags.overfit and not source.streamed else source


def _micro(source: LoaderSource, flags: Flags) -> LoaderSource:
    if not isinstance(flags.micro_batch, int):
        return source
    if source.whole:
        raise ValueError(
            f"micro_batch={flags.micro_batch}: the training data come in whole batches, which the "
            f"trainer does not cut. Cut them in the script, or give a DataLoader with batch_size="
        )
    return replace(source, batch_size=flags.micro_batch)


def _workers(source: LoaderSource | None, world: World) -> LoaderSource | None:
    """R3: no more workers than processors; they would only take each other's time."""
    if source is None or not source.options.get("num_workers"):
        return source
    asked = source.options["num_workers"]
    count, limit = cpus.usable()
    if asked <= count:
        return source
    if world.first:
        warnings.warn(
            f"R3 num_workers={asked} but this pod may use {count} CPUs ({limit}); using {count}. "
            f"Set num_workers={count} to silence.",
            stacklevel=2,
        )
    return replace(source, options={**source.options, "num_workers": count})


def _all_workers(data: Evaluation | None, world: World) -> Evaluation | None:
    if data is None:
        return None
    found = [source for one in data.sources if (source := _workers(one, world)) is not None]
    return replace(data, sources=tuple(found))


def _substituted(datamodule: Any, stage: str, world: World) -> Any:
    wanted, *others = _INSTEAD[stage]
    loader = getattr(datamodule, wanted)()
    for other in others:
        if loader is not None:
            break
        loader = getattr(datamodule, other)()
        if loader is not None and world.first:
            told = ", so the numbers are validation numbers" if other == "val_dataloader" else ""
            warnings.warn(
                f"{type(datamodule).__name__} has no {wanted}: {stage}() uses {other}{told}. "
                f"Define {wanted} to give it data of its own.",
                stacklevel=2,
            )
    return loader


def step_name(module: Module, stage: Stage, world: World) -> str:
    """The module's method for a stage; says when another one stands in for it."""
    if stage == "predict":
        return "predict_step"
    if stage != "test":
        return "validation_step"
    if _overridden(module, "test_step") or not _overridden(module, "validation_step"):
        return "test_step"
    if world.first:
        warnings.warn(
            f"{type(module).__name__} has no test_step: test() uses validation_step, so the "
            f"metrics carry the names that it gives them. Define test_step to change that.",
            stacklevel=2,
        )
    return "validation_step"


def _overridden(module: Module, name: str) -> bool:
    return name in vars(module) or getattr(type(module), name) is not getattr(Module, name)


def _warn_if_shared(train: LoaderSource | None, validation: Evaluation | None) -> None:
    """Two splits of one dataset object cannot have a transform each."""
    if train is None or validation is None or not validation.sources:
        return
    one, other = _whole(train.dataset), _whole(validation.sources[0].dataset)
    if one is not other:
        return
    for name in ("transform", "transforms"):
        transform = getattr(one, name, None)
        if transform is None:
            continue
        shown = getattr(transform, "__name__", type(transform).__name__)
        warnings.warn(
            f"training and validation data share one {type(one).__name__} object, so both are read "
            f"with its {name}={shown}, the one that was set last. Give each split an object of its "
            f"own: Subset({type(one).__name__}(...), split.indices).",
            stacklevel=2,
        )
        return


def _warn_of_shuffling(data: Evaluation | None, stage: str) -> None:
    """To evaluate, samples are read in the order of the data."""
    for source in () if data is None else data.sources:
        if type(getattr(source.given, "sampler", None)) is RandomSampler:
            name = "val_dataloader" if stage == "fit" else _INSTEAD[stage][0]
            warnings.warn(
                f"Your {name} has shuffling enabled (shuffle=True), which has no effect here: "
                f"samples are evaluated in the order of the data. Turn it off.",
                stacklevel=2,
            )
            return


def _warn_of_pinning(*loaders: Any) -> None:
    """Pinned memory is for transfers to a device."""
    if torch.cuda.is_available() or not any(getattr(one, "pin_memory", False) for one in loaders):
        return
    warnings.warn(
        "DataLoader(pin_memory=True) has no effect here: there is no accelerator that memory could "
        "be copied to. Leave it out, or ignore this where the script also runs on GPUs.",
        stacklevel=2,
    )


def _whole(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def dealt(
    data: Evaluation | None, limit: int | float, world: World, seed: int
) -> Validation | None:
    """Data to evaluate, dealt out over the ranks; None when there is none."""
    if data is None or not limit:
        return None
    parts = tuple(_part(source, limit, world, seed) for source in data.sources)
    if not any(part.batches is None or part.batches for part in parts):
        return None
    return Validation(parts=parts, several=data.several)


def _part(source: LoaderSource, limit: int | float, world: World, seed: int) -> EvaluationPart:
    if source.streamed:
        if isinstance(limit, float) and limit != 1.0:
            raise ValueError(
                f"a limit of {limit} is a share of a length that {streams_name(source.dataset)} "
                f"does not have; give a number of batches"
            )
        most = limit if isinstance(limit, int) else None
        return EvaluationPart(loader=WholeStream(source, seed), batches=None, most=most, whole=True)
    ids = ids_of(source, seed)
    samples = source.samples if ids is None else len(ids)
    whole = source.batches_of(samples)
    batches = limited(limit, whole)
    if whole and not batches:
        raise ValueError(
            f"a limit of {limit} of {whole} batches is less than one; give at least {1 / whole:.2g}"
        )
    sampler = BatchSampler(
        samples, source.batch_size, batches, rank=world.rank, world_size=world.size, ids=ids
    )
    return EvaluationPart(loader=build(source, sampler, seed), batches=batches, whole=source.whole)


class WholeStream:
    """A stream to evaluate, as every rank reads it: all of it."""

    def __init__(self, source: LoaderSource, seed: int) -> None:
        self._source, self._seed = source, seed

    def __iter__(self) -> Iterator[Batch]:
        # What a stream draws belongs to the place in it, not to the steps in between.
        found = iter(self._source.dataset)
        for number in itertools.count():
            seed_sample(self._seed, 0, number)
            try:
                item = next(found)
            except StopIteration:
                return
            yield Batch(np.array([number]), item)


def needed(data: Validation | None, stage: Stage) -> Validation:
    """Refuse a stage without data."""
    if data is None:
        raise RequirementError(
            f"R9 {stage}() got no data: give a loader, or a DataModule with "
            f"{' or '.join(_INSTEAD[stage])} (and a limit of more than nothing)."
        )
    return data
