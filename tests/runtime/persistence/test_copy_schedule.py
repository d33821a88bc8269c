"""When copies are made, at what price, and what they say of themselves."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rekindle.checkpoint.format.encoding import EncodingError
from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.peer_memory import schedule
from rekindle.peer_memory.schedule import LEAST_SECONDS, SHARE, Keeper, steps_between
from rekindle.peer_memory.store import Ancestry, HostMemory, Serial
from rekindle.ranks.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)
LINE = Ancestry(fence=1, step=0, base=None)


@given(st.floats(0, 100), st.floats(1e-5, 100))
def test_copies_take_a_small_share_of_the_time_and_do_not_come_too_often(cost, step_seconds):
    steps = steps_between(cost, step_seconds)
    assert steps >= 1
    assert cost <= SHARE * steps * step_seconds * 1.0001
    assert steps * step_seconds >= LEAST_SECONDS * 0.9999
    # Nor later than these two demand, by more than a step.
    assert (steps - 1) * step_seconds <= max(LEAST_SECONDS, cost / SHARE) * 1.0001


@pytest.fixture
def memory():
    memory = HostMemory.create()
    yield memory
    memory.close()


def take(keeper, step, productive, size=10, **more):
    keeper.take(
        step,
        {"model": {"w": torch.full((size,), float(step))}, **more.pop("state", {})},
        {"rng": torch.arange(3)},
        {"step": step},
        productive=productive,
        line=LINE,
        origin=None,
        began=time.perf_counter(),
        **more,
    )
    if keeper._memory is not None:
        keeper._memory.settle()


def test_the_next_copy_is_as_far_as_steps_are_short(memory):
    keeper = Keeper(ALONE, memory, "run", generation=4)
    keeper.begin(10, 100.0, None)
    assert keeper.due_at == 11
    take(keeper, 11, 100.25)
    # Steps of a quarter of a second, copies that cost next to nothing.
    assert keeper.due_at == 15
    take(keeper, 15, 100.25 + 4 * 0.05)
    assert keeper.due_at >= 15 + 20
    (newest, _) = memory.copies("run")
    assert (newest.label.serial, newest.label.step) == (Serial(generation=4, number=2), 15)
    assert newest.label.pace == keeper.due_at - 15


def test_the_batches_of_a_validation_count_as_well(memory):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.1)
    assert keeper.due_at == 11
    keeper.passed(4)
    assert keeper.due_at == 7
    keeper.passed(50)
    assert keeper.due_at == 2


def test_who_begins_from_a_copy_goes_on_at_its_pace(memory):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.01)
    label = memory.copies("run")[0].label
    again = Keeper(ALONE, memory, "run", generation=2)
    again.begin(1, 0.01, label)
    assert again.due_at == 1 + label.pace
    assert again.holds(1)
    assert not again.holds(2)


def test_going_back_makes_all_copies_worthless_and_begins_another_generation(memory):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    for step in (1, 2):
        take(keeper, step, 0.1)
    keeper.note(CommitRef(step=2, fence=1))
    assert memory.known("run").ref.step == 2
    keeper.forget()
    assert memory.copies("run") == []
    assert memory.known("run") is None
    assert not keeper.holds(2)
    keeper.begin(1, 0.05, None)
    take(keeper, 2, 0.1)
    assert memory.copies("run")[0].label.serial == Serial(generation=2, number=1)


def test_a_large_slot_is_touched_beside_the_training_unless_the_copy_is_needed(memory, monkeypatch):
    monkeypatch.setattr(schedule, "_SMALL", 0)
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.1, size=10**6)
    assert memory.copies("run") == []
    assert keeper.due_at > 2, "nobody waits for it"
    keeper._toucher.join()
    take(keeper, 2, 0.2, size=10**6)
    assert [copy.label.step for copy in memory.copies("run")] == [2]
    take(keeper, 3, 0.3, size=3 * 10**6, must=True)
    assert [copy.label.step for copy in memory.copies("run")] == [3, 2]


def test_without_room_the_run_goes_on_and_older_copies_are_not_believed(memory, monkeypatch):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.1)
    monkeypatch.setattr(memory, "reserve", lambda size: False)
    take(keeper, 2, 0.2, size=10**7, must=True)
    assert not keeper.holds(2)
    keeper.note(CommitRef(step=2, fence=1))
    assert memory.known("run").ref.step == 2


def test_memory_that_cannot_grow_costs_the_copy_and_not_the_run(memory, monkeypatch):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.1)

    def full(*_, **__):
        raise OSError("no memory")

    monkeypatch.setattr(memory, "write", full)
    take(keeper, 2, 0.2, must=True)
    assert not keeper.holds(2)
    assert [copy.label.step for copy in memory.copies("run")] == [1]


def test_a_pod_whose_state_has_another_form_than_rank_0_says_keeps_none(memory, monkeypatch):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    take(keeper, 1, 0.1)
    monkeypatch.setattr(World, "share", lambda self, told: (*told[:2], "another"))
    take(keeper, 2, 0.2)
    assert memory.copies("run") == []
    assert not keeper.holds(2)


def test_what_cannot_be_stored_is_named(memory):
    keeper = Keeper(ALONE, memory, "run", generation=1)
    keeper.begin(0, 0.0, None)
    with pytest.raises(EncodingError, match="model.bad: object"):
        take(keeper, 1, 0.1, state={"model": {"bad": object()}})
