"""The learning rate is that of a loop by hand, over a stop as well."""

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

DATA = TensorDataset(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
LOSSES = (3.0, 2.0, 2.0, 2.0, 1.9, 1.0, 1.0, 1.0)
"""What validation sees after each epoch; a schedule on a plateau answers to it."""


class Net(rk.Module):
    def __init__(self, make, **spec):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.make, self.spec = make, spec
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", LOSSES[self.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        spec = rk.SchedulerSpec(scheduler=self.make(optimizer), **self.spec)
        return rk.OptimizerConfig(optimizer=optimizer, schedulers=[spec])


def warm(optimizer):
    parts = [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, T_max=30)]
    return SequentialLR(optimizer, parts, milestones=[4])


# In torch 2.6, SequentialLR steps its parts in a way that they warn of.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (lambda o: CosineAnnealingLR(o, T_max=8), {}),
        (lambda o: OneCycleLR(o, 0.5, total_steps=41), {"interval": "step"}),
        (warm, {"interval": "step", "frequency": 3}),
        (lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0), {"monitor": "loss"}),
        (
            lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1),
            {"monitor": "loss", "frequency": 2},
        ),
    ],
)
def test_the_rates_of_a_stopped_run_are_those_of_a_loop_by_hand(tmp_path, make, spec):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, expected = make(optimizer), []
    every = spec.get("frequency", 1)
    for epoch in range(8):
        for step in range(5 * epoch + 1, 5 * epoch + 6):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if spec.get("interval") == "step" and (step - 5 * epoch) % every == 0:
                scheduler.step()
        if "interval" not in spec and (epoch + 1) % every == 0:
            scheduler.step(*[LOSSES[epoch]] * ("monitor" in spec))
    seen = []
    for steps in (13, 40):
        net = Net(make, **spec)
        trainer = rk.Trainer(
            max_steps=steps, root=tmp_path, enable_progress_bar=False, num_sanity_val_steps=0
        )
        trainer.fit(net, DataLoader(DATA, 4), DataLoader(DATA, 20))
        seen += net.rates
    assert seen == expected


class Halving:
    """A scheduler that is none of torch's."""

    def __init__(self, optimizer):
        self.optimizer, self.rate = optimizer, 0.1

    def halve(self):
        self.rate /= 2
        self.optimizer.param_groups[0]["lr"] = self.rate

    def state_dict(self):
        return {"rate": self.rate}

    def load_state_dict(self, state):
        self.rate = state["rate"]


class Own(Net):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.halve()


def runs(root, make, stops):
    for steps in stops:
        net = make()
        trainer = rk.Trainer(
            max_steps=steps, root=root, enable_progress_bar=False, num_sanity_val_steps=0
        )
        trainer.fit(net, DataLoader(DATA, 4))
        yield net, trainer


def test_a_scheduler_that_is_none_of_torchs_goes_on_where_it_was(tmp_path):
    ran = runs(tmp_path, lambda: Own(Halving, interval="step", frequency=2), (7, 11))
    seen = [rate for net, _ in ran for rate in net.rates]
    # Five steps an epoch, so it is due after the second and the fourth of each.
    assert seen == [0.1 / 2**n for n in (0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4)]


@pytest.mark.filterwarnings("ignore:.*returned None:UserWarning")
def test_a_run_without_an_optimizer_counts_steps_over_a_stop(tmp_path):
    class Still(Net):
        def __init__(self):
            super().__init__(None)
            torch.nn.init.ones_(self.layer.weight)
            self.seen = []

        def on_after_backward(self):
            self.seen.append(self.layer.weight.grad.clone())

        def configure_optimizers(self):
            return None

    (first, _), (second, trainer) = runs(tmp_path, Still, (7, 12))
    assert (len(first.seen), len(second.seen), trainer.global_step) == (7, 5, 12)
    assert torch.equal(second.layer.weight, torch.ones(1, 3))
    assert all(gradient.any() for gradient in second.seen)
