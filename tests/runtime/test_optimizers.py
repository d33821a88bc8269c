import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from rekindle import Module, RequirementError
from rekindle.optimizers import configure, restore, state


class Net(Module):
    def __init__(self, form, extra=False):
        super().__init__()
        self.first = torch.nn.Linear(2, 3)
        self.second = torch.nn.Linear(3, 1)
        if extra:
            self.third = torch.nn.Linear(1, 1)
        self.form = form

    def configure_optimizers(self):
        return self.form(self)


def adam(net):
    return AdamW(net.parameters(), lr=0.1)


def scheduled(net, **spec):
    optimizer = adam(net)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), **spec}}


def plateau(net):
    optimizer = adam(net)
    return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "v"}


def pair(net):
    optimizer = adam(net)
    return [optimizer], [StepLR(optimizer, 1), {"scheduler": StepLR(optimizer, 2)}]


@pytest.mark.parametrize(
    ("form", "schedulers"),
    [
        (adam, []),
        (lambda net: [adam(net)], []),
        (lambda net: {"optimizer": adam(net)}, []),
        (scheduled, [("epoch", 1, None)]),
        (lambda net: scheduled(net, interval="step", frequency=3), [("step", 3, None)]),
        (plateau, [("epoch", 1, "v")]),
        (pair, [("epoch", 1, None), ("epoch", 1, None)]),
    ],
)
def test_every_form_is_understood(form, schedulers):
    found = configure(Net(form))
    assert isinstance(found.optimizer, AdamW)
    assert [(s.interval, s.frequency, s.monitor) for s in found.schedulers] == schedulers


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda net: None, "returned NoneType"),
        (lambda net: [adam(net), adam(net)], "returned 2 optimizers"),
        (lambda net: {"lr_scheduler": 1}, "returned a mapping with keys"),
        (lambda net: scheduled(net, every=1), "lr_scheduler has keys"),
        (lambda net: scheduled(net, interval="batch"), "interval='batch'"),
        (lambda net: scheduled(net, frequency=0), "frequency=0"),
        (lambda net: {"optimizer": adam(net), "lr_scheduler": 3}, "int is not an lr scheduler"),
        (lambda net: AdamW(torch.nn.Linear(1, 1).parameters()), "not in the module"),
    ],
)
def test_a_wrong_form_is_named(form, message):
    with pytest.raises((TypeError, ValueError), match=message):
        configure(Net(form))


def test_manual_optimization_is_refused():
    net = Net(adam)
    net.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic_optimization is False"):
        configure(net)


def trained(net):
    optimizer = net.configure_optimizers()
    for parameter in net.first.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_state_is_kept_by_name_and_comes_back():
    net = Net(adam)
    saved = state(trained(net), net)
    assert sorted(saved["state"]) == ["first.bias", "first.weight"]
    fresh = net.configure_optimizers()
    restore(fresh, net, saved, step=5)
    again = state(fresh, net)
    assert again["groups"] == saved["groups"]
    assert torch.equal(
        again["state"]["first.weight"]["exp_avg"], saved["state"]["first.weight"]["exp_avg"]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Net(lambda net: SGD(net.parameters(), 0.1)), "was trained with AdamW, the script has SGD"),
        (Net(adam, extra=True), "parameter groups have changed"),
    ],
)
def test_another_program_is_refused(other, message):
    net = Net(adam)
    with pytest.raises(RequirementError, match=f"R11 checkpoint step 5.*{message}"):
        restore(other.configure_optimizers(), other, state(trained(net), net), step=5)
