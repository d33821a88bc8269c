"""Documents: round trip, proof of coverage, and hostile input."""

import gzip
import hashlib
import json
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import (
    Commit,
    CommitRef,
    IntegrityError,
    ManifestError,
    ObjectEntry,
    Part,
    PartEntry,
    Slice,
    TensorEntry,
    VersionError,
    commit_bytes,
    merge,
    part_bytes,
    read_commit,
    read_part,
)

REF = CommitRef(step=7400, fence=3)


def entry(rank: int, size: int = 300) -> ObjectEntry:
    key = manifest.data_key(REF, rank, 0)
    return ObjectEntry(key=key, size=size, head=40, crc=7, alg="crc32")


def piece(holder: int, offset: int, start: int, length: int) -> Slice:
    crcs = tuple(range(-(-length // 64)))
    return Slice(object=holder, offset=offset, start=start, length=length, crcs=crcs)


def tensor(name: str, count: int, *slices: Slice) -> TensorEntry:
    return TensorEntry(name=name, dtype="float32", shape=(count,), slices=slices)


COMMIT = Commit(
    ref=REF,
    base=CommitRef(step=7000, fence=2),
    world_size=2,
    created=1.5,
    chunk=64,
    objects=(entry(0), entry(1)),
    tensors=(
        tensor("w", 50, piece(0, 40, 0, 128), piece(1, 40, 128, 72)),
        tensor("b", 2, piece(1, 112, 0, 8)),
        tensor("empty", 0),
    ),
    tree={"w": {"$": "tensor", "v": "w"}},
    meta={"cursor": {"epoch": 2}, "loss": float("inf"), 3: (1, 2)},
    parts=(
        PartEntry(rank=0, size=10, sha256="a" * 64),
        PartEntry(rank=1, size=11, sha256="b" * 64),
    ),
)


def test_a_commit_comes_back_equal():
    assert read_commit(commit_bytes(COMMIT), REF) == COMMIT


@pytest.mark.parametrize("mode", manifest.MODES)
def test_the_mode_of_a_commit_comes_back(mode):
    assert read_commit(commit_bytes(replace(COMMIT, mode=mode)), REF).mode == mode


def without(raw: bytes, member: str) -> bytes:
    """A document without one of its members, sealed anew."""
    document = json.loads(raw)
    del document[member], document["sha256"]
    return manifest._seal(document)


def test_a_commit_from_before_there_were_modes_was_written_conditionally():
    assert read_commit(without(commit_bytes(COMMIT), "mode"), REF) == COMMIT


@pytest.mark.parametrize("member", ["step", "created", "tensors", "parts", "meta"])
def test_no_other_member_of_a_commit_may_be_missing(member):
    with pytest.raises(ManifestError, match=rf"missing or unknown members \['{member}'\]"):
        read_commit(without(commit_bytes(COMMIT), member), REF)


def test_a_mode_that_nobody_knows_is_refused():
    with pytest.raises(ManifestError, match="mode is 'hope', not one of"):
        read_commit(commit_bytes(replace(COMMIT, mode="hope")), REF)


def test_a_long_commit_is_packed_and_comes_back_equal():
    digests = [hashlib.sha256(b"%d" % (n // 20)).hexdigest() for n in range(9000)]
    long = replace(COMMIT, tree=digests)
    raw = commit_bytes(long)
    assert raw[:2] == b"\x1f\x8b"
    assert len(raw) < 50_000
    assert read_commit(raw, REF) == long
    assert commit_bytes(long) == raw, "packing must not depend on the time"


def test_keys_sort_by_step_and_name_their_parts():
    keys = [manifest.commit_key(CommitRef(step=s, fence=1)) for s in (9, 10, 100, 99999)]
    assert keys == sorted(keys)
    assert manifest.data_key(REF, 2, 5) == "data/000000007400-00000003/r00002.5"
    assert manifest.ref_of(manifest.part_key(REF, 2)) == REF
    assert manifest.rank_of(manifest.part_key(REF, 2)) == 2
    assert manifest.fence_of(manifest.lease_key(12)) == 12
    for foreign in ("commit/x.json", "data/../x", "lease/epoch-1.json", "tag/best.json"):
        assert manifest.ref_of(foreign) is None
        assert manifest.fence_of(foreign) is None


def resealed(change) -> bytes:
    """A commit whose content was changed by somebody who knows how to seal."""
    document = json.loads(commit_bytes(COMMIT))
    del document["sha256"]
    change(document)
    return seal(document)


def seal(document) -> bytes:
    body = json.dumps(document, separators=(",", ":")).encode()
    return body[:-1] + b',"sha256":"%s"}' % hashlib.sha256(body).hexdigest().encode()


def at(*path):
    *front, last, value = path

    def change(document):
        for key in front:
            document = document[key]
        document[last] = value

    return change


FIRST = ("tensors", 0, 3, 0)  # object, offset, start, length, crcs


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (at("tensors", 0, 3, [[0, 40, 0, 128, [0, 1]]]), "covered for 128 of 200"),
        (at(*FIRST, 2, 64), "a gap at byte 0"),
        (at("tensors", 0, 3, 1, [0, 168, 64, 128, [0, 1]]), "an overlap at byte 64"),
        (at("tensors", 0, 3, 1, [1, 40, 128, 64, [0]]), "covered for 192 of 200"),
        (at("tensors", 0, 2, [51]), "covered for 200 of 204"),
        (at("tensors", 0, 2, [2**60]), "shape"),
        (at("tensors", 0, 2, [2**40, 2**40]), "too large"),
        (at("tensors", 0, 2, [-1]), "shape"),
        (at("tensors", 2, 2, [0, 2**40, 2**40]), "too large"),
        (at("tensors", 0, 2, [1] * 65), "too large"),
        (at("tensors", 0, 2, [1.5]), "not an integer"),
        (at("tensors", 0, 2, "50"), "not a list"),
        (at("tensors", 2, 2, [10**9]), "covered for 0"),
        (at("tensors", 1, 0, "w"), "repeats the name 'w'"),
        (at("tensors", 0, 1, "object"), "unknown"),
        (at("tensors", 0, 1, ["float32"]), "unknown"),
        (at("tensors", 0, []), "not a list of 4"),
        (at(*FIRST, 0, 2), "object"),
        (at(*FIRST, 0, -1), "object"),
        (at(*FIRST, 0, True), "not an integer"),
        (at(*FIRST, 1, 39), "offset"),
        (at(*FIRST, 1, 200), "offset"),
        (at(*FIRST, 3, 0), "length"),
        (at(*FIRST, 4, [1]), "not a list of 2"),
        (at(*FIRST, 4, [1, 2**64]), "crcs"),
        (at("tensors", 1, 3, 0, 1, 108), "used twice"),
        (at("objects", 0, 0, "data/000000007400-00000003/../../x"), "foreign"),
        (at("objects", 0, 0, "data/000000007401-00000003/r00000.0"), "foreign"),
        (at("objects", 0, 0, "data/000000007400-00000004/r00000.0"), "foreign"),
        (at("objects", 0, 0, "part/000000007400-00000003/r00000.json"), "foreign"),
        (at("objects", 0, 0, "/etc/passwd"), "foreign"),
        (at("objects", 1, 0, "data/000000007400-00000003/r00000.0"), "twice"),
        (at("objects", 0, 1, 10**18), "size"),
        (at("objects", 0, 2, 10**9), "head"),
        (at("objects", 0, 4, "md5"), "alg"),
        (at("chunk", 0), "chunk"),
        (at("chunk", 2**40), "chunk"),
        (at("chunk", 72), "multiple of 16"),
        (at("world_size", 0), "world_size"),
        (at("world_size", 3), "list of 3"),
        (at("step", 7401), "the key says"),
        (at("fence", "3"), "fence"),
        (at("base", {"step": 1}), "base"),
        (at("created", "now"), "created"),
        (at("meta", []), "meta"),
        (at("meta", {"$": "pickle", "v": "x"}), "unknown tag 'pickle'"),
        (at("parts", [[0, 1, "a"], [0, 1, "a"]]), "rank"),
        (at("kind", "part"), "is a 'part'"),
        (at("version", 0), "version"),
        (at("version", "1"), "version"),
        (at("version", 10**400), "newer"),
        (at("surprise", 1), "surprise"),
        (lambda document: document.pop("tree"), "tree"),
    ],
)
def test_a_hostile_commit_is_refused_with_the_reason(change, why):
    with pytest.raises((ManifestError, VersionError), match=why):
        read_commit(resealed(change), REF)


def test_a_newer_version_is_r21_and_not_guessed_at():
    with pytest.raises(VersionError) as caught:
        read_commit(resealed(at("version", 2)), REF)
    assert str(caught.value) == (
        "R21 manifest version 2 is newer than this trainer (1). Upgrade the image."
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"\x80\x04\x95.",
        b"\x1f\x8b",
        gzip.compress(b"{}", mtime=0),
        gzip.compress(commit_bytes(COMMIT))[:-20],
        commit_bytes(COMMIT) + b" ",
        commit_bytes(COMMIT)[1:],
        seal([1, 2]),
        seal({"version": 1}),
    ],
)
def test_what_is_no_commit_is_refused(raw):
    with pytest.raises(ManifestError):
        read_commit(raw, REF)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_refused(text):
    body = b'{"version":1,"kind":"commit","created":%s}' % text.encode()
    sealed = body[:-1] + b',"sha256":"%s"}' % hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(ManifestError, match=f"{text} is not JSON"):
        read_commit(sealed, REF)


def test_a_document_is_never_longer_than_it_may_be(monkeypatch):
    raw = commit_bytes(COMMIT)
    monkeypatch.setattr(manifest, "MAX_DOCUMENT", len(raw))
    assert read_commit(commit_bytes(COMMIT), REF) == COMMIT
    monkeypatch.setattr(manifest, "MAX_DOCUMENT", len(raw) - 1)
    with pytest.raises(ValueError, match=f"would have {len(raw)} bytes, at most {len(raw) - 1}"):
        commit_bytes(COMMIT)
    with pytest.raises(ManifestError, match=f"longer than {len(raw) - 1} bytes"):
        read_commit(raw, REF)


def test_a_packed_document_with_damage_inside_is_refused():
    packed = bytearray(gzip.compress(bytes(range(256)) * 4))
    packed[10] |= 0x06  # a block of the kind that there is none of
    with pytest.raises(ManifestError, match="damaged gzip"):
        read_commit(bytes(packed), REF)


def test_the_part_of_another_rank_is_refused():
    raw = part_bytes(part(0))
    assert read_part(raw, REF, 0).rank == 0
    with pytest.raises(ManifestError, match="is 0, but the key says 1"):
        read_part(raw, REF, 1)


def test_deep_nesting_is_refused():
    body = b'{"version":1,"kind":"commit","tree":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    sealed = body[:-1] + b',"sha256":"%s"}' % hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(ManifestError, match="JSON"):
        read_commit(sealed, REF)


def test_a_repeated_key_is_refused():
    body = b'{"version":1,"version":1}'
    sealed = body[:-1] + b',"sha256":"%s"}' % hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(ManifestError, match="twice"):
        read_commit(sealed, REF)


def test_a_gzip_bomb_is_refused_before_it_unfolds(monkeypatch):
    long = gzip.compress(b" " * 10**7)
    lies = long[:-4] + (20_000).to_bytes(4, "little")
    two = gzip.compress(bytes(range(256)) * 40) + gzip.compress(bytes(range(256)) * 40)
    many = gzip.compress(b"[[" + b"[]," * 10_000 + b"[]]]", compresslevel=0)
    monkeypatch.setattr(manifest, "MAX_VALUES", 5_000)
    for bomb, words in (
        (long, f"{len(long)} bytes that would be 10000000 when they are unpacked, at most"),
        (lies, r"damaged gzip|longer than it says \(20000\)"),
        (two, "longer than it says"),
        (many, "20003 values, at most 5000"),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ManifestError, match=words):
                read_commit(bomb, REF)
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()


def test_what_would_look_like_a_bomb_is_written_as_it_is(monkeypatch):
    monkeypatch.setattr(manifest, "_GZIP_ABOVE", 1_000)
    zeros = replace(COMMIT, meta={"zeros": [0] * 200_000})
    raw = commit_bytes(zeros)
    assert raw[:1] == b"{"
    assert read_commit(raw, zeros.ref) == zeros
    monkeypatch.setattr(manifest, "MAX_VALUES", 100_000)
    with pytest.raises(ValueError, match="values, at most 100000 are allowed: keep large data in"):
        commit_bytes(zeros)


@given(st.data())
@settings(max_examples=300)
def test_no_changed_byte_goes_unnoticed(data):
    raw = bytearray(commit_bytes(COMMIT))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ManifestError):
        read_commit(bytes(raw), REF)


# All that UTF-8 holds, as by default; but that is found out of the codec, in more than a second.
UNICODE = st.characters(exclude_categories=["Cs"])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(UNICODE, max_size=5) | st.just(-(2**63)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(UNICODE, max_size=3), inner)
    ),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=500)
