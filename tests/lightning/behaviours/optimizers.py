"""What `configure_optimizers` may return, and what becomes of it."""

import warnings

import torch
from small import QUIET, loader, regression, weights
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR


class _Halving:
    """A scheduler that is none of torch's."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0

    def advance(self, by):
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= by

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def _fitted(pl, form, base=None, validating=False, **flags):
    """Train two epochs with what `form(optimizer)` makes; rates of steps, and who was warned."""

    class Net(base or regression(pl)):
        def on_train_start(self):
            self.rates = []

        def on_train_batch_start(self, batch, batch_idx):
            found = self.trainer.optimizers
            self.rates.append(round(found[0].param_groups[0]["lr"], 8))

        def configure_optimizers(self):
            return form(torch.optim.SGD(self.parameters(), lr=0.1))

    net, trainer = Net(), pl.Trainer(**{**QUIET, "max_epochs": 2, **flags})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(net, loader(), loader() if validating else None)
    told = " ".join(str(each.message) for each in seen)
    return net, trainer, told


def _rates(pl, form, **options):
    net, _, _ = _fitted(pl, form, **options)
    return net.rates, weights(net)


def _fails(call):
    try:
        call()
    except Exception:
        return True
    return False


def no_optimizer(pl, folder):
    """None: a warning, gradients are computed, steps are counted, and nothing changes."""
    seen = []

    class Net(regression(pl)):
        def configure_optimizers(self):
            return None

        def on_after_backward(self):
            seen.append(self.layer.weight.grad is not None)

    net = Net()
    before = weights(net)
    trainer = pl.Trainer(**QUIET, max_epochs=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(net, loader())
    warned = any("None" in str(each.message) for each in told)
    return warned, weights(net) == before, trainer.global_step, seen, len(trainer.optimizers)


def alone(pl, folder):
    """An optimizer."""
    return _rates(pl, lambda o: o)


def in_a_list(pl, folder):
    """A list with one optimizer."""
    return _rates(pl, lambda o: [o])


def in_a_tuple(pl, folder):
    """A tuple with one optimizer."""
    return _rates(pl, lambda o: (o,))


def two_lists(pl, folder):
    """A list of optimizers and one of schedulers."""
    return _rates(pl, lambda o: ([o], [StepLR(o, 1, 0.5)]))


def a_list_and_a_scheduler(pl, folder):
    """A list of optimizers and one scheduler without a list."""
    return _rates(pl, lambda o: ([o], StepLR(o, 1, 0.5)))


def two_schedulers_of_one_optimizer(pl, folder):
    """Both step."""
    each = {"interval": "step"}
    return _rates(
        pl,
        lambda o: ([o], [StepLR(o, 1, 0.5), {"scheduler": ExponentialLR(o, 0.9), **each}]),
    )


def mapping_with_a_scheduler(pl, folder):
    """A dictionary of an optimizer and a scheduler."""
    return _rates(pl, lambda o: {"optimizer": o, "lr_scheduler": StepLR(o, 1, 0.5)})


def list_of_mappings(pl, folder):
    """A list of one dictionary."""
    return _rates(pl, lambda o: [{"optimizer": o, "lr_scheduler": StepLR(o, 1, 0.5)}])


def tuple_of_mappings(pl, folder):
    """A tuple of one dictionary, whose scheduler has a cadence."""
    spec = {"interval": "step", "frequency": 2}
    return _rates(
        pl,
        lambda o: ({"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1, 0.5), **spec}},),
    )


def several_optimizers(pl, folder):
    """With automatic optimization there is one."""
    return _fails(lambda: _fitted(pl, lambda o: [o, torch.optim.SGD(o.param_groups, lr=0.1)]))


def nonsense(pl, folder):
    """Neither an optimizer nor anything with one."""
    return [
        _fails(lambda r=r: _fitted(pl, lambda o: r)) for r in (3, "sgd", {"lr_scheduler": None})
    ]


def unknown_key_beside_the_optimizer(pl, folder):
    """It is ignored with a warning."""
    net, _, told = _fitted(pl, lambda o: {"optimizer": o, "weight": 1})
    return net.rates, "'weight'" in told


def unknown_key_of_a_scheduler(pl, folder):
    """It is ignored with a warning."""
    net, _, told = _fitted(
        pl,
        lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1, 0.5), "every": 3}},
    )
    return net.rates, "'every'" in told


def mapping_without_a_scheduler(pl, folder):
    """A scheduler's dictionary needs 'scheduler'."""
    return _fails(lambda: _fitted(pl, lambda o: {"optimizer": o, "lr_scheduler": {"frequency": 1}}))


def unknown_interval(pl, folder):
    """'epoch' or 'step'."""
    spec = {"interval": "batch"}
    return _fails(
        lambda: _fitted(
            pl, lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1), **spec}}
        )
    )


def plateau_with_monitor_beside(pl, folder):
    """A scheduler on a plateau and the metric beside it."""
    return _rates(
        pl,
        lambda o: {
            "optimizer": o,
            "lr_scheduler": ReduceLROnPlateau(o, mode="max", patience=0),
            "monitor": "val_loss",
        },
        validating=True,
        max_epochs=4,
    )


