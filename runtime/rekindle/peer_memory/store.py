"""The newest state of a run in the memory of a pod, for the workers that come after.

A worker that is replaced needs not read from a store what lay in its machine's memory a moment ago.
The pod's launcher owns two memory files (`snapshot.Slot`), which outlive workers; the first worker
of the pod fills them in turn with *copies*: the whole state of a step, what each rank has for
itself, and what a commit would say of it (`meta`). As much lies in every pod, byte for byte the
same, so any of them serves any other, and a rank gets its own back wherever it runs.

    | header page: which copy, newest known commit | state tensors | rank 0 | rank 1 | ticket |

The bytes are written first, then their checksums with the ticket, then the number that makes the
slot count; the last two in a thread, while training goes on. Death in between leaves the other
slot, which holds the copy before. What is torn, was made for another run (`identity`), or does not
match its checksums, is no copy.

*Newest* is the copy with the highest generation, then the highest serial. A generation is one life
of the group, or what follows a return to an older step in it; all ranks know it from what they were
offered when they began, so the order needs neither a clock nor the store. Steps would not do: a
copy of work that was given up may have the higher one.

The slots also hold which commit is the newest one that this pod has heard of. A copy that is older
than that is passed over.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch

from rekindle import threads
from rekindle.api import ENV_MEMORY
from rekindle.checkpoint.format import checksum, encoding
from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.format.tensors import (
    TORCH_DTYPES,
    Flat,
    as_bytes,
    dtype_name,
    flatten,
    nbytes,
    rebuild,
)
from rekindle.checkpoint.saving import snapshot_memory
from rekindle.checkpoint.saving.snapshot import SnapshotMemory

log = logging.getLogger(__name__)

CHUNK = 32 * 2**20
"""Bytes that a checksum covers."""
SETTLE_SECONDS = 60.0
"""For a device to finish a copy that was begun."""
_VERSION = 1
_ALIGN = 64
_SHARE = 0.5
"""Of the memory that is available, that copies may take; the training's own need still grows."""
_TICKET_BYTES = 64 * 2**10
"""Room that is kept for tickets to grow."""
_BOARD_AT = 512
_BOARD = struct.Struct("<QQQQ")  # digest of the run, generation, step, fence
_BOARD_CRC = struct.Struct("<I")
_NUMBER_AT = 256
_NAMED = "/memfd:rekindle-"
"""How the names of the launcher's files begin, as the kernel shows them."""


@dataclass(frozen=True, kw_only=True, order=True)
class Serial:
    """Which copy of a run it is; the order is the order in which they were made."""

    generation: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """Which commits the state of a copy descends from: those of `fence`, then of `base`."""

    fence: int
    step: int
    base: CommitRef | None

    def newest(self, line: Sequence[CommitRef]) -> CommitRef | None:
        """The newest commit of a live line that this state goes back to."""
        own = [ref for ref in line if ref.fence == self.fence and ref.step <= self.step]
        base = self.base
        older = [
            ref
            for ref in line
            if base is not None and ref.fence <= base.fence and ref.step <= base.step
        ]
        return max(own, default=None, key=_by_step) or max(older, default=None, key=_by_step)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What there is to know about a copy before reading it; the same on all pods."""

    identity: str
    serial: Serial
    step: int
    world_size: int
    origin: str | None = None
    """The `ckpt_path` that the run was begun with."""
    line: Ancestry = field(default_factory=lambda: Ancestry(fence=0, step=0, base=None))
    pace: int = 1
    """Steps to the next copy, as agreed on."""
    size: int = 0
    algorithm: str = checksum.DEFAULT
    crcs: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse; raises `TypeError` or `KeyError` for anything else."""
        line = document["line"]
        base = line["base"]
        return cls(
            **{
                **document,
                "serial": Serial(**document["serial"]),
                "crcs": tuple(document["crcs"]),
                "line": Ancestry(
                    fence=line["fence"],
                    step=line["step"],
                    base=None if base is None else CommitRef(**base),
                ),
            }
        )


