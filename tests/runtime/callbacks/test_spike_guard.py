import pytest
import torch

from rekindle import Callback, Every
from rekindle.callbacks import EMA, BackboneFinetuning, SpikeGuard

pytestmark = pytest.mark.processes


@pytest.fixture
def spiky(net):
    """A loss of our choice: 1, slightly noisy, and 100 times that where the data say so."""

    class Spiky(net):
        bad = ()

        def training_step(self, batch, batch_idx):
            noise = 1.0 + 0.01 * (batch_idx % 3)
            spike = 100.0 if self.trainer.global_step in self.bad else 1.0
            zero = 0.0 * super().training_step(batch, batch_idx)
            return zero + noise * spike

    return Spiky


def guard(**arguments):
    return SpikeGuard(**{"warmup": 4, "window": 8, **arguments})


def test_a_spike_is_seen_and_named(fit, spiky, capsys):
    spiky.bad = (7,)
    found = guard(action="warn")
    fit(found, model=spiky)
    assert found.spikes == [7]
    said = capsys.readouterr().out
    assert "SpikeGuard at step 8: loss 1" in said
    assert "is a spike, the median of 7 steps is 1.01" in said


def test_a_quiet_run_has_no_spikes_and_the_first_steps_are_only_looked_at(fit, spiky):
    spiky.bad = (1,)
    found = guard(action="stop", threshold=3.0)
    assert fit(found, model=spiky).global_step == 15
    assert found.spikes == []


def test_it_can_end_training(fit, spiky):
    spiky.bad = (7,)
    # The loss of the eighth step is looked at during the ninth.
    assert fit(guard(action="stop"), model=spiky).global_step == 9


@pytest.mark.parametrize("stop", [6, 8])
def test_the_losses_survive_a_resume_with_those_on_their_way(fit, spiky, stop):
    spiky.bad = (7,)
    whole, second = guard(action="warn"), guard(action="warn")
    fit(whole, model=spiky, root="whole")
    fit(guard(action="warn"), model=spiky, stop=stop)
    fit(second, model=spiky)
    assert second.spikes == whole.spikes == [7]
    assert second._recent == whole._recent


@pytest.mark.parametrize(
    "bad", [{"threshold": 0}, {"window": 1}, {"warmup": 99}, {"action": "pray"}, {"floor": -1}]
)
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SpikeGuard(**bad)


def test_several_micro_batches_are_weighed():
    from rekindle.callbacks.spike_guard import _Pair

    pair = _Pair([(torch.tensor(1.0), 3), (torch.tensor(3.0), 1)], torch.device("cpu"))
    assert pair.value().tolist() == [6.0, 4.0]


class Timeline(Callback):
    """The weights after each step that counts, those of steps that were undone overwritten."""

    def __init__(self):
        self.weights = {}

    def on_fit_start(self, trainer, pl_module):
        self.weights[0] = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]


@pytest.fixture
def jumpy(net, data):
    """Its loss jumps when a batch holds sample 3."""

    class Jumpy(net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            jumps = bool((batch[0] == data[0].tensors[0][3]).all(1).any())
            return loss * 1000 if jumps else loss

    return Jumpy


@pytest.mark.parametrize(("every", "back"), [(1, (5, 9)), (4, (4, 8))])
def test_a_spike_is_undone_and_its_samples_are_left_out(fit, jumpy, capsys, every, back):
    timeline, ema, found = Timeline(), EMA(0.5), guard()
    tools = [found, timeline, ema, BackboneFinetuning(1)]
    flags = {"checkpoint_every": Every(steps=every), "shuffle": False}
    trainer = fit(*tools, model=jumpy, keep_latest=9, **flags)
    # Sample 3 is in the first step of each epoch. The first time is warm-up, then it is seen.
    said = capsys.readouterr().out
    assert "is a spike, the median of 5 steps is" in said
    for number, step in enumerate(back, 1):
        assert f"rolled back to {step} and skipped that window ({number} of 3 allowed)" in said
    assert trainer.global_step == 13
    assert [(w.epoch, w.start, w.stop) for w in trainer._run.skipped] == [(1, 0, 4), (2, 0, 4)]
    assert found.spikes == []
    # What is averaged are the weights of the timeline that counts.
    expected = timeline.weights[0]
    for step in range(1, 14):
        now = timeline.weights[step]
        expected = [0.5 * e + 0.5 * w for e, w in zip(expected, now, strict=True)]
    for shadow, mean in zip(ema.shadow.values(), expected, strict=True):
        assert torch.allclose(shadow, mean, atol=1e-6)
    assert len(trainer.optimizers[0].param_groups) == 2


class Stopping(Callback):
    """Ends training in the middle of an epoch, each time it comes to step 8."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= 8:
            trainer.should_stop = True


@pytest.mark.parametrize(
    ("spike", "ends", "steps"),
    [
        (4, {"max_epochs": 2}, 9),
        (2, {"max_steps": 8}, 8),
        (1, {"max_steps": 8}, 8),
        (2, {"max_samples": 32}, 7),
        (2, {}, 8),
    ],
)
def test_a_spike_in_the_last_steps_is_undone_as_well(fit, net, data, spike, ends, steps):
    class Late(net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 1000 if batch_idx == spike and self.trainer.current_epoch == 1 else loss

    flags = {"checkpoint_every": Every(steps=2), "shuffle": False, **ends}
    callbacks = [guard()] if ends else [guard(), Stopping()]
    trainer = fit(*callbacks, model=Late, **flags)
    assert trainer.global_step == steps
    left_out = (1, 4 * spike, 4 * spike + 4)
    assert [(w.epoch, w.start, w.stop) for w in trainer._run.skipped] == [left_out]


def test_detection_goes_on_over_a_resume_as_without_one(fit, net, tmp_path):
    """The losses that a jump is measured by are in the checkpoint."""
    from rekindle.callbacks.spike_detection import SpikeDetection, TrainingSpikeException

    class Jumps(net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 1000 if self.trainer.global_step == 11 else loss

    def detection(root):
        return SpikeDetection(window=4, exclude_batches_path=tmp_path / root, rtol=1.0)

    whole, again = detection("whole"), detection("cut")
    with pytest.raises(TrainingSpikeException, match="in batch 1"):
        fit(whole, model=Jumps, root="whole")
    fit(detection("cut"), model=Jumps, root="cut", stop=8)
    with pytest.raises(TrainingSpikeException, match="in batch 1"):
        fit(again, model=Jumps, root="cut")
    assert whole.bad_batches == [0, 1]
    assert (again.bad_batches, list(again._recent)) == (whole.bad_batches, list(whole._recent))
    assert (tmp_path / "cut/skip_batches.json").exists()
