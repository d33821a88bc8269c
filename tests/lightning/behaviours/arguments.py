"""What `log`, `log_dict` and `Trainer` take, and what it means."""

import importlib

import pytest
import torch
from small import QUIET, loader, regression, weights


def _trainer(pl, folder, **options):
    return pl.Trainer(**{"max_epochs": 1, "default_root_dir": folder, **QUIET, **options})


def _logging(pl, log):
    """A module that calls ``log(module, batch, batch_idx)`` in validation and training."""

    class Logging(regression(pl)):
        def training_step(self, batch, batch_idx):
            if self.logs_training:
                log(self, batch, batch_idx)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            log(self, batch, batch_idx)

        logs_training = False

    return Logging()


def _validated(pl, folder, log, **options):
    trainer = _trainer(pl, folder, **options)
    return trainer.validate(_logging(pl, log), loader(6, 4), verbose=False)


def _fitted(pl, folder, log, **options):
    model = _logging(pl, log)
    model.logs_training = True
    trainer = _trainer(pl, folder, **options)
    trainer.fit(model, loader(6, 4))
    return dict(trainer.callback_metrics)


def log_takes_its_arguments_in_order(pl, folder):
    """The positional order is name, value, prog_bar, logger, on_step, on_epoch."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", float(i), False, True, False, True))


def log_reduces_to_the_mean_by_default(pl, folder):
    """An epoch value is the mean, weighted by the sizes of the batches."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", float(i)))


def log_reduces_to_the_sum(pl, folder):
    """`reduce_fx="sum"` adds up the batches' values."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", i + 1.0, reduce_fx="sum"))


def log_reduces_to_the_largest(pl, folder):
    """`reduce_fx="max"` keeps the largest value."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", -1.0 - i, reduce_fx="max"))


def log_reduces_to_the_smallest(pl, folder):
    """`reduce_fx="min"` keeps the smallest value."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", 5.0 + i, reduce_fx="min"))


def log_takes_functions_of_torch(pl, folder):
    """`reduce_fx` may be torch's function of that name, for tensors too."""

    def log(module, batch, index):
        module.log("max", torch.tensor(3.0 - index), reduce_fx=torch.max)
        module.log("min", torch.tensor(3.0 - index), reduce_fx=torch.min)
        module.log("sum", torch.tensor(3.0 - index), reduce_fx=torch.sum)
        module.log("mean", torch.tensor(3.0 - index), reduce_fx=torch.mean)

    return _validated(pl, folder, log)


def an_unknown_reduction_is_refused(pl, folder):
    """A reduction that is none of these four is an error that names the metric as the way out."""
    with pytest.raises(Exception, match=r"reduce_fx|torchmetrics.Metric"):
        _validated(pl, folder, lambda m, b, i: m.log("x", 1.0, reduce_fx=torch.std))
    return True


