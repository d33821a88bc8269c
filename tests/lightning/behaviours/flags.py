"""What the trainer's flags mean: where training ends, when it validates, how much data it uses."""

import datetime

import torch
from small import QUIET, loader, regression, weights


def _watched(pl, seen, base=None):
    """The small model; `seen` gets a line at each of the loop's places."""

    class Watched(regression(pl, base)):
        def _note(self, place, *more):
            seen.append([place, self.current_epoch, self.global_step, *more])

        def on_train_start(self):
            self._note("start")

        def on_train_epoch_start(self):
            self._note("epoch start")

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self._note("batch", batch_idx)

        def on_validation_start(self):
            self._note("validation")

        def on_train_epoch_end(self):
            self._note("epoch end")

        def on_train_end(self):
            self._note("end")

    return Watched


def _fit(pl, folder, flags, *, callbacks=(), count=8, batch_size=2, validation=True, model=None):
    seen = []
    module = (model or _watched)(pl, seen)() if model is None else model
    trainer = pl.Trainer(**{**QUIET, **flags}, default_root_dir=folder, callbacks=list(callbacks))
    trainer.fit(module, loader(count, batch_size), loader(4) if validation else None)
    return seen, trainer.global_step, trainer.current_epoch, weights(module)


def _error(call, *words):
    """Whether a call is refused, and which words are in what it says."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__ in ("KeyError",), *(word in str(error) for word in words)]
    return "nothing was refused"


def max_steps_within_an_epoch_ends_the_epoch(pl, folder):
    """An epoch that `max_steps` ends early has its end, and is counted."""
    return _fit(pl, folder, {"max_steps": 3})


def max_steps_at_the_end_of_an_epoch(pl, folder):
    """`max_steps` that is a whole number of epochs ends with the epoch's validation."""
    return _fit(pl, folder, {"max_steps": 8})


def max_steps_and_max_epochs_whichever_is_first(pl, folder):
    """With both limits training ends at the first that is reached."""
    return [
        _fit(pl, folder, {"max_steps": 20, "max_epochs": 1}),
        _fit(pl, folder, {"max_steps": 2, "max_epochs": 3}),
    ]


def max_epochs_minus_one_has_no_end(pl, folder):
    """``max_epochs=-1`` trains until something else ends it."""
    return _fit(pl, folder, {"max_epochs": -1, "max_steps": 9})


def max_epochs_zero_trains_nothing(pl, folder):
    """``max_epochs=0`` returns at once."""
    return _fit(pl, folder, {"max_epochs": 0})


def max_steps_zero_trains_nothing(pl, folder):
    """``max_steps=0`` returns at once."""
    return _fit(pl, folder, {"max_steps": 0})


def a_thousand_epochs_without_a_limit(pl, folder):
    """Without any limit there are a thousand epochs."""
    found = []

    class Looks(pl.Callback):
        def on_train_start(self, trainer, module):
            found.append([trainer.max_epochs, trainer.max_steps])

    for flags in ({}, {"max_steps": 1}, {"max_epochs": -1}, {"max_epochs": 3}):
        callbacks = [Looks(), _stopping(pl, 1)]
        trainer = pl.Trainer(default_root_dir=folder, callbacks=callbacks, **flags, **QUIET)
        trainer.fit(regression(pl)(), loader())
    return found


def max_time_ends_training(pl, folder):
    """`max_time` ends training within an epoch once it has passed."""

    class Slow(regression(pl)):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            until = datetime.datetime.now() + datetime.timedelta(milliseconds=60)
            while datetime.datetime.now() < until:
                pass

    trainer = pl.Trainer(
        max_epochs=100, max_time={"milliseconds": 150}, default_root_dir=folder, **QUIET
    )
    trainer.fit(Slow(), loader())
    return trainer.current_epoch, trainer.global_step < 5


def _stopping(pl, at, place="on_train_batch_end"):
    """A callback that wishes a stop once so many steps are done."""

    def wish(self, trainer, *rest):
        if trainer.global_step >= at:
            trainer.should_stop = True

    return type("Stopping", (pl.Callback,), {place: wish})()


def should_stop_in_a_batch_ends_the_epoch(pl, folder):
    """A stop that is wished within an epoch validates, ends the epoch and training."""
    return _fit(pl, folder, {"max_epochs": 4}, callbacks=[_stopping(pl, 6)])