def test_any_replaced_member_ends_in_a_clear_error_or_in_a_valid_commit(data):
    """A forger who seals his documents can at most describe another checkpoint."""
    document = json.loads(commit_bytes(COMMIT))
    del document["sha256"]
    node, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
        node = node[key]
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
    node[key] = data.draw(values)
    try:
        commit = read_commit(seal(document), REF)
    except (IntegrityError, VersionError):
        return
    assert sum(t.nbytes for t in commit.tensors) <= sum(o.size for o in commit.objects)


def part(rank: int, *tensors: TensorEntry, **changes) -> Part:
    whole = Part(
        ref=REF,
        rank=rank,
        world_size=2,
        chunk=64,
        layout="same",
        objects=(entry(rank),),
        tensors=tensors,
        tree={"w": 1} if rank == 0 else None,
        rank_tensors=(tensor("rng", 4, piece(0, 260, 0, 16)),),
        rank_tree={"$": "tensor", "v": "rng"},
    )
    return replace(whole, **changes)


def test_parts_merge_into_a_commit_that_covers_everything():
    parts = [
        part(0, tensor("w", 50, piece(0, 40, 0, 128)), tensor("b", 2)),
        part(1, tensor("w", 50, piece(0, 40, 128, 72)), tensor("b", 2, piece(0, 112, 0, 8))),
    ]
    raw = [part_bytes(p) for p in parts]
    read = [read_part(raw[0], REF, 0), read_part(raw[1], REF, 1)]
    assert read == parts
    commit = merge(list(zip(read, raw, strict=True)), base=None, meta={}, created=1.0)
    assert read_commit(commit_bytes(commit), REF) == commit
    assert commit.tensors[0].slices == (piece(0, 40, 0, 128), piece(1, 40, 128, 72))
    assert commit.parts[1].sha256 == hashlib.sha256(raw[1]).hexdigest()


