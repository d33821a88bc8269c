import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.data.sampling.order import Cursor, EpochOrder, GlobalOrder, Step, steps


def cursor(**changes) -> Cursor:
    values = {"epoch": 0, "sample": 0, "G": 24, "m": 4, "seed": 1, "N": 1003, "length": 1003}
    return Cursor(**{**values, **changes})


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1003, 4096, 4097, 100_000])
def test_an_epoch_order_is_a_permutation(n):
    ids = EpochOrder(n, seed=3, epoch=2)(np.arange(n))
    assert np.array_equal(np.sort(ids), np.arange(n))


def test_the_order_is_fixed_for_good():
    # A checkpoint counts positions in this order: if it changes, ORDER_VERSION has to.
    ids = GlobalOrder(n=1003, seed=7).ids(4, 0, 6)
    assert ids.tolist() == EXPECTED


EXPECTED = [892, 775, 622, 589, 792, 140]


@settings(max_examples=50)
@given(n=st.integers(1, 5000), seed=st.integers(0, 2**40), data=st.data())
def test_positions_can_be_asked_in_any_piece(n, seed, data):
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    order = GlobalOrder(n=n, seed=seed)
    assert np.array_equal(order.ids(0, start, stop), order.ids(0, 0, n)[start:stop])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [GlobalOrder(n=500, seed=s).ids(e, 0, 500).tolist() for s in (0, 1) for e in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_positions_and_ids_are_uncorrelated():
    ids = GlobalOrder(n=20_000, seed=0).ids(0, 0, 20_000)
    assert abs(np.corrcoef(np.arange(20_000), ids)[0, 1]) < 0.03


def test_the_first_sample_is_spread_evenly_over_epochs():
    order = GlobalOrder(n=1000, seed=0)
    firsts = np.array([order.ids(epoch, 0, 1)[0] for epoch in range(2000)])
    counts = np.histogram(firsts, bins=10, range=(0, 1000))[0]
    assert counts.min() > 140
    assert counts.max() < 260


def test_a_sequential_order_is_the_identity():
    assert GlobalOrder(n=10, seed=0, kind="sequential").ids(3, 2, 5).tolist() == [2, 3, 4]


@settings(max_examples=50)
@given(
    length=st.integers(1, 400),
    lanes=st.integers(1, 8),
    micro=st.integers(1, 8),
    world_size=st.integers(1, 9),
)
def test_lanes_of_all_ranks_cover_an_epoch_once(length, lanes, micro, world_size):
    seen = []
    for step in steps(length=length, global_batch=lanes * micro, micro=micro):
        for rank in range(world_size):
            for lane in step.lanes_of(rank, world_size):
                assert lane.index % world_size == rank
                seen += range(lane.start, lane.stop)
    assert sorted(seen) == list(range(length))


@pytest.mark.parametrize("sizes", [(4, 2), (4, 3), (2, 4), (4, 2, 3, 1, 5)])
@settings(max_examples=10)
@given(data=st.data())
def test_a_changed_world_size_sees_each_of_1003_samples_once_per_epoch(sizes, data):
    """Stops after random steps, each time going on with the next world size, for two epochs."""
    position, used = cursor(), {0: [], 1: []}
    stops = sorted(data.draw(st.lists(st.integers(0, 83), min_size=4, max_size=4)))
    for done in range(2 * position.steps_per_epoch):
        size = sizes[min(sum(stop <= done for stop in stops), len(sizes) - 1)]
        step = next(position.remaining())
        ids = position.global_order.ids(position.epoch, step.start, step.stop)
        for rank in range(size):
            for lane in step.lanes_of(rank, size):
                used[position.epoch] += ids[
                    lane.start - step.start : lane.stop - step.start
                ].tolist()
        position = Cursor.from_json(position.after(step).to_json())
        if position.sample == position.length:
            position = position.next_epoch()
    assert sorted(used[0]) == sorted(used[1]) == list(range(1003))
    assert used[0] != used[1]


def test_the_last_step_of_an_epoch_takes_what_is_left():
    *_, last = cursor().remaining()
    assert (last.start, last.stop, last.lanes) == (984, 1003, 5)
    assert [lane.stop - lane.start for lane in last.lanes_of(0, 1)] == [4, 4, 4, 4, 3]
    assert last.lanes_of(5, 6) == []


def test_a_dataset_smaller_than_the_global_batch_is_one_step():
    assert list(cursor(N=5, length=5).remaining()) == [Step(0, 5, 4)]


def test_a_step_that_does_not_follow_is_refused():
    with pytest.raises(ValueError, match="does not follow"):
        cursor().after(Step(24, 48, 4))


def test_a_global_batch_that_cannot_be_cut_into_lanes_is_refused():
    with pytest.raises(ValueError, match="global_batch_size=25 is not a multiple"):
        cursor(G=25)


def test_an_unknown_order_version_is_refused():
    with pytest.raises(ValueError, match="order version 2"):
        EpochOrder(10, seed=0, epoch=0, version=2)


def test_positions_at_the_end_of_a_billion_samples_need_no_walk_through_them():
    ids = GlobalOrder(n=10**9, seed=0).ids(0, 9 * 10**8, 9 * 10**8 + 256)
    assert len(set(ids.tolist())) == 256


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 40_000), (39_000, 39_500)])
def test_blocks_of_a_stream_are_the_order(start, stop):
    order = GlobalOrder(n=40_000, seed=2)
    blocks = list(order.stream(1, start, stop))
    assert [at for at, _ in blocks] == [
        start + sum(len(ids) for _, ids in blocks[:i]) for i in range(len(blocks))
    ]
    joined = np.concatenate([ids for _, ids in blocks])
    assert np.array_equal(joined, order.ids(1, start, stop))