def should_stop_at_the_end_of_an_epoch(pl, folder):
    """A stop that is wished at the end of an epoch ends training there."""
    return _fit(pl, folder, {"max_epochs": 4}, callbacks=[_stopping(pl, 5, "on_train_epoch_end")])


def should_stop_after_a_validation(pl, folder):
    """A stop that is wished in a validation within an epoch ends the epoch after it."""
    flags = {"max_epochs": 4, "val_check_interval": 2}
    return _fit(pl, folder, flags, callbacks=[_stopping(pl, 2, "on_validation_end")])


def should_stop_waits_for_min_epochs(pl, folder):
    """A stop that is wished before `min_epochs` is heeded when they are done."""
    return _fit(pl, folder, {"max_epochs": 5, "min_epochs": 3}, callbacks=[_stopping(pl, 2)])


def should_stop_waits_for_min_steps(pl, folder):
    """A stop that is wished before `min_steps` is heeded at that step, within an epoch."""
    return _fit(pl, folder, {"max_epochs": 5, "min_steps": 6}, callbacks=[_stopping(pl, 2)])


def should_stop_can_be_taken_back(pl, folder):
    """`should_stop` set to False before `min_epochs` are over lets training go on."""

    class Fickle(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch == 0

    return _fit(pl, folder, {"max_epochs": 4, "min_epochs": 2}, callbacks=[Fickle()])


def should_stop_can_be_read(pl, folder):
    """`should_stop` is False until somebody sets it."""
    found = []

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            found.append(trainer.should_stop)
            trainer.should_stop = trainer.global_step >= 3

    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, callbacks=[Reads()], **QUIET)
    trainer.fit(regression(pl)(), loader())
    return found


class _Scripted:
    """Values of a metric, one for each validation."""

    def __init__(self, *values):
        self.values = list(values)

    def model(self, pl):
        values = self.values

        class Says(regression(pl)):
            def on_validation_epoch_end(self):
                self.log("score", values.pop(0) if values else 0.0)

        return Says()


def _early(pl, folder, values, flags, **options):
    stopping = pl.callbacks.EarlyStopping("score", mode="max", **options)
    trainer = pl.Trainer(**QUIET, **flags, default_root_dir=folder, callbacks=[stopping])
    trainer.fit(_Scripted(*values).model(pl), loader(), loader(4))
    return (
        trainer.current_epoch,
        trainer.global_step,
        stopping.wait_count,
        stopping.stopped_epoch,
        float(stopping.best_score),
    )


def patience_runs_out(pl, folder):
    """`EarlyStopping` ends training after `patience` values that are no better."""
    return _early(pl, folder, [1.0, 2.0, 1.5, 1.5, 1.5], {"max_epochs": 6}, patience=2)


def patience_goes_on_counting_before_min_epochs(pl, folder):
    """A stop that patience wished before `min_epochs` comes when they are done."""
    return _early(pl, folder, [2.0] + [1.0] * 8, {"max_epochs": 9, "min_epochs": 5}, patience=2)


def a_metric_that_recovers_before_min_epochs(pl, folder):
    """A metric that gets better again after the stop was wished, before `min_epochs`."""
    return _early(
        pl,
        folder,
        [2.0, 1.0, 1.0, 3.0, 4.0, 5.0, 6.0],
        {"max_epochs": 7, "min_epochs": 5},
        patience=2,
    )


def patience_of_several_validations_in_an_epoch(pl, folder):
    """With `val_check_interval` patience is counted in validations."""
    flags = {"max_epochs": 4, "val_check_interval": 2}
    return _early(pl, folder, [2.0, 1.0, 1.0, 1.0, 1.0], flags, patience=3)


def interval_counts_batches(pl, folder):
    """An integer `val_check_interval` validates after so many batches of the epoch."""
    return _fit(pl, folder, {"max_epochs": 2, "val_check_interval": 2})


def interval_that_does_not_divide_the_epoch(pl, folder):
    """The count of `val_check_interval` begins anew with each epoch."""
    return _fit(pl, folder, {"max_epochs": 2, "val_check_interval": 3})


def interval_as_a_share(pl, folder):
    """A float `val_check_interval` is a share of the epoch's batches."""
    return _fit(pl, folder, {"max_epochs": 1, "val_check_interval": 0.4}, count=12)


