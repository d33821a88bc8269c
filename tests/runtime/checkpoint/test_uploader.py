"""The process that uploads: what it stores, how it waits, and that it outlives its trainer."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rekindle
from rekindle.checkpoint import CommitRef, LeaseLost, SaveError, Saver, SaveTimeout, Store
from rekindle.checkpoint.saving import flush
from rekindle.checkpoint.saving.uploader import Channel
from rekindle.checkpoint.saving.uploader_client import Uploader

pytestmark = pytest.mark.processes

SOURCES = str(Path(rekindle.__file__).parents[1])

ORPHANS: list[int] = []

TRAINER = """
import os, signal, sys, time
import torch
from rekindle.checkpoint import Saver, Store
uri, rank, steps, fence, how = sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:5]), sys.argv[5]
saver = Saver(
    Store.open(uri), lease_fence=fence, base=None, rank=rank, world_size=2, process=True,
    chunk_bytes=4096,
)
for step in range(1, steps + 1):
    if how == "stopped" and step == steps:
        os.kill(saver._uploader.pid, signal.SIGSTOP)
    if how == "unannounced" and step == steps:
        saver._uploader.submit = lambda number, job: None
    saver.save(step, {"w": torch.full((5000,), step), "rank": "same"}, meta={"step": step})
print(saver._uploader.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def trainer(uri, rank, steps, fence=1, how="running"):
    arguments = [uri, str(rank), str(steps), str(fence), how]
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )


def killed(*trainers):
    """Wait for trainers that kill themselves, kill their process groups; their uploaders' pids."""
    pids = []
    for process in trainers:
        pids.append(int(process.stdout.readline()))
        ORPHANS.append(pids[-1])
        # As the agent does: a worker's whole process group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        assert process.returncode == -signal.SIGKILL
    return pids


@pytest.fixture(autouse=True)
def _nothing_stays_stopped():
    """A test that fails may leave an uploader stopped, which would never end by itself."""
    yield
    while ORPHANS:
        with contextlib.suppress(ProcessLookupError):
            os.kill(ORPHANS.pop(), signal.SIGCONT)


@pytest.fixture
def saver(store):
    made = Saver(store, lease_fence=1, base=None, rank=0, world_size=1, process=True)
    yield made
    if made._uploader is not None and made._uploader.alive:
        os.kill(made._uploader.pid, signal.SIGCONT)
    made.close(timeout=30)


def test_snapshots_stored_by_a_process_come_back_to_the_bit(tmp_path, store, saver, state, same):
    errors = []
    saver._on_error = errors.append
    for step in range(1, 5):
        saver.save(step, state(step), rank_state={"rng": torch.full((3,), step)})
    saver._drain(time.monotonic() + 30)
    assert errors == []
    assert saver.last_commit == CommitRef(step=4, fence=1)
    assert [ref.step for ref in store.commits()] == [4, 3, 2]
    for ref in store.commits():
        restored = store.load(store.read(ref), rank=0)
        assert same(restored.state, state(ref.step))
        assert restored.rank_state["rng"].tolist() == [ref.step] * 3


def test_the_process_works_on_s3(endpoint, bucket, state, same):
    store = Store.open(f"s3://{bucket}/run", endpoint_url=endpoint)
    saver = Saver(store, lease_fence=1, base=None, rank=0, world_size=1, process=True)
    saver.save(1, state(1), wait=True)
    saver.close()
    assert same(store.restore()[0].state, state(1))


def test_two_snapshots_wait_and_a_third_save_does_not_touch_them(store, saver, state, same):
    saver.save(1, state(1), wait=True)
    os.kill(saver._uploader.pid, signal.SIGSTOP)
    saver.save(2, state(2))
    saver.save(3, state(3))
    with pytest.raises(SaveTimeout, match="step 2. is still in flight"):
        saver.save(4, state(4), deadline=time.monotonic() + 0.1)
    os.kill(saver._uploader.pid, signal.SIGCONT)
    saver.save(4, state(4))
    saver._drain(time.monotonic() + 30)
    assert [ref.step for ref in store.commits()] == [4, 3, 2]
    for ref in store.commits():
        assert same(store.load(store.read(ref)).state, state(ref.step))


