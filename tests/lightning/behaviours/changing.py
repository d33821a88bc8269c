"""Callbacks that change training: averages, finetuning, accumulation, time, finders."""

import contextlib
import importlib
import io
from datetime import timedelta

import torch
from small import QUIET, loader, regression, weights


def _fit(pl, folder, callbacks, model, count=8, val=None, **flags):
    flags = {**QUIET, "max_epochs": 4, "callbacks": callbacks, **flags}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(model, loader(count), val)
    return trainer


class _Rates:
    """Makes a callback that notes the rates of each epoch and step."""

    def __new__(cls, pl):
        seen = []

        class Notes(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                for optimizer in trainer.optimizers:
                    seen.append([round(group["lr"], 9) for group in optimizer.param_groups])

        callback = Notes()
        callback.seen = seen
        return callback


def _norm(pl, schedule=True):
    """A class with BatchNorm, momentum and a schedule."""

    class Norm(regression(pl)):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

        def forward(self, x):
            return self.layer(self.backbone(x))

        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
            if not schedule:
                return optimizer
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    return Norm


def swa_averages_the_weights(pl, folder):
    """`StochasticWeightAveraging`: rates while it averages, weights and statistics at the end."""
    found = []
    for options in (
        {"swa_lrs": 0.05, "swa_epoch_start": 1},
        {"swa_lrs": 0.05, "swa_epoch_start": 0.5, "annealing_epochs": 2},
        {"swa_lrs": [0.01], "swa_epoch_start": 2, "annealing_strategy": "linear"},
        {"swa_lrs": 0.05, "swa_epoch_start": 1, "annealing_epochs": 0},
    ):
        for schedule in (False, True):
            model, notes = _norm(pl, schedule)(), _Rates(pl)
            callback = pl.callbacks.StochasticWeightAveraging(**options)
            place = folder / str(len(found))
            trainer = _fit(pl, place, [callback, notes], model, val=loader(4))
            statistics = [buffer.tolist() for buffer in model.buffers()]
            # Lightning counts the pass for the statistics as an epoch of one step.
            assert trainer.global_step in (16, 17)
            found.append((notes.seen[:16], weights(model), statistics))
    return found


def swa_takes_a_function(pl, folder):
    """`avg_fn` makes the new average of the old one, the weights and their number."""
    calls = []

    def last(average, weight, count):
        calls.append(int(count))
        return weight

    callback = pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1, avg_fn=last)
    model = regression(pl)()
    _fit(pl, folder, [callback], model)
    return sorted(set(calls)), weights(model)


def a_backbone_is_unfrozen(pl, folder):
    """`BackboneFinetuning`: rates of head and backbone by epoch, and the weights they give."""
    found = []
    for options in (
        {"unfreeze_backbone_at_epoch": 1},
        {"unfreeze_backbone_at_epoch": 1, "backbone_initial_lr": 0.01, "train_bn": False},
        {"unfreeze_backbone_at_epoch": 1, "should_align": False, "lambda_func": lambda e: 5.0},
        {"unfreeze_backbone_at_epoch": 1, "initial_denom_lr": 2.0, "rounding": 3},
        {"unfreeze_backbone_at_epoch": 2, "backbone_initial_ratio_lr": 0.5},
    ):
        model, notes = _norm(pl, schedule=False)(), _Rates(pl)
        callback = pl.callbacks.BackboneFinetuning(**options)
        _fit(pl, folder / str(len(found)), [callback, notes], model)
        found.append((notes.seen[::4], weights(model), callback.previous_backbone_lr))
    return found


def a_backbone_needs_its_name(pl, folder):
    """Without a `backbone` fit is an error; the callback is a `BaseFinetuning`."""
    refused = False
    callback = pl.callbacks.BackboneFinetuning(verbose=True)
    try:
        _fit(pl, folder, [callback], regression(pl)())
    except Exception as error:
        refused = "backbone" in str(error)
    model = _norm(pl)()
    callback.freeze(model.backbone)
    trained = len(list(callback.filter_params(model.backbone)))
    return refused, isinstance(callback, pl.callbacks.BaseFinetuning), trained


def accumulation_can_be_asked_for(pl, folder):
    """`GradientAccumulationScheduler` tells what it will do, and refuses the flag beside it."""
    made = pl.callbacks.GradientAccumulationScheduler({2: 4, 4: 1})
    try:
        again = pl.callbacks.GradientAccumulationScheduler({0: 2})
        _fit(pl, folder, [again], regression(pl)(), accumulate_grad_batches=2)
    except ValueError:
        refused = True
    return (
        [made.get_accumulate_grad_batches(epoch) for epoch in range(6)],
        made.going_to_accumulate_grad_batches(),
        pl.callbacks.GradientAccumulationScheduler({0: 1}).going_to_accumulate_grad_batches(),
        made.scheduling,
        refused,
    )