def reductions_hold_in_training(pl, folder):
    """In training, too, an epoch value is what `reduce_fx` says."""

    def log(module, batch, index):
        module.log("s", i := index + 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        module.log("m", i, on_step=False, on_epoch=True, reduce_fx="max")

    found = _fitted(pl, folder, log)
    return {name: found[name] for name in ("s", "m")}


def log_weighs_by_batch_size(pl, folder):
    """`batch_size` is the weight of a batch in the mean."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", float(i), batch_size=1 + 8 * i))


def sync_dist_is_taken_on_one_process(pl, folder):
    """`sync_dist` may be True or False; on one process it changes nothing."""

    def log(module, batch, index):
        module.log("a", float(index), sync_dist=True)
        module.log("b", float(index), sync_dist=False)

    return _validated(pl, folder, log)


def rank_zero_only_is_taken_on_one_process(pl, folder):
    """With `rank_zero_only` the value is rank 0's."""
    return _validated(pl, folder, lambda m, b, i: m.log("x", float(i), rank_zero_only=True))


def enable_graph_keeps_the_graph(pl, folder):
    """With `enable_graph=True` what is logged is not detached."""
    found = _fitted(pl, folder, lambda m, b, i: m.log("x", m.loss(b), enable_graph=True))
    return found["x"].requires_grad


def log_takes_numbers_and_tensors(pl, folder):
    """Values may be integers, booleans, tensors of one element and numpy scalars."""

    def log(module, batch, index):
        module.log("int", index)
        module.log("tensor", torch.tensor([float(index)]))
        module.log("half", torch.tensor(float(index), dtype=torch.float16))

    return _validated(pl, folder, log)


def log_refuses_texts(pl, folder):
    """A text is no value."""
    with pytest.raises(Exception, match="x"):
        _validated(pl, folder, lambda m, b, i: m.log("x", "much"))
    return True


def log_refuses_vectors(pl, folder):
    """A tensor of several elements is no value."""
    with pytest.raises(Exception, match="x"):
        _validated(pl, folder, lambda m, b, i: m.log("x", torch.ones(3)))
    return True


def log_refuses_to_go_nowhere(pl, folder):
    """`on_step=False, on_epoch=False` is an error."""
    with pytest.raises(Exception, match="on_step=False"):
        _validated(pl, folder, lambda m, b, i: m.log("x", 1.0, on_step=False, on_epoch=False))
    return True


def log_without_a_trainer_does_nothing(pl, folder):
    """A step may be called without a trainer; `log` is then silent."""
    model = regression(pl)()
    return model.training_step(next(iter(loader())), 0).shape


def log_dict_logs_each_entry(pl, folder):
    """`log_dict` passes its options on for each entry."""

    def log(module, batch, index):
        module.log_dict({"a": float(index), "b": 2.0 + index}, reduce_fx="max", batch_size=3)

    return _validated(pl, folder, log)


def log_dict_takes_its_arguments_in_order(pl, folder):
    """The positional order is dictionary, prog_bar, logger, on_step, on_epoch."""
    return _validated(pl, folder, lambda m, b, i: m.log_dict({"x": 1.0}, False, False, False, True))


def log_dict_is_called_by_keyword(pl, folder):
    """The mapping's parameter is called `dictionary`."""
    return _validated(pl, folder, lambda m, b, i: m.log_dict(dictionary={"x": 1.0}))


def log_dict_takes_a_collection_of_metrics(pl, folder):
    """A `MetricCollection` is logged under its full names, and begins anew with each epoch."""
    torchmetrics = importlib.import_module("torchmetrics")

    class Measured(regression(pl)):
        def __init__(self):
            super().__init__()
            self.measures = torchmetrics.MetricCollection(
                {
                    "mse": torchmetrics.MeanSquaredError(),
                    "mae": torchmetrics.MeanAbsoluteError(),
                    "again": torchmetrics.MeanSquaredError(),
                },
                prefix="val_",
            )

        def validation_step(self, batch, batch_idx):
            self.measures.update(self(batch[0]), batch[1])
            self.log_dict(self.measures)

    seen = []

    class Look(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            found = trainer.callback_metrics
            seen.append({name: found[name] for name in ("val_mse", "val_mae", "val_again")})

    trainer = _trainer(pl, folder, max_epochs=2, callbacks=[Look()])
    trainer.fit(Measured(), loader(6, 4), loader(6, 4))
    return seen


def log_takes_a_metric_by_its_attribute(pl, folder):
    """`metric_attribute` names the attribute that holds the metric."""
    torchmetrics = importlib.import_module("torchmetrics")

    class Measured(regression(pl)):
        def __init__(self):
            super().__init__()
            self.mse = torchmetrics.MeanSquaredError()

        def test_step(self, batch, batch_idx):
            self.mse(self(batch[0]), batch[1])
            self.log("mse", self.mse, metric_attribute="mse")

    return _trainer(pl, folder).test(Measured(), loader(6, 4), verbose=False)


def log_refuses_a_metric_of_nobody(pl, folder):
    """A metric that is no attribute of the module is an error."""
    torchmetrics = importlib.import_module("torchmetrics")
    with pytest.raises(Exception, match="attribute"):
        _validated(pl, folder, lambda m, b, i: m.log("x", torchmetrics.MeanMetric()))
    return True


REFUSED = {
    "enable_graph_keeps_the_graph": "enable_graph=True.* is not supported: .*Keep the tensor",
}


def clipping_to_zero_clips_nothing(pl, folder):
    """`gradient_clip_val=0` is no clipping."""
    model = regression(pl)()
    _trainer(pl, folder, gradient_clip_val=0).fit(model, loader())
    return weights(model)


def clipping_by_value(pl, folder):
    """`gradient_clip_algorithm="value"` clips each element."""
    model = regression(pl)()
    options = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    _trainer(pl, folder, **options).fit(model, loader())
    return weights(model)


def clipping_by_norm_is_the_default(pl, folder):
    """A `gradient_clip_val` alone bounds the norm of all gradients."""
    model = regression(pl)()
    _trainer(pl, folder, gradient_clip_val=0.1).fit(model, loader())
    return weights(model)


def an_unknown_clipping_is_refused(pl, folder):
    """Algorithms are norm and value."""
    with pytest.raises(Exception, match="gradient_clip_algorithm"):
        _trainer(pl, folder, gradient_clip_algorithm="max")
    return True


def devices_may_be_a_text(pl, folder):
    """`devices="1"` and `devices="auto"` are one process on a CPU."""
    found = []
    for devices in ("1", "auto", 1):
        trainer = _trainer(pl, folder, devices=devices)
        trainer.fit(regression(pl)(), loader())
        found.append((trainer.world_size, trainer.global_step))
    return found


def an_unknown_accelerator_is_refused(pl, folder):
    """Names that are none are an error."""
    with pytest.raises(Exception, match="accelerator"):
        _trainer(pl, folder, accelerator="abacus")
    return True


def an_unknown_strategy_is_refused(pl, folder):
    """Names that are none are an error."""
    with pytest.raises(Exception, match="strategy"):
        _trainer(pl, folder, strategy="tower")
    return True


def an_unknown_precision_is_refused(pl, folder):
    """Names that are none are an error."""
    with pytest.raises(Exception, match="precision"):
        _trainer(pl, folder, precision="3-true")
    return True


def an_unknown_argument_is_refused(pl, folder):
    """The trainer has no argument that it does not know."""
    with pytest.raises(TypeError, match="max_epoch"):
        _trainer(pl, folder, max_epoch=3)
    return True


def double_precision_computes_in_double(pl, folder):
    """`precision="64-true"` makes parameters and batches float64."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append((str(batch[0].dtype), str(self.layer.weight.dtype)))
            return self.loss(batch)

    _trainer(pl, folder, precision=64).fit(Seen(), loader(2))
    return seen


def mixed_precision_runs_under_autocast(pl, folder):
    """`precision="bf16-mixed"` keeps float32 weights and computes in bfloat16."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append((str(self(batch[0]).dtype), str(self.layer.weight.dtype)))
            return self.loss(batch)

    _trainer(pl, folder, precision="bf16-mixed").fit(Seen(), loader(2))
    return seen


def limits_may_be_whole_floats(pl, folder):
    """A limit of 2.0 is two batches, 0.5 half of them, 0 none."""
    found = []
    for limit in (2.0, 0.5, 3, 1.0):
        trainer = _trainer(pl, folder / str(limit), limit_train_batches=limit)
        trainer.fit(regression(pl)(), loader(12))
        found.append(trainer.global_step)
    return found


def bad_limits_are_refused(pl, folder):
    """A limit is a share or a whole number."""
    for limit in (1.5, -1):
        with pytest.raises(Exception, match="limit_train_batches"):
            _trainer(pl, folder, limit_train_batches=limit)
    return True


def fast_dev_run_takes_one_batch_of_each(pl, folder):
    """`fast_dev_run=True` goes through one batch of training and of validation."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append("train")
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            seen.append("validate")

    trainer = _trainer(pl, folder, max_epochs=5, fast_dev_run=True)
    trainer.fit(Seen(), loader(), loader())
    return seen, trainer.global_step


def overfitting_repeats_the_same_batches(pl, folder):
    """`overfit_batches` trains on the first batches, unshuffled, in each epoch."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0][0, 0])
            return self.loss(batch)

    _trainer(pl, folder, max_epochs=2, overfit_batches=2).fit(Seen(), loader(shuffle=True))
    return seen[:2] == seen[2:], len(seen)


def barebones_logs_nothing(pl, folder):
    """`barebones=True` trains, and `self.log` does nothing."""
    trainer = pl.Trainer(barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=folder)
    model = regression(pl)()
    trainer.fit(model, loader())
    return weights(model), dict(trainer.callback_metrics)


def barebones_refuses_what_costs_time(pl, folder):
    """A flag that asks for what `barebones` leaves out is an error that names both."""
    for flag in ("enable_checkpointing", "logger", "enable_progress_bar", "detect_anomaly"):
        with pytest.raises(ValueError, match=f"barebones=True, {flag}="):
            pl.Trainer(barebones=True, **{flag: True})
    return True


def anomalies_are_detected(pl, folder):
    """`detect_anomaly=True` finds the operation whose gradient is not a number."""

    class Broken(regression(pl)):
        def training_step(self, batch, batch_idx):
            return torch.sqrt(self.loss(batch) * 0.0).sum() * 0.0

    with pytest.raises(RuntimeError, match="nan values"):
        _trainer(pl, folder, detect_anomaly=True).fit(Broken(), loader())
    return torch.is_anomaly_enabled()


def deterministic_algorithms_are_switched_on(pl, folder):
    """`deterministic=True` has torch refuse other algorithms while it trains."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return self.loss(batch)

    _trainer(pl, folder, deterministic=True).fit(Seen(), loader(2))
    return seen


def without_limits_there_are_a_thousand_epochs(pl, folder):
    """Neither `max_epochs` nor `max_steps` means 1000 epochs; training can be stopped before."""

    class Stopping(regression(pl)):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.trainer.current_epoch == 1

    options = {**QUIET, "default_root_dir": folder}
    trainer = pl.Trainer(**options)
    trainer.fit(Stopping(), loader())
    return trainer.max_epochs, trainer.global_step


def no_sanity_check_when_it_is_switched_off(pl, folder):
    """`num_sanity_val_steps` bounds the validation before training; -1 is all of it."""
    found = []
    for steps in (0, 1, -1):

        class Seen(regression(pl)):
            checks = 0

            def validation_step(self, batch, batch_idx):
                self.checks += self.trainer.sanity_checking

        model = Seen()
        options = {"num_sanity_val_steps": steps, "max_epochs": 1}
        _trainer(pl, folder / str(steps), **options).fit(model, loader(), loader())
        found.append(model.checks)
    return found
