"""Random numbers as a function of where they are drawn.

A generator that simply runs on makes the result depend on everything that ever drew from it: the
number of ranks, of loader workers, of restarts. Instead every place that may draw is given its own
seed, derived from its name by a fixed hash: ``(seed, step, lane)`` before a `training_step`,
``(seed, epoch, sample)`` before a dataset's ``__getitem__``, ``(seed, step, batch)`` in validation.
What is drawn there is then the same on any number of ranks and after any number of restarts, and
nothing has to be saved for it.

The public `torch.manual_seed` walks every backend (82 µs); seeding the default generators directly
costs 1 µs, Python's and NumPy's another 5 µs. Most datasets draw from torch or not at all, so for
them these 5 µs per sample are saved: Python's and NumPy's generators are left alone until a `Watch`
shows that reading has drawn from one of them, which two words of each generator's state tell. What
was read is then read once more, seeded in full, and so is everything after it.

The states of all generators are saved all the same, per rank, for user code that draws between
steps.
"""

import _random
import ctypes
import random
import sys
from functools import lru_cache
from typing import Any

import torch

_MASK = (1 << 64) - 1
_TRAINING, _VALIDATION, _SAMPLE, _START = 1, 2, 3, 4


def _after(state: int, word: int) -> int:
    state = ((state ^ word) + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


@lru_cache(maxsize=64)
def _begun(*words: int) -> int:
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = _after(state, word & _MASK)
    return state


def mixed(*words: int) -> int:
    """Hash integers to 64 bits: a fixed function, unlike Python's own ``hash``."""
    return _after(_begun(*words[:-1]), words[-1] & _MASK) if words else _begun()


_seed_torch = torch.default_generator.manual_seed
_python: Any = random._inst
_seed_python = _random.Random.seed


def seed_all(value: int) -> None:
    """Seed torch, Python and (if it is loaded) NumPy from 64 bits."""
    _seed_torch(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(value)
    # As random.seed() does it, without the detour over its checks of the argument's type.
    _seed_python(_python, value)
    _python.gauss_next = None
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
    if _watch is not None:
        _watch.fresh = _watch.words()


def seed_everything(seed: int) -> int:
    """Seed all generators, for what a script draws before `fit`: initial weights, splits."""
    seed_all(mixed(seed))
    return seed


def seed_lane(seed: int, step: int, lane: int) -> None:
    """Before a `training_step`: whatever it draws is a function of these three."""
    seed_all(_after(_after(_begun(seed, _TRAINING), step), lane))


def seed_validation(seed: int, step: int, batch: int) -> None:
    """Before a `validation_step`."""
    seed_all(mixed(seed, _VALIDATION, step, batch))


def seed_sample(seed: int, epoch: int, sample: int, *, full: bool = True) -> None:
    """Before a dataset's ``__getitem__``: augmentation depends on the sample, not on the worker.

    Without `full`, torch's generator only; see `Watch`.
    """
    value = _after(_begun(seed, _SAMPLE, epoch), sample)
    if full or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        seed_all(value)
    else:
        _seed_torch(value)


def seed_start(seed: int, rank: int, attempt: int) -> None:
    """At the start of a process whose own saved state does not exist."""
    seed_all(mixed(seed, _START, rank, attempt))


def states() -> dict[str, Any]:
    """The states of all generators of this process, as plain values and uint8 tensors."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        found["numpy"] = [
            str(name),
            torch.from_numpy(keys.astype("int64")),
            int(position),
            int(has_gauss),
            float(cached),
        ]
    return found


def restore(saved: dict[str, Any]) -> None:
    """Bring all generators back to what `states` gave."""
    torch.set_rng_state(saved["torch"])
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in saved:
        name, keys, position, has_gauss, cached = saved["numpy"]
        state = (name, keys.numpy().astype("uint32"), position, has_gauss, cached)
        numpy.random.set_state(state)


class Watch:
    """Sees whether somebody has drawn from Python's or NumPy's generator since `seed_all`.

    Both are Mersenne Twisters: 624 words and a position among them. Whoever draws moves the
    position, or renews the words when all are used up; so one word and the position tell, without
    copying 2.5 KB of state. They are read where they lie in memory. `usable` says whether that has
    been found to work in this interpreter.
    """

    def __init__(self) -> None:
        import numpy

        self._numpy: Any = numpy.random
        self._generator = self._numpy.get_bit_generator()
        where = id(_python) + object.__basicsize__  # int index, uint32 state[624]
        there = self._generator.ctypes.state_address  # uint32 key[624], int position
        self._words = [
            ctypes.c_uint32.from_address(address)
            for address in (where, where + 4, there + 4 * 624, there)
        ]
        self.fresh = self.words()
        """The words as the newest seeding left them."""
        self.usable = (
            type(self._generator).__name__ == "MT19937"
            and _random.Random.__basicsize__ >= object.__basicsize__ + 4 * 625
            and self._tried()
        )

    @property
    def clean(self) -> bool:
        """Whether nobody has drawn since the newest seeding."""
        return self.words() == self.fresh and (
            self._numpy.get_bit_generator() is self._generator  # a script may exchange it
        )

    def words(self) -> tuple[int, ...]:
        """Position and first word of each generator."""
        a, b, c, d = self._words
        return (a.value, b.value, c.value, d.value)

    def _tried(self) -> bool:
        before, kept = _python.getstate(), self._numpy.get_state()
        try:
            seen = []
            for draw in (random.random, self._numpy.random):
                _seed_python(_python, 1)
                self._numpy.seed(1)
                fresh = self.words()
                firsts = (_python.getstate()[1][0], int(self._numpy.get_state()[1][0]))
                draw()
                seen.append(
                    (fresh[1::2] == firsts, *map(int.__eq__, fresh[::2], self.words()[::2]))
                )
            return seen == [(True, False, True), (True, True, False)]
        finally:
            _python.setstate(before)
            self._numpy.set_state(kept)


_watch: Watch | None = None


def watch() -> Watch | None:
    """The one watch of this process; None where it would see nothing."""
    global _watch  # noqa: PLW0603
    if _watch is None:
        _watch = Watch()
    return _watch if _watch.usable else None
