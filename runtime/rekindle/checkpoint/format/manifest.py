"""The documents of a checkpoint: their keys, their form, and what a reader believes of them.

Layout below the root of a run; every name is padded so that keys sort by step:

    lease/epoch-{fence}.json             one per attempt; its number is the fence
    data/{step}-{fence}/r{rank}.{n}      shard objects, immutable
    part/{step}-{fence}/r{rank}.json     what one rank stored
    commit/{step}-{fence}.json           THE checkpoint: it exists when this object exists
    bad/{step}-{fence}.json              a reader found the checkpoint damaged
    tag/pin-{name}.json                  a checkpoint that retention must leave alone

A document is canonical JSON whose last member is the SHA-256 of everything before it, so a torn or
edited one is recognised without a second object; beyond 256 kB it is gzipped. Nothing in it is
trusted beyond that: sizes are bounded before anything is allocated, every field is checked for type
and range, keys must lie in the checkpoint's own group or (for what it did not store again) in that
of an earlier one, and the slices of every tensor must cover it exactly, which is also how rank 0
proves that all ranks have delivered. The class of an object is never taken from a file, and an
unknown version is refused (R21), since guessing at a newer format is how states get half restored.
One member may be missing: `mode` of a commit, which version 1 did not have at first. Conditional
writes were the only mode then, so that is what its absence means; a refusal would mark a whole
checkpoint as damaged for its age.

The module is pure: no torch, no I/O, no clock.
"""

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rekindle.checkpoint.format import checksum, encoding

VERSION = 1
"""The format that this code writes, and the newest that it reads."""
MAX_DOCUMENT = 256 * 2**20
"""Longest document in bytes, unpacked; the state of 10,000 tensors takes about 2 MB."""
MAX_CHUNK = 64 * 2**20
"""Longest chunk: it bounds what a reader must hold before it can verify."""
MODES = ("conditional", "lease")
"""Conditional writes, or the weaker guard for stores without them (`guarded`)."""
MAX_VALUES = 16 * 10**6
"""Most values of a document; what it takes as objects is 10 to 100 times as much as its text."""
MAX_RATIO = 64
"""Most bytes that a byte of a packed document may unfold into. Ours unfold into 3 to 20; one that
would unfold into more is written as it is."""
LAST_FENCE = 10**8 - 1
"""The highest number that a lease can have."""
_GZIP_ABOVE = 256 * 2**10
_MAX_BYTES = 2**50
_MAX_DIMENSIONS = 64

DTYPES: Mapping[str, tuple[str, int, int]] = {
    "bool": ("BOOL", 1, 1),
    "uint8": ("U8", 1, 1),
    "int8": ("I8", 1, 1),
    "uint16": ("U16", 2, 1),
    "int16": ("I16", 2, 1),
    "uint32": ("U32", 4, 1),
    "int32": ("I32", 4, 1),
    "uint64": ("U64", 8, 1),
    "int64": ("I64", 8, 1),
    "float16": ("F16", 2, 1),
    "bfloat16": ("BF16", 2, 1),
    "float32": ("F32", 4, 1),
    "float64": ("F64", 8, 1),
    "complex32": ("F16", 4, 2),
    "complex64": ("F32", 8, 2),
    "complex128": ("F64", 16, 2),
    "float8_e4m3fn": ("F8_E4M3", 1, 1),
    "float8_e5m2": ("F8_E5M2", 1, 1),
    "float8_e4m3fnuz": ("U8", 1, 1),
    "float8_e5m2fnuz": ("U8", 1, 1),
    "float8_e8m0fnu": ("U8", 1, 1),
}
"""Our dtype names: safetensors name, bytes per element, safetensors elements per element."""


class IntegrityError(Exception):
    """What a checkpoint holds is damaged or missing (R16); another checkpoint may be good."""


class ManifestError(IntegrityError):
    """A document is not one that this software wrote."""


class VersionError(Exception):
    """The checkpoint was written by newer software (R21); reading on is not safe."""


@dataclass(frozen=True, kw_only=True, order=True)
class CommitRef:
    """The name of a checkpoint: the step it holds and the attempt (fence) that wrote it."""

    step: int
    fence: int

    def __post_init__(self) -> None:
        if not (0 <= self.step < 10**12 and 0 <= self.fence < 10**8):
            raise ValueError(
                f"step {self.step} or fence {self.fence} is out of range: steps are 0 to 10**12-1, "
                f"fences 0 to 10**8-1"
            )

    def __str__(self) -> str:
        return f"{self.step:012d}-{self.fence:08d}"


