"""Iterable data: every sample once per epoch, over stops, ranks and workers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.data import streams
from rekindle.data.script_data import take_apart
from rekindle.ranks.distributed import World

SIZES = [7, 0, 31, 12, 5, 1, 22, 9, 14, 3, 8, 2]


class Iterator:
    """Samples of a shard, with a packing buffer whose contents are part of its state."""

    def __init__(self, shard, size, state):
        self.shard, self.size = shard, size
        self.at, self.buffer = state if state is not None else (0, [])
        self.buffer = list(self.buffer)

    def __iter__(self):
        return self

    def __next__(self):
        while len(self.buffer) < 3 and self.at < self.size:
            self.buffer.append(self.shard * 100 + self.at)
            self.at += 1
        if not self.buffer:
            raise StopIteration
        number = self.buffer.pop()
        return torch.tensor([float(number), float(torch.rand(()))])

    def state_dict(self):
        return [self.at, self.buffer]


class Shards(rk.ShardedStream):
    def __init__(self, sizes=SIZES, exhaustion="drain", stateful=True):
        self.sizes, self.num_shards = sizes, len(sizes)
        self.exhaustion, self.stateful = exhaustion, stateful

    def open(self, shard, state):
        iterator = Iterator(shard, self.sizes[shard], state)
        return iterator if self.stateful else (sample for sample in iterator)

    def samples(self):
        return sorted(100 * i + n for i, size in enumerate(self.sizes) for n in range(size))


class Whole(IterableDataset):
    """One stream with a state of its own."""

    def __init__(self, size=53):
        self.size, self.at = size, 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state_dict):
        self.at = state_dict["at"]

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            yield torch.tensor([float(self.at - 1), float(torch.rand(()))])
        self.at = 0


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(53.0).repeat_interleave(2).reshape(53, 2))


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5))
        self.seen = []

    def training_step(self, batch, batch_idx):
        epoch, step = self.trainer.current_epoch, self.trainer.global_step
        self.seen.append((epoch, step, batch[:, 0].tolist(), batch[:, 1].tolist()))
        return self.net(batch / 1000).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def epoch(self, number):
        return sorted(int(x) for at, _, xs, _ in self.seen if at == number for x in xs)


class Stop(rk.Callback):
    def __init__(self, at):
        self.at = at

    def on_fit_start(self, trainer, pl_module):
        trainer.should_stop = False

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trainer.should_stop = trainer.global_step + 1 == self.at


def fit(root, stream, *, stop=None, workers=0, callbacks=(), **flags):
    model = Net()
    trainer = rk.Trainer(
        **{"max_epochs": 2, "accumulate_grad_batches": 6, "root": root, **flags},
        callbacks=[Stop(stop), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(stream, 4, num_workers=workers))
    return model


def proof(root):
    store = Store.open(str(root))
    return audit(store.read(store.commits()[0]).meta)


@pytest.mark.parametrize("exhaustion", ["drain", "repeat"])
def test_an_epoch_of_shards_is_every_sample_once(tmp_path, exhaustion):
    data = Shards(exhaustion=exhaustion)
    more = {"max_steps": 40} if exhaustion == "repeat" else {}
    model = fit(tmp_path, data, **more)
    if exhaustion == "drain":
        assert model.epoch(0) == model.epoch(1) == data.samples()
        assert proof(tmp_path).exact
    else:
        assert len(model.epoch(0)) == 40 * 24


@pytest.mark.parametrize(
    ("make", "stop"),
    [
        (Shards, 3),  # unopened shards are dealt again right after it
        (Shards, 9),  # the end of an epoch
        (lambda: Shards(stateful=False), 6),
        (Whole, 2),
        (lambda: Shards(exhaustion="min"), 3),
    ],
    ids=["dealt again", "edge", "replayed", "whole", "min"],
)
def test_a_stopped_stream_goes_on_where_it_was(tmp_path, make, stop):
    whole = fit(tmp_path / "whole", make())
    first = fit(tmp_path / "run", make(), stop=stop)
    second = fit(tmp_path / "run", make())
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weights(), whole.weights())
    assert proof(tmp_path / "run").exact
    assert proof(tmp_path / "run") == proof(tmp_path / "whole")


class Met(World):
    """Ranks that are threads and meet where they gather."""

    def gather(self, value):
        barrier, said = self.control
        said[self.rank] = value
        barrier.wait()
        found = [said[rank] for rank in range(self.size)]
        barrier.wait()
        return found


def group(data, size, saved):
    """The stream as each of `size` ranks has it."""
    source = take_apart(DataLoader(data, 4), "train")
    meeting = (threading.Barrier(size, timeout=20), {})
    parts = []
    for rank in range(size):
        world = Met(rank=rank, size=size, local_rank=0, device="cpu", control=meeting)
        parts.append(streams.Streaming(source, world, seed=1, lanes=6, micro=4))
        if saved is not None:
            parts[-1].restore(saved)
    together(parts, streams.Streaming.begin, 0)
    return parts


POOL = ThreadPoolExecutor(5)


def together(parts, call, *arguments):
    return list(POOL.map(lambda part: call(part, *arguments), parts))


@settings(max_examples=5)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=6, max_size=14),
    worlds=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    stops=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_any_ranks_and_stops_see_the_same_steps(sizes, worlds, stops):
    """Lanes are dealt anew to other ranks after each stop; states travel as checkpoints do."""

    def run(worlds, stops):
        steps, saved, start = [], None, 0
        for number, size in enumerate(worlds):
            parts = group(Shards(sizes), size, saved)
            last = number == len(worlds) - 1
            for _ in range(10**6 if last else stops[number]):
                found = together(parts, streams.Streaming.read, start)
                if found[0] is None:
                    return steps
                data = {}
                for part, step in zip(parts, found, strict=True):
                    part.completed(step)
                    mine = [lane for lane in sorted(step.sizes) if lane in part._own]
                    batches = (batch.data[:, 0].tolist() for batch in step.batches)
                    data |= dict(zip(mine, batches, strict=True))
                steps.append(sorted(data.items()))
                start = found[0].stop
            saved = together(parts, streams.Streaming.saved)[0]
        return steps

    expected = run([1], [])
    assert run(worlds, stops) == expected
    seen = sorted(int(x) for step in expected for _, batch in step for x in batch)
    assert seen == Shards(sizes).samples()


@pytest.mark.processes
@pytest.mark.parametrize("make", [Shards, Whole], ids=["shards", "whole"])
def test_the_number_of_loader_workers_may_change(tmp_path, make):
    whole = fit(tmp_path / "whole", make())
    first = fit(tmp_path / "run", make(), stop=3, workers=2)
    second = fit(tmp_path / "run", make(), workers=1)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weights(), whole.weights())
    assert proof(tmp_path / "run").exact


def test_a_stream_without_a_state_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        rk.RequirementError,
        match=r"R12b IterableDataset Endless has no state_dict; resume would replay every item "
        r"that was read before. Implement ShardedStream, or set Trainer\(data={'guarantee': "
        r"'approximate'}\)",
    ):
        fit(tmp_path, Endless(), data={"guarantee": "order"})


def test_a_relaxed_stream_begins_its_epoch_anew_and_says_so(tmp_path):
    relaxed = {"data": {"guarantee": "relaxed"}}
    first = fit(tmp_path, Endless(), stop=2, **relaxed)
    second = fit(tmp_path, Endless(), **relaxed)
    assert set(first.epoch(0)) | set(second.epoch(0)) == set(range(53))
    assert first.epoch(0)[0] == second.epoch(0)[0] == 0
    store = Store.open(str(tmp_path))
    meta = store.read(store.commits()[0]).meta
    assert meta["guarantee"] == "relaxed"
    assert audit(meta).digest_ok is None
    assert not audit(meta).exact


def test_a_resume_that_would_replay_says_how_much(tmp_path):
    fit(tmp_path, Endless(), stop=2, data={"guarantee": "relaxed"})
    with pytest.raises(rk.RequirementError, match=r"R12b .* resume would replay 48 items \(~0 s\)"):
        fit(tmp_path, Endless(), data={"guarantee": "order"})
    said = str(streams.refuse_loose("no state", items=1_240_000, seconds=840))
    assert "resume would replay 1.2M items (~14 min). Implement ShardedStream, or" in said


def test_the_shortest_lane_ends_an_epoch_with_min(tmp_path, capsys):
    data = Shards([8] * 5 + [4], exhaustion="min")
    model = fit(tmp_path, data, max_epochs=1)
    assert len(model.epoch(0)) == 24
    assert "20 samples of other lanes were read and not used" in capsys.readouterr().out


def test_an_endless_stream_needs_another_end(tmp_path):
    with pytest.raises(ValueError, match="exhaustion='repeat' never ends an epoch: give max_steps"):
        fit(tmp_path, Shards(exhaustion="repeat"))


def test_fewer_shards_than_micro_batches_are_refused(tmp_path):
    with pytest.raises(rk.RequirementError, match="R13 Shards has 4 shards for 6 micro-batches"):
        fit(tmp_path, Shards([9] * 4))


def test_other_lanes_than_those_of_the_checkpoint_are_refused(tmp_path):
    fit(tmp_path, Shards(), stop=3)
    with pytest.raises(rk.RequirementError, match="R12 the stream's position was saved for 6 m"):
        fit(tmp_path, Shards(), global_batch_size=48)


def test_limits_of_a_stream_are_batches(tmp_path):
    model = fit(tmp_path, Shards(), limit_train_batches=12)
    assert [len({step for at, step, _, _ in model.seen if at == e}) for e in (0, 1)] == [2, 2]
    with pytest.raises(ValueError, match="is a share of a length that a stream does not have"):
        fit(tmp_path / "share", Shards(), limit_train_batches=0.5)


def test_micro_batches_of_a_stream_may_grow(tmp_path):
    class Growing(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                trainer.set_batch_size(micro_batch=6)

    model = fit(tmp_path, Shards(), callbacks=[Growing()], max_epochs=1)
    assert model.epoch(0) == Shards().samples()
    assert proof(tmp_path).exact
    assert max(len(xs) for _, step, xs, _ in model.seen if step > 1) == 6


def test_validation_of_an_epoch_is_due_with_its_last_step(tmp_path):
    class Counting(rk.Callback):
        ends = ()

        def on_validation_end(self, trainer, pl_module):
            self.ends += (trainer.global_step,)

    class Validated(Net):
        def validation_step(self, batch, batch_idx):
            pass

    counting = Counting()
    trainer = rk.Trainer(
        max_epochs=2,
        accumulate_grad_batches=6,
        root=tmp_path,
        callbacks=[counting],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held_out = torch.utils.data.TensorDataset(torch.zeros(2, 2))
    trainer.fit(Validated(), DataLoader(Shards(), 4), DataLoader(held_out, 2))
    assert len(counting.ends) == 2
    assert counting.ends[-1] == trainer.global_step


def test_bitwise_takes_lanes_that_have_ended(tmp_path):
    plain = fit(tmp_path / "plain", Shards())
    exact = fit(tmp_path / "exact", Shards(), data={"guarantee": "bitwise"})
    assert torch.allclose(exact.weights(), plain.weights(), atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(Shards(), 4, drop_last=True), "Remove drop_last"),
        (
            lambda: (Shards(), rk.LoaderConfig(batch_size=4, order="sequential")),
            "is for datasets with a length",
        ),
    ],
)
def test_what_has_no_meaning_for_a_stream_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        take_apart(make(), "train")
