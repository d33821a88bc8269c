"""Export, verify and diff of tensors that ranks stored by columns, and of borrowed objects."""

import itertools
import zlib

import torch
from safetensors.torch import load_file

from rekindle.checkpoint import CommitRef, Store
from rekindle.checkpoint.difference import difference
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import Commit, ObjectEntry, PartEntry, Slice, TensorEntry
from rekindle.checkpoint.verify import verify
from rekindle.interop.export import export

CHUNK = 32


def by_columns(store: Store, tensor: torch.Tensor, ref: CommitRef) -> Commit:
    """A commit of two ranks, each with one half of the columns of a matrix."""
    rows, columns = tensor.shape
    run = columns // 2 * 4
    objects, slices = [], []
    for rank in range(2):
        half = tensor[:, rank * columns // 2 : (rank + 1) * columns // 2].contiguous()
        head, body = b"\x08" + b"\x00" * 7 + b"{}      ", half.numpy().tobytes()
        key = manifest.data_key(ref, rank, 0)
        store.objects.put(key, head + body)
        objects.append(
            ObjectEntry(key=key, size=16 + len(body), head=16, crc=zlib.crc32(head), alg="crc32")
        )
        crcs = tuple(zlib.crc32(body[at : at + CHUNK]) for at in range(0, len(body), CHUNK))
        slices.append(
            Slice(
                object=rank,
                offset=16,
                start=rank * run,
                length=len(body),
                crcs=crcs,
                count=rows,
                stride=2 * run,
            )
        )
    entry = TensorEntry(name="w", dtype="float32", shape=tuple(tensor.shape), slices=tuple(slices))
    commit = Commit(
        ref=ref,
        base=None,
        world_size=1,
        created=1.0,
        chunk=CHUNK,
        objects=tuple(objects),
        tensors=(entry,),
        tree={"w": {"$": "tensor", "v": "w"}},
        meta={},
        parts=(PartEntry(rank=0, size=1, sha256="0" * 64),),
    )
    store.objects.put(manifest.commit_key(ref), manifest.commit_bytes(commit))
    return store.read(ref)


def test_columns_come_together_in_the_exported_file(store, tmp_path):
    # Runs of 20 bytes in chunks of 32: borders of both kinds fall everywhere.
    tensor = torch.arange(70.0).reshape(7, 10)
    commit = by_columns(store, tensor, CommitRef(step=1, fence=1))
    assert export(store.objects, commit, f"{tmp_path}/x.safetensors") == 1
    assert torch.equal(load_file(f"{tmp_path}/x.safetensors")["w"], tensor)


def test_every_byte_stored_by_columns_is_verified(store):
    commit = by_columns(store, torch.arange(70.0).reshape(7, 10), CommitRef(step=1, fence=1))
    missing = [damage.key for damage in verify(store, commit.ref).damage]
    assert missing == [manifest.part_key(commit.ref, 0)], "this test writes no part"
    for entry in commit.objects:
        whole = store.objects.get(entry.key)
        for at in range(len(whole)):
            store.objects.put(entry.key, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert any(d.key == entry.key for d in verify(store, commit.ref).damage), at
        store.objects.put(entry.key, whole)


def test_columns_are_compared_and_never_guessed_about(store, savers, save):
    one = by_columns(store, torch.ones(7, 10), CommitRef(step=1, fence=1))
    same = by_columns(store, torch.ones(7, 10), CommitRef(step=2, fence=1))
    other = by_columns(store, torch.zeros(7, 10), CommitRef(step=3, fence=1))
    (saver,) = savers(store, world_size=1, fence=2)
    saver.save(4, {"w": torch.ones(7, 10)}, wait=True)
    rows = store.read(CommitRef(step=4, fence=2))
    assert difference(one, same).tensors == ()
    assert [change.change for change in difference(one, other).tensors] == ["content"]
    assert [change.change for change in difference(one, rows).tensors] == ["unknown"]


def test_what_an_earlier_checkpoint_holds_is_verified_and_exported(store, savers, tmp_path):
    frozen = torch.arange(500.0)
    (saver,) = savers(store, world_size=1)
    for step in (1, 2):
        state = {"frozen": frozen, "free": torch.full((3,), float(step))}
        saver.save(step, state, frozen=("frozen",), wait=True)
    commit = store.read(CommitRef(step=2, fence=1))
    holders = {manifest.ref_of(entry.key).step for entry in commit.objects}
    assert holders == {1, 2}, "the frozen tensor is not stored again"
    assert not verify(store, commit.ref).damage
    export(store.objects, commit, f"{tmp_path}/x.safetensors")
    assert torch.equal(load_file(f"{tmp_path}/x.safetensors")["frozen"], frozen)
    (piece,) = itertools.islice(store.read(commit.ref).tensors[0].slices, 1)
    key = commit.objects[piece.object].key
    raw = bytearray(store.objects.get(key))
    raw[piece.offset] ^= 1
    store.objects.put(key, bytes(raw))
    assert [damage.key for damage in verify(store, commit.ref).damage] == [key]
