"""Orders that need more than numbers: weights, or a function of the script's.

Both are pure functions of seed, epoch and position, like every order, so a resume returns to them
without walking. A weighted draw takes one uniform number per position from a hash and looks it up
in the summed weights: sampling with replacement, in logarithmic time, from any position. An order
of the script's own is asked once per epoch for all ids of it.

What such an order was made of cannot be derived anew from a checkpoint's numbers. It is therefore
written beside the checkpoints, under a name that says its contents' hash, where `rekindle audit`
reads it: weights once, the ids of a custom order once per epoch.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Sample ids, or positions in an epoch."""

_MASK = (1 << 64) - 1


class Draw(Protocol):
    """How sample ids follow from positions."""

    mark: str
    """Of its contents, where those are the same in every epoch; R12 compares it."""
    length: int
    """Positions in an epoch."""

    @property
    def kind(self) -> Literal["weighted", "custom"]:
        """What `Cursor.order` calls it."""
        ...

    def ids(self, seed: int, epoch: int, start: int, stop: int) -> Ids:
        """Sample ids at positions ``[start, stop)``."""
        ...

    def record(self, seed: int, epoch: int) -> tuple[str, bytes]:
        """Name and contents of what an audit of this epoch needs."""
        ...


class Weighted:
    """Draws with replacement, sample i with probability ``weights[i] / sum(weights)``."""

    kind: Literal["weighted"] = "weighted"

    def __init__(self, weights: Any, length: int | None = None) -> None:
        values = np.asarray(weights, dtype=np.float64).reshape(-1)
        if not len(values) or not np.isfinite(values).all() or values.min() < 0 or not values.sum():
            raise ValueError(
                "weights must be numbers of at least 0, one per sample, and not all of them 0"
            )
        self._weights = values
        self._edges = np.cumsum(values)
        # Nothing may be drawn that lies behind the last sample with a weight.
        self._last = int(np.flatnonzero(values)[-1])
        self.length = len(values) if length is None else length
        self.mark = marked(values.astype("<f8").tobytes())

    def ids(self, seed: int, epoch: int, start: int, stop: int) -> Ids:
        """Sample ids at positions ``[start, stop)``."""
        text = f"rekindle-weighted/1/{seed}/{epoch}".encode()
        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        values = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        values += np.uint64(key)
        values ^= values >> np.uint64(30)
        values *= np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(27)
        values *= np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(31)
        uniform = (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
        found = np.searchsorted(self._edges, uniform * self._edges[-1], side="right")
        ids: Ids = np.minimum(found, self._last).astype(np.int64)
        return ids

    def record(self, seed: int, epoch: int) -> tuple[str, bytes]:
        """The weights; the same in every epoch."""
        return f"order/{self.mark}", self._weights.astype("<f8").tobytes()


class Custom:
    """An order of the script's own: ``function(seed, epoch)`` gives all sample ids of an epoch."""

    kind: Literal["custom"] = "custom"

    def __init__(self, function: Callable[[int, int], Sequence[int]], n: int, seed: int) -> None:
        """Asks for epoch 0 at once; raises ValueError for ids that the dataset does not have."""
        self._function, self._n = function, n
        self._known: dict[int, Ids] = {}
        first = self._epoch(seed, 0)
        self.length = len(first)
        self.mark = marked(first.astype("<i8").tobytes())

    def _epoch(self, seed: int, epoch: int) -> Ids:
        if epoch not in self._known:
            ids = np.array(self._function(seed, epoch), dtype=np.int64).reshape(-1)
            if not len(ids) or ids.min() < 0 or ids.max() >= self._n:
                raise ValueError(
                    f"the order of epoch {epoch} must be sample ids from 0 to {self._n - 1}, at "
                    f"least one"
                )
            if self._known and len(ids) != self.length:
                raise ValueError(
                    f"the order of epoch {epoch} has {len(ids)} samples, that of epoch 0 has "
                    f"{self.length}; give each epoch the same number"
                )
            # Reading ahead may be one epoch further than training.
            self._known = {e: known for e, known in self._known.items() if abs(e - epoch) <= 1}
            self._known[epoch] = ids
        return self._known[epoch]

    def ids(self, seed: int, epoch: int, start: int, stop: int) -> Ids:
        """Sample ids at positions ``[start, stop)``."""
        return self._epoch(seed, epoch)[start:stop]

    def record(self, seed: int, epoch: int) -> tuple[str, bytes]:
        """All ids of the epoch."""
        return f"order/{self.mark}-{epoch:08d}", self._epoch(seed, epoch).astype("<i8").tobytes()


class Recorded:
    """A custom order as an audit reads it back."""

    kind: Literal["custom"] = "custom"

    def __init__(self, mark: str, length: int, read: Callable[[str], bytes]) -> None:
        self.mark, self.length, self._read = mark, length, read
        self._known: tuple[int, Ids] | None = None

    def ids(self, seed: int, epoch: int, start: int, stop: int) -> Ids:
        """Sample ids at positions ``[start, stop)``."""
        if self._known is None or self._known[0] != epoch:
            raw = self._read(f"order/{self.mark}-{epoch:08d}")
            self._known = (epoch, np.frombuffer(raw, dtype="<i8").astype(np.int64))
        return self._known[1][start:stop]

    def record(self, seed: int, epoch: int) -> tuple[str, bytes]:
        """Where it was read from."""
        name = f"order/{self.mark}-{epoch:08d}"
        return name, self._read(name)


def read_back(kind: str, mark: str, length: int, read: Callable[[str], bytes]) -> Draw:
    """The order with this mark, out of what `record` has given; raises ValueError if it is not."""
    if kind == "custom":
        return Recorded(mark, length, read)
    found = Weighted(np.frombuffer(read(f"order/{mark}"), dtype="<f8"), length)
    if found.mark != mark:
        raise ValueError(f"order/{mark} does not hold the weights that its name says")
    return found


def marked(contents: bytes) -> str:
    """A hash that names contents."""
    return hashlib.blake2b(contents, digest_size=8).hexdigest()
