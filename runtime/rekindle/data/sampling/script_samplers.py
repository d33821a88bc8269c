"""Samplers of the script's own, asked for the order of an epoch.

A sampler says its order by being iterated over, once per epoch. It is *made anew* when asking it
for an epoch gives the same whenever it is asked: then a resume can return to any position. So every
pass is made under generators that are seeded from (seed, epoch): the global ones, and those that
the sampler holds; and `set_epoch` is called where there is one. What still differs between two
passes depends on how often the sampler was iterated over, and nobody can return to that.
"""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rekindle import randomness

_PASS = 6
"""Tells these seeds from others of the same numbers."""


class Passes:
    """``passes(seed, epoch)``: everything that the sampler gives in one epoch."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __call__(self, seed: int, epoch: int) -> list[Any]:
        """One pass; the generators outside are left as they are."""
        kept = randomness.states()
        value = randomness.mixed(seed, _PASS, epoch)
        try:
            for each in _nested(self.sampler):
                _seed_held(each, value)
                if callable(getattr(each, "set_epoch", None)):
                    each.set_epoch(epoch)
            randomness.seed_all(value)
            return [_copied(item) for item in self.sampler]
        finally:
            randomness.restore(kept)

    def repeatable(self) -> bool:
        """Whether an epoch can be asked for again; tried on a copy, so far as one can be made."""
        tried = Passes(_tried(self.sampler))
        first, second = tried(0, 0), tried(0, 1)
        return tried(0, 0) == first and tried(0, 1) == second

    def even(self) -> bool:
        """Whether epochs are of one length, as far as the first two tell."""
        tried = Passes(_tried(self.sampler))
        return len(tried(0, 0)) == len(tried(0, 1))


def _nested(sampler: Any) -> Iterator[Any]:
    """A sampler and those inside of it."""
    seen: list[int] = []
    while sampler is not None and id(sampler) not in seen:
        seen.append(id(sampler))
        yield sampler
        held = getattr(sampler, "sampler", None)
        sampler = held if held is not None else getattr(sampler, "batch_sampler", None)


def _seed_held(sampler: Any, value: int) -> None:
    """Seed the generators among a sampler's attributes."""
    for held in list(getattr(sampler, "__dict__", {}).values()):
        if isinstance(held, torch.Generator):
            held.manual_seed(value)
        elif isinstance(held, random.Random):
            held.seed(value)
        elif isinstance(held, np.random.RandomState):
            held.seed(value & 0xFFFFFFFF)
        elif isinstance(held, np.random.Generator):
            held.bit_generator.state = type(held.bit_generator)(value).state


def _copied(item: Any) -> Any:
    """Samplers may go on changing the list that they have handed over."""
    return list(item) if isinstance(item, list) else item


def _tried(sampler: Any) -> Any:
    """A copy that shares the data, which may be large; the sampler itself where there is none."""
    shared = {
        id(held): held
        for each in _nested(sampler)
        for held in getattr(each, "__dict__", {}).values()
        if hasattr(held, "__getitem__") and not isinstance(held, list | dict)
    }
    try:
        return copy.deepcopy(sampler, shared)
    except Exception:
        return sampler
