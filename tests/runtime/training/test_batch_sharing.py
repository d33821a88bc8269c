"""The batch belongs to the job: its size, its pieces, and for how many processes that is work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.api import ENV_RUN_DIR, ENV_WORKERS
from rekindle.data.sampling.order import Cursor
from rekindle.ranks.control_page import ControlPage
from rekindle.training.setup.batch_sharing import Sharing, sharing, workers_of_the_job


def position(G=16, m=16, **more):
    return Cursor(epoch=0, sample=0, G=G, m=m, seed=0, N=1003, length=1003, **more)


@pytest.mark.parametrize(
    ("told", "found"), [({}, 3), ({ENV_WORKERS: ""}, 3), ({ENV_WORKERS: "2"}, 2)]
)
def test_the_job_says_how_many_are_wanted_else_those_count_that_are_there(told, found):
    assert workers_of_the_job(3, told) == found
    with pytest.raises(ValueError, match="REKINDLE_WORKERS='0' must be a whole number above 0"):
        workers_of_the_job(3, {ENV_WORKERS: "0"})


@pytest.mark.parametrize(
    ("G", "m", "processes", "sizes"),
    [
        (16, 16, 1, [16]),
        (16, 16, 2, [8, 8]),
        (16, 16, 3, [6, 6, 4]),
        (16, 16, 5, [3, 3, 3, 3, 3, 1]),
        (16, 16, 16, [1] * 16),
        (16, 16, 40, [1] * 16),
        (17, 17, 2, [9, 8]),
        (48, 16, 3, [16, 16, 16]),
        (48, 16, 2, [16, 16, 16]),
        (48, 16, 4, [12, 12, 12, 12]),
        (1, 1, 2, [1]),
    ],
)
def test_micro_batches_are_cut_into_as_few_pieces_as_will_do(G, m, processes, sizes):
    step = next(position(G, m).cut_for(processes).remaining())
    assert [lane.stop - lane.start for lane in step.lanes_of(0, 1)] == sizes


@settings(max_examples=200)
@given(lanes=st.integers(1, 6), m=st.integers(1, 40), worlds=st.lists(st.integers(1, 300)))
def test_everybody_has_something_to_do_whatever_there_was_before(lanes, m, worlds):
    cursor = position(lanes * m, m)
    for processes in worlds:
        before, cursor = cursor, cursor.cut_for(processes)
        assert cursor == position(lanes * m, m).cut_for(processes)
        assert cursor.to_json() == before.to_json(), "what is saved knows no processes"
        step = next(cursor.remaining())
        assert step.stop == lanes * m
        assert cursor.lanes == step.lanes >= min(processes, cursor.G)
        assert cursor.micro <= m
        assert cursor.lanes <= max(lanes, 2 * processes), "in no more pieces than is of use"


@pytest.mark.parametrize(
    ("flags", "more", "useful"),
    [
        ({}, {}, 32),
        ({"data": {"guarantee": "relaxed"}}, {}, 32),
        ({"data": {"guarantee": "bitwise"}}, {}, 2),
        ({"micro_batch": 16}, {}, 2),
        ({}, {"streamed": True}, 2),
        ({}, {"layer": nn.BatchNorm2d(3)}, 2),
        ({}, {"layer": nn.LayerNorm(3)}, 32),
        ({}, {"sharded": True}, None),
    ],
)
def test_what_is_computed_per_micro_batch_keeps_it_whole(flags, more, useful):
    module = nn.Sequential(nn.Linear(2, 2), more.pop("layer", nn.Identity()))
    chosen = {"streamed": False, "sharded": False, **more}
    shares = sharing(rk.Trainer(max_epochs=1, **flags).flags, module, **chosen)
    cursor = position(32, 16)
    assert shares.useful(cursor) == useful
    assert shares.useful(shares.cut(cursor, 3)) == useful, "or rounds would go to and fro"
    assert (shares.cut(cursor, 3).micro < 16) == (useful != 2)


def test_people_are_told_of_more_processes_than_micro_batches():
    cut, whole = Sharing(), Sharing(whole="micro_batch=16")
    assert cut.told(position(32, 16).cut_for(2), 2) is None
    assert cut.told(position(32, 16).cut_for(4), 4) == (
        "global_batch_size=32 in micro-batches of 16 is work for 2 of 4 processes; micro-batches "
        "are cut to 8"
    )
    assert "give global_batch_size= or a smaller" in cut.told(position(2, 2).cut_for(4), 4)
    assert "which are not cut because of micro_batch=16" in whole.told(position(32, 16), 4)


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, batch=4, **flags):
    data = TensorDataset(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    options = {"max_epochs": 1, "root": tmp_path / "run", "enable_progress_bar": False}
    trainer = rk.Trainer(**{**options, **flags})
    trainer.fit(Net(), DataLoader(data, batch))
    return trainer


def test_the_batch_follows_from_what_is_wanted_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_WORKERS, "3")
    trainer = fit(tmp_path, accumulate_grad_batches=2)
    assert (trainer._run.cursor.G, trainer.global_step) == (24, 3)
    for wanted in ("1", "5"):
        monkeypatch.setenv(ENV_WORKERS, wanted)
        trainer = fit(tmp_path, accumulate_grad_batches=2, max_epochs=2)
        assert (trainer._run.cursor.G, trainer.global_step) == (24, 6)


@pytest.mark.parametrize("least", [1, 3])
def test_no_schedule_takes_its_unit_from_those_that_came_first(tmp_path, monkeypatch, least):
    monkeypatch.setenv(ENV_WORKERS, str(least))
    schedule = rk.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    trainer = fit(tmp_path, callbacks=[schedule], max_epochs=2)
    assert 8 * least == trainer._run.cursor.G


def test_the_agent_learns_for_how_many_it_is_work(tmp_path, monkeypatch):
    page = ControlPage(tmp_path, create=True)
    assert page.worlds == (None, None)
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))

    class Resizing(rk.Callback):
        seen: list[int | None] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(page.worlds[1])
            trainer.set_batch_size(global_batch_size=12)

    fit(tmp_path, micro_batch=4, max_steps=2, callbacks=[Resizing()])
    assert Resizing.seen == [1, 3, 3, 3]