def a_timer_takes_stages_and_intervals(pl, folder):
    """`Timer` takes enumerations, ends training at the end of an epoch, and has a state."""
    states = importlib.import_module(pl.__name__ + ".trainer.states")
    timers = importlib.import_module(pl.__name__ + ".callbacks.timer")
    stage = states.RunningStage
    timer = pl.callbacks.Timer(timedelta(microseconds=1), interval=timers.Interval.epoch)
    model = regression(pl)()
    trainer = _fit(pl, folder, [timer], model, val=loader(4))
    trainer.test(model, loader(4), verbose=False)
    keys = sorted(timer.state_dict()), sorted(timer.state_dict()["time_elapsed"])
    again = pl.callbacks.Timer()
    again.load_state_dict({"time_elapsed": {"train": 7.0, "validate": 1.0}})
    return (
        trainer.current_epoch,
        timer.start_time(stage.TRAINING) < timer.end_time(stage.TRAINING),
        timer.time_elapsed(stage.TESTING) > 0,
        timer.time_elapsed(stage.VALIDATING) > 0,
        timer.start_time("sanity_check"),
        timer.time_remaining(stage.TRAINING) <= 0,
        pl.callbacks.Timer().time_remaining(),
        keys,
        7 <= again.time_elapsed(stage.TRAINING) < 8,
        pl.callbacks.Timer("00:12:00:00").time_remaining(),
        pl.callbacks.Timer({"hours": 2}).time_remaining(),
    )


def a_stage_that_a_timer_does_not_know(pl, folder):
    """A stage that there is not is an error."""
    try:
        pl.callbacks.Timer().time_elapsed("nothing")
    except ValueError:
        return "ValueError"


def _sized(pl):
    """A module with loaders of its own, of a size and a rate that can be found."""

    class Sized(regression(pl)):
        def __init__(self, batch_size=2, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.batch_size, self.lr = batch_size, lr

        def train_dataloader(self):
            return loader(64, batch_size=self.batch_size)

        def val_dataloader(self):
            return loader(4)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    return Sized


def a_size_is_found(pl, folder):
    """`BatchSizeFinder` doubles the size up to the data's, or to `max_val`."""
    found = []
    for options in (
        {"mode": "power", "steps_per_trial": 1, "max_trials": 3},
        {"mode": "binsearch", "steps_per_trial": 1, "max_trials": 3, "init_val": 4},
        {"steps_per_trial": 1, "max_val": 8},
        {"steps_per_trial": 1, "max_trials": 2, "margin": 0.2},
    ):
        callback, model = pl.callbacks.BatchSizeFinder(**options), _sized(pl)()
        with contextlib.redirect_stdout(io.StringIO()):
            flags = {**QUIET, "max_epochs": 1, "callbacks": [callback]}
            trainer = pl.Trainer(default_root_dir=folder / str(len(found)), **flags)
            trainer.fit(model)
        found.append((callback.optimal_batch_size, model.batch_size, trainer.global_step))
    return found, sorted(pl.callbacks.BatchSizeFinder.SUPPORTED_MODES)


def a_rate_is_found(pl, folder):
    """`LearningRateFinder` makes a range test and trains with what it suggests."""
    found = []
    for options in (
        {"num_training_steps": 40},
        {"num_training_steps": 40, "min_lr": 1e-4, "max_lr": 10.0},
        {"num_training_steps": 40, "mode": "linear", "max_lr": 0.5},
        {"num_training_steps": 40, "update_attr": False},
        {"num_training_steps": 40, "early_stop_threshold": None, "max_lr": 5.0},
    ):
        callback, model = pl.callbacks.LearningRateFinder(**options), _sized(pl)()
        with contextlib.redirect_stdout(io.StringIO()):
            flags = {**QUIET, "max_epochs": 1, "callbacks": [callback]}
            trainer = pl.Trainer(default_root_dir=folder / str(len(found)), **flags)
            trainer.fit(model)
        curve = callback.optimal_lr
        found.append(
            (len(curve.results["lr"]), curve.results["lr"][-1], curve.results["loss"],
             curve.suggestion(), model.lr)
        )  # fmt: skip
    return found, sorted(pl.callbacks.LearningRateFinder.SUPPORTED_MODES)


def a_finder_may_be_called_in_hooks(pl, folder):
    """A class derived from `LearningRateFinder` may find a rate at epochs of its choice."""
    epochs = []

    class Again(pl.callbacks.LearningRateFinder):
        def __init__(self, milestones, **options):
            super().__init__(**options)
            self.milestones = milestones

        def on_fit_start(self, *args, **kwargs):
            return

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
                self.lr_find(trainer, pl_module)
                epochs.append((trainer.current_epoch, pl_module.lr != 0.1))

    model = _sized(pl)()
    with contextlib.redirect_stdout(io.StringIO()):
        flags = {**QUIET, "max_epochs": 2, "callbacks": [Again([1], num_training_steps=30)]}
        trainer = pl.Trainer(default_root_dir=folder, **flags)
        trainer.fit(model)
    return epochs, trainer.global_step


def a_callback_logs_by_itself(pl, folder):
    """A callback may call `self.log` and `self.log_dict`."""

    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.log("mine", float(batch_idx), on_step=False, on_epoch=True)

        def on_validation_epoch_end(self, trainer, module):
            self.log_dict({"a": 1.0, "b": 2.0})

    trainer = _fit(pl, folder, [Logs()], regression(pl)(), val=loader(4), max_epochs=1)
    return {name: trainer.callback_metrics[name] for name in ("mine", "a", "b")}


def a_model_is_pruned(pl, folder):
    """`ModelPruning` prunes parameters at the end of epochs."""
    callback = pl.callbacks.ModelPruning("l1_unstructured", amount=0.5)
    model = _norm(pl)()
    _fit(pl, folder, [callback], model, max_epochs=1)
    return sum(int((p == 0).sum()) for p in model.parameters()) > 0


REFUSED = {"a_model_is_pruned": r"ModelPruning is not supported: .*torch\.nn\.utils\.prune"}
