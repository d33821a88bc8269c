import random

import numpy as np
import pytest
import torch

import rekindle as rk
from rekindle import seed_everything
from rekindle.randomness import (
    LaneSeeds,
    mixed,
    restore,
    seed_lane,
    seed_sample,
    seed_validation,
    states,
    watch,
)


def drawn():
    return (torch.rand(2).tolist(), random.random(), float(np.random.rand()), torch.randn(1).item())


def test_what_is_drawn_depends_on_the_place_alone():
    seen = []
    for place in ((seed_lane, 1, 2, 3), (seed_validation, 1, 2, 3), (seed_sample, 1, 2, 3)):
        seed, *words = place
        seed(*words)
        first = drawn()
        drawn()
        seed(*words)
        assert drawn() == first
        seen.append(first)
    assert len({repr(values) for values in seen}) == 3


def test_neighbouring_places_draw_differently():
    seen = set()
    for step in range(20):
        for lane in range(5):
            seed_lane(0, step, lane)
            seen.add(repr(drawn()))
    assert len(seen) == 100


def test_the_hash_is_fixed_for_good():
    # Augmentation of a resumed run rests on it: another value means another run.
    assert mixed(0) == 7960286522194355700
    assert mixed(1, 2, 3) == mixed(1, 2, 3)
    assert mixed(1, 2, 3) != mixed(3, 2, 1)


def test_states_of_all_generators_come_back():
    seed_everything(5)
    random.gauss(0, 1)
    np.random.standard_normal()
    saved = states()
    first = drawn(), random.gauss(0, 1), float(np.random.standard_normal())
    drawn()
    restore(saved)
    assert (drawn(), random.gauss(0, 1), float(np.random.standard_normal())) == first


class Drawing(rk.Module):
    """Draws from Python and NumPy from its third step on, and writes down what it got."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.drawn = {}

    def training_step(self, batch, batch_idx):
        if batch_idx >= 4:  # two lanes in a step
            self.drawn[batch_idx] = (random.random(), float(np.random.rand()), torch.rand(1).item())
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def drawn_by(root, steps):
    model = Drawing()
    trainer = rk.Trainer(
        max_steps=steps, root=root, accumulate_grad_batches=2, enable_progress_bar=False
    )
    data = torch.utils.data.TensorDataset(torch.ones(16, 1))
    trainer.fit(model, torch.utils.data.DataLoader(data, 1))
    return model.drawn


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_what_a_training_step_draws_is_the_same_after_any_resume(tmp_path, stop):
    whole = drawn_by(tmp_path / "whole", 8)
    parts = drawn_by(tmp_path / "parts", stop) | drawn_by(tmp_path / "parts", 8)
    assert parts == whole
    assert whole[4][:2] == whole[7][:2], "until all ranks know that somebody draws: one state"
    assert len({values[:2] for values in whole.values()}) == len(whole) - 3
    assert len({values[2] for values in whole.values()}) == len(whole)


class Between(rk.Callback):
    """Draws right after a save, into what is saved, and again right after it was restored."""

    def __init__(self):
        self.saved, self.again = None, None

    def _draw(self):
        return [random.random(), float(np.random.rand()), torch.rand(1).item()]

    def state_dict(self):
        return {"drawn": self._draw()}

    def load_state_dict(self, state_dict):
        self.saved, self.again = state_dict["drawn"], self._draw()


def test_generators_go_on_where_they_were_saved(tmp_path):
    for steps in (3, 6):
        between = Between()
        trainer = rk.Trainer(
            max_steps=steps, root=tmp_path, callbacks=[between], enable_progress_bar=False
        )
        data = torch.utils.data.TensorDataset(torch.ones(16, 1))
        trainer.fit(Drawing(), torch.utils.data.DataLoader(data, 1))
    assert between.saved is not None
    assert between.again == between.saved


def test_no_two_lanes_share_what_a_generator_takes_of_their_seeds(monkeypatch):
    given = []
    monkeypatch.setattr("rekindle.randomness._seed_torch", given.append)
    seeds = LaneSeeds(0)
    for step in range(3000):
        for lane in range(64):
            seeds(step, lane)
    given = given[1:]  # the first is of the state that Python's and NumPy's generators are given
    assert all(0 <= value < 1 << 64 for value in given)
    # A random function of 32 bits would let four of these meet.
    assert len({value & 0xFFFFFFFF for value in given}) == len(given) == 3000 * 64


def test_numbers_of_neighbouring_steps_and_lanes_are_not_alike():
    drawn = torch.empty(2, 4000, 4)
    for n in range(4000):
        for direction, (step, lane) in enumerate([(n, 0), (0, n)]):
            seed_lane(5, step, lane)
            drawn[direction, n] = torch.rand(4)
    for lag in (1, 2, 3, 64):
        for found in drawn:
            pairs = torch.cat([found[:-lag], found[lag:]], dim=1).T
            assert torch.corrcoef(pairs)[:4, 4:].abs().max() < 0.08  # five deviations


def test_ranks_agree_on_the_first_step_that_is_seeded_in_full():
    ranks = [LaneSeeds(0) for _ in range(3)]
    for seeds in ranks:
        seeds.start()
    ranks[1](6, 0)
    random.random()
    ranks[1].note(7)
    word = max(seeds.word for seeds in ranks)
    for seeds in ranks:
        seeds.agree(word)
    assert [seeds.since for seeds in ranks] == [8, 8, 8]
    restored = LaneSeeds(0)
    restored.restore([seeds.state(7) for seeds in ranks])
    assert restored.since == 8


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: np.random.rand(312)])
def test_a_watch_sees_every_draw(draw):
    seed_lane(1, 2, 3)
    assert watch().clean
    draw()
    assert not watch().clean
