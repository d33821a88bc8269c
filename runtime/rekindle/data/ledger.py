"""Proof of which samples the surviving weights have seen.

A cursor says where training believes to be; the ledger says what happened. It has two halves that
come from different places. The *spans* are the positions that completed steps covered. The *digest*
is made of the ids that were really handed to `training_step`: they travel with each batch from
where the dataset was read, every rank adds up a 64-bit hash of each of its own, and the sums are
added over the ranks when a checkpoint is saved. A sum does not depend on the order of its terms, so
neither on the number of ranks nor on restarts; one wrong, missing or repeated id changes it.

Both are saved in each commit and restored with it. Work that was lost with a crash is therefore not
in them: they describe the surviving timeline only.

When a run goes on with another dataset (``on_change="restart-epoch"``), positions begin to mean
something else. What was recorded until then is kept as a *chapter* with the cursor that it was
counted in, and a new one begins.

`audit` holds them against the order derived anew, needs no torch, and is what the demo prints.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rekindle.data.sampling.order import Cursor, GlobalOrder
from rekindle.data.sampling.samplers import Ids, read_back

_MASK = (1 << 64) - 1
_CHUNK = 1 << 18
_FLUSH = 1024

Span = tuple[int, int, int, int]
"""``(epoch, start, stop, count)``: positions ``[start, stop)`` of `count` epochs, first `epoch`."""


def hashes(epoch: int, ids: Ids) -> NDArray[np.uint64]:
    """A 64-bit hash of each (epoch, id) pair."""
    values = ids.astype(np.uint64)
    values += np.uint64((epoch * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def digest_of(epoch: int, ids: Ids) -> int:
    """Sum modulo 2^64 of the hashes."""
    return int(hashes(epoch, ids).sum(dtype=np.uint64))


class Ledger:
    """The running record of one rank; spans are the same on all ranks, the digest is its own."""

    def __init__(self) -> None:
        self._spans: list[list[int]] = []
        self._pending: list[Ids] = []
        """Ids of `_epoch` that are not in the digest yet."""
        self._epoch = 0
        self._digest = 0
        self._samples = 0
        self._past: list[dict[str, Any]] = []
        self._since = 0

    def used(self, epoch: int, ids: Ids) -> None:
        """Note ids that were handed to `training_step` (hot path: one append)."""
        if epoch != self._epoch or len(self._pending) >= _FLUSH:
            self._flush()
            self._epoch = epoch
        self._pending.append(ids)

    def covered(self, epoch: int, start: int, stop: int) -> None:
        """Note the positions of a completed step."""
        if self._spans:
            last = self._spans[-1]
            if last[0] == epoch and last[2] == start and last[3] == 1:
                last[2] = stop
                return
        self._spans.append([epoch, start, stop, 1])

    def own(self) -> tuple[int, int]:
        """Digest and number of the samples that this rank has used since `restore`."""
        self._flush()
        return self._digest, self._samples

    def totals(self, parts: Iterable[tuple[int, int]]) -> dict[str, Any]:
        """The JSON form, given what every rank's `own` said."""
        digest, samples = 0, 0
        for part_digest, part_samples in parts:
            digest, samples = (digest + part_digest) & _MASK, samples + part_samples
        found: dict[str, Any] = {
            "spans": [list(span) for span in coalesced(self._spans)],
            "samples": samples,
            "digest": f"{digest:016x}",
        }
        if self._past:
            found |= {"past": self._past, "since": self._since}
        return found

    def turn(self, saved: dict[str, Any], cursor: Cursor) -> None:
        """Begin a new chapter at the epoch of `cursor`; `saved` and it are what ended, restored."""
        ended = {name: value for name, value in saved.items() if name != "past"}
        self._past = [*saved.get("past", ()), {"cursor": cursor.to_json(), "ledger": ended}]
        self._since = cursor.epoch
        self._spans, self._pending = [], []
        self._digest = self._samples = 0

    def restore(self, saved: dict[str, Any], *, first: bool) -> None:
        """Go on from a saved ledger; the digest so far is carried by the `first` rank alone."""
        record = SavedLedger.from_json(saved)
        self._spans = [list(span) for span in record.spans]
        self._pending = []
        self._past = list(saved.get("past", ()))
        self._since = record.since
        self._digest = record.digest if first else 0
        self._samples = record.samples if first else 0

    def _flush(self) -> None:
        if self._pending:
            ids = np.concatenate(self._pending)
            self._digest = (self._digest + digest_of(self._epoch, ids)) & _MASK
            self._samples += len(ids)
            self._pending = []


