"""Random numbers as a function of where they are drawn.

A generator that simply runs on makes the result depend on everything that ever drew from it: the
number of ranks, of loader workers, of restarts. Instead every place that may draw is given its own
seed, derived from its name by a fixed hash: ``(seed, step, lane)`` before a `training_step`,
``(seed, epoch, sample)`` before a dataset's ``__getitem__``, ``(seed, step, batch)`` in validation.
What is drawn there is then the same on any number of ranks and after any number of restarts, and
nothing has to be saved for it.

The public `torch.manual_seed` walks every backend (82 µs); seeding the default generators directly
costs 1 µs, Python's and NumPy's another 5 µs. Most datasets draw from torch or not at all, so for
them these 5 µs per sample are saved: Python's and NumPy's generators are left alone until a
`GeneratorWatch` shows that reading has drawn from one of them, which two words of each generator's
state tell. What was read is then read once more, seeded in full, and so is everything after it.

A `training_step` cannot be run twice. There, `LaneSeeds` gives Python's and NumPy's generators one
fixed state before each lane until somebody draws from them; from the second step after that on,
they are seeded for each lane like torch's. The step is agreed on by all ranks and saved, so what is
drawn remains a function of place alone.

The seeds of lanes are not hashed, as the others are: step and lane are each multiplied by a
constant and added up, and the generator itself scrambles that. On a CPU it takes only half of a
seed's bits. A hash would give the same half to two of 65 000 lanes; sums give it to none of a
million steps.

The states of all generators are saved all the same, per rank, for user code that draws between
steps.
"""

import _random
import ctypes
import logging
import os
import random
import sys
from functools import lru_cache
from typing import Any

import torch

_MASK = (1 << 64) - 1
_TRAINING, _VALIDATION, _SAMPLE, _START, _UNUSED = 1, 2, 3, 4, 5
_LARGE = 1 << 40
EARLY = 64
"""Steps of a run in which ranks agree before the next step on what one of them has noted."""
LONGEST = 16
"""Steps that may lie between two words of the ranks to each other after that (see consensus)."""
_SEEDS = (1 << 32) - 1
"""The largest seed that NumPy takes."""
_BY_STEP, _BY_LANE = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
"""Odd, and not close to any ratio of small numbers, in their lower halves as well."""


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


