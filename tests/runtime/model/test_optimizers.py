import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from rekindle import Module, RequirementError
from rekindle.model.optimizers import OptimizerConfig, SchedulerSpec, configure, restore, state


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


def falling(net):
    return ReduceLROnPlateau(adam(net))


def one_cycle(net):
    optimizer = adam(net)
    return [optimizer], [OneCycleLR(optimizer, 0.1, total_steps=9)]


def scheduled_by(net, scheduler):
    return {"optimizer": adam(net), "lr_scheduler": scheduler}


class Warmup:
    """A scheduler that is none of torch's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def configured(net, **spec):
    optimizer = adam(net)
    scheduler = SchedulerSpec(scheduler=StepLR(optimizer, 1), **spec)
    return OptimizerConfig(optimizer=optimizer, schedulers=[scheduler])


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
        (lambda net: (pair(net)[0], []), []),
        (lambda net: [scheduled(net)], [("epoch", 1, None)]),
        (lambda net: configured(net, interval="step"), [("step", 1, None)]),
        (lambda net: scheduled(net, reduce_on_plateau=False, name="lr"), [("epoch", 1, None)]),
    ],
)
def test_every_form_is_understood(form, schedulers):
    found = configure(Net(form))
    assert [type(optimizer) for optimizer in found.optimizers] == [AdamW]
    assert [(s.interval, s.frequency, s.monitor) for s in found.schedulers] == schedulers


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda net: [], "returned list without an optimizer"),
        (lambda net: [adam(net), adam(net)], "returned 2 optimizers"),
        (lambda net: {"lr_scheduler": 1}, "returned a mapping with keys"),
        (lambda net: scheduled_by(net, {}), "mapping without 'scheduler'"),
        (lambda net: scheduled_by(net, Warmup(None)), "override lr_scheduler_step.* in Net"),
        (lambda net: scheduled(net, reduce_on_plateau=True), "StepLR steps on a metric and needs"),
        (
            lambda net: scheduled_by(net, {"scheduler": falling(net), "reduce_on_plateau": False}),
            "would be stepped without a metric",
        ),
        (lambda net: scheduled(net, interval="batch"), "interval='batch'"),
        (lambda net: scheduled(net, frequency=0), "frequency=0"),
        (
            lambda net: {"optimizer": adam(net), "lr_scheduler": 3},
            "it has no state_dict, load_state",
        ),
        (lambda net: AdamW(torch.nn.Linear(1, 1).parameters()), "not in the module"),
        (lambda net: ([adam(net)], [StepLR(adam(net), 1)]), "optimizer that was not returned"),
        (lambda net: scheduled(net, on_missing="stop"), "on_missing='stop'"),
    ],
)
def test_a_wrong_form_is_named(form, message):
    with pytest.raises((TypeError, ValueError), match=message):
        configure(Net(form))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda net: None, "returned None: training runs without an optimizer"),
        (lambda net: scheduled(net, every=1), "lr_scheduler is a mapping with the keys 'every'"),
        (lambda net: {"optimizer": adam(net), "extra": 1}, "returned a mapping with the keys 'ex"),
        (
            one_cycle,
            "OneCycleLR steps by epochs",
        ),
    ],
)
def test_what_is_probably_a_mistake_is_warned_of(form, message):
    with pytest.warns(Warning, match=message):
        found = configure(Net(form))
    assert len(found.optimizers) == 1


def test_a_scheduler_says_whether_it_steps_on_a_metric():
    (plain,) = configure(Net(lambda net: scheduled(net, strict=False))).schedulers
    (on_metric,) = configure(Net(plateau)).schedulers
    (told,) = configure(
        Net(lambda net: scheduled(net, reduce_on_plateau=True, monitor="v"))
    ).schedulers
    assert [one.reduce_on_plateau for one in (plain, on_metric, told)] == [False, True, True]
    assert [one.strict for one in (plain, on_metric, told)] == [False, True, True]


def test_a_scheduler_of_a_module_that_updates_itself_needs_no_metric():
    def form(net):
        optimizer = adam(net)
        return [optimizer], [ReduceLROnPlateau(optimizer), Warmup(optimizer)]

    assert len(configure(manual(form)).schedulers) == 2


def manual(form):
    net = Net(form)
    net.automatic_optimization = False
    return net


@pytest.mark.parametrize(
    ("form", "optimizers", "schedulers"),
    [
        (lambda net: None, 0, 0),
        (lambda net: [adam(net), adam(net)], 2, 0),
        (lambda net: (adam(net), adam(net)), 2, 0),
        (lambda net: [scheduled(net), {"optimizer": adam(net)}], 2, 1),
        (lambda net: [configured(net), configured(net)], 2, 2),
        (lambda net: torch.optim.LBFGS(net.parameters()), 1, 0),
    ],
)
def test_a_module_that_updates_itself_has_any_number_of_optimizers(form, optimizers, schedulers):
    found = configure(manual(form))
    assert (len(found.optimizers), len(found.schedulers)) == (optimizers, schedulers)


@pytest.mark.parametrize(
    ("on_missing", "expected"),
    [("error", KeyError), ("warn", UserWarning), ("skip", None)],
)
def test_a_metric_that_a_scheduler_misses_is_an_error_unless_it_says_otherwise(
    on_missing, expected
):
    scheduler = ReduceLROnPlateau(AdamW([torch.nn.Parameter(torch.ones(1))]))
    spec = SchedulerSpec(scheduler=scheduler, monitor="val/loss", on_missing=on_missing)
    spec.step(1, {"val/loss": 1.0})
    if expected is KeyError:
        with pytest.raises(KeyError, match="which was not logged; known are val/f1"):
            spec.step(2, {"val/f1": 1.0})
    elif expected is UserWarning:
        with pytest.warns(UserWarning, match="the scheduler was not stepped"):
            spec.step(2, {"val/f1": 1.0})
    else:
        spec.step(2, {"val/f1": 1.0})
    assert scheduler.last_epoch == 1


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