def test_with_one_slot_the_second_save_waits_for_the_first(store, state, same):
    saver = Saver(store, lease_fence=1, base=None, rank=0, world_size=1, process=True, slots=1)
    saver.save(1, state(1), wait=True)
    os.kill(saver._uploader.pid, signal.SIGSTOP)
    saver.save(2, state(2))
    with pytest.raises(SaveTimeout, match="step 2. is still in flight"):
        saver.save(3, state(3), deadline=time.monotonic() + 0.1)
    os.kill(saver._uploader.pid, signal.SIGCONT)
    saver.close()
    assert same(store.restore()[0].state, state(2))


def test_a_growing_state_gets_larger_slots(store, saver):
    for step, size in enumerate((10, 1000, 10**6, 100), 1):
        saver.save(step, {"w": torch.full((size,), float(step))})
    saver._drain(time.monotonic() + 30)
    assert saver.error is None
    assert store.restore()[0].state["w"].tolist() == [4.0] * 100
    assert store.load(store.read(store.commits()[1])).state["w"].sum() == 3 * 10**6


def test_what_two_killed_trainers_left_in_memory_becomes_a_checkpoint(tmp_path):
    store = Store.open(f"file://{tmp_path}/run")
    pids = killed(*[trainer(store.uri, rank, steps=3) for rank in range(2)])
    until(lambda: all(map(gone, pids)))
    restored = store.restore(rank=1)[0]
    assert restored.ref == CommitRef(step=3, fence=1)
    assert restored.meta == {"step": 3}
    assert restored.state["w"].tolist() == [3] * 5000


def test_a_snapshot_that_was_never_announced_is_found_in_the_slot(tmp_path):
    store = Store.open(f"file://{tmp_path}/run")
    pids = killed(*[trainer(store.uri, rank, steps=2, how="unannounced") for rank in range(2)])
    until(lambda: all(map(gone, pids)))
    assert store.commits()[0].step == 2


def test_a_new_attempt_can_wait_for_what_the_one_before_has_left(tmp_path):
    store = Store.open(f"file://{tmp_path}/run")
    first, second = (trainer(store.uri, rank, steps=2, how="stopped") for rank in range(2))
    pids = killed(first, second)
    assert not any(ref.step == 2 for ref in store.commits())
    assert flush.busy(store.uri)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert flush.wait(store.uri, 30)
    assert store.commits()[0].step == 2


def test_without_the_other_ranks_bytes_nothing_is_committed_and_nobody_waits_for_ever(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("REKINDLE_FLUSH_SECONDS", "1")
    store = Store.open(f"file://{tmp_path}/run")
    (pid,) = killed(trainer(store.uri, rank=0, steps=1))
    until(lambda: gone(pid))
    assert store.commits() == []


def test_an_orphan_commits_under_its_own_fence_although_a_newer_attempt_has_the_lease(tmp_path):
    store = Store.open(f"file://{tmp_path}/run")
    fence = store.acquire(owner="old").fence
    pids = killed(*[trainer(store.uri, r, steps=2, fence=fence, how="stopped") for r in range(2)])
    store.acquire(owner="new")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: all(map(gone, pids)))
    assert store.commits()[0] == CommitRef(step=2, fence=fence)


@pytest.mark.parametrize("lives", [True, False])
def test_whether_a_trainer_lives_does_not_wait_for_the_thread_that_listens(
    store, state, monkeypatch, lives
):
    monkeypatch.setattr(Channel, "_listen", lambda channel: None)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(30)
    fence = store.acquire(owner="old").fence
    saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1)
    own, other = socket.socketpair()
    with own, other:
        saver._writer.orphaned = Channel(other, os.getppid() if lives else dead.pid).orphaned
        store.acquire(owner="new")
        zombie = pytest.raises(LeaseLost, match="R15 .* declared dead but lives")
        with zombie if lives else contextlib.nullcontext():
            saver.save(1, state(1), wait=True)
    saver.close()
    assert [ref.step for ref in store.commits()] == ([] if lives else [1])


