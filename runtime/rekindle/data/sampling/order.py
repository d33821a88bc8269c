"""Which samples belong to which step, as a pure function of one integer.

The order of an epoch is a keyed permutation that can be evaluated anywhere without being stored: a
six-round Feistel network over the smallest even number of bits that holds N, with values outside
range(N) sent through it again ("cycle walking", at most a few times on average). So a position in
the data is one number, restoring it costs nothing at any size, and no rank or worker appears in it.

Step t of an epoch consumes positions ``[t*G, (t+1)*G)``; the last step of an epoch takes what is
left. These positions are cut into *lanes* of m samples each; lane k is run by rank k mod W. Lanes
do not depend on W, so neither does what one step consists of: W ranks only share the lanes out
differently. W need not divide the number of lanes; ranks without one contribute nothing. Where
there are more ranks than lanes these may be cut into smaller ones: the step stays what it is.

Any change of constants, rounds or key derivation needs a new `ORDER_VERSION`: a checkpoint's
position means something only together with the order it was counted in.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from rekindle.data.sampling.samplers import Draw, Ids

ORDER_VERSION = 1
"""Version of the permutation below."""
ROUNDS = 6
"""Rounds of the Feistel network; four would already pass for random, two more cost nothing."""
_FIRST_BLOCK, _LARGEST_BLOCK = 512, 16384

Kind = Literal["shuffle", "sequential", "weighted", "custom", "stream"]
"""``weighted`` and ``custom`` need a `draws.Draw` beside the numbers; ``stream`` has an
order of its own (`streams`), of which only positions are counted."""
ENDLESS = 1 << 62
"""Length of an epoch whose end is not known yet."""


class EpochOrder:
    """A permutation of range(n), evaluated at any positions; needs no memory."""

    def __init__(self, n: int, *, seed: int, epoch: int, version: int = ORDER_VERSION) -> None:
        if n < 1:
            raise ValueError(f"an epoch order needs at least one sample, not {n}")
        if version != ORDER_VERSION:
            raise ValueError(
                f"order version {version} is unknown to this runtime, which has {ORDER_VERSION}"
            )
        bits = max(2, (n - 1).bit_length())
        half = (bits + 1) // 2
        self.n = n
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        # The keys come from a hash with a fixed definition: NumPy does not promise that its
        # generators give the same stream in the next release.
        text = f"rekindle-order/{version}/{seed}/{epoch}"
        digest = hashlib.blake2b(text.encode(), digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: Ids) -> Ids:
        """Sample ids at the given positions, each within range(n)."""
        values = self._permute(np.atleast_1d(positions).astype(np.uint64))
        outside = values >= self.n
        while outside.any():
            values[outside] = self._permute(values[outside])
            outside = values >= self.n
        return values.astype(np.int64)

    def _permute(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scramble(right ^ key) & self._mask)
        return (left << self._half) | right


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(29)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(32)
    return values


@lru_cache(maxsize=8)
def _epoch_order(n: int, seed: int, epoch: int, version: int) -> EpochOrder:
    return EpochOrder(n, seed=seed, epoch=epoch, version=version)


@dataclass(frozen=True, kw_only=True)
class GlobalOrder:
    """The order of all epochs of a dataset of `n` samples."""

    n: int
    seed: int
    kind: Kind = "shuffle"
    version: int = ORDER_VERSION
    draw: Draw | None = field(default=None, compare=False)
    """Of ``weighted`` and ``custom`` orders."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}: an order needs at least one sample")
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"order {self.kind!r} is unknown; allowed are {', '.join(get_args(Kind))}"
            )
        if (self.draw is None) == (self.kind in ("weighted", "custom")):
            raise ValueError(f"order {self.kind!r} and draw={self.draw!r} do not go together")

    def ids(self, epoch: int, start: int, stop: int) -> Ids:
        """Sample ids at positions ``[start, stop)`` of an epoch."""
        if self.draw is not None:
            return self.draw.ids(self.seed, epoch, start, stop)
        positions = np.arange(start, stop, dtype=np.int64)
        if self.kind == "sequential":
            return positions
        return _epoch_order(self.n, self.seed, epoch, self.version)(positions)

    def stream(self, epoch: int, start: int, stop: int) -> Iterator[tuple[int, Ids]]:
        """The same ids in growing blocks, each with the position it begins at.

        NumPy costs microseconds per call however few the elements are, so a block holds many
        steps; the first one is small, because somebody waits for it.
        """
        size = _FIRST_BLOCK
        while start < stop:
            end = min(start + size, stop)
            yield start, self.ids(epoch, start, end)
            start, size = end, min(2 * size, _LARGEST_BLOCK)


