import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.ranks.gradients import layout


@settings(max_examples=50)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=30),
    limit=st.integers(1, 400),
)
def test_every_parameter_lies_in_one_place_of_one_bucket(sizes, limit):
    shapes = [(n, torch.bfloat16 if half else torch.float32) for n, half in sizes]
    buckets = layout(shapes, limit=limit)
    order = [p.parameter for bucket in buckets for p in bucket.placements]
    assert order == list(reversed(range(len(shapes))))
    for number, bucket in enumerate(buckets):
        at = 0
        for place in bucket.placements:
            assert (place.bucket, place.start) == (number, at)
            assert place.stop - place.start == shapes[place.parameter][0]
            assert shapes[place.parameter][1] == bucket.dtype
            at = place.stop
        assert at == bucket.size
        assert len(bucket.placements) == 1 or at * bucket.dtype.itemsize <= limit


def test_the_layout_depends_on_nothing_but_shapes():
    shapes = [(1000, torch.float32), (10, torch.float32), (3, torch.bfloat16)]
    assert layout(shapes) == layout(list(shapes))
    assert [bucket.size for bucket in layout(shapes)] == [3, 1010]
