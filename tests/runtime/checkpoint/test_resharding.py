"""Any number of ranks and either strategy reads what any other has written, bit for bit."""

import json
import runpy
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.checkpoint import IntegrityError, Store, shards
from rekindle.checkpoint.format.layout import Box, StridedRuns, common, runs, within
from rekindle_cli.local.stack import free_ports

PROGRAM = Path(__file__).parent / "ranks" / "reshard.py"


@pytest.fixture
def stage(_forkserver, tmp_path):
    """Run one stage on ranks of their own; gives their results by rank."""

    def run(world_size, **stage):
        (port,) = free_ports(1)
        outs = [tmp_path / f"{port}-{rank}.json" for rank in range(world_size)]
        stage = {"uri": f"file://{tmp_path}/run", "shared": False, **stage}
        names = {"WORLD_SIZE": world_size, "PORT": port, "STAGE": stage}
        started = [
            _forkserver.Process(
                target=runpy.run_path,
                args=(str(PROGRAM),),
                kwargs={"init_globals": {**names, "RANK": rank, "OUT": str(out)}},
            )
            for rank, out in enumerate(outs)
        ]
        for process in started:
            process.start()
        limit = time.monotonic() + 90
        for process in started:
            process.join(max(0.1, limit - time.monotonic()))
        late = [process for process in started if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        codes = [process.exitcode for process in started]
        for process in started:
            process.close()
        assert not late, "ranks hang"
        assert codes == [0] * world_size
        return [json.loads(out.read_text()) for out in outs]

    return run


@pytest.mark.processes
def test_ddp_and_fsdp2_read_each_other_on_any_number_of_ranks(stage, shares):
    before = None
    for step, (world_size, strategy) in enumerate(
        [(3, "ddp"), (2, "fsdp"), (4, "hybrid"), (2, "columns"), (3, "fsdp"), (1, "ddp")], 1
    ):
        results = stage(world_size, step=step, strategy=strategy)
        assert {r["loaded"] for r in results} == {before}, (world_size, strategy)
        before = results[0]["saved"]


@pytest.mark.processes
def test_replicas_read_a_share_each_and_end_with_the_same_bits(stage, tmp_path):
    (alone,) = stage(1, step=1, strategy="ddp")
    shared = stage(3, step=2, strategy="ddp", shared=True)
    assert {r["loaded"] for r in shared} == {alone["saved"]}
    every = [r["read"] for r in stage(3, step=3, strategy="ddp", shared=False)]
    assert len(set(every)) == 1
    assert sum(r["read"] for r in shared) <= every[0]


@st.composite
def boxes(draw):
    """A shape and two boxes in it."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    found = []
    for _ in range(2):
        low = [draw(st.integers(0, side - 1)) for side in shape]
        size = [draw(st.integers(1, side - begin)) for side, begin in zip(shape, low, strict=True)]
        found.append(Box(shape=tuple(shape), offsets=tuple(low), sizes=tuple(size)))
    return found


def part(box, whole):
    index = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))
    return whole[index].contiguous().view(-1)


@given(boxes())
@settings(max_examples=300)
def test_what_two_boxes_share_is_copied_and_nothing_else(pair):
    saved, wanted = pair
    whole = torch.arange(1, 1 + torch.Size(saved.shape).numel(), dtype=torch.uint8)
    whole = whole.view(saved.shape)
    source = part(saved, whole)
    target = torch.zeros(torch.Size(wanted.sizes).numel(), dtype=torch.uint8)
    for one in runs(saved, 1):
        for other in runs(wanted, 1):
            for begin, at, length in common(one, other):
                target[at : at + length] = source[begin : begin + length]
    seen = torch.zeros_like(whole)
    seen[tuple(slice(o, o + s) for o, s in zip(saved.offsets, saved.sizes, strict=True))] = 1
    assert torch.equal(target, part(wanted, whole * seen))


@pytest.mark.parametrize(
    ("shape", "offsets", "sizes", "expected"),
    [
        ((8, 5), (2, 0), (3, 5), [(40, 60, 1, 0)]),
        ((8, 6), (0, 2), (8, 2), [(8, 8, 8, 24)]),
        ((8, 6), (1, 2), (3, 2), [(32, 8, 3, 24)]),
        ((2, 3, 4, 5), (0, 1, 0, 0), (2, 1, 4, 5), [(80, 80, 2, 240)]),
        ((2, 3, 4), (0, 1, 1), (2, 2, 2), [(20, 8, 2, 16), (68, 8, 2, 16)]),
        ((4,), (1,), (0,), []),
    ],
)
def test_a_box_is_as_few_runs_as_possible(shape, offsets, sizes, expected):
    found = runs(Box(shape=shape, offsets=offsets, sizes=sizes), 4)
    assert [(r.start, r.length, r.count, r.stride) for r in found] == expected


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.data())
@settings(max_examples=200)
def test_a_part_of_runs_holds_the_bytes_of_the_whole(length, count, gap, data):
    whole = StridedRuns(
        start=2, length=length, count=count, stride=length + gap if count > 1 else 0, at=0
    )

    def places(one):
        return [one.start + i * one.stride + j for i in range(one.count) for j in range(one.length)]

    begin = data.draw(st.integers(0, length * count - 1))
    end = data.draw(st.integers(begin + 1, length * count))
    found = [place for one in within(whole, begin, end) for place in places(one)]
    assert found == places(whole)[begin:end]


def test_a_state_is_filled_in_place_by_a_tree_of_the_same_form(store, savers, save, state, same):
    save(savers(store), 1)
    into = state(2)
    weight = into["model"]["weight"]
    store.load(store.read(store.commits()[0]), into=into)
    assert into["model"]["weight"] is weight
    assert torch.equal(weight, state(1)["model"]["weight"])


@pytest.fixture
def peer(monkeypatch):
    """Pretend to be rank 0 of two; the other one sends what a function makes of the right bytes."""
    import torch.distributed as dist

    def pretend(store, commit, change):
        whole = {}
        everything = shards.stretches(
            commit.objects,
            commit.tensors,
            {
                t.name: shards.TensorTarget(
                    whole.setdefault(t.name, torch.empty(t.nbytes, dtype=torch.uint8)),
                    [StridedRuns(start=0, length=t.nbytes, count=1, stride=0, at=0)],
                )
                for t in commit.tensors
            },
            chunk=commit.chunk,
        )
        turn = iter(everything)

        def broadcast(buffer, *, group_src, group):
            stretch = next(turn)
            if group_src == 1:
                raw = store.objects.get(
                    stretch.entry.key, stretch.start, stretch.start + stretch.size
                )
                data = bytearray(raw + b"\0")
                change(data)
                buffer.copy_(torch.frombuffer(data, dtype=torch.uint8))

        def gather(found, mine, group):
            found[:] = [mine, (0, "")]

        monkeypatch.setattr(dist, "get_rank", lambda group: 0)
        monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
        monkeypatch.setattr(dist, "broadcast", broadcast)
        monkeypatch.setattr(dist, "all_reduce", lambda *_args, **_kwargs: None)
        monkeypatch.setattr(dist, "all_gather_object", gather)
        return store.load(commit, group="two")

    return pretend


def test_what_a_peer_sends_is_verified_before_use(store, savers, save, state, same, peer):
    save(savers(store, shard_bytes=512), 1)
    commit = store.read(store.commits()[0])
    assert same(peer(store, commit, lambda data: None).state, state(1))

    def flip(data):
        data[len(data) // 2] ^= 1

    with pytest.raises(IntegrityError, match="were damaged on their way from rank 1"):
        peer(store, commit, flip)


def test_a_rank_alone_in_its_group_loads_as_without_one(store, savers, save, state, same):
    import torch.distributed as dist

    save(savers(store), 1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        commit = Store.open(store.uri).read(store.commits()[0])
        restored = store.load(commit, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert same(restored.state, state(1))
