"""Input by somebody who means harm: more than ten thousand forged documents, headers and names.

The forger may write anything into the store and knows how to seal a document. He gets one of the
documented errors or a checkpoint that is merely another one: no other exception, no code run, no
hang, and no memory beyond what the objects that are really there account for. The cases are made
from fixed seeds, so a failure comes back; `REKINDLE_SEED` makes others.
"""

import base64
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import random
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from rekindle.checkpoint import (
    CommitRef,
    IntegrityError,
    InvalidLocation,
    Saver,
    Store,
    VersionError,
)
from rekindle.checkpoint.format import checksum, encoding, manifest
from rekindle.checkpoint.format.encoding import DecodingError
from rekindle.checkpoint.format.tensors import rebuild
from rekindle.checkpoint.objects.interface import RequestRefused, Unreachable, check_key
from rekindle.checkpoint.objects.location import parse
from rekindle.checkpoint.retention import candidate
from rekindle.interop import dcp

pytestmark = pytest.mark.sweep

SEED = int(os.environ.get("REKINDLE_SEED", "0"))
REF = CommitRef(step=3, fence=1)
DOCUMENTS, TREES, BYTES, NAMES, HEADERS, URIS, PICKLES = 2200, 1500, 1500, 4000, 100, 1200, 400
VALUES = (
    None, True, False, -1, 0, 1, 7, 16, 2**31, 2**63, 2**70, 10**400, -(2**63), 0.5, 1e308, "",
    "x", "0", "float32", "crc32", "../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "a" * 5000,
    "data/000000000003-00000001/r00000.0", "data/000000000003-00000001/../x", [], {}, [[]], [None],
    {"$": "tuple", "v": [1]}, {"$": "pickle", "v": "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVt"},
    {"$": "bytes", "v": "*"}, {"$": "int", "v": "0x" + "f" * 4000}, {"$": "float", "v": "00"},
    {"$": "dict", "v": [[[], 1]]}, {"$": "tensor", "v": "nothing"}, {"$": "numpy", "v": ["O", ""]},
    {"$": "ndarray", "v": "w"}, {"$": "counter", "v": [["a", {}], ["a", 1]]}, {"$": 1, "v": 1},
    {"step": 1, "fence": 1}, {"__reduce__": ["os.system", "x"]}, {"__class__": "os.system"},
)  # fmt: skip


def dice(what: str) -> random.Random:
    return random.Random(f"{what}-{SEED}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small checkpoint in a directory."""
    store = Store.open(f"file://{tmp_path_factory.mktemp('hostile')}/run")
    saver = Saver(store, lease_fence=1, base=None, rank=0, world_size=1, chunk_bytes=64)
    state = {"w": torch.arange(60.0).reshape(6, 10), "b": torch.ones(3), "s": (1, {2: b"x"})}
    meta = {"metrics": {"loss": 0.5}, "cursor": [1, {"a": None}]}
    saver.save(3, state, rank_state={"rng": torch.ones(2)}, meta=meta, wait=True)
    saver.close()
    return store


def unsealed(store: Store, key: str) -> dict:
    document = json.loads(store.objects.get(key))
    del document["sha256"]
    return document


def seal(document: object) -> bytes:
    body = json.dumps(document, separators=(",", ":")).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"sha256":"{digest}"}}'.encode()