@dataclass(frozen=True, kw_only=True)
class KnownCommit:
    """The newest commit that a pod has heard of, and in which generation."""

    generation: int
    ref: CommitRef


def identity(uri: str, job: str) -> str:
    """Whose copy it is: one job's run, which is known by where its checkpoints go."""
    return f"{job}|{uri}"


def pack(tree: encoding.Tree) -> bytes:
    """A small tree as bytes; raises `EncodingError` for what cannot be stored."""
    flat = flatten(tree)
    names, parts, at = [], [], 0
    for name, tensor in flat.tensors.items():
        data = as_bytes(_dense(tensor).cpu()).numpy().tobytes()
        names.append([name, dtype_name(tensor), list(tensor.shape), at, len(data)])
        parts.append(data.ljust(_aligned(len(data)), b"\0"))
        at += len(parts[-1])
    head = json.dumps({"tree": flat.tree, "tensors": names}, separators=(",", ":")).encode()
    # JSON may end in spaces, and tensors have to begin where their elements are aligned.
    head = head.ljust(_aligned(8 + len(head)) - 8)
    return b"".join((len(head).to_bytes(8, "little"), head, *parts))


def unpack(data: memoryview) -> encoding.Tree:
    """The tree that `pack` was given, in memory of its own."""
    data = memoryview(bytearray(data))
    begin = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(bytes(data[8:begin]))
    tensors = {
        name: _tensor(data[begin + at : begin + at + size], dtype, shape)
        for name, dtype, shape, at, size in head["tensors"]
    }
    return rebuild(head["tree"], tensors)


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy as it lies in memory. Private: whoever writes to it writes to pages of his own."""

    label: Label
    ticket: bytes
    payload: memoryview
    slot: int
    _places: Mapping[str, Any]
    _tree: bytes
    _meta: bytes

    @classmethod
    def of(cls, ticket: bytes, payload: memoryview, slot: int) -> Self:
        """Make sense of a ticket; raises `ValueError`, `TypeError` or `KeyError` if there is none.

        Checksums are not looked at yet.
        """
        head, places, tree, meta = ticket.split(b"\n")
        document = json.loads(head)
        if not isinstance(document, dict) or document.pop("version", None) != _VERSION:
            raise ValueError("a copy of another version")
        label = Label.from_json(document)
        if label.size != len(payload):
            raise ValueError("a copy of another size than its ticket says")
        return cls(
            label=label,
            ticket=ticket,
            payload=payload,
            slot=slot,
            _places=json.loads(places),
            _tree=tree,
            _meta=meta,
        )

    def good(self) -> bool:
        """Whether every byte is as it was written."""
        return checksums(self.payload, self.label.algorithm) == self.label.crcs

    @property
    def meta(self) -> dict[str, Any]:
        """What a commit would say."""
        found: dict[str, Any] = encoding.decode(json.loads(self._meta))
        return found

    def state(self, *, shared: Collection[str] = ()) -> encoding.Tree:
        """The whole state, in memory of its own.

        Tensors that are named as `shared` stay in the slot and are valid until it is written to
        again: for a caller that copies them to where they belong.
        """
        tensors = {}
        for name, dtype, shape, at, size in self._places["tensors"]:
            tensor = _tensor(self.payload[at : at + size], dtype, shape)
            tensors[name] = tensor if name in shared else tensor.clone()
        return rebuild(json.loads(self._tree), tensors)

    def rank_state(self, rank: int) -> encoding.Tree | None:
        """What a rank had for itself; None for one that did not exist."""
        places = self._places["ranks"]
        if not 0 <= rank < len(places):
            return None
        at, size = places[rank]
        return unpack(self.payload[at : at + size])


def checksums(payload: memoryview, algorithm: str) -> tuple[int, ...]:
    """One for each CHUNK bytes; none where this installation cannot compute them."""
    if algorithm not in checksum.AVAILABLE:
        return ()
    crc = checksum.crc(algorithm)
    return tuple(crc(payload[at : at + CHUNK]) for at in range(0, len(payload), CHUNK))


@dataclass(frozen=True, kw_only=True)
class CopyLayout:
    """Where each tensor of a state goes; the same from copy to copy."""

    signature: tuple[tuple[str, torch.dtype, torch.Size], ...]
    places: tuple[tuple[str, str, list[int], int, int], ...]
    size: int
    digest: str
    """Of all that; the same on ranks whose states have the same form."""


def planned(flat: Flat, before: CopyLayout | None) -> CopyLayout:
    """The plan for such a state; `before` if it is still right."""
    signature = tuple((n, t.dtype, t.shape) for n, t in flat.tensors.items())
    if before is not None and before.signature == signature:
        return before
    places, at = [], 0
    for name, tensor in flat.tensors.items():
        places.append((name, dtype_name(tensor), list(tensor.shape), at, nbytes(tensor)))
        at = _aligned(at + nbytes(tensor))
    digest = hashlib.sha256(repr(places).encode()).hexdigest()
    return CopyLayout(signature=signature, places=tuple(places), size=at, digest=digest)


class HostMemory:
    """The slots of one pod, as a worker sees them. Only the pod's first worker writes."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Take two descriptors, which stay the launcher's."""
        self._fds = tuple(descriptors)
        self._slots = [SnapshotMemory(descriptor) for descriptor in self._fds]
        self._usable = len(self._slots)
        self._kept: int | None = None
        self._receiving: tuple[int, memoryview] | None = None
        self._registered: dict[int, int] = {}
        self._noticed = False
        self._finishing: threading.Thread | None = None
        self.ready = 0
        """Bytes that the slots take without growing."""

    @classmethod
    def from_environment(cls) -> Self | None:
        """The memory that the launcher has named; None without one, or where it is not there.

        A program that a worker starts gets the variable, but not the files. Its descriptors of
        these numbers are something else, which must not be written to.
        """
        text = os.environ.get(ENV_MEMORY, "")
        descriptors = [int(part) for part in text.split(",") if part.strip().isdecimal()]
        try:
            names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors]
        except OSError:
            return None
        ours = bool(names) and all(name.startswith(_NAMED) for name in names)
        return cls(descriptors) if ours else None

    @classmethod
    def create(cls) -> Self:
        """Memory of this process alone; raises OSError where the system has none."""
        return cls([SnapshotMemory.create().descriptor for _ in range(2)])

    def close(self) -> None:
        """Give up memory of this process alone; views of copies stay valid."""
        self.settle()
        for slot in self._slots:
            slot.close()

    def copies(self, whose: str) -> list[Copy]:
        """What the slots hold of this run, newest first; not verified."""
        found = []
        for index, descriptor in enumerate(self._fds):
            # A view of its own, which later copies do not move.
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                held = SnapshotMemory(descriptor).read(private=True)
                if held is not None:
                    copy = Copy.of(held[1], held[2], index)
                    if copy.label.identity == whose:
                        found.append(copy)
        return sorted(found, key=lambda copy: copy.label.serial, reverse=True)

    def keep(self, copy: Copy) -> None:
        """Fill the other slot next: this one is what the run began from."""
        self._kept = copy.slot

    def known(self, whose: str) -> KnownCommit | None:
        """The newest commit of this run that this pod has heard of."""
        found = []
        for descriptor in self._fds:
            raw = os.pread(descriptor, _BOARD.size + _BOARD_CRC.size, _BOARD_AT)
            body, crc = raw[: _BOARD.size], raw[_BOARD.size :]
            if len(crc) == _BOARD_CRC.size and _BOARD_CRC.pack(zlib.crc32(body)) == crc:
                run, generation, step, fence = _BOARD.unpack(body)
                if run == _digest(whose):
                    found.append(
                        KnownCommit(generation=generation, ref=CommitRef(step=step, fence=fence))
                    )
        return max(found, key=lambda known: (known.generation, known.ref.step), default=None)

    def note(self, whose: str, known: KnownCommit) -> None:
        """Remember a commit; may be called from any thread."""
        body = _BOARD.pack(_digest(whose), known.generation, known.ref.step, known.ref.fence)
        for descriptor in self._fds:
            # A slot that was never filled has no page to write it on, and no copy to pass over.
            if os.fstat(descriptor).st_size:
                os.pwrite(descriptor, body + _BOARD_CRC.pack(zlib.crc32(body)), _BOARD_AT)

    def clear(self) -> None:
        """Forget all copies: what they hold is no part of the run any more."""
        self.settle()
        for descriptor in self._fds:
            if os.fstat(descriptor).st_size:
                os.pwrite(descriptor, bytes(8), _NUMBER_AT)
                os.pwrite(descriptor, bytes(_BOARD.size + _BOARD_CRC.size), _BOARD_AT)

    def reserve(self, size: int) -> bool:
        """Make the slots large enough and touch them, as many as memory allows; whether any is.

        Takes 0.6 s/GB for memory that is new, so not in the thread that trains.
        """
        if size <= self.ready:
            return True
        self.settle()
        capacity = size + size // 50 + _TICKET_BYTES
        free = snapshot_memory.available()
        usable = len(self._slots)
        if free is not None:
            missing = [max(0, capacity - os.fstat(fd).st_size) for fd in self._fds]
            while usable and sum(missing[:usable]) > free * _SHARE:
                usable -= 1
        if usable < len(self._slots) and not self._noticed:
            self._noticed = True
            log.warning(
                "copies of the state (%d MiB each, two of them) are to take half of the %d MiB at "
                "most that are available: %s. Raise the memory limit of the pods.",
                capacity >> 20,
                (free or 0) >> 20,
                "only one is kept" if usable else "none is kept, a restart reads the store",
            )
        try:
            for index in range(usable):
                self._grow(index, capacity)
        except OSError:
            return False
        self._usable = usable
        if usable:
            self.ready = capacity
        return usable > 0

    def write(
        self,
        label: Label,
        flat: Flat,
        plan: CopyLayout,
        ranks: Sequence[bytes],
        tree: bytes,
        meta: bytes,
        *,
        later: bool = False,
    ) -> None:
        """Fill a slot, which is reserved. The tensors may be changed as soon as this returns.

        `tree` and `meta` are JSON, and rank 0's everywhere: clocks and names in them differ
        between ranks, which have to begin alike. With `later` the checksums are left to a thread,
        and the copy counts when that is done; from a GPU the bytes are then on their way only, in
        the order of the stream, and nobody waits for them.
        """
        ranges, at = [], plan.size
        for blob in ranks:
            ranges.append((at, len(blob)))
            at = _aligned(at + len(blob))
        index, target = self._open(at)
        view = torch.frombuffer(target, dtype=torch.uint8)
        on_gpu = self._registered_for(index, flat, view)
        for tensor, (_, _, _, start, size) in zip(flat.tensors.values(), plan.places, strict=True):
            if size:
                view[start : start + size].copy_(as_bytes(_dense(tensor)), non_blocking=on_gpu)
        for (start, size), blob in zip(ranges, ranks, strict=True):
            target[start : start + size] = blob
        for start, size in [(s, n) for _, _, _, s, n in plan.places] + ranges:
            # What lies between is not what was there before: copies are the same everywhere.
            if size % _ALIGN:
                target[start + size : _aligned(start + size)] = bytes(-size % _ALIGN)
        devices = {t.device for t in flat.tensors.values() if t.device.type == "cuda"}
        events = [torch.cuda.current_stream(device).record_event() for device in devices]
        places = {"tensors": plan.places, "ranks": ranges}

        def finish() -> None:
            for event in events:
                event.synchronize()
            crcs = checksums(target, checksum.DEFAULT)
            full = replace(label, size=at, algorithm=checksum.DEFAULT, crcs=crcs)
            head = {"version": _VERSION, **full.to_json()}
            documents = (json.dumps(d, separators=(",", ":")).encode() for d in (head, places))
            self._complete(index, full, b"\n".join((*documents, tree, meta)))

        if not later:
            finish()
            return
        # A process that ends in the middle of this leaves the copy before.
        self._finishing = threads.task(finish, name="rekindle-copy")

    def settle(self) -> None:
        """Wait until the newest copy counts; raises TimeoutError when it does not get there.

        It waits for the device, which may itself be waiting for a peer that is gone.
        """
        finishing = self._finishing  # Two threads may wait for it.
        if finishing is not None:
            finishing.join(SETTLE_SECONDS)
            if finishing.is_alive():
                raise TimeoutError(
                    f"the copy of the state in memory is not done after {SETTLE_SECONDS:.0f} s: "
                    "the device does not answer"
                )
            self._finishing = None

    def receive(self, size: int) -> memoryview:
        """Memory for a copy from elsewhere; raises OSError when there is none."""
        if not self.reserve(size):
            raise OSError("there is no memory for a copy of the state")
        self._receiving = self._open(size)
        return self._receiving[1]

    def received(self, ticket: bytes) -> bool:
        """Let the slot count, if what has come is what the ticket says."""
        assert self._receiving is not None
        (index, payload), self._receiving = self._receiving, None
        try:
            label = Copy.of(ticket, payload, index).label
        except (ValueError, TypeError, KeyError):
            return False
        if checksums(payload, label.algorithm) != label.crcs:
            return False
        self._complete(index, label, ticket)
        return True

    def _open(self, size: int) -> tuple[int, memoryview]:
        """A slot that holds nothing newer than the other, which holds no copy from now on."""
        self.settle()
        others = [index for index in range(self._usable) if index != self._kept]
        index = min(others or range(1), key=self._number)
        self._grow(index, size + _TICKET_BYTES)
        return index, self._slots[index].memory(size)

    def _complete(self, index: int, label: Label, ticket: bytes) -> None:
        self._grow(index, label.size + len(ticket))
        slot = self._slots[index]
        slot.complete(label.serial.generation << 40 | label.serial.number + 1, label.size, ticket)
        self._kept = index

    def _grow(self, index: int, capacity: int) -> None:
        """Let a slot take so much; what moves is no longer page-locked."""
        if capacity <= self._slots[index].capacity:
            return
        address = self._registered.pop(index, None)
        if address is not None:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
        self._slots[index].reserve(capacity)

    def _number(self, index: int) -> int:
        return int.from_bytes(os.pread(self._fds[index], 8, _NUMBER_AT), "little")

    def _registered_for(self, index: int, flat: Flat, view: torch.Tensor) -> bool:
        """Page-lock the slot for copies from a GPU; whether they need not be waited for."""
        if not any(t.device.type == "cuda" for t in flat.tensors.values()):
            return False
        if index not in self._registered:
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            address, size = view.data_ptr(), self._slots[index].capacity
            if int(cudart.cudaHostRegister(address, size, 0)) == 0:
                self._registered[index] = address
        return index in self._registered


def _by_step(ref: CommitRef) -> tuple[int, int]:
    return ref.step, ref.fence


def _digest(whose: str) -> int:
    return zlib.crc32(whose.encode()) << 32 | zlib.crc32(whose[::-1].encode())


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return tensor.contiguous().resolve_conj().resolve_neg()
    return tensor


def _tensor(data: memoryview, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    kind = TORCH_DTYPES[dtype]
    if not data:
        return torch.empty(tuple(shape), dtype=kind)
    return torch.frombuffer(data, dtype=kind).reshape(tuple(shape))
