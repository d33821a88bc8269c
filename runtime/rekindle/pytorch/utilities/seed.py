"""Random numbers that a piece of code draws without moving anybody else's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Draw as you like within: the generators of torch, NumPy and Python go on as if you had not.

    In a forked process leave out CUDA's, which cannot be started there.
    """
    cuda = include_cuda and torch.cuda.is_available()
    before = (torch.get_rng_state(), numpy.random.get_state(), random.getstate())
    devices = torch.cuda.get_rng_state_all() if cuda else []
    yield
    torch.set_rng_state(before[0])
    numpy.random.set_state(before[1])
    random.setstate(before[2])
    if cuda:
        torch.cuda.set_rng_state_all(devices)
