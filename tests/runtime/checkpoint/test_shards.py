"""Shard objects: files that any safetensors tool opens, and damage that no reader misses."""

import pytest
import safetensors.torch
import torch

from rekindle.checkpoint import IntegrityError
from rekindle.checkpoint.format import checksum
from rekindle.checkpoint.objects.interface import RequestRefused


@pytest.fixture
def saved(store, savers, save):
    """A checkpoint of step 1 by two ranks, in shards of 512 bytes."""
    save(savers(store, shard_bytes=512), 1)
    return store


def shard_files(store, tmp_path):
    return sorted((tmp_path / "run" / "data").rglob("r*"))


def load_all_ranks(store, commit):
    for rank in range(2):
        store.load(commit, rank=rank)


def test_every_shard_is_a_valid_safetensors_file_with_the_tensors_in_it(saved, state, tmp_path):
    files = shard_files(saved, tmp_path)
    assert len(files) > 4
    found = {}
    for path in files:
        found |= safetensors.torch.load(path.read_bytes())
    expected = state(1)
    assert torch.equal(found["model.bias"], expected["model"]["bias"])
    assert found["model.count"].item() == 1
    pieces = {name: t for name, t in found.items() if name.startswith("model.weight[")}
    ordered = sorted(pieces, key=lambda name: int(name.split("[")[1].split(":")[0]))
    weight = torch.cat([pieces[name] for name in ordered])
    assert torch.equal(weight.reshape(37, 11), expected["model"]["weight"])


def test_complex_and_odd_dtypes_are_valid_safetensors_too(store, savers, same, tmp_path):
    state = {
        "c": torch.randn(3, 2, dtype=torch.complex128),
        "half": torch.ones(7, dtype=torch.complex64),
    }
    if hasattr(torch, "float8_e8m0fnu"):  # not in torch 2.6
        state["scale"] = torch.ones(5, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    (saver,) = savers(store, world_size=1)
    saver.save(1, state, wait=True)
    (path,) = shard_files(store, tmp_path)
    found = safetensors.torch.load(path.read_bytes())
    assert torch.equal(torch.view_as_complex(found["c"]), state["c"])
    assert same(store.restore()[0].state, state)


def test_a_flipped_bit_anywhere_in_any_object_is_found_at_load(saved, tmp_path):
    commit = saved.read(saved.commits()[0])
    saved.load(commit, rank=0)
    for path in shard_files(saved, tmp_path):
        good = path.read_bytes()
        for index in range(0, len(good), 13):
            bad = bytearray(good)
            bad[index] ^= 1 << (index % 8)
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=r"R16 checkpoint step 1: object .* failed"):
                load_all_ranks(saved, commit)
        path.write_bytes(good)


def test_a_truncated_or_missing_object_is_found(saved, tmp_path):
    commit = saved.read(saved.commits()[0])
    path = shard_files(saved, tmp_path)[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(IntegrityError, match=f"has {len(good) - 1} bytes, not {len(good)}"):
        saved.load(commit)
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        saved.load(commit)


def test_a_chunk_that_was_damaged_on_the_way_is_read_once_more(saved, state, same):
    class Noisy:
        """Damages the first read of every object."""

        def __init__(self, inner):
            self.inner, self.seen = inner, set()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def get_into(self, key, buffer, start=0):
            count = self.inner.get_into(key, buffer, start)
            if key not in self.seen:
                self.seen.add(key)
                buffer[count // 2] ^= 0xFF
            return count

    saved.objects = Noisy(saved.objects)
    assert same(saved.load(saved.read(saved.commits()[0])).state, state(1))
    assert saved.objects.seen


def test_nothing_unverified_reaches_a_tensor_to_be_filled(saved, state, tmp_path):
    commit = saved.read(saved.commits()[0])
    weight = torch.full((37, 11), 5.0)
    for path in shard_files(saved, tmp_path):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        saved.load(commit, into={"model.weight": weight})
    stored = state(1)["model"]["weight"]
    assert torch.all((weight == 5.0) | (weight == stored))


def test_tensors_are_filled_in_place_whatever_their_strides(saved, state, same):
    commit = saved.read(saved.commits()[0])
    weight, bias = torch.zeros(11, 37).t(), torch.zeros(5, dtype=torch.bfloat16)
    restored = saved.load(commit, into={"model.weight": weight, "model.bias": bias})
    assert restored.state["model"]["weight"] is weight
    assert restored.state["model"]["bias"] is bias
    assert same(restored.state, state(1))


def test_filling_a_parameter_keeps_it_a_parameter(saved, state):
    parameter = torch.nn.Parameter(torch.zeros(37, 11))
    saved.load(saved.read(saved.commits()[0]), into={"model.weight": parameter})
    assert parameter.requires_grad
    assert torch.equal(parameter.detach(), state(1)["model"]["weight"])


@pytest.mark.parametrize(
    ("into", "why"),
    [
        ({"model.weight": torch.zeros(11, 37)}, r"float32\[37, 11\].*float32\[11, 37\]"),
        ({"model.weight": torch.zeros(37, 11).double()}, "float64"),
        ({"model.typo": torch.zeros(1)}, r"no tensors \['model.typo'\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(saved, into, why):
    with pytest.raises(ValueError, match=why):
        saved.load(saved.read(saved.commits()[0]), into=into)


def test_without_awscrt_crc32_is_written_and_both_are_read(
    store, savers, save, state, same, monkeypatch
):
    save(savers(store), 1)
    monkeypatch.setattr(checksum, "DEFAULT", "crc32")
    save(savers(store, fence=2, base=store.commits()[0]), 2)
    algs = {o.alg for ref in store.listed() for o in store.read(ref).objects}
    assert algs == {"crc64nvme", "crc32"}
    for ref in store.listed():
        assert same(store.load(store.read(ref)).state, state(ref.step))
    monkeypatch.delitem(checksum._KNOWN, "crc64nvme")
    with pytest.raises(checksum.ChecksumUnavailable, match="pip install awscrt"):
        checksum.crc("crc64nvme")


def test_a_store_that_fails_while_loading_is_no_damage(saved):
    class Failing:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def get_into(self, *_):
            raise RequestRefused("the store is unwell")

    healthy, saved.objects = saved.objects, Failing(saved.objects)
    with pytest.raises(RequestRefused):
        saved.restore()
    saved.objects = healthy
    assert saved.commits(), "a failing store must not put a checkpoint into quarantine"