def interval_of_one_is_the_end_of_the_epoch(pl, folder):
    """``val_check_interval=1.0`` is the end of the epoch, ``1`` is every batch."""
    return [
        _fit(pl, folder, {"max_epochs": 1, "val_check_interval": 1.0}),
        _fit(pl, folder, {"max_epochs": 1, "val_check_interval": 1}),
    ]


def interval_counts_batches_with_accumulation(pl, folder):
    """With `accumulate_grad_batches` `val_check_interval` still counts batches, not steps."""
    flags = {"max_epochs": 1, "val_check_interval": 4, "accumulate_grad_batches": 2}
    seen, *rest = _fit(pl, folder, flags, count=16)
    return [line[:3] for line in seen if line[0] == "validation"], rest


def interval_as_a_share_with_accumulation(pl, folder):
    """A share of the epoch with `accumulate_grad_batches` is one of batches."""
    flags = {"max_epochs": 2, "val_check_interval": 0.5, "accumulate_grad_batches": 2}
    seen, *rest = _fit(pl, folder, flags, count=16)
    return [line[:3] for line in seen if line[0] == "validation"], rest


def interval_within_an_accumulation(pl, folder):
    """A validation that is due between two steps sees the weights of the step before."""
    flags = {"max_epochs": 2, "val_check_interval": 3, "accumulate_grad_batches": 2}
    seen, *rest = _fit(pl, folder, flags, count=20)
    return [line[:3] for line in seen if line[0] == "validation"], rest


def interval_above_the_epoch_is_refused(pl, folder):
    """More batches than the epoch has are refused, and what to write is said."""
    return _error(
        lambda: _fit(pl, folder, {"max_epochs": 1, "val_check_interval": 5}),
        "val_check_interval",
        "check_val_every_n_epoch=None",
    )


def interval_over_epochs(pl, folder):
    """With ``check_val_every_n_epoch=None`` batches are counted over all epochs."""
    flags = {"max_epochs": 3, "val_check_interval": 5, "check_val_every_n_epoch": None}
    return _fit(pl, folder, flags)


def interval_over_epochs_with_accumulation(pl, folder):
    """Batches are counted over all epochs, with accumulation too."""
    flags = {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}
    seen, *rest = _fit(pl, folder, {**flags, "accumulate_grad_batches": 2}, count=12)
    return [line[:3] for line in seen if line[0] == "validation"], rest


def a_share_over_epochs_is_refused(pl, folder):
    """A float `val_check_interval` with ``check_val_every_n_epoch=None`` is refused."""
    flags = {"val_check_interval": 0.5, "check_val_every_n_epoch": None}
    return _error(lambda: _fit(pl, folder, {"max_epochs": 1, **flags}), "val_check_interval")


def interval_by_the_clock(pl, folder):
    """`val_check_interval` may be a time."""
    flags = {"max_epochs": 1, "val_check_interval": "00:00:10:00"}
    return _fit(pl, folder, flags)


def interval_as_a_timedelta(pl, folder):
    """`val_check_interval` may be a timedelta."""
    flags = {"max_epochs": 1, "val_check_interval": datetime.timedelta(hours=1)}
    return _fit(pl, folder, flags)


def interval_as_a_mapping(pl, folder):
    """`val_check_interval` may be a mapping of units."""
    return _fit(pl, folder, {"max_epochs": 1, "val_check_interval": {"hours": 1}})


REFUSED = dict.fromkeys(
    ("interval_by_the_clock", "interval_as_a_timedelta", "interval_as_a_mapping"),
    r"val_check_interval=.*by the clock.*batches",
)


def validation_every_other_epoch(pl, folder):
    """`check_val_every_n_epoch` leaves epochs out."""
    return _fit(pl, folder, {"max_epochs": 5, "check_val_every_n_epoch": 2})


def validation_every_other_epoch_several_times(pl, folder):
    """`check_val_every_n_epoch` and `val_check_interval` together."""
    flags = {"max_epochs": 4, "check_val_every_n_epoch": 2, "val_check_interval": 0.5}
    return _fit(pl, folder, flags)


def limit_train_batches_as_a_count(pl, folder):
    """An integer `limit_train_batches` ends the epoch after so many batches."""
    return _fit(pl, folder, {"max_epochs": 2, "limit_train_batches": 3})


def limit_train_batches_as_a_share(pl, folder):
    """A float `limit_train_batches` is a share, rounded down."""
    return _fit(pl, folder, {"max_epochs": 1, "limit_train_batches": 0.7})