_GROUP = re.compile(
    r"^(?:data|part|commit|bad)/(\d{12})-(\d{8})(?:/r(\d{5})\.(json|\d{1,6})|\.json)$"
)
_LEASE = re.compile(r"^lease/epoch-(\d{8})\.json$")
_PIN = re.compile(r"^tag/pin-([A-Za-z0-9][A-Za-z0-9._-]{0,63})\.json$")


def lease_key(fence: int) -> str:
    """The key whose creation makes an attempt the owner of this fence."""
    return f"lease/epoch-{fence:08d}.json"


def data_prefix(ref: CommitRef) -> str:
    """All shard objects of one checkpoint."""
    return f"data/{ref}/"


def data_key(ref: CommitRef, rank: int, number: int) -> str:
    """One shard object."""
    return f"data/{ref}/r{rank:05d}.{number}"


def part_prefix(ref: CommitRef) -> str:
    """All parts of one checkpoint."""
    return f"part/{ref}/"


def part_key(ref: CommitRef, rank: int) -> str:
    """What one rank stored."""
    return f"part/{ref}/r{rank:05d}.json"


def commit_key(ref: CommitRef) -> str:
    """The checkpoint itself."""
    return f"commit/{ref}.json"


def bad_key(ref: CommitRef) -> str:
    """The mark of a damaged checkpoint."""
    return f"bad/{ref}.json"


def pin_key(name: str) -> str:
    """The key of a pin; raises `ValueError` for a name that cannot be one."""
    key = f"tag/pin-{name}.json"
    if not _PIN.match(key):
        raise ValueError(
            f"pin name {name!r:.80} is not usable: up to 64 letters, digits, dots, underscores "
            f"and hyphens, beginning with a letter or digit"
        )
    return key


def pin_of(key: str) -> str | None:
    """The name in a pin's key; None for foreign keys."""
    match = _PIN.match(key)
    return match[1] if match else None


def ref_of(key: str) -> CommitRef | None:
    """The checkpoint a data, part, commit or bad key belongs to; None for foreign keys."""
    match = _GROUP.match(key)
    return CommitRef(step=int(match[1]), fence=int(match[2])) if match else None


def rank_of(key: str) -> int | None:
    """The rank in a data or part key."""
    match = _GROUP.match(key)
    return int(match[3]) if match and match[3] else None


def fence_of(key: str) -> int | None:
    """The fence in a lease key; None for foreign keys."""
    match = _LEASE.match(key)
    return int(match[1]) if match else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectEntry:
    """A shard object: its size, and length and CRC of its safetensors header."""

    key: str
    size: int
    head: int
    crc: int
    alg: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Bytes of a tensor, contiguous in the object, with a CRC per chunk."""

    object: int
    """Index into the document's objects."""
    offset: int
    start: int
    """First byte in the tensor."""
    length: int
    crcs: tuple[int, ...]
    count: int = 1
    """In the tensor they are this many runs of equal length; one means contiguous there, too."""
    stride: int = 0
    """Bytes from the begin of one run to that of the next; 0 for a single run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A stored tensor, or in a part the share of one rank in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor, whatever the slices here hold of it."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank stored for one checkpoint."""

    ref: CommitRef
    rank: int
    world_size: int
    chunk: int
    layout: str
    """`layout_digest` of the replicated state; equal on all ranks of one checkpoint."""
    objects: tuple[ObjectEntry, ...]
    tensors: tuple[TensorEntry, ...]
    """Replicated tensors with this rank's slices; rank 0 lists all of them, in order."""
    tree: encoding.Json
    """The replicated state around the tensors; rank 0 only, None elsewhere."""
    rank_tensors: tuple[TensorEntry, ...]
    rank_tree: encoding.Json
    """The state of this rank alone, or None if it has none."""
    base: CommitRef | None = None
    """What the commit's `base` will be; rank 0 only."""
    meta: encoding.Json = None
    """What the commit's `meta` will be, encoded; rank 0 only.

    With these two a complete set of parts holds all that a commit needs, whoever writes it.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry:
    """A part as the commit names it: only exactly this document counts."""

    rank: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A whole checkpoint."""

    ref: CommitRef
    base: CommitRef | None
    """The checkpoint this attempt resumed from; the same in all commits of one fence."""
    world_size: int
    created: float
    """Seconds since 1970 by the writer's clock, for people; nothing is decided by it."""
    chunk: int
    objects: tuple[ObjectEntry, ...]
    tensors: tuple[TensorEntry, ...]
    tree: encoding.Json
    meta: dict[str, Any]
    """What the trainer put in: cursor, metrics, versions; readable without loading tensors."""
    parts: tuple[PartEntry, ...]
    mode: str = "conditional"
    """How the commit was made the only one: one of `MODES`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all shard objects."""
        return sum(entry.size for entry in self.objects)


