"""Tensors that an earlier checkpoint holds already, byte for byte.

Fine-tuning changes a small part of a model. What does not change is stored once: as long as the
bytes have the checksums that the newest usable commit records for them, the next part refers to
where they lie, and clean-up keeps what is referred to. The checksums are computed over the tensors
where they are (30 GB/s on a CPU), which is faster than the copy it saves; that a parameter does not
require gradients is a hint where to look, never a proof.

A reference is safe only to objects that a commit holds alive. The commit looked at is the one this
attempt resumed from, or one of its own; from then on a tensor must be found unchanged by every
save, so that all later commits refer to the same objects. Once it has changed, a newer commit must
be read before it can be referred to again. Where saves follow each other faster than they are
committed there is none to read, and the bytes are stored each time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from rekindle.checkpoint.format import checksum
from rekindle.checkpoint.format.layout import Piece
from rekindle.checkpoint.format.manifest import Commit, CommitRef, IntegrityError, Slice
from rekindle.checkpoint.format.tensors import Flat, as_bytes, view
from rekindle.checkpoint.objects.interface import StoreError
from rekindle.checkpoint.saving.writer import StoredSlice
from rekindle.checkpoint.store import Store


class Frozen:
    """What one rank's saver knows about its unchanging tensors."""

    def __init__(self, store: Store, *, base: CommitRef | None, chunk: int) -> None:
        self._store = store
        self._chunk = chunk
        self._newest = base
        self._source: Commit | None = None
        self._lost: set[str] = set()
        """Names that have changed since the commit that is looked at."""

    def stored(self, ref: CommitRef) -> None:
        """This rank has stored its part of a checkpoint, which may become a commit."""
        self._newest = ref

    def unchanged(
        self, flat: Flat, pieces: Mapping[str, Sequence[Piece]]
    ) -> dict[str, list[StoredSlice]]:
        """The tensors whose pieces here all lie in an earlier checkpoint, and where."""
        if not pieces:
            return {}
        self._refresh(pieces)
        index = {name: number for number, name in enumerate(flat.tensors)}
        found: dict[str, list[StoredSlice]] = {}
        for name, own in pieces.items():
            known = None
            if name not in self._lost and self._source is not None:
                known = self._find(flat, name, index[name], own)
            if known is None:
                self._lost.add(name)
            else:
                found[name] = known
        return found

    def _refresh(self, names: Collection[str]) -> None:
        """Look at the newest commit, if that can help."""
        if self._newest is None or (
            self._source is not None
            and (self._newest == self._source.ref or not self._lost.intersection(names))
        ):
            return
        try:
            self._source = self._store.read(self._newest)
        except (StoreError, IntegrityError):
            return  # not committed, or not yet: then the bytes are stored again
        self._lost = set()

    def _find(
        self, flat: Flat, name: str, number: int, pieces: Sequence[Piece]
    ) -> list[StoredSlice] | None:
        source = self._source
        assert source is not None
        entry = next((t for t in source.tensors if t.name == name), None)
        tensor = flat.tensors[name]
        box = flat.boxes.get(name)
        shape = tuple(tensor.shape) if box is None else box.shape
        if entry is None or entry.shape != shape or source.chunk != self._chunk:
            return None
        if entry.dtype != str(tensor.dtype).removeprefix("torch."):
            return None
        flat_bytes = as_bytes(tensor.contiguous())
        found: list[StoredSlice] = []
        for piece in pieces:
            cuts = _cuts(entry.slices, piece, self._chunk)
            if cuts is None:
                return None
            at = piece.start
            for cut in cuts:
                holder = source.objects[cut.object]
                crc = checksum.crc(holder.alg)
                for expected in cut.crcs:
                    stop = min(at + self._chunk, piece.stop)
                    if crc(view(flat_bytes[at:stop].cpu())) != expected:
                        return None
                    at = stop
                found.append(StoredSlice(tensor=number, entry=holder, piece=cut))
        return found


def _cuts(slices: Sequence[Slice], piece: Piece, chunk: int) -> list[Slice] | None:
    """The parts of stored slices that make up a piece, cut at chunk borders; None if none do."""
    at, end = piece.start + piece.shift, piece.stop + piece.shift
    if piece.count > 1:
        same = (at, piece.stop - piece.start, piece.count, piece.stride)
        return [s for s in slices if (s.start, s.length, s.count, s.stride) == same] or None
    found = []
    for own in slices:
        if own.start + own.length <= at or own.start >= end:
            continue
        stop = min(end, own.start + own.length)
        first, length = at - own.start, stop - at
        if own.count > 1 or first < 0 or first % chunk:
            return None
        if length % chunk and stop != own.start + own.length:
            return None
        number = first // chunk
        found.append(
            replace(
                own,
                offset=own.offset + first,
                start=at,
                length=length,
                crcs=own.crcs[number : number - (-length // chunk)],
            )
        )
        at = stop
    return found if at == end else None