def limit_train_batches_above_the_length(pl, folder):
    """A limit above the length is the length."""
    return _fit(pl, folder, {"max_epochs": 1, "limit_train_batches": 100})


def limit_train_batches_zero(pl, folder):
    """``limit_train_batches=0`` trains nothing."""
    return _fit(pl, folder, {"max_epochs": 1, "limit_train_batches": 0})


def a_share_that_leaves_no_batch(pl, folder):
    """A share of training batches below one batch is refused."""
    return _error(
        lambda: _fit(pl, folder, {"max_epochs": 1, "limit_train_batches": 0.1}),
        "limit_train_batches",
    )


def interval_and_limit_train_batches(pl, folder):
    """A share in `val_check_interval` is one of the limited epoch."""
    flags = {"max_epochs": 1, "limit_train_batches": 6, "val_check_interval": 0.5}
    return _fit(pl, folder, flags, count=20)


def _evaluated(pl, folder, flags, stage, count=8):
    calls = []

    class Counts(regression(pl)):
        def validation_step(self, batch, batch_idx):
            calls.append(batch_idx)

        def test_step(self, batch, batch_idx):
            calls.append(batch_idx)

        def predict_step(self, batch, batch_idx):
            calls.append(batch_idx)
            return batch_idx

    trainer = pl.Trainer(**{**QUIET, **flags}, default_root_dir=folder)
    getattr(trainer, stage)(Counts(), loader(count))
    return calls


def limit_val_batches(pl, folder):
    """`limit_val_batches` as a count, a share and more than there is."""
    return [
        _evaluated(pl, folder, {"limit_val_batches": limit}, "validate")
        for limit in (3, 0.5, 100, 1.0, 1)
    ]


def limit_val_batches_zero_leaves_validation_out(pl, folder):
    """``limit_val_batches=0`` trains without validation."""
    return _fit(pl, folder, {"max_epochs": 1, "limit_val_batches": 0})


def limit_test_batches(pl, folder):
    """`limit_test_batches` as a count and a share."""
    return [_evaluated(pl, folder, {"limit_test_batches": limit}, "test") for limit in (3, 0.5)]


def limit_predict_batches(pl, folder):
    """`limit_predict_batches` as a count and a share."""
    return [
        _evaluated(pl, folder, {"limit_predict_batches": limit}, "predict") for limit in (3, 0.5)
    ]


def overfit_batches_as_a_count(pl, folder):
    """`overfit_batches` trains on the same first batches in each epoch."""
    seen = []

    class Sees(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0].sum().item())
            return self.loss(batch)

    trainer = pl.Trainer(max_epochs=2, overfit_batches=2, default_root_dir=folder, **QUIET)
    trainer.fit(Sees(), loader(shuffle=True))
    return seen


def overfit_batches_as_a_share(pl, folder):
    """`overfit_batches` may be a share."""
    return _fit(pl, folder, {"max_epochs": 2, "overfit_batches": 0.5})


def fast_dev_run_is_one_batch(pl, folder):
    """`fast_dev_run` does one batch of training and of validation."""
    return _fit(pl, folder, {"max_epochs": 5, "fast_dev_run": True})


def fast_dev_run_is_so_many_batches(pl, folder):
    """``fast_dev_run=3`` does three batches of each."""
    return _fit(pl, folder, {"fast_dev_run": 3})


def fast_dev_run_leaves_accumulation(pl, folder):
    """`fast_dev_run` counts steps with `accumulate_grad_batches` as it does without."""
    flags = {"fast_dev_run": 4, "accumulate_grad_batches": 2}
    seen, *rest = _fit(pl, folder, flags)
    return rest


def sanity_check_runs_before_training(pl, folder):
    """`num_sanity_val_steps` validation batches come first, by default two."""
    found = []

    class Sees(regression(pl)):
        def validation_step(self, batch, batch_idx):
            found.append([self.trainer.sanity_checking, batch_idx])
            self.log("val_loss", self.loss(batch))

        def on_train_start(self):
            found.append(sorted(self.trainer.callback_metrics))

    for steps in (None, 0, 1, -1):
        flags = {"num_sanity_val_steps": steps}
        trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **{**QUIET, **flags})
        trainer.fit(Sees(), loader(), loader(6))
    return found