def test_a_missing_slice_is_found_before_the_commit():
    parts = [part(0, tensor("w", 50, piece(0, 40, 0, 128))), part(1)]
    commit = merge([(p, part_bytes(p)) for p in parts], base=None, meta={}, created=1.0)
    with pytest.raises(ManifestError, match="tensor 'w' is covered for 128 of 200 bytes"):
        read_commit(commit_bytes(commit), REF)


@pytest.mark.parametrize("change", [{"layout": "other"}, {"chunk": 128}, {"world_size": 3}])
def test_ranks_with_different_states_cannot_commit_together(change):
    parts = [part(0, tensor("w", 0)), part(1, **change)]
    with pytest.raises(ManifestError, match="rank 1 saved another"):
        merge([(p, part_bytes(p)) for p in parts], base=None, meta={}, created=1.0)


def test_a_part_may_name_only_objects_of_its_own_rank():
    stolen = part(0, objects=(entry(1),), tensors=(), rank_tensors=())
    with pytest.raises(ManifestError, match="other ranks"):
        read_part(part_bytes(stolen), REF, 0)


@pytest.mark.parametrize(("step", "fence"), [(-1, 0), (0, -1), (10**12, 0), (0, 10**8)])
def test_a_reference_out_of_range_is_refused(step, fence):
    with pytest.raises(ValueError, match="out of range"):
        CommitRef(step=step, fence=fence)