class Lane(NamedTuple):
    """One micro-batch of a step: positions ``[start, stop)`` of the epoch."""

    index: int  # type: ignore[assignment]  # hides tuple's method, which nobody misses
    """0-based within the step."""
    start: int
    stop: int


class Step(NamedTuple):
    """One optimizer step: positions ``[start, stop)`` of the epoch."""

    start: int
    stop: int
    micro: int
    """Size of a lane; the last one of a ragged step is smaller."""

    @property
    def lanes(self) -> int:
        """How many lanes the step has."""
        return -(-(self.stop - self.start) // self.micro)

    def lanes_of(self, rank: int, world_size: int) -> list[Lane]:
        """The lanes that a rank runs; may be none in the last step of an epoch."""
        start, stop, micro = self
        if world_size == 1 and stop - start <= micro:
            return [Lane(0, start, stop)]
        return [
            Lane(index, start + index * micro, min(start + (index + 1) * micro, stop))
            for index in range(rank, self.lanes, world_size)
        ]


_step: Callable[[tuple[int, int, int]], Step] = partial(tuple.__new__, Step)


def steps(*, length: int, global_batch: int, micro: int, start: int = 0) -> Iterator[Step]:
    """The steps of an epoch of `length` positions, from position `start` on."""
    stops = chain(range(start + global_batch, length, global_batch), (length,))
    # Every step takes one: no code of Python's runs for it.
    return map(_step, zip(range(start, length, global_batch), stops, repeat(micro), strict=False))


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where the surviving timeline is in the data: the same on every rank, about 200 bytes.

    It names no rank, no worker and no prefetched batch, so all of those may change between two
    attempts. It advances only together with the optimizer. It counts samples, so G and m may change
    between two steps.
    """

    epoch: int
    sample: int
    """Positions consumed in this epoch."""
    G: int
    """Samples per optimizer step over all ranks; fixed by the first attempt."""
    m: int
    """Samples per lane."""
    seed: int
    N: int
    """Samples in the dataset."""
    length: int
    """Positions used per epoch: N, or less when the script limits or drops."""
    order: Kind = "shuffle"
    order_version: int = ORDER_VERSION
    fingerprint: str = ""
    """Of the dataset; see `rekindle.data.loader.fingerprint`."""
    draw: str = ""
    """Mark of the weights or of the script's own order; see `rekindle.data.sampling.samplers`."""
    steps: int = -1
    """Optimizer steps done in this epoch; -1: what `sample` and G give."""
    before: int = -1
    """Samples used in the epochs before this one; -1: that many times `length`."""
    script_m: int | None = None
    """The loader's batch size when m was chosen: a schedule's m outlives a restart until the script
    itself says something else."""
    script_G: int | None = None
    """The flag `global_batch_size` when G was chosen."""
    accumulate: int = -1
    """Batches of a step, as the script counts them: one on each process that the job wants makes
    one; -1: every micro-batch is one."""
    batches_before: int = -1
    """Batches in the epochs before this one; -1: that many times those of this one."""
    loaded: int = 0
    """Epoch in which the loader was asked for; see `reload_dataloaders_every_n_epochs`."""
    cut: int | None = None
    """Samples per lane where lanes of m are too few for the processes; no part of what is saved."""

    def __post_init__(self) -> None:
        if self.G < 1 or self.m < 1 or self.G % self.m:
            raise ValueError(
                f"global_batch_size={self.G} is not a multiple of the micro-batch {self.m} "
                f"(the loader's batch_size): choose one that is"
            )
        drawn = self.order in ("weighted", "custom")
        if not 0 <= self.sample <= self.length or (self.length > self.N and not drawn):
            raise ValueError(
                f"position {self.sample} of {self.length} of {self.N} samples is impossible"
            )
        if self.steps < 0:
            object.__setattr__(self, "steps", -(-self.sample // self.G))
        if self.before < 0:
            object.__setattr__(self, "before", self.epoch * self.length if self.epoch else 0)
        if self.accumulate < 1:
            object.__setattr__(self, "accumulate", self.G // self.m)
        if self.batches_before < 0:
            past = self.epoch * self.batches_per_epoch if self.epoch else 0
            object.__setattr__(self, "batches_before", past)

    @property
    def micro(self) -> int:
        """Samples per lane, as steps are cut now."""
        return self.cut or self.m

    @property
    def lanes(self) -> int:
        """K: lanes of a full step; of more processes than these some have nothing to do."""
        return -(-self.G // self.micro)

    def cut_for(self, processes: int) -> Self:
        """The same position with a lane for each of so many processes, as far as samples go.

        Lanes of m stay as they are where there are enough of them. Else the step is cut into as few
        as will do, of one size (the last one may be smaller). Nothing but G, m and the number of
        processes counts: whatever sizes a run had in between, one number gives the same lanes.
        """
        if processes <= self.G // self.m:
            return replace(self, cut=None)
        # The largest size of which so many do not fit into G but for the last one.
        most = max(1, (self.G - 1) // (processes - 1))
        lanes = -(-self.G // most)
        return replace(self, cut=-(-self.G // lanes))

    @property
    def global_order(self) -> GlobalOrder:
        """The order that positions are counted in, if numbers are enough to know it."""
        return self.order_with(None)

    def order_with(self, draw: Draw | None) -> GlobalOrder:
        """The order that positions are counted in, with its weights or ids."""
        return GlobalOrder(
            n=self.N, seed=self.seed, kind=self.order, version=self.order_version, draw=draw
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch of today's global batch."""
        return -(-self.length // self.G)

    @property
    def batches(self) -> int:
        """Batches used in this epoch."""
        return -(-self.sample * self.accumulate // self.G)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in a whole epoch of today's sizes."""
        return -(-self.length * self.accumulate // self.G)

    @property
    def next_batches(self) -> int:
        """Batches that will be used in this epoch after the next step."""
        return -(-min(self.sample + self.G, self.length) * self.accumulate // self.G)

    @property
    def steps_left(self) -> int:
        """Optimizer steps to the end of this epoch."""
        return -(-(self.length - self.sample) // self.G)

    def remaining(self) -> Iterator[Step]:
        """The steps that are left in this epoch."""
        return steps(length=self.length, global_batch=self.G, micro=self.micro, start=self.sample)

    def after(self, step: Step) -> Self:
        """The cursor once `step` is done; raises ValueError when it is not the next one."""
        if step.start != self.sample:
            raise ValueError(f"step at {step.start} does not follow position {self.sample}")
        # Every step does this; dataclasses.replace() would check all fields again, in 20 µs.
        values = self.__dict__.copy()
        values["sample"] = step.stop
        values["steps"] += 1
        moved = object.__new__(type(self))
        object.__setattr__(moved, "__dict__", values)
        return moved

    def resized(self, *, G: int, m: int) -> Self:
        """The same position with another global batch and micro-batch.

        A batch stays what it was in micro-batches, so a larger step has more of them.
        """
        accumulate = max(1, G * self.m * self.accumulate // (self.G * m))
        return replace(self, G=G, m=m, cut=None, accumulate=accumulate)

    def next_epoch(self) -> Self:
        """The cursor at the start of the next epoch."""
        length = ENDLESS if self.order == "stream" else self.length
        return replace(
            self,
            epoch=self.epoch + 1,
            sample=0,
            steps=0,
            before=self.before + self.sample,
            batches_before=self.batches_before + self.batches,
            length=length,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, which are the same on any number of processes."""
        return {name: value for name, value in asdict(self).items() if name != "cut"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Parse; unknown fields are ignored, so that neighbouring versions can talk."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})