def layout_digest(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """A digest of names, dtypes and shapes in order; ranks that differ hold different states."""
    listed = [[name, dtype, list(shape)] for name, dtype, shape in tensors]
    return hashlib.sha256(_dump(listed)).hexdigest()


# Writing


def part_bytes(part: Part) -> bytes:
    """The document of a part."""
    return _seal(
        {
            "version": VERSION,
            "kind": "part",
            "step": part.ref.step,
            "fence": part.ref.fence,
            "rank": part.rank,
            "world_size": part.world_size,
            "chunk": part.chunk,
            "layout": part.layout,
            "objects": [_object_json(entry) for entry in part.objects],
            "tensors": [_tensor_json(entry) for entry in part.tensors],
            "tree": part.tree,
            "rank_tensors": [_tensor_json(entry) for entry in part.rank_tensors],
            "rank_tree": part.rank_tree,
            "base": _ref_json(part.base),
            "meta": part.meta,
        }
    )


def commit_bytes(commit: Commit) -> bytes:
    """The document of a commit."""
    return _seal(
        {
            "version": VERSION,
            "kind": "commit",
            "step": commit.ref.step,
            "fence": commit.ref.fence,
            "base": _ref_json(commit.base),
            "world_size": commit.world_size,
            "created": commit.created,
            "meta": encoding.encode(commit.meta, "meta"),
            "chunk": commit.chunk,
            "objects": [_object_json(entry) for entry in commit.objects],
            "tensors": [_tensor_json(entry) for entry in commit.tensors],
            "tree": commit.tree,
            "parts": [[entry.rank, entry.size, entry.sha256] for entry in commit.parts],
            "mode": commit.mode,
        }
    )


def note_bytes(kind: str, fields: Mapping[str, str | int | float]) -> bytes:
    """A small document (lease, quarantine mark)."""
    return _seal({"version": VERSION, "kind": kind, **fields})


def read_lease(raw: bytes) -> dict[str, Any]:
    """The members of a lease; raises `ManifestError` or `VersionError`."""
    return _unseal(raw, "lease")


def _ref_json(ref: CommitRef | None) -> dict[str, int] | None:
    return None if ref is None else {"step": ref.step, "fence": ref.fence}


def _object_json(entry: ObjectEntry) -> list[object]:
    return [entry.key, entry.size, entry.head, entry.crc, entry.alg]


def _tensor_json(entry: TensorEntry) -> list[object]:
    slices = [
        [s.object, s.offset, s.start, s.length, list(s.crcs), *_runs_json(s)] for s in entry.slices
    ]
    return [entry.name, entry.dtype, list(entry.shape), slices]


def _runs_json(piece: Slice) -> list[int]:
    return [piece.count, piece.stride] if piece.count > 1 else []


def _dump(value: encoding.Json) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _seal(document: dict[str, Any]) -> bytes:
    body = _dump(document)
    digest = hashlib.sha256(body).hexdigest()
    sealed = body[:-1] + f',"sha256":"{digest}"}}'.encode()
    if len(sealed) > MAX_DOCUMENT:
        raise ValueError(
            f"the {document['kind']} document would have {len(sealed)} bytes, at most "
            f"{MAX_DOCUMENT} are allowed: keep large data in tensors, not in lists or strings"
        )
    if (count := _values(sealed)) > MAX_VALUES:
        raise ValueError(
            f"the {document['kind']} document would have {count} values, at most {MAX_VALUES} are "
            f"allowed: keep large data in tensors, not in lists or strings"
        )
    if len(sealed) <= _GZIP_ABOVE:
        return sealed
    packed = gzip.compress(sealed, compresslevel=1, mtime=0)
    return packed if len(sealed) <= MAX_RATIO * len(packed) else sealed


def _values(raw: bytes) -> int:
    """An upper bound of how many values a document has, without reading it."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


# Reading

_SEAL = re.compile(rb'^,"sha256":"([0-9a-f]{64})"\}$')
_SEAL_BYTES = len(',"sha256":""}') + 64


def _unseal(raw: bytes, kind: str) -> dict[str, Any]:
    """Check seal, version and kind of a document and return its members."""
    if raw[:2] == b"\x1f\x8b":
        raw = _unpacked(raw, kind)
    if len(raw) > MAX_DOCUMENT:
        raise ManifestError(f"{kind} document: longer than {MAX_DOCUMENT} bytes")
    if (count := _values(raw)) > MAX_VALUES:
        raise ManifestError(f"{kind} document: {count} values, at most {MAX_VALUES} are allowed")
    body, seal = raw[:-_SEAL_BYTES], _SEAL.match(raw[-_SEAL_BYTES:])
    if seal is None or hashlib.sha256(body + b"}").hexdigest() != seal[1].decode():
        raise ManifestError(f"{kind} document: damaged or truncated (its own SHA-256 differs)")
    try:
        document = json.loads(body + b"}", object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{kind} document: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise ManifestError(f"{kind} document: not a JSON object")
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise ManifestError(f"{kind} document: version {version!r:.40} is not a positive integer")
    if version > VERSION:
        raise VersionError(
            f"R21 manifest version {str(version)[:20]} is newer than this trainer ({VERSION}). "
            f"Upgrade the image."
        )
    if document.get("kind") != kind:
        raise ManifestError(f"{kind} document: is a {document.get('kind')!r:.40}")
    return document


def _unpacked(packed: bytes, kind: str) -> bytes:
    """Unpack what says beforehand, in its last four bytes (RFC 1952), how long it will be."""
    declared = int.from_bytes(packed[-4:], "little")
    bound = min(MAX_DOCUMENT, MAX_RATIO * len(packed))
    if declared > bound:
        raise ManifestError(
            f"{kind} document: {len(packed)} bytes that would be {declared} when they are "
            f"unpacked, at most {bound} are allowed"
        )
    unpack = zlib.decompressobj(wbits=31)
    try:
        raw = unpack.decompress(packed, declared + 1)
    except zlib.error as error:
        raise ManifestError(f"{kind} document: damaged gzip ({error})") from None
    if len(raw) != declared or not unpack.eof or unpack.unused_data:
        raise ManifestError(f"{kind} document: truncated, or longer than it says ({declared})")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


class _Reader:
    """Typed access to one document; every complaint names document and field."""

    def __init__(self, kind: str, document: dict[str, Any], fields: Iterable[str]) -> None:
        self.kind = kind
        self.document = document
        expected = {"version", "kind", *fields}
        if set(document) != expected:
            odd = sorted(set(document) ^ expected)
            raise ManifestError(f"{kind} document: missing or unknown members {odd!r:.200}")

    def fail(self, where: str, why: str) -> ManifestError:
        return ManifestError(f"{self.kind} document: {where} {why}")

    def integer(self, value: object, where: str, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.fail(where, f"is {value!r:.40}, not an integer from {low} to {high}")
        return value

    def text(self, value: object, where: str, limit: int = 4096) -> str:
        if type(value) is not str or len(value) > limit:
            raise self.fail(where, f"is {value!r:.40}, not a string of up to {limit} characters")
        return value

    def array(self, value: object, where: str, length: int | None = None) -> list[Any]:
        if type(value) is not list or (length is not None and len(value) != length):
            raise self.fail(where, f"is {value!r:.40}, not a list of {length or 'any'} entries")
        return value

    def field(self, name: str, low: int, high: int) -> int:
        return self.integer(self.document[name], name, low, high)

    def ref(self, value: object, where: str) -> CommitRef:
        if type(value) is not dict or set(value) != {"step", "fence"}:
            raise self.fail(where, f"is {value!r:.40}, not a step and a fence")
        return CommitRef(
            step=self.integer(value["step"], f"{where}.step", 0, 10**12 - 1),
            fence=self.integer(value["fence"], f"{where}.fence", 0, LAST_FENCE),
        )

    def base(self) -> CommitRef | None:
        base = self.document["base"]
        return None if base is None else self.ref(base, "base")

    def own_ref(self, expected: CommitRef) -> CommitRef:
        found = CommitRef(
            step=self.field("step", 0, 10**12 - 1), fence=self.field("fence", 0, LAST_FENCE)
        )
        if found != expected:
            raise self.fail("step and fence", f"are {found}, but the key says {expected}")
        return found

    def chunk(self) -> int:
        chunk = self.field("chunk", 16, MAX_CHUNK)
        if chunk % 16:
            raise self.fail("chunk", f"is {chunk}, not a multiple of 16")
        return chunk

    def objects(self, ref: CommitRef) -> tuple[ObjectEntry, ...]:
        """Objects of the checkpoint's own group, and of earlier ones that it refers to."""
        found: list[ObjectEntry] = []
        seen: set[str] = set()
        for index, item in enumerate(self.array(self.document["objects"], "objects")):
            where = f"objects[{index}]"
            key, size, head, crc, alg = self.array(item, where, 5)
            key = self.text(key, f"{where}.key", 200)
            holder = ref_of(key) if key.startswith("data/") and rank_of(key) is not None else None
            if (
                holder is None
                or key in seen
                or key.endswith(".json")
                or not (holder.step <= ref.step and holder.fence <= ref.fence)
            ):
                raise self.fail(f"{where}.key", f"{key!r:.80} is foreign or occurs twice")
            seen.add(key)
            if alg not in checksum.NAMES:
                raise self.fail(f"{where}.alg", f"is {alg!r:.40}, not one of {checksum.NAMES}")
            size = self.integer(size, f"{where}.size", 8, _MAX_BYTES)
            found.append(
                ObjectEntry(
                    key=key,
                    size=size,
                    head=self.integer(head, f"{where}.head", 8, min(size, MAX_DOCUMENT)),
                    crc=self.integer(crc, f"{where}.crc", 0, 2**64 - 1),
                    alg=alg,
                )
            )
        return tuple(found)

    def tensors(
        self, name: str, objects: Sequence[ObjectEntry], chunk: int
    ) -> tuple[TensorEntry, ...]:
        found: list[TensorEntry] = []
        seen: set[str] = set()
        for index, item in enumerate(self.array(self.document[name], name)):
            where = f"{name}[{index}]"
            tensor, dtype, shape, slices = self.array(item, where, 4)
            tensor = self.text(tensor, f"{where}.name")
            if tensor in seen:
                raise self.fail(where, f"repeats the name {tensor!r:.80}")
            seen.add(tensor)
            if type(dtype) is not str or dtype not in DTYPES:
                raise self.fail(f"{where}.dtype", f"is {dtype!r:.40}, which is unknown")
            sides = tuple(
                self.integer(side, f"{where}.shape", 0, _MAX_BYTES)
                for side in self.array(shape, f"{where}.shape")
            )
            # Zeros count as ones: the strides of an empty tensor must fit as well.
            bound = math.prod(max(1, side) for side in sides)
            if len(sides) > _MAX_DIMENSIONS or bound > _MAX_BYTES:
                raise self.fail(f"{where}.shape", f"{sides!r:.80} is too large")
            entry = TensorEntry(name=tensor, dtype=dtype, shape=sides, slices=())
            found.append(
                TensorEntry(
                    name=tensor,
                    dtype=dtype,
                    shape=sides,
                    slices=tuple(
                        self._slice(piece, f"{where}.slices", entry.nbytes, objects, chunk)
                        for piece in self.array(slices, f"{where}.slices")
                    ),
                )
            )
        return tuple(found)

    def _slice(
        self, item: object, where: str, nbytes: int, objects: Sequence[ObjectEntry], chunk: int
    ) -> Slice:
        items = self.array(item, where)
        if len(items) not in {5, 7}:
            raise self.fail(where, f"is {item!r:.40}, not a list of 5 or 7 entries")
        number, offset, start, length, crcs, *runs = items
        number = self.integer(number, f"{where}.object", 0, len(objects) - 1)
        holder = objects[number]
        start = self.integer(start, f"{where}.start", 0, nbytes)
        length = self.integer(length, f"{where}.length", 1, nbytes - start)
        offset = self.integer(offset, f"{where}.offset", holder.head, holder.size - length)
        count, stride = 1, 0
        if runs:
            count = self.integer(runs[0], f"{where}.count", 2, length)
            stride = self.integer(runs[1], f"{where}.stride", length // count, nbytes)
            if length % count or start + (count - 1) * stride + length // count > nbytes:
                raise self.fail(where, f"has {count} runs at distances of {stride} that do not fit")
        values = self.array(crcs, f"{where}.crcs", -(-length // chunk))
        return Slice(
            object=number,
            offset=offset,
            start=start,
            length=length,
            crcs=tuple(self.integer(crc, f"{where}.crcs", 0, 2**64 - 1) for crc in values),
            count=count,
            stride=stride,
        )


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What a pin says."""

    ref: CommitRef
    note: str
    """Why, in the words of who set it."""
    at: float
    """Seconds since 1970 by that person's clock."""


def pin_bytes(pin: Pin) -> bytes:
    """The document of a pin."""
    return note_bytes(
        "pin", {"step": pin.ref.step, "fence": pin.ref.fence, "note": pin.note, "at": pin.at}
    )


def read_pin(raw: bytes) -> Pin:
    """Parse a pin; raises `ManifestError` or `VersionError`."""
    reader = _Reader("pin", _unseal(raw, "pin"), ("step", "fence", "note", "at"))
    at = reader.document["at"]
    if type(at) not in {int, float} or not 0 <= at < 1e12:
        raise reader.fail("at", f"is {at!r:.40}, not a number of seconds since 1970")
    return Pin(
        ref=CommitRef(
            step=reader.field("step", 0, 10**12 - 1), fence=reader.field("fence", 0, LAST_FENCE)
        ),
        note=reader.text(reader.document["note"], "note"),
        at=float(at),
    )


def read_part(raw: bytes, ref: CommitRef, rank: int) -> Part:
    """Parse a part; raises `ManifestError` or `VersionError`."""
    fields = "step fence rank world_size chunk layout objects tensors tree rank_tensors rank_tree"
    reader = _Reader("part", _unseal(raw, "part"), [*fields.split(), "base", "meta"])
    own, chunk = reader.own_ref(ref), reader.chunk()
    world_size = reader.field("world_size", 1, 100_000)
    if reader.field("rank", 0, world_size - 1) != rank:
        raise reader.fail("rank", f"is {reader.document['rank']}, but the key says {rank}")
    objects = reader.objects(own)
    if any(rank_of(e.key) != rank for e in objects if ref_of(e.key) == own):
        raise reader.fail("objects", f"include objects of other ranks than {rank}")
    tensors = reader.tensors("tensors", objects, chunk)
    rank_tensors = reader.tensors("rank_tensors", objects, chunk)
    _no_overlap(reader, objects, (*tensors, *rank_tensors))
    _covered(reader, rank_tensors)
    return Part(
        ref=own,
        rank=rank,
        world_size=world_size,
        chunk=chunk,
        layout=reader.text(reader.document["layout"], "layout", 64),
        objects=objects,
        tensors=tensors,
        tree=reader.document["tree"],
        rank_tensors=rank_tensors,
        rank_tree=reader.document["rank_tree"],
        base=reader.base(),
        meta=reader.document["meta"],
    )


def read_commit(raw: bytes, ref: CommitRef) -> Commit:
    """Parse a commit and prove that it covers every tensor; `ManifestError` or `VersionError`."""
    fields = "step fence base world_size created meta chunk objects tensors tree parts mode"
    written = {"mode": "conditional", **_unseal(raw, "commit")}
    reader = _Reader("commit", written, fields.split())
    document = reader.document
    own, chunk = reader.own_ref(ref), reader.chunk()
    world_size = reader.field("world_size", 1, 100_000)
    created = document["created"]
    if type(created) not in {int, float} or not 0 <= created < 1e12:
        raise reader.fail("created", f"is {created!r:.40}, not a number of seconds since 1970")
    mode = document["mode"]
    if mode not in MODES:
        raise reader.fail("mode", f"is {mode!r:.40}, not one of {MODES}")
    objects = reader.objects(own)
    tensors = reader.tensors("tensors", objects, chunk)
    _no_overlap(reader, objects, tensors)
    _covered(reader, tensors)
    try:
        meta = encoding.decode(document["meta"])
    except encoding.DecodingError as error:
        raise reader.fail("meta", str(error)) from None
    if type(meta) is not dict:
        raise reader.fail("meta", "is not an object")
    parts: list[PartEntry] = []
    for index, item in enumerate(reader.array(document["parts"], "parts", world_size)):
        rank, size, sha256 = reader.array(item, f"parts[{index}]", 3)
        parts.append(
            PartEntry(
                rank=reader.integer(rank, f"parts[{index}].rank", index, index),
                size=reader.integer(size, f"parts[{index}].size", 1, MAX_DOCUMENT),
                sha256=reader.text(sha256, f"parts[{index}].sha256", 64),
            )
        )
    return Commit(
        ref=own,
        base=reader.base(),
        world_size=world_size,
        created=float(created),
        chunk=chunk,
        objects=objects,
        tensors=tensors,
        tree=document["tree"],
        meta=meta,
        parts=tuple(parts),
        mode=mode,
    )


def _covered(reader: _Reader, tensors: Iterable[TensorEntry]) -> None:
    """Every byte of every tensor is in exactly one slice, so allocating it is backed by objects.

    A tensor is a sequence of bands. A band is a contiguous slice, or slices with the same number of
    runs at the same distances that stand side by side and fill the distance exactly. So no run has
    to be looked at, and a document cannot make this expensive.
    """
    for tensor in tensors:
        where = f"tensor {tensor.name!r:.200}"
        at = 0  # where the next slice must begin
        band: Slice | None = None  # the first slice of an unfinished band
        for piece in sorted(tensor.slices, key=lambda s: s.start):
            if piece.start != at:
                what = "a gap" if piece.start > at else "an overlap"
                raise reader.fail(where, f"has {what} at byte {min(at, piece.start)}")
            if band is not None and (piece.count, piece.stride) != (band.count, band.stride):
                raise reader.fail(where, f"has runs at byte {at} that do not match")
            at += piece.length // piece.count
            if piece.count > 1:
                band = band or piece
                if at - band.start > band.stride:
                    raise reader.fail(where, f"has an overlap at byte {band.start + band.stride}")
                if at - band.start == band.stride:
                    at, band = band.start + band.stride * band.count, None
        if band is not None:
            raise reader.fail(where, f"has a gap at byte {at}")
        if at != tensor.nbytes:
            raise reader.fail(
                f"tensor {tensor.name!r:.200}", f"is covered for {at} of {tensor.nbytes} bytes"
            )


def _no_overlap(
    reader: _Reader, objects: Sequence[ObjectEntry], tensors: Iterable[TensorEntry]
) -> None:
    """No byte of an object is used twice: else a small object could claim any amount of memory."""
    spans = sorted((s.object, s.offset, s.length) for t in tensors for s in t.slices)
    for (number, offset, length), (following, begin, _) in zip(spans, spans[1:], strict=False):
        if number == following and offset + length > begin:
            raise reader.fail(f"object {objects[number].key}", f"is used twice at byte {begin}")


def merge(
    parts: Sequence[tuple[Part, bytes]],
    *,
    base: CommitRef | None,
    meta: dict[str, Any],
    created: float,
    mode: str = "conditional",
) -> Commit:
    """The commit of a full set of parts in rank order; `ManifestError` if they do not fit."""
    first = parts[0][0]
    objects: list[ObjectEntry] = []
    places: dict[str, int] = {}
    slices: dict[str, list[Slice]] = {tensor.name: [] for tensor in first.tensors}
    for part, _ in parts:
        for what in ("ref", "world_size", "chunk", "layout"):
            if getattr(part, what) != getattr(first, what):
                raise ManifestError(
                    f"rank {part.rank} saved another {what} than rank 0 at step {first.ref.step} "
                    f"({getattr(part, what)} and {getattr(first, what)}): the replicated state "
                    f"must have the same names, dtypes and shapes on every rank"
                )
        # Several ranks may refer to one object of an earlier checkpoint.
        for entry in part.objects:
            if places.setdefault(entry.key, len(places)) == len(objects):
                objects.append(entry)
        index = [places[entry.key] for entry in part.objects]
        for tensor in part.tensors:
            slices[tensor.name] += [
                replace(piece, object=index[piece.object]) for piece in tensor.slices
            ]
    return Commit(
        ref=first.ref,
        base=base,
        world_size=first.world_size,
        created=created,
        chunk=first.chunk,
        objects=tuple(objects),
        tensors=tuple(
            TensorEntry(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                slices=tuple(sorted(slices[tensor.name], key=lambda s: s.start)),
            )
            for tensor in first.tensors
        ),
        tree=first.tree,
        meta=meta,
        parts=tuple(
            PartEntry(rank=part.rank, size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
            for part, raw in parts
        ),
        mode=mode,
    )