def mangle(document: dict, rng: random.Random) -> dict:
    """Change, remove, double or swap one to three members anywhere in a document."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = [document]
        for node in nodes:
            children = node.values() if isinstance(node, dict) else node
            nodes += [child for child in children if isinstance(child, dict | list) and child]
        node = rng.choice(nodes[:1] * 3 + nodes)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        deed = rng.random()
        if deed < 0.7:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif deed < 0.8:
            del node[key]
        elif deed < 0.9 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif isinstance(node[key], int) and not isinstance(node[key], bool):
            node[key] += rng.choice((-1, 1, 64, 2**40, -(2**40)))
        else:
            node["surprise" if isinstance(node, dict) else key] = [node[key]] * 2
        if not document:
            break
    return document


class Watch:
    """Counts outcomes; a case that takes a second, or memory, fails."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def case(self, call, allowed: tuple[type[Exception], ...], what: object):
        begun = time.thread_time()  # others may have the processor meanwhile
        try:
            found = call()
        except allowed as error:
            self.outcomes[type(error).__name__] += 1
            found, text = None, str(error)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error!s:.200} for {what!r:.600}")
        else:
            self.outcomes["taken"] += 1
            text = "taken"
        assert text, f"an error without a word: {what!r:.300}"
        assert len(text) < 2000, f"the error repeats its input: {what!r:.300}"
        assert time.thread_time() - begun < 1.0, f"slow: {what!r:.300}"
        return found


