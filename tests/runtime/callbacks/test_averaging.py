import pytest
import torch
from torch import nn

from rekindle import Callback
from rekindle.callbacks import EMA, SWA

pytestmark = pytest.mark.processes


class Weights(Callback):
    """Copies of all weights after each step, and those that a validation sees."""

    def __init__(self):
        self.steps, self.seen = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append([p.detach().clone() for p in pl_module.parameters()])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen = [p.detach().clone() for p in pl_module.parameters()]


def close(ours, theirs):
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_average_is_that_of_the_formula_and_validation_sees_it(fit):
    ema, weights = EMA(decay=0.5, start_step=2), Weights()
    trainer = fit(ema, weights, max_epochs=1)
    expected = weights.steps[1]
    for step in weights.steps[2:]:
        expected = [0.5 * e + 0.5 * w for e, w in zip(expected, step, strict=True)]
    assert close(ema.shadow.values(), expected)
    assert equal(weights.seen, ema.shadow.values())
    assert equal(trainer.model.parameters(), weights.steps[-1])
    with ema.averaged(trainer.model):
        assert close(trainer.model.parameters(), expected)
    assert equal(trainer.model.parameters(), weights.steps[-1])


@pytest.mark.parametrize("stop", [2, 7])
def test_the_average_resumes_bit_equal(fit, same, stop):
    whole, ema = EMA(0.9, warmup=True, every=2), EMA(0.9, warmup=True, every=2)
    expected = fit(whole, root="whole")
    fit(EMA(0.9, warmup=True, every=2), stop=stop)
    trainer = fit(ema)
    assert same(trainer, expected)
    assert ema.updates == whole.updates == 7
    assert equal(ema.shadow.values(), whole.shadow.values())


def test_a_validation_cut_short_saves_the_weights_of_training(fit, same):
    class Cut(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                trainer._run.notice._flag = True

    expected = fit(EMA(0.9), root="whole")
    from rekindle import Preempted

    with pytest.raises(Preempted):
        fit(EMA(0.9), Cut())
    assert same(fit(EMA(0.9)), expected)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_swa_ends_with_the_mean_of_what_its_epochs_begin_with_and_moves_the_rate(fit, strategy):
    rates, weights = [], Weights()

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    swa = SWA(0.01, swa_epoch_start=2, annealing_epochs=2, annealing_strategy=strategy)
    trainer = fit(swa, Rates(), weights, max_epochs=4)
    ends = [weights.steps[i] for i in (4, 9, 14)]
    expected = [sum(parts) / 3 for parts in zip(*ends, strict=True)]
    assert close(trainer.model.parameters(), expected)
    assert rates[4::5] == pytest.approx([0.05, 0.05, 0.03, 0.01])


@pytest.mark.parametrize("stop", [7, 12])
def test_swa_resumes_bit_equal_with_statistics_of_its_own(fit, net, same, stop):
    class Normed(net):
        def __init__(self):
            super().__init__(dropout=0.2)
            self.head.insert(1, nn.BatchNorm1d(8))

    def swa():
        return SWA([0.01], swa_epoch_start=0.34, annealing_epochs=2)

    expected = fit(swa(), model=Normed, root="whole")
    fit(swa(), model=Normed, stop=stop)
    trainer = fit(swa(), model=Normed)
    assert same(trainer, expected)
    norm = trainer.model.head[1]
    assert norm.num_batches_tracked == 5
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(decay=1.0), "EMA"),
        (lambda: EMA(every=0), "EMA"),
        (lambda: SWA(0), "positive learning rates"),
        (lambda: SWA(0.1, swa_epoch_start=1.5), "a share is between"),
        (lambda: SWA(0.1, annealing_strategy="exp"), "'cos' and 'linear'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_swa_says_what_it_needs_before_the_first_step(fit):
    with pytest.raises(ValueError, match="give the number of the first epoch"):
        fit(SWA(0.1), max_epochs=None, max_steps=3)
    with pytest.raises(ValueError, match="has 2 learning rates, the optimizer has 1"):
        fit(SWA([0.1, 0.2]), root="b")


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_an_averaged_model_resumes_exactly(fit, same, stop):
    from rekindle.callbacks import EMAWeightAveraging

    whole = fit(EMAWeightAveraging(decay=0.7), root="whole")
    fit(EMAWeightAveraging(decay=0.7), stop=stop)
    assert same(whole, fit(EMAWeightAveraging(decay=0.7)))
    assert not same(whole, fit(root="other"))
