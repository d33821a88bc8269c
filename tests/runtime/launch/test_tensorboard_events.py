"""TensorBoard's files are read by their framing; written here by TensorBoard's own writer."""

import struct

import pytest
import torch

from rekindle.launch.health.tensorboard_events import HEAD, EventFiles, masked_crc, step_of


def record(payload: bytes) -> bytes:
    head = struct.pack("<Q", len(payload))
    return (
        HEAD.pack(len(payload), masked_crc(head)) + payload + struct.pack("<I", masked_crc(payload))
    )


def event(step: int, size: int = 10) -> bytes:
    number, value = b"", step
    while value > 0x7F:
        number += bytes([value & 0x7F | 0x80])
        value >>= 7
    number += bytes([value])
    return b"\x09" + bytes(8) + b"\x10" + number + b"\x2a" + bytes([size]) + bytes(size)


def test_the_files_of_the_real_writer(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    files = EventFiles(tmp_path)
    assert files.step() is None
    with writer(tmp_path / "run") as log:
        log.add_scalar("loss", 0.5, 7)
        log.add_scalar("loss", 0.25, 300)
        log.add_histogram("weights", torch.ones(5000), 301)
    assert files.step() == 301
    assert files.step() is None


def test_what_was_there_before_is_not_told(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(record(event(5)))
    files = EventFiles(tmp_path)
    assert files.step() is None
    path.write_bytes(path.read_bytes() + record(event(6)))
    assert files.step() == 6


def test_a_record_is_told_when_all_of_it_is_there(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    files = EventFiles(tmp_path)
    data = record(event(1)) + record(event(200))
    seen = []
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        seen.append(files.step())
    assert [step for step in seen if step is not None] == [1, 200]


@pytest.mark.parametrize(
    "data",
    [b"no event file at all", bytes(100), record(event(1))[:8] + b"\xff" * 60, b"\xff" * 12],
)
def test_a_damaged_file_says_nothing(tmp_path, data):
    files = EventFiles(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(data)
    assert files.step() is None
    (tmp_path / "events.out.tfevents.2").write_bytes(record(event(4)))
    assert files.step() == 4


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (event(12), 12),
        (event(0), 0),
        (b"\x09" + bytes(8) + b"\x2a\x01\x00", 0),
        (b"\x09" + bytes(8) + b"\x1a\x05brain", None),
        (event(1 << 60), None),
        (b"", None),
        (b"\x09\x00", None),
        (b"\x10" + b"\xff" * 40, None),
        (b"\x0b\x0c", None),
    ],
    ids=["step", "zero", "zero left out", "version", "absurd", "empty", "cut", "endless", "group"],
)
def test_the_step_of_an_event(data, step):
    assert step_of(data) == step