def accumulation_steps_every_so_many_batches(pl, folder):
    """`accumulate_grad_batches` steps after so many batches, and with the last one."""
    seen, *rest = _fit(
        pl, folder, {"max_epochs": 2, "accumulate_grad_batches": 4}, count=8, validation=False
    )
    return rest


def accumulation_set_by_a_callback(pl, folder):
    """A callback may set `trainer.accumulate_grad_batches`."""
    found = []

    class Sets(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            trainer.accumulate_grad_batches = 2 if trainer.current_epoch else 1
            found.append(trainer.accumulate_grad_batches)

    seen, *rest = _fit(pl, folder, {"max_epochs": 3}, callbacks=[Sets()])
    return found, rest


def accumulation_scheduler(pl, folder):
    """`GradientAccumulationScheduler` sets how many batches a step has, by epoch."""
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})
    seen, *rest = _fit(pl, folder, {"max_epochs": 3}, callbacks=[schedule])
    return rest


def accumulation_can_be_read(pl, folder):
    """`trainer.accumulate_grad_batches` is the flag."""
    trainer = pl.Trainer(accumulate_grad_batches=3, default_root_dir=folder, **QUIET)
    return trainer.accumulate_grad_batches


def clipping_by_norm(pl, folder):
    """`gradient_clip_val` clips the norm of all gradients."""
    flags = {"max_epochs": 1, "gradient_clip_val": 0.05}
    return _fit(pl, folder, flags, validation=False)


def clipping_by_value(pl, folder):
    """``gradient_clip_algorithm="value"`` clips each gradient."""
    flags = {"max_epochs": 1, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}
    return _fit(pl, folder, flags, validation=False)


def clipping_by_nothing(pl, folder):
    """``gradient_clip_val=0`` clips nothing."""
    return _fit(pl, folder, {"max_epochs": 1, "gradient_clip_val": 0}, validation=False)


def flags_that_are_out_of_range(pl, folder):
    """Shares above one, and negative counts, are refused."""
    bad = (
        {"limit_train_batches": 1.5},
        {"limit_val_batches": -1},
        {"val_check_interval": -2},
        {"overfit_batches": 1.3},
        {"fast_dev_run": -1},
        {"check_val_every_n_epoch": 0.5},
        {"max_epochs": -2},
        {"max_steps": -2},
    )
    found = []
    for flags in bad:
        name = next(iter(flags))
        try:
            pl.Trainer(**{**QUIET, **flags}, default_root_dir=folder)
            found.append([name, "taken"])
        except Exception as error:
            found.append([name, name in str(error)])
    return found


def _adversaries(pl, seen, steps_of_second=1):
    class Two(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            torch.manual_seed(7)
            self.one, self.two = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            for optimizer, layer, times in (
                (first, self.one, 1),
                (second, self.two, steps_of_second),
            ):
                for _ in range(times):
                    loss = torch.nn.functional.mse_loss(layer(batch[0]), batch[1])
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    optimizer.step()
            seen.append([self.global_step, self.trainer.global_step, batch_idx])

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.one.parameters(), lr=0.1),
                torch.optim.SGD(self.two.parameters(), lr=0.1),
            ]

    return Two()


def several_optimizers_count_each_step(pl, folder):
    """In manual optimization `global_step` counts the steps of all optimizers."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(_adversaries(pl, seen), loader())
    return seen, trainer.global_step, trainer.current_epoch


def max_steps_with_several_optimizers(pl, folder):
    """`max_steps` is compared with the steps of all optimizers."""
    seen = []
    model = _adversaries(pl, seen, 2)
    trainer = pl.Trainer(max_steps=6, default_root_dir=folder, **QUIET)
    trainer.fit(model, loader())
    return seen, trainer.global_step, trainer.current_epoch, weights(model)


def steps_that_are_planned(pl, folder):
    """`estimated_stepping_batches` is the number of optimizer steps of the whole run."""
    found = []

    class Plans(regression(pl)):
        def configure_optimizers(self):
            found.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    for flags in (
        {"max_epochs": 2},
        {"max_epochs": 2, "accumulate_grad_batches": 3},
        {"max_epochs": 5, "max_steps": 7},
        {"max_epochs": 2, "limit_train_batches": 0.5},
    ):
        trainer = pl.Trainer(**flags, default_root_dir=folder, **QUIET)
        trainer.fit(Plans(), loader())
    return found