def coalesced(spans: Iterable[list[int]]) -> list[Span]:
    """Join successive epochs that cover the same positions into one span."""
    joined: list[list[int]] = []
    for epoch, start, stop, count in spans:
        if joined:
            last = joined[-1]
            if last[1:3] == [start, stop] and last[0] + last[3] == epoch:
                last[3] += count
                continue
        joined.append([epoch, start, stop, count])
    return [(epoch, start, stop, count) for epoch, start, stop, count in joined]


@dataclass(frozen=True, kw_only=True)
class SavedLedger:
    """A saved ledger."""

    spans: tuple[Span, ...]
    samples: int
    digest: int
    since: int = 0
    """Epoch at which it begins."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Parse the form that `Ledger.totals` gives; raises ValueError for anything else."""
        try:
            spans = tuple((int(e), int(a), int(b), int(n)) for e, a, b, n in data["spans"])
            return cls(
                spans=spans,
                samples=int(data["samples"]),
                digest=int(str(data["digest"]), 16),
                since=int(data.get("since", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"not a ledger: {what} in {data!r:.200}") from error


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Successive epochs of which the same is true."""

    first: int
    count: int
    expected: int
    """Positions up to the cursor, of each epoch."""
    used: int
    """Positions that steps covered, each counted once."""
    repeated: int
    """Positions covered again, or beyond the cursor."""

    @property
    def missed(self) -> int:
        """Positions that no step covered."""
        return self.expected - self.used


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the ledger of a commit proves."""

    samples_expected: int
    """Samples up to the cursor, each counted once per epoch."""
    samples_used: int
    """Samples that ranks really handed to `training_step`."""
    samples_repeated: int
    """Positions covered more than once, or outside of what the cursor allows."""
    samples_missed: int
    """Positions before the cursor that no step covered."""
    digest_ok: bool | None
    """Whether the ids used are exactly those of the order; None when it cannot be derived anew."""
    samples_restarted: int = 0
    """Samples of epochs that were interrupted and begun anew on a changed dataset."""
    epochs: tuple[Epochs, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every sample up to the cursor was used exactly once per epoch."""
        return (
            self.digest_ok is True
            and self.samples_repeated == 0
            and self.samples_missed == 0
            and self.samples_restarted == 0
            and self.samples_used == self.samples_expected
        )


class NoLedger(ValueError):
    """A commit says nothing of its samples that can be checked; the message says why."""


def audit(meta: dict[str, Any], read: Callable[[str], bytes] | None = None) -> Audit:
    """Check the ledger in a commit's ``meta`` against the order derived anew.

    Raises `NoLedger` for a commit without one, of a Lightning script for example, and for one that
    nobody can read.

    `read` gives the objects of the checkpoint store by name: orders with weights, or of the
    script's own, are recorded there. Takes about 50 ns per sample and epoch, and memory for a
    quarter of a million ids at a time.
    """
    chapters = _chapters(meta)
    cursor, ended = chapters[-1][0], chapters[:-1]
    epochs = [each for known, record in chapters for each in _epochs(known, record)]
    digests = [_digest_ok(known, record, read) for known, record in chapters]
    if cursor.order == "stream":
        digests[-1] = _stream_digest_ok(meta.get("stream"), chapters[-1][1])
    return Audit(
        samples_expected=sum(each.count * each.expected for each in epochs),
        samples_used=sum(record.samples for _, record in chapters),
        samples_repeated=sum(each.count * each.repeated for each in epochs),
        samples_missed=sum(each.count * each.missed for each in epochs),
        digest_ok=False if False in digests else None if None in digests else True,
        samples_restarted=sum(known.sample for known, _ in ended),
        epochs=tuple(epochs),
    )


def _chapters(meta: dict[str, Any]) -> list[tuple[Cursor, SavedLedger]]:
    """Each order of the data that the run had, with its ledger, the present one last."""
    if meta.get("cursor") is None or meta.get("ledger") is None:
        raise NoLedger(
            "it has no ledger of its samples, which only rekindle's Trainer keeps: not a Lightning "
            "script, a loop of one's own or an import"
        )
    try:
        past = meta["ledger"].get("past", ())
        ended = [
            (Cursor.from_json(one["cursor"]), SavedLedger.from_json(one["ledger"])) for one in past
        ]
        return [*ended, (Cursor.from_json(meta["cursor"]), SavedLedger.from_json(meta["ledger"]))]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise NoLedger(f"its ledger cannot be read: {what}") from error


def _epochs(cursor: Cursor, record: SavedLedger) -> list[Epochs]:
    """What the spans of one chapter say, epoch by epoch."""
    covered = _by_epoch(record.spans)
    found: list[Epochs] = []
    for epoch in sorted({*covered, *range(record.since, cursor.epoch + 1)}):
        intervals = covered.get(epoch, [])
        allowed = cursor.length if record.since <= epoch < cursor.epoch else 0
        if allowed and cursor.order == "stream":
            # How long an epoch of a stream was is known from its steps alone.
            allowed = max((stop for _, stop in intervals), default=0)
        if epoch == cursor.epoch:
            allowed = cursor.sample
        good = _union([(start, min(stop, allowed)) for start, stop in intervals])
        surplus = sum(stop - start for start, stop in intervals) - good
        if not allowed and not surplus:
            continue
        one = Epochs(first=epoch, count=1, expected=allowed, used=good, repeated=surplus)
        last = found[-1] if found else None
        if last is not None and replace(one, first=last.first, count=last.count) == last:
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(one)
    return found


def _by_epoch(spans: Iterable[Span]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for epoch, start, stop, count in spans:
        for offset in range(count):
            found.setdefault(epoch + offset, []).append((start, stop))
    return found


def _union(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals; empty ones are ignored."""
    total, end = 0, 0
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def _digest_ok(
    cursor: Cursor, record: SavedLedger, read: Callable[[str], bytes] | None
) -> bool | None:
    draw = None
    if cursor.order == "stream":
        return None
    if cursor.order in ("weighted", "custom"):
        if read is None:
            return None
        draw = read_back(cursor.order, cursor.draw, cursor.length, read)
    return _expected_digest(cursor, cursor.order_with(draw), record.since) == record.digest


def _stream_digest_ok(account: dict[str, Any] | None, record: SavedLedger) -> bool | None:
    """Whether the ids used are the first so many of each shard, every shard once per epoch."""
    if account is None or account.get("stateless"):
        return None
    if account.get("epochs") is None:
        raise NoLedger("its ledger cannot be read: the stream's account has no epochs")
    digest = 0
    for first, count, shards in account["epochs"]:
        if len({shard for shard, _ in shards}) < len(shards):
            return False
        for epoch in range(first, first + count):
            for shard, samples in shards:
                for start in range(0, samples, _CHUNK):
                    numbers = np.arange(start, min(start + _CHUNK, samples), dtype=np.int64)
                    digest = (digest + digest_of(epoch, numbers + (shard << 32))) & _MASK
    return digest == record.digest


def _expected_digest(cursor: Cursor, order: GlobalOrder, since: int) -> int:
    digest = 0
    for epoch in range(since, cursor.epoch + 1):
        length = cursor.length if epoch < cursor.epoch else cursor.sample
        for start in range(0, length, _CHUNK):
            ids = order.ids(epoch, start, min(start + _CHUNK, length))
            digest = (digest + digest_of(epoch, ids)) & _MASK
    return digest
