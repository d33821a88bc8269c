"""What `log`, `log_dict` and `Trainer` take, and what it means."""

import importlib

import pytest
import torch
from small import QUIET, loader, regression


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