def columns(*widths, rows=4, total=None):
    """A tensor of bytes whose columns are dealt out; slices of all rows each."""
    stride = total or sum(widths)
    slices, at = [], 0
    for width in widths:
        slices.append(
            Slice(
                object=0,
                offset=40 + at * rows,
                start=at,
                length=width * rows,
                crcs=(0,) * -(-width * rows // 64),
                count=rows,
                stride=stride,
            )
        )
        at += width
    return TensorEntry(name="c", dtype="uint8", shape=(rows, stride), slices=tuple(slices))


def committed(entry_):
    one = part(0, entry_, world_size=1, rank_tensors=())
    return merge([(one, part_bytes(one))], base=None, meta={}, created=1.0)


def test_columns_side_by_side_cover_a_tensor():
    commit = committed(columns(5, 7, 30))
    assert read_commit(commit_bytes(commit), REF) == commit


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s[:2], "has a gap at byte 12"),
        (lambda s: [s[0], *s[2:]], "has a gap at byte 5"),
        (lambda s: [s[0], replace(s[1], start=4), s[2]], "an overlap at byte 4"),
        (lambda s: [s[0], replace(s[1], stride=43), s[2]], "do not fit|do not match"),
        (lambda s: [s[0], replace(s[1], count=2), s[2]], "do not match"),
        (lambda s: [s[0], replace(s[1], count=3), s[2]], "runs at distances"),
        (lambda s: [s[0], replace(s[1], stride=10**6), s[2]], "not an integer"),
    ],
)
def test_columns_with_gaps_or_overlaps_are_refused(change, why):
    entry_ = columns(5, 7, 30)
    commit = committed(replace(entry_, slices=tuple(change(list(entry_.slices)))))
    with pytest.raises(ManifestError, match=why):
        read_commit(commit_bytes(commit), REF)