def test_an_orphan_commits_nothing_once_a_newer_attempt_has_committed(tmp_path, state):
    store = Store.open(f"file://{tmp_path}/run")
    fence = store.acquire(owner="old").fence
    pids = killed(*[trainer(store.uri, r, steps=2, fence=fence, how="stopped") for r in range(2)])
    newer = store.acquire(owner="new").fence
    saver = Saver(store, lease_fence=newer, base=None, rank=0, world_size=1)
    saver.save(1, state(1), wait=True)
    saver.close()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: all(map(gone, pids)))
    assert CommitRef(step=2, fence=fence) not in store.listed()


def test_a_live_trainer_that_lost_its_lease_hears_of_it_through_the_process(store, saver, state):
    saver.save(1, state(1), wait=True)
    store.acquire(owner="one")
    store.acquire(owner="two")
    with pytest.raises(LeaseLost, match="R15 attempt 1 lost the writer lease to attempt"):
        saver.save(2, state(2), wait=True)


def test_a_killed_uploader_costs_one_checkpoint_and_is_replaced(store, saver, state, same):
    saver.save(1, state(1), wait=True)
    os.kill(saver._uploader.pid, signal.SIGSTOP)
    saver.save(2, state(2))
    os.kill(saver._uploader.pid, signal.SIGKILL)
    saver._drain(time.monotonic() + 30)
    assert isinstance(saver.error, SaveError)
    assert "was killed, for example by the kernel" in str(saver.error)
    saver.save(3, state(3), wait=True)
    assert same(store.restore()[0].state, state(3))


def test_a_process_that_cannot_be_started_is_done_without(
    store, saver, state, same, monkeypatch, caplog
):
    def refuse(*_args, **_kwargs):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    saver.save(1, state(1), wait=True)
    saver.save(2, state(2), wait=True)
    assert same(store.restore()[0].state, state(2))
    assert [r.message for r in caplog.records if "cannot be stored in the background" in r.message]


@pytest.mark.parametrize(
    ("free", "said"), [(1.6, "one snapshot is kept at a time"), (0.5, "waits")]
)
def test_memory_that_does_not_suffice_is_said_once_and_saves_go_on(
    store, state, same, monkeypatch, caplog, free, said
):
    size = 2**20
    monkeypatch.setattr(
        "rekindle.checkpoint.saving.snapshot_memory.available", lambda: int(free * size / 0.9)
    )
    saver = Saver(store, lease_fence=1, base=None, rank=0, world_size=1, process=True)
    states = [{"w": torch.randn(size // 4)} for _ in range(3)]
    for step, one in enumerate(states, 1):
        saver.save(step, one, wait=True)
    saver.close()
    assert same(store.restore()[0].state, states[-1])
    lines = [r.message for r in caplog.records if r.message.startswith("R5 ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_the_process_is_light_and_ends_with_its_saver(store, saver, state):
    saver.save(1, state(1), wait=True)
    pid = saver._uploader.pid
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "numpy" not in maps
    saver.close(timeout=30)
    assert gone(pid)


def test_nothing_is_started_before_there_is_something_to_store(store, monkeypatch):
    started = []
    monkeypatch.setattr(Uploader, "__init__", lambda *_a, **_k: started.append(1))
    saver = Saver(store, lease_fence=1, base=None, rank=0, world_size=1)
    saver.prepare({"w": torch.zeros(8 * 2**20, dtype=torch.uint8)})
    saver.save(1, {"w": torch.zeros(1000)}, wait=True)
    saver.close()
    assert started == []
