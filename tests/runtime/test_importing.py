"""Files of other tools: what comes in, and that nothing in them runs."""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from inspect import signature

import pytest
import torch

from rekindle.checkpoint import Store
from rekindle.interop import dcp, importing
from rekindle.interop.importing import FileRefused

RAN = []


def run_code(*_):
    RAN.append(1)
    return {}


class Evil:
    def __reduce__(self):
        return run_code, ("x",)


@pytest.fixture(autouse=True)
def nothing_ran():
    RAN.clear()
    yield
    assert RAN == [], "code of a file was run"


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def imported(tmp_path, source, step=None):
    uri = f"file://{tmp_path}/run"
    said = importing.run(str(source), uri, step, {})
    store = Store.open(uri)
    return said, store.load(store.read(store.commits()[0]))


def equal(state, expected) -> bool:
    return list(state) == list(expected) and all(
        torch.equal(state[name], value) for name, value in expected.items()
    )


def test_a_state_dict_of_torch_save(tmp_path):
    weights = model().state_dict()
    torch.save(weights, tmp_path / "m.pt")
    said, restored = imported(tmp_path, tmp_path / "m.pt", step=7)
    assert said["kind"] == "torch.save"
    assert said["step"] == 7
    assert said["tensors"] == 7
    assert equal(restored.state["model"], weights)
    assert restored.meta == {"step": 7, "imported_from": "m.pt"}


def test_the_format_before_zip_files(tmp_path):
    weights = model().state_dict()
    torch.save(weights, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert equal(imported(tmp_path, tmp_path / "m.pt")[1].state["model"], weights)


def test_a_checkpoint_of_lightning(tmp_path):
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "global_step": 420,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": net.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 3}}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'f1'}": {"best_model_score": torch.ones(())}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.99)},
        },
        tmp_path / "last.ckpt",
    )
    said, restored = imported(tmp_path, tmp_path / "last.ckpt")
    assert said["kind"] == "Lightning"
    assert (restored.ref.step, restored.meta["epoch"]) == (420, 3)
    assert equal(restored.state["model"], net.state_dict())
    fresh = torch.optim.Adam(model().parameters())
    fresh.load_state_dict(restored.state["optimizer_states"][0])
    assert restored.state["hyper_parameters"] == {"lr": 1e-3, "betas": (0.9, 0.99)}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_with_the_name(tmp_path, zipped):
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "x": Evil()},
        tmp_path / "evil.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        FileRefused, match=r"needs .*run_code, which is code and not data; it was not"
    ):
        importing.read(str(tmp_path / "evil.pt"))