def _seed_devices(value: int) -> None:
    _seed_torch(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(value)


def seed_all(value: int) -> None:
    """Seed torch, Python and (if it is loaded) NumPy from 64 bits."""
    if _watch is not None and _watch.words() != _watch.fresh:
        _watch.touched = True
    _seed_devices(value)
    # As random.seed() does it, without the detour over its checks of the argument's type.
    _seed_python(_python, value)
    _python.gauss_next = None
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
    if _watch is not None:
        _watch.fresh = _watch.words()


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed all generators, for what a script draws before `fit`: initial weights, splits.

    Without a seed that of the environment's ``PL_GLOBAL_SEED`` is taken, else 0. Returns it, and
    leaves it there for processes that are started from here. Loader workers draw by sample in any
    case (`workers` is not needed); a seed that is used says so unless `verbose` is False.
    """
    if seed is None:
        given = os.environ.get("PL_GLOBAL_SEED", "0")
        try:
            seed = int(given)
        except ValueError:
            raise ValueError(f"PL_GLOBAL_SEED={given!r} must be an integer") from None
    seed = int(seed)
    if not 0 <= seed <= _SEEDS:
        raise ValueError(f"seed_everything({seed}): a seed is from 0 to {_SEEDS}, as NumPy's are")
    if verbose:
        logging.getLogger(__name__).info("Seed set to %d", seed)
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    torch.manual_seed(seed)
    seed_all(seed)
    return seed


def global_seed() -> int:
    """The seed that `seed_everything` was called with last, 0 without one."""
    given = os.environ.get("PL_GLOBAL_SEED", "")
    return int(given) if given.isdecimal() else 0


def seed_lane(seed: int, step: int, lane: int) -> None:
    """As before a `training_step`: whatever is drawn next is a function of these three."""
    seed_all((_begun(seed, _TRAINING) + step * _BY_STEP + lane * _BY_LANE) & _MASK)


def seed_validation(seed: int, step: int, batch: int) -> None:
    """Before a `validation_step`."""
    seed_all(mixed(seed, _VALIDATION, step, batch))


def seed_sample(seed: int, epoch: int, sample: int, *, full: bool = True) -> None:
    """Before a dataset's ``__getitem__``: augmentation depends on the sample, not on the worker.

    Without `full`, torch's generator only; see `GeneratorWatch`.
    """
    value = _after(_begun(seed, _SAMPLE, epoch), sample)
    if full:
        seed_all(value)
    else:
        _seed_devices(value)


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


class GeneratorWatch:
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
        self.python, self.keys = (
            memoryview((ctypes.c_uint32 * 625).from_address(address)).cast("B").cast("I")
            for address in (where, there)
        )
        self.fresh = self.words()
        """The words as the newest seeding left them."""
        self.touched = False
        """Whether a seeding has found the words changed since the one before it."""
        self.usable = (
            type(self._generator).__name__ == "MT19937"
            and _random.Random.__basicsize__ >= object.__basicsize__ + 4 * 625
            and self._tried()
        )

    @property
    def clean(self) -> bool:
        """Whether nobody has drawn since the newest seeding."""
        return self.words() == self.fresh

    def accept(self) -> None:
        """What was drawn since the newest seeding does not count."""
        self.fresh = self.words()

    def words(self) -> tuple[int, ...]:
        """Position and second word of each generator; a seed does not show in the first one."""
        python, keys = self.python, self.keys
        return (python[0], python[2], keys[624], keys[1])

    def _tried(self) -> bool:
        before, kept = _python.getstate(), self._numpy.get_state()
        try:
            seen = []
            for draw in (random.random, self._numpy.random):
                _seed_python(_python, 1)
                self._numpy.seed(1)
                fresh = self.words()
                told = (_python.getstate()[1][1], int(self._numpy.get_state()[1][1]))
                draw()
                seen.append((fresh[1::2] == told, *map(int.__eq__, fresh[::2], self.words()[::2])))
            return seen == [(True, False, True), (True, True, False)]
        finally:
            _python.setstate(before)
            self._numpy.set_state(kept)


_watch: GeneratorWatch | None = None


def watch() -> GeneratorWatch | None:
    """The one watch of this process; None where it would see nothing."""
    global _watch  # noqa: PLW0603
    if _watch is None:
        _watch = GeneratorWatch()
    return _watch if _watch.usable else None


class LaneSeeds:
    """Seeds all generators before each `training_step`; see the module's docstring."""

    def __init__(self, seed: int) -> None:
        self._begun = _begun(seed, _TRAINING)
        self._base = mixed(seed, _UNUSED)
        self._watch = watch()
        self._words: tuple[int, int] = (-1, -1)
        """A word of Python's and of NumPy's generator in the state that lanes are given. One is
        enough: a seeded generator renews all of its words for the first number that is drawn."""
        self.wanted: int | None = None
        """The step from which on this rank wants all generators to be seeded, once it does."""
        self._started = False
        self.since: int | None = 0 if self._watch is None else None
        """The step from which on all generators are seeded for each lane; None: not yet."""

    def start(self) -> None:
        """Training begins: what was drawn before does not count."""
        self._started = True
        if self._watch is not None:
            self._watch.accept()
            self._watch.touched = False

    def __call__(self, step: int, lane: int) -> None:
        """Before a `training_step` (hot path)."""
        value = (self._begun + step * _BY_STEP + lane * _BY_LANE) & _MASK
        watch = self._watch
        if watch is None or (self.since is not None and step >= self.since):
            seed_all(value)
            return
        if (watch.python[2], watch.keys[1]) != self._words:
            seed_all(self._base)
            self._words = (watch.python[2], watch.keys[1])
        _seed_devices(value)

    def note(self, step: int) -> None:
        """Between steps, with `step` of them done: has somebody drawn? (hot path)"""
        watch = self._watch
        if watch is None or self.since is not None or self.wanted is not None:
            return
        if (watch.python[2], watch.keys[1]) == self._words and not watch.touched:
            return
        if self._started and (watch.touched or not watch.clean):
            self.wanted = step + (1 if step < EARLY else 2 * LONGEST)

    @property
    def word(self) -> int:
        """What this rank has noted, as a number whose maximum over all ranks is to be agreed on."""
        return 0 if self.wanted is None or self.since is not None else _LARGE - self.wanted

    def agree(self, word: int) -> None:
        """Take the maximum of all ranks' words; they all get it before the step that it names."""
        if word and self.since is None:
            self.since = _LARGE - word

    def state(self, step: int) -> int | None:
        """What to save, of this rank."""
        self.note(step)
        return self.wanted if self.since is None else self.since

    def restore(self, saved: list[int | None]) -> None:
        """Go on from what all ranks have saved."""
        known = [step for step in saved if step is not None]
        if known and self._watch is not None:
            self.since = min(known)