def plateau_without_monitor(pl, folder):
    """It needs one, in each form."""
    return [
        _fails(lambda form=form: _fitted(pl, form))
        for form in (
            lambda o: ([o], [ReduceLROnPlateau(o)]),
            lambda o: {"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o)},
            lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o)}},
        )
    ]


def plateau_on_a_lost_metric(pl, folder):
    """An error, or with ``strict=False`` a warning."""

    def form(**strict):
        return lambda o: {
            "optimizer": o,
            "lr_scheduler": {"scheduler": ReduceLROnPlateau(o), "monitor": "lost", **strict},
        }

    net, _, told = _fitted(pl, form(strict=False))
    return _fails(lambda: _fitted(pl, form())), net.rates, "lost" in told


def plateau_by_steps(pl, folder):
    """It looks at the metric after steps."""
    return _rates(
        pl,
        lambda o: {
            "optimizer": o,
            "lr_scheduler": {
                "scheduler": ReduceLROnPlateau(o, mode="max", patience=0),
                "monitor": "val_loss",
                "interval": "step",
                "frequency": 2,
            },
        },
        validating=True,
        val_check_interval=2,
    )


def custom_scheduler(pl, folder):
    """Any object with states steps in `lr_scheduler_step`."""

    class Own(regression(pl)):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.advance(0.5)

    return _rates(pl, lambda o: ([o], [_Halving(o)]), base=Own)


def custom_scheduler_without_the_hook(pl, folder):
    """Only the script can say how it steps."""
    return _fails(lambda: _fitted(pl, lambda o: ([o], [_Halving(o)])))


def custom_scheduler_without_states(pl, folder):
    """It could not be resumed."""

    class Bare:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    class Own(regression(pl)):
        def lr_scheduler_step(self, scheduler, metric):
            pass

    return _fails(lambda: _fitted(pl, lambda o: ([o], [Bare(o)]), base=Own))


def custom_scheduler_on_a_metric(pl, folder):
    """``reduce_on_plateau=True``: the hook gets the metric, after the validation."""
    seen = []

    class Own(regression(pl)):
        def lr_scheduler_step(self, scheduler, metric):
            seen.append(round(float(metric), 5))
            scheduler.advance(0.9)

    spec = {"monitor": "val_loss", "reduce_on_plateau": True}
    found = _rates(
        pl,
        lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": _Halving(o), **spec}},
        base=Own,
        validating=True,
    )
    return seen, found


def plateau_by_steps_in_the_hook(pl, folder):
    """A scheduler on a metric by steps goes through `lr_scheduler_step` too."""
    seen = []

    class Own(regression(pl)):
        def lr_scheduler_step(self, scheduler, metric):
            seen.append(round(float(metric), 5))

    spec = {"monitor": "val_loss", "interval": "step", "frequency": 2}
    _fitted(
        pl,
        lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o), **spec}},
        base=Own,
        validating=True,
        val_check_interval=2,
    )
    return seen


def reduce_on_plateau_by_hand(pl, folder):
    """``reduce_on_plateau=False``: torch's scheduler on a plateau misses its metric."""
    spec = {"reduce_on_plateau": False}
    return _fails(
        lambda: _fitted(
            pl,
            lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o), **spec}},
        )
    )


def scheduler_of_another_optimizer(pl, folder):
    """A scheduler belongs to an optimizer that was returned."""
    return _fails(
        lambda: _fitted(
            pl, lambda o: ([o], [StepLR(torch.optim.SGD(o.param_groups[0]["params"], lr=1), 1)])
        )
    )


def one_cycle_by_epochs(pl, folder):
    """It is warned of, and steps by epochs."""
    net, _, told = _fitted(pl, lambda o: ([o], [{"scheduler": OneCycleLR(o, 1.0, total_steps=10)}]))
    return net.rates, "OneCycleLR" in told


def configs_of_the_trainer(pl, folder):
    """`lr_scheduler_configs` has each scheduler's cadence."""
    _, trainer, _ = _fitted(
        pl,
        lambda o: (
            [o],
            [
                StepLR(o, 1),
                {"scheduler": ReduceLROnPlateau(o), "monitor": "loss", "strict": False},
                {"scheduler": StepLR(o, 1), "interval": "step", "frequency": 3, "name": "rate"},
            ],
        ),
    )
    names = ("interval", "frequency", "reduce_on_plateau", "monitor", "strict", "name")
    return [[getattr(one, name) for name in names] for one in trainer.lr_scheduler_configs]


def keys_that_manual_optimization_ignores(pl, folder):
    """A monitor is nothing that manual optimization looks at."""

    class Manual(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            scheduler.step()

    net, _, told = _fitted(
        pl,
        lambda o: {
            "optimizer": o,
            "lr_scheduler": {"scheduler": StepLR(o, 3, 0.5), "monitor": "nothing"},
        },
        base=Manual,
    )
    return net.rates, "'monitor'" in told, weights(net)