@pytest.fixture
def watch():
    """The process gets no more than 40 MiB meanwhile: who asks for more sees a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    room = pages * resource.getpagesize() + 40 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (room, before[1]))
    try:
        yield Watch()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_forged_commits_are_refused_or_describe_what_is_there(run, watch):
    document, rng = unsealed(run, manifest.commit_key(REF)), dice("commit")
    for _ in range(DOCUMENTS):
        forged = mangle(document, rng)
        commit = watch.case(
            lambda f=forged: manifest.read_commit(seal(f), REF),
            (IntegrityError, VersionError),
            forged,
        )
        if commit is None:
            continue
        assert sum(t.nbytes for t in commit.tensors) <= sum(o.size for o in commit.objects)
        assert all(check_key(entry.key).startswith("data/") for entry in commit.objects)
        candidate(commit, good=True, on_line=True)
        manifest.commit_bytes(commit)
    assert watch.outcomes["ManifestError"] > DOCUMENTS / 2
    assert watch.outcomes["VersionError"] > 0
    assert watch.outcomes["taken"] > 20


def test_forged_parts_and_pins_are_refused_or_are_parts_and_pins(run, watch):
    part = unsealed(run, manifest.part_key(REF, 0))
    run.pin(REF, name="x", note="y")
    pin = unsealed(run, manifest.pin_key("x"))
    run.unpin("x")
    rng = dice("part")
    errors = (IntegrityError, VersionError)
    for number in range(DOCUMENTS):
        forged = mangle(pin if number % 7 == 0 else part, rng)
        read = manifest.read_pin if number % 7 == 0 else lambda raw: manifest.read_part(raw, REF, 0)
        watch.case(lambda r=read, f=forged: r(seal(f)), errors, forged)
    assert watch.outcomes["ManifestError"] > DOCUMENTS / 2
    assert watch.outcomes["taken"] > 20


def test_changed_bytes_of_any_document_are_noticed(run, watch):
    raw = run.objects.get(manifest.commit_key(REF))
    rng = dice("bytes")
    for _ in range(BYTES):
        forged = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(forged))
            deed = rng.random()
            if deed < 0.5:
                forged[at] ^= rng.randint(1, 255)
            elif deed < 0.7:
                del forged[at:]
            else:
                forged[at:at] = rng.randbytes(rng.randint(1, 30))
            forged = forged or bytearray(b"\x1f\x8b")
        if forged == raw:
            continue
        raw_ = bytes(forged)
        watch.case(lambda r=raw_: manifest.read_commit(r, REF), (IntegrityError,), raw_)
    assert watch.outcomes["taken"] == 0


def test_forged_trees_become_plain_values_or_an_error(run, watch):
    tree = run.read(REF).tree
    tensors = {"w": torch.ones(1), "b": torch.ones(1)}
    rng = dice("tree")
    for _ in range(TREES):
        forged = mangle({"root": tree, **{str(n): rng.choice(VALUES) for n in range(3)}}, rng)
        found = watch.case(lambda f=forged: rebuild(f, tensors), (DecodingError,), forged)
        if found is not None:
            assert_plain(found)
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    watch.case(lambda: encoding.decode(deep), (DecodingError,), "5000 levels")
    assert watch.outcomes["DecodingError"] > 100
    assert watch.outcomes["taken"] > 100


def assert_plain(value: object) -> None:
    allowed = {"NoneType", "bool", "int", "float", "str", "bytes", "Tensor", "ndarray"}
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in {str, int}
            assert_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
    else:
        name = type(value).__name__
        assert name in allowed or type(value).__module__ == "numpy", name


PIECES = (
    "commit", "data", "part", "lease", "tag", "bad", "/", "/", "/", "//", "..", ".", "~", "\\",
    "000000000003", "00000001", "-", "-", ".json", "r00000", ".0", "epoch-", "pin-", "%2e%2e",
    "\x00", "\n", "é", "\u202e", "٣", "9" * 12, "9" * 30, " ", "", "C:", "con", "-1", "+1", "1e3",
)  # fmt: skip


def test_hostile_names_never_leave_the_root_nor_pass_for_ours(watch):
    rng = dice("names")
    for _ in range(NAMES):
        name = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 9)))
        key = watch.case(lambda n=name: check_key(n), (ValueError,), name)
        if key is not None:
            assert os.path.normpath(os.path.join("/root/run", key)).startswith("/root/run/"), name
        ref = manifest.ref_of(name)
        if ref is not None and manifest.rank_of(name) is None:
            assert name.split("/")[0] in {"commit", "bad", "data", "part"}
            assert name.split("/", 1)[1] == f"{ref}.json", name
        fence = manifest.fence_of(name)
        assert fence is None or name == manifest.lease_key(fence), name
        pin = manifest.pin_of(name)
        assert pin is None or name == manifest.pin_key(pin), name
    assert watch.outcomes["ValueError"] > 500
    assert watch.outcomes["taken"] > 100


def test_a_store_full_of_foreign_objects_still_works(run, tmp_path, watch):
    store = Store.open(f"file://{tmp_path}/run")
    rng = dice("foreign")
    names = set()
    while len(names) < 120:
        name = "".join(rng.choice(PIECES) for _ in range(rng.randint(2, 7)))
        try:
            names.add(check_key(name))
        except ValueError:
            continue
    for prefix in ("commit/", "lease/", "tag/", "bad/", "data/", "part/"):
        names |= {f"{prefix}{n}" for n in ("x", "..x", "1.json", "epoch-.json", "pin-.json")}
    for name in sorted(names):
        with contextlib.suppress(RequestRefused, Unreachable):  # a file is in its way
            store.objects.put(name, b"{}")
    fence = store.acquire(owner="us").fence
    saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1)
    saver.save(5, {"w": torch.ones(2)}, wait=True)
    saver.close()
    assert saver.error is None
    assert store.restore()[0].ref == CommitRef(step=5, fence=fence)


def test_a_forged_safetensors_header_is_never_believed(run, tmp_path, watch):
    """Whoever can also seal the manifest may put anything there; offsets come from the manifest."""
    commit = unsealed(run, manifest.commit_key(REF))
    entry = commit["objects"][0]
    whole = run.objects.get(entry[0])
    part = run.objects.get(manifest.part_key(REF, 0))
    store = Store.open(f"file://{tmp_path}/run")
    store.objects.put(manifest.part_key(REF, 0), part)
    rng = dice("header")
    for number in range(HEADERS):
        text = json.loads(whole[8 : entry[2]])
        header = (
            json.dumps(mangle(text, rng)).encode() if number % 2 else rng.randbytes(entry[2] - 8)
        )
        size = rng.choice((0, 1, len(header), 2**31, 2**63 - 1, 2**64 - 1))
        forged = (size.to_bytes(8, "little") + header + b" " * entry[2])[: entry[2]]
        entry[3] = checksum.crc(entry[4])(memoryview(forged))
        store.objects.put(entry[0], forged + whole[entry[2] :])
        store.objects.put(manifest.commit_key(REF), seal(commit))
        restored = watch.case(lambda: store.load(store.read(REF)), (), forged)
        assert torch.equal(restored.state["w"], torch.arange(60.0).reshape(6, 10))
        if number % 10 == 0:  # without the seal's help it is damage
            store.objects.put(entry[0], bytes([forged[0] ^ 1]) + forged[1:] + whole[entry[2] :])
            watch.case(lambda: store.load(store.read(REF)), (IntegrityError,), forged)
    assert watch.outcomes["IntegrityError"] == HEADERS // 10


def test_a_size_that_is_not_there_takes_no_memory(run, tmp_path, watch):
    commit = unsealed(run, manifest.commit_key(REF))
    store = Store.open(f"file://{tmp_path}/run")
    store.objects.put(commit["objects"][0][0], run.objects.get(commit["objects"][0][0]))
    huge = 2**42
    commit["objects"][0][1] += huge
    tensor = commit["tensors"][0]
    crcs = 64  # far fewer than the chunks would need
    tensor[2], tensor[3] = [huge // 4], [[0, commit["objects"][0][2], 0, huge, [0] * crcs]]
    store.objects.put(manifest.commit_key(REF), seal(commit))
    watch.case(lambda: store.load(store.read(REF)), (IntegrityError,), "4 TiB")
    commit["chunk"] = 2**26
    tensor[3][0][4] = [0] * (huge // 2**26)
    commit["tensors"] = [tensor]
    store.objects.put(manifest.commit_key(REF), seal(commit))
    watch.case(lambda: store.load(store.read(REF)), (IntegrityError,), "4 TiB")
    assert watch.outcomes["IntegrityError"] == 2


def test_hostile_uris_are_refused_with_a_reason(watch):
    rng = dice("uris")
    pieces = (*PIECES, "s3:", "s3://", "file://", "file:///", "bucket", "@", "?x", "#y", ":", "a@b")
    for _ in range(URIS):
        uri = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
        where = watch.case(lambda u=uri: parse(u), (InvalidLocation,), uri)
        if where is not None:
            assert parse(str(where)) == where
            assert ".." not in where.path.split("/")
    assert watch.outcomes["taken"] > 10


class Bait:
    """Unpickling it would show."""

    def __reduce__(self):
        return exec, ("raise SystemError('code was run')",)


@pytest.fixture
def pickles() -> tuple[bytes, bytes]:
    """Metadata of DCP, plain and baited. Made before memory is watched: the import takes much."""
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensor = TensorStorageMetadata(
        properties=TensorProperties(),
        size=torch.Size([2, 3]),
        chunks=[ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=torch.Size([2, 3]))],
    )
    metadata = Metadata(state_dict_metadata={"w": tensor, "e": BytesStorageMetadata()})
    return pickle.dumps(metadata), pickle.dumps([metadata, Bait()])


def test_hostile_pickles_of_dcp_are_refused_and_run_nothing(tmp_path, pickles, watch):
    plain, baited = pickles
    rng = dice("pickles")
    path = tmp_path / ".metadata"
    for number in range(PICKLES):
        forged = bytearray(baited if number % 2 else plain)
        for _ in range(rng.randint(1, 3)):
            forged[rng.randrange(len(forged))] = rng.choice((*b"RibcNo.0(tl\x81\x93\x95", 255, 0))
        path.write_bytes(forged)
        watch.case(lambda: dcp.read_metadata(str(path)), (dcp.DcpRefused,), bytes(forged))
    assert watch.outcomes["DcpRefused"] > PICKLES / 3
    assert dcp.Interpreter(io.BytesIO(plain)).load().state["state_dict_metadata"]


def test_who_takes_too_much_memory_is_noticed(watch):
    with pytest.raises(MemoryError):
        bytearray(100 * 2**20)


def test_there_are_ten_thousand_of_them():
    assert 2 * DOCUMENTS + TREES + BYTES + NAMES + HEADERS + URIS + PICKLES >= 10_000
    assert base64.b64decode(VALUES[32]["v"])[:2] == b"\x80\x04", "a real pickle is among them"
