"""A few training steps of a copy, to learn something before a run begins.

The module itself is never touched: the copy has its own parameters, buffers, metrics and optimizer,
and what it logs goes nowhere. The generators are put back when the trial ends, however it does. So
a run that follows is bit for bit the one that it would have been.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from rekindle import randomness
from rekindle.data.loader import LoaderSource, Reader, Share, to_device
from rekindle.data.sampling.order import GlobalOrder
from rekindle.model import optimizers
from rekindle.model.precision import autocast
from rekindle.persistence.run_selection import begun as begun_in
from rekindle.training.setup.preflight import loss_of

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


def trial(
    trainer: "Trainer", module: "Module", source: LoaderSource, steps: int
) -> Iterator[tuple[int, float, torch.optim.Optimizer]]:
    """Train a copy of `module`: (steps done, newest loss, optimizer), before the first step too.

    Raises ValueError for a module with manual optimization, whose steps are its own business.
    """
    if not optimizers.automatic(module):
        raise ValueError(
            f"{type(module).__name__} optimizes manually, so nobody else can try its steps; set "
            f"learning rate and batch size in the script"
        )
    assert trainer.world is not None
    device, seed, kept = trainer.world.device, trainer.flags.seed, randomness.states()
    planned = trainer.estimated_stepping_batches
    copied = copy.deepcopy(module).to(device)
    copied.train()
    try:
        copied.attach(trainer, None)
        trainer.plan(steps)
        optimizer = optimizers.configure(copied).optimizers[0]
        context = autocast(trainer.flags.precision, device)
        yield 0, math.nan, optimizer
        for number, batch in enumerate(_batches(source, seed, steps)):
            moved = batch if device.type == "cpu" else to_device(batch, device)
            randomness.seed_lane(seed, number, 0)
            with context or nullcontext():
                loss = loss_of(copied.training_step(moved, number), copied)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield number + 1, float(loss.detach()), optimizer
    finally:
        trainer.plan(planned)
        randomness.restore(kept)


def begun(trainer: "Trainer") -> bool:
    """Whether the run that begins has a checkpoint, and so what an earlier attempt found.

    The store is not asked about a run that was found in memory: it need not even be there.
    """
    world, flags = trainer.world, trainer.flags
    assert world is not None
    if trainer._recalled:
        return True
    found, error = False, None
    if world.first and flags.enable_checkpointing and flags.resume != "never":
        try:
            assert trainer._identity is not None, "set before any hook"
            found = begun_in(flags, trainer._identity)
        except Exception as failure:
            error = failure
    world.agree(error)
    return world.share(found)


def write(owner: Any, name: str, value: Any) -> bool:
    """Write a value where a script reads it: attribute, hyperparameter; whether there was one."""
    found = False
    if name in getattr(owner, "hparams", ()):
        owner.hparams[name], found = value, True
    if isinstance(getattr(owner, name, None), int | float):
        setattr(owner, name, value)
        found = True
    return found


def _batches(source: LoaderSource, seed: int, count: int) -> Iterator[Any]:
    """Whole batches, epoch after epoch."""
    reader, size = Reader(source, seed), min(source.batch_size, source.samples)
    order = GlobalOrder(
        n=source.samples, seed=seed, kind="shuffle" if source.shuffle else "sequential"
    )
    each = source.samples // size
    for number in range(count):
        epoch, place = divmod(number, each)
        ids = order.ids(epoch, place * size, (place + 1) * size)
        yield reader[Share(epoch, ids)].data
