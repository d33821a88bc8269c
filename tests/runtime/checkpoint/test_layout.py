"""The upload plan: every byte exactly once, for any sizes and any world size."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.checkpoint.format.layout import pack, share

sizes = st.lists(st.integers(0, 500), max_size=12)


@given(sizes, st.integers(1, 9))
@settings(max_examples=300)
def test_ranks_share_every_byte_exactly_once_on_chunk_borders(sizes, world_size):
    shares = [share(sizes, rank=r, world_size=world_size, chunk=16) for r in range(world_size)]
    at = [0] * len(sizes)
    for piece in (piece for own in shares for piece in own):
        assert piece.start == at[piece.tensor], "ranks follow each other within a tensor"
        assert piece.stop % 16 == 0 or piece.stop == sizes[piece.tensor]
        assert piece.stop > piece.start
        at[piece.tensor] = piece.stop
    assert at == sizes
    loads = [sum(piece.stop - piece.start for piece in own) for own in shares]
    assert max(loads) <= sum(sizes) / world_size + 16 + 1, "no rank carries over a chunk more"


@given(sizes, st.integers(16, 200))
@settings(max_examples=300)
def test_shards_hold_all_pieces_in_order_and_keep_to_their_size(sizes, shard):
    pieces = share(sizes, rank=0, world_size=1, chunk=16)
    shards = pack(pieces, shard=shard, chunk=16)
    spans = [(p.tensor, b) for own in shards for p in own for b in range(p.start, p.stop)]
    assert spans == [(p.tensor, b) for p in pieces for b in range(p.start, p.stop)]
    assert all(p.start % 16 == 0 for own in shards for p in own)
    assert all(0 < sum(p.stop - p.start for p in own) <= max(shard, 16) for own in shards)


def test_a_large_tensor_is_spread_over_shards():
    pieces = share([1000], rank=0, world_size=1, chunk=16)
    assert [len(own) for own in pack(pieces, shard=250, chunk=16)] == [1, 1, 1, 1, 1]