def test_hyper_parameters_that_are_classes_are_refused(tmp_path):
    torch.save({"hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "h.ckpt")
    with pytest.raises(FileRefused, match="argparse.Namespace.*save the tensors and plain values"):
        importing.read(str(tmp_path / "h.ckpt"))


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(FileRefused):
        importing.read(str(tmp_path / "p.pkl"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04broken", b"\x80\x02."])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(FileRefused, match="x.pt"):
        importing.read(str(tmp_path / "x.pt"))


def test_what_cannot_be_stored_is_named(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "x": {1, 2}}, tmp_path / "s.pt")
    with pytest.raises(FileRefused, match="cannot be stored: x: set"):
        imported(tmp_path, tmp_path / "s.pt")


def test_a_missing_file_and_a_plain_directory_are_refused(tmp_path):
    with pytest.raises(FileRefused, match="cannot read .*No such file"):
        importing.read(str(tmp_path / "none.pt"))
    with pytest.raises(FileRefused, match="directory without .metadata"):
        importing.read(str(tmp_path))


def test_a_store_with_checkpoints_is_left_alone(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "m.pt")
    imported(tmp_path, tmp_path / "m.pt")
    with pytest.raises(FileRefused, match="holds checkpoints already; import into an empty place"):
        imported(tmp_path, tmp_path / "m.pt")


STATE = {
    "model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)},
    "optim": {"state": {"w": {"exp_avg": torch.randn(3, 4), "step": torch.tensor(3.0)}}},
    "schedulers": [{"last_epoch": 4}, {"last_epoch": 5}],
    "epoch": 2,
    "step": 11,
}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "dcp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process
        import torch.distributed.checkpoint as torch_dcp

        alone = {"no_dist": True} if "no_dist" in signature(torch_dcp.save).parameters else {}
        torch_dcp.save(STATE, checkpoint_id=path, **alone)
    return path


def test_a_directory_of_dcp(tmp_path, directory):
    said, restored = imported(tmp_path, directory)
    assert said["kind"] == "DCP"
    assert restored.ref.step == 11
    state = restored.state
    assert equal(state["model"], STATE["model"])
    assert equal(state["optim"]["state"]["w"], STATE["optim"]["state"]["w"])
    assert state["schedulers"] == STATE["schedulers"]
    assert state["epoch"] == 2


def repickled(directory, change) -> None:
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    change(metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


def test_a_tensor_in_several_pieces(directory, tmp_path):
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    (index,) = [i for i in metadata.storage_data if i.fqn == "model.w"]
    pieces = {}
    with open(directory / "__9_0.distcp", "wb") as file:
        for start in (0, 2):
            begin = file.tell()
            buffer = io.BytesIO()
            torch.save(STATE["model"]["w"][start : start + 2].clone(), buffer)
            file.write(buffer.getvalue())
            key = type(index)(fqn="model.w", offset=torch.Size([start, 0]))
            info = metadata.storage_data[index]
            pieces[key] = type(info)("__9_0.distcp", begin, len(buffer.getvalue()))

    def change(m):
        del m.storage_data[index]
        m.storage_data |= pieces

    repickled(directory, change)
    assert torch.equal(importing.read(str(directory))[1]["model"]["w"], STATE["model"]["w"])


def test_metadata_that_would_run_code_is_refused(directory):
    repickled(directory, lambda m: m.planner_data.update(x=Evil()))
    with pytest.raises(FileRefused, match=r"names .*run_code, which DCP's own metadata never does"):
        importing.read(str(directory))
    (directory / ".metadata").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(FileRefused, match="names os.system"):
        importing.read(str(directory))


class AttributePickler(pickle.Pickler):
    """Members of enumerations by name, as Python 3.11.2 has them."""

    def reducer_override(self, value):
        if type(value).__name__ == "_MEM_FORMAT_ENCODING":
            return getattr, (type(value), value.name)
        return NotImplemented


def test_metadata_of_the_first_releases_of_python_3_11(directory):
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    with open(directory / ".metadata", "wb") as file:
        AttributePickler(file).dump(metadata)
    assert b"getattr" in (directory / ".metadata").read_bytes()
    assert torch.equal(importing.read(str(directory))[1]["model"]["w"], STATE["model"]["w"])


@pytest.mark.parametrize(
    "owner", [b"ctorch.distributed.checkpoint.metadata\nMetadata\n", b"ccollections\nOrderedDict\n"]
)
def test_an_attribute_of_anything_but_that_enumeration_is_refused(directory, owner):
    (directory / ".metadata").write_bytes(b"cbuiltins\ngetattr\n(" + owner + b"S'__init__'\ntR.")
    with pytest.raises(FileRefused, match="asks for '__init__' of .*, no enumeration"):
        importing.read(str(directory))


def test_a_byte_item_that_would_run_code_is_refused(directory):
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    (index,) = [i for i in metadata.storage_data if i.fqn == "epoch"]
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    (directory / "evil").write_bytes(buffer.getvalue())
    info = type(metadata.storage_data[index])("evil", 0, len(buffer.getvalue()))
    repickled(directory, lambda m: m.storage_data.update({index: info}))
    with pytest.raises(FileRefused, match="epoch needs .*run_code"):
        importing.read(str(directory))


def first(metadata, name):
    (index,) = [i for i in metadata.storage_data if i.fqn == name]
    return index, metadata.storage_data[index]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: setattr(first(m, "model.w")[1], "relative_path", "../secret"), "not in the dir"),
        (lambda m: setattr(first(m, "model.w")[1], "relative_path", "/etc/passwd"), "not in the"),
        (lambda m: setattr(first(m, "model.w")[1], "offset", -1), "at -1"),
        (lambda m: setattr(first(m, "model.w")[1], "length", 2**60), "fewer than .metadata says"),
        (lambda m: m.planner_data.update({"epoch": ("schedulers", 10**12)}), "path"),
        (lambda m: m.planner_data.update({"epoch": ("model", "w", "x")}), "path"),
        (lambda m: m.planner_data.update({"epoch": (None,)}), "path"),
        (lambda m: m.storage_data.pop(first(m, "model.w")[0]), "do not add up"),
        (lambda m: setattr(m, "state_dict_metadata", None), "lacks"),
        (
            lambda m: setattr(m.state_dict_metadata["model.w"], "size", torch.Size([2**40, 2**9])),
            "do not add up",
        ),
    ],
)
def test_hostile_metadata_is_refused_with_the_reason(directory, change, why):
    repickled(directory, change)
    with pytest.raises(FileRefused, match=why):
        importing.read(str(directory))


def test_a_number_in_the_file_cannot_take_memory(directory):
    # LONG_BINPUT with a huge memo index makes the interpreter in C allocate by it.
    (directory / ".metadata").write_bytes(b"\x80\x02N" + b"r\xff\xff\xff\x7f" + b".")
    with pytest.raises(FileRefused, match="holds a NoneType"):
        importing.read(str(directory))


def test_only_a_record_is_given_a_state(directory):
    (directory / ".metadata").write_bytes(b"ctorch.serialization\n_get_layout\n}S'x'\nI1\nsb.")
    with pytest.raises(FileRefused, match="gives a state to a function"):
        importing.read(str(directory))
    assert not hasattr(dcp._layout, "x")


def test_only_the_listed_names_are_known():
    for module, name in [("builtins", "eval"), ("torch", "load"), ("torch.hub", "load")]:
        with pytest.raises(dcp.DcpRefused, match=f"names {module}.{name}"):
            dcp.Interpreter(io.BytesIO()).find_class(module, name)
    assert dcp.Interpreter(io.BytesIO()).find_class("collections", "OrderedDict") is OrderedDict


@pytest.mark.processes
def test_the_process_answers_with_one_object(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "m.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for source, code, key in (("m.pt", 0, "tensors"), ("none.pt", 2, "error")):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "rekindle.interop.importing",
                str(tmp_path / source),
                f"{tmp_path}/run",
            ],
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert key in json.loads(done.stdout)
