import math

import pytest
import torch
from torch.utils.data import DataLoader

import rekindle as rk
from rekindle.api import ENV_MEMORY
from rekindle.callbacks import BatchSizeFinder, LearningRateFinder
from rekindle.callbacks.search import trial
from rekindle.peer_memory.store import HostMemory
from rekindle.trainer.tuner import Tuner

pytestmark = pytest.mark.processes


@pytest.fixture
def rated(net):
    class Rated(net):
        def __init__(self, lr=0.001, batch_size=1):
            super().__init__()
            self.save_hyperparameters()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.hparams.lr)

    return Rated


@pytest.fixture
def tuner(tmp_path):
    return Tuner(rk.Trainer(max_epochs=20, root=tmp_path / "run", enable_progress_bar=False))


def copies(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_range_test_suggests_a_rate_and_leaves_no_trace(data, rated, tuner):
    rk.seed_everything(1)
    model, generator = rated(), torch.get_rng_state()
    before = copies(model)
    finder = tuner.lr_find(model, DataLoader(data[0], 4, shuffle=True), num_training=60)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())
    rates = finder.results["lr"]
    assert rates[:2] == pytest.approx([1e-8, 1e-8 * 1e8 ** (2 / 60)])
    assert 1e-8 < finder.suggestion() < 1
    assert model.hparams.lr == finder.suggestion()


def test_the_range_test_ends_when_the_loss_explodes(data, rated, tuner):
    finder = tuner.lr_find(
        rated(),
        DataLoader(data[0], 4),
        min_lr=0.1,
        max_lr=1e4,
        mode="linear",
        early_stop_threshold=2.0,
        update_attr=False,
    )
    assert len(finder.results["loss"]) < 50


def test_a_rate_needs_a_place(data, net, tuner):
    with pytest.raises(AttributeError, match="Net has no lr or learning_rate"):
        tuner.lr_find(net(), DataLoader(data[0], 4))
    with pytest.raises(ValueError, match="need 0 < min_lr < max_lr"):
        tuner.lr_find(net(), DataLoader(data[0], 4), min_lr=2.0)


def test_a_short_curve_suggests_nothing():
    from rekindle.trainer.tuner import LRFinder

    assert LRFinder(results={"lr": [0.1] * 9, "loss": [1.0] * 9}).suggestion() is None
    falling = LRFinder(
        results={"lr": [10.0**-i for i in (4, 3, 2, 1)], "loss": [3, 3, 1, math.nan]}
    )
    assert falling.suggestion(skip_begin=0) == pytest.approx(1e-2)


def test_a_run_is_trained_with_the_rate_that_was_found_and_keeps_it(fit, same, rated):
    def finder():
        return LearningRateFinder(min_lr=1e-3, num_training_steps=30)

    whole, first, second = finder(), finder(), finder()
    expected = fit(whole, model=rated, root="whole")
    assert expected.optimizers[0].param_groups[0]["lr"] == whole.suggested != 0.001
    fit(first, model=rated, stop=7)
    trainer = fit(second, model=rated)
    assert (second.suggested, second.optimal_lr) == (first.suggested, None)
    assert trainer.model.hparams.lr == whole.suggested
    assert same(trainer, expected)


@pytest.fixture
def large(rated):
    class Large(rated):
        def training_step(self, batch, batch_idx):
            if len(batch[1]) > 11:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().training_step(batch, batch_idx)

    return Large


@pytest.mark.parametrize(("mode", "found"), [("power", 8), ("binsearch", 10)])
def test_the_largest_batch_that_fits_is_found(data, large, tuner, mode, found):
    model = large()
    before = copies(model)
    loader = DataLoader(data[0], 4)
    assert tuner.scale_batch_size(model, loader, mode=mode) == found
    assert model.hparams.batch_size == found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="not even a batch of 12 fits"):
        tuner.scale_batch_size(model, loader, init_val=12)


def test_a_run_is_trained_with_the_batch_that_fits_and_keeps_it(fit, same, large):
    whole, first, second = (BatchSizeFinder(init_val=1) for _ in range(3))
    expected = fit(whole, model=large, root="whole")
    assert (whole.optimal_batch_size, expected.global_step) == (8, 9)
    assert expected._run.feed.history[0] == {
        "step": 0,
        "epoch": 0,
        "sample": 0,
        "G": 8,
        "m": 8,
        "world_size": 1,
    }
    fit(first, model=large, stop=4)
    trainer = fit(second, model=large)
    assert second.optimal_batch_size == trainer.model.hparams.batch_size == 8
    assert len(trainer._run.feed.history) == 1
    assert same(trainer, expected)


def test_of_a_run_that_lies_in_memory_the_store_is_asked_nothing(fit, large, monkeypatch):
    memory = HostMemory.create()
    monkeypatch.setenv(ENV_MEMORY, ",".join(map(str, memory._fds)))
    fit(BatchSizeFinder(init_val=1), model=large, stop=4)
    monkeypatch.setattr(trial, "begun_in", None)
    finder = BatchSizeFinder(init_val=1)
    assert fit(finder, model=large).global_step == 9
    assert finder.optimal_batch_size == 8
    memory.close()


def test_the_batch_that_is_found_divides_a_global_batch_that_is_given(fit, large):
    trainer = fit(BatchSizeFinder(), model=large, global_batch_size=12)
    cursor = trainer._run.cursor
    assert (cursor.G, cursor.m) == (12, 6)


def test_the_data_module_is_told_the_batch_that_was_found(large, data, tmp_path):
    class Data(rk.DataModule):
        def __init__(self, batch_size=1):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(data[0], 4, shuffle=True)

    for epochs in (1, 2):
        trainer = rk.Trainer(
            max_epochs=epochs, root=tmp_path / "run", callbacks=[BatchSizeFinder()]
        )
        trainer.fit(large(), Data())
        assert trainer.datamodule.hparams.batch_size == 8
        assert [entry["m"] for entry in trainer._run.feed.history] == [8]


def test_a_search_that_is_none_is_refused():
    with pytest.raises(ValueError, match="mode='best', allowed are 'power' and 'binsearch'"):
        BatchSizeFinder(mode="best")
    with pytest.raises(ValueError, match="max_trials=0, need 1 or more"):
        BatchSizeFinder(max_trials=0)


def test_no_batch_is_larger_than_the_data_and_errors_are_the_users(data, rated, tuner):
    assert tuner.scale_batch_size(rated(), DataLoader(data[0], 4)) == 20

    class Broken(rated):
        def training_step(self, batch, batch_idx):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tuner.scale_batch_size(Broken(), DataLoader(data[0], 4))
