"""torchmetrics objects that are logged: when they are reduced, reset, and by whom."""

import pytest
import torch
from small import QUIET, loader, regression

torchmetrics = pytest.importorskip("torchmetrics")


def _module(pl, **hooks):
    return type("Measures", (regression(pl),), hooks)


def _fit(pl, folder, model, validation=True, **flags):
    trainer = pl.Trainer(**{"max_epochs": 2, **QUIET, **flags}, default_root_dir=folder)
    trainer.fit(model, loader(), loader(4) if validation else None)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _measuring(pl, make, **hooks):
    """The small model with a metric made by `make`, updated with each batch's error."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.metric = make()

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.metric.update(loss.detach())
            return loss

    for name, hook in hooks.items():
        setattr(Measures, name, hook)
    return Measures()


def a_metric_is_an_epoch_value(pl, folder):
    """A metric that is logged as an object is computed at the end of the epoch, and reset."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.metric(loss.detach())
        self.log("mean", self.metric, on_step=False, on_epoch=True)
        return loss

    model = _measuring(pl, torchmetrics.MeanMetric, training_step=training_step)
    return _fit(pl, folder, model, validation=False), model.metric.update_count


def a_metric_of_both_kinds(pl, folder):
    """With `on_step` too, each batch's own value is there under ``_step``."""
    seen = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.metric(loss.detach())
        self.log("mean", self.metric, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        metrics = self.trainer.callback_metrics
        seen.append([float(metrics[name]) for name in ("mean", "mean_step")])

    model = _measuring(
        pl,
        torchmetrics.MeanMetric,
        training_step=training_step,
        on_train_batch_end=on_train_batch_end,
    )
    return seen, _fit(pl, folder, model, validation=False)


def a_metric_computed_by_hand(pl, folder):
    """A metric may be computed and reset by the module at the end of the epoch."""
    seen = []

    def on_train_epoch_end(self):
        seen.append(float(self.metric.compute()))
        self.log("mean", self.metric.compute())
        self.metric.reset()

    model = _measuring(pl, torchmetrics.MeanMetric, on_train_epoch_end=on_train_epoch_end)
    return _fit(pl, folder, model, validation=False), seen


def a_metric_logged_at_the_end_only(pl, folder):
    """A metric that is updated in each batch may be logged at the end of the epoch only."""

    def on_train_epoch_end(self):
        self.log("mean", self.metric)

    model = _measuring(pl, torchmetrics.MeanMetric, on_train_epoch_end=on_train_epoch_end)
    return _fit(pl, folder, model, validation=False), model.metric.update_count


def a_logged_metric_is_whole_in_on_train_epoch_end(pl, folder):
    """In `on_train_epoch_end` a metric that was logged can still be computed."""
    seen = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.metric(loss.detach())
        self.log("mean", self.metric, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        seen.append([float(self.metric.compute()), self.metric.update_count])

    model = _measuring(
        pl,
        torchmetrics.MeanMetric,
        training_step=training_step,
        on_train_epoch_end=on_train_epoch_end,
    )
    _fit(pl, folder, model, validation=False)
    return seen


def a_metric_that_is_never_logged_is_left_alone(pl, folder):
    """A metric that is only updated goes on over the epochs."""
    model = _measuring(pl, torchmetrics.SumMetric)
    _fit(pl, folder, model, validation=False)
    return float(model.metric.compute()), model.metric.update_count


def a_validation_metric(pl, folder):
    """A metric of validation is computed and reset with each validation."""
    seen = []

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def validation_step(self, batch, batch_idx):
            self.error.update(self(batch[0]), batch[1])
            self.log("error", self.error)

        def on_validation_epoch_end(self):
            seen.append([float(self.error.compute()), self.error.update_count])

        def on_validation_end(self):
            seen.append(float(self.trainer.callback_metrics["error"]))

    return _fit(pl, folder, Measures()), seen


def metrics_of_their_own_for_each_stage(pl, folder):
    """Training and validation have an object each, as is advised."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.train_error = torchmetrics.MeanSquaredError()
            self.val_error = torchmetrics.MeanSquaredError()

        def training_step(self, batch, batch_idx):
            self.train_error(self(batch[0]), batch[1])
            self.log("train_error", self.train_error, on_step=False, on_epoch=True)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.val_error(self(batch[0]), batch[1])
            self.log("val_error", self.val_error)

    return _fit(pl, folder, Measures(), val_check_interval=2)


def one_object_for_two_validations(pl, folder):
    """An object that is logged in validation and in the test serves both."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def validation_step(self, batch, batch_idx):
            self.error(self(batch[0]), batch[1])
            self.log("val_error", self.error)

        def test_step(self, batch, batch_idx):
            self.error(self(batch[0]), batch[1])
            self.log("test_error", self.error)

    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **QUIET)
    model = Measures()
    trainer.fit(model, loader(), loader(4))
    first = float(trainer.callback_metrics["val_error"])
    trainer.test(model, loader(), verbose=False)
    return first, float(trainer.callback_metrics["test_error"])


def the_best_value_of_a_metric(pl, folder):
    """`MinMaxMetric` keeps its extremes over the epochs that it has seen."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.extremes = torchmetrics.MinMaxMetric(torchmetrics.MeanMetric())

        def validation_step(self, batch, batch_idx):
            self.extremes.update(self.loss(batch))

        def on_validation_epoch_end(self):
            self.log_dict({f"loss_{k}": v for k, v in self.extremes.compute().items()})

    return _fit(pl, folder, Measures(), max_epochs=3)


def a_collection_by_log_dict(pl, folder):
    """A `MetricCollection` is logged with `log_dict`, each member under its name."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.both = torchmetrics.MetricCollection(
                {"mse": torchmetrics.MeanSquaredError(), "mae": torchmetrics.MeanAbsoluteError()}
            )

        def training_step(self, batch, batch_idx):
            self.both(self(batch[0]), batch[1])
            self.log_dict(self.both, on_step=False, on_epoch=True)
            return self.loss(batch)

    return _fit(pl, folder, Measures(), validation=False)


def a_collection_computed_by_hand(pl, folder):
    """A collection with shared states is computed and reset by the module."""
    seen = []

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            options = {"task": "binary"}
            self.both = torchmetrics.MetricCollection(
                {
                    "precision": torchmetrics.Precision(**options),
                    "recall": torchmetrics.Recall(**options),
                }
            )

        def training_step(self, batch, batch_idx):
            self.both.update(self(batch[0]), (batch[1] > 0).int())
            return self.loss(batch)

        def on_train_epoch_end(self):
            seen.append({name: float(v) for name, v in self.both.compute().items()})
            self.both.reset()

    _fit(pl, folder, Measures(), validation=False)
    return seen


def a_metric_that_is_no_attribute_is_refused(pl, folder):
    """A metric that the module does not own cannot be logged as an object."""
    stray = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        stray.update(loss.detach())
        self.log("stray", stray, on_step=False, on_epoch=True)
        return loss

    try:
        _fit(pl, folder, _module(pl, training_step=training_step)(), validation=False)
    except Exception as error:
        return "attribute" in str(error)
    return "nothing was refused"


def the_value_of_forward_is_logged(pl, folder):
    """The value that calling a metric gives is that of the batch."""
    seen = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("batch", self.metric(loss.detach()))
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        seen.append(float(self.trainer.callback_metrics["batch"]))

    model = _measuring(
        pl,
        torchmetrics.MeanMetric,
        training_step=training_step,
        on_train_batch_end=on_train_batch_end,
    )
    _fit(pl, folder, model, validation=False)
    return seen, float(model.metric.compute())


def early_stopping_on_a_metric_object(pl, folder):
    """A monitor may be a name under which a metric is logged."""
    stopping = pl.callbacks.EarlyStopping("mean", patience=1, mode="max")

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.metric(loss.detach())
        self.log("mean", self.metric, on_step=True, on_epoch=True)
        return loss

    model = _measuring(pl, torchmetrics.MeanMetric, training_step=training_step)
    trainer = pl.Trainer(max_epochs=9, default_root_dir=folder, callbacks=[stopping], **QUIET)
    trainer.fit(model, loader())
    return trainer.current_epoch, float(stopping.best_score)


def training_modes_of_metrics(pl, folder):
    """Metrics are on the module's device and found among its children."""
    model = _measuring(pl, torchmetrics.MeanMetric)
    return [name for name, _ in model.named_children()], isinstance(model.metric, torch.nn.Module)


def _sharing(pl, update=False, **log):
    """One object that is logged in training and in validation."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def _measure(self, batch, name, **options):
            take = self.error.update if update else self.error
            take(self(batch[0]), batch[1])
            self.log(name, self.error, **options)

        def training_step(self, batch, batch_idx):
            self._measure(batch, "error", on_epoch=True, **log)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self._measure(batch, "val_error")

    return Measures()


def one_object_for_training_and_validation(pl, folder):
    """One object for both mixes them: a validation counts what training saw, and empties it."""
    model = _sharing(pl, on_step=False)
    return _fit(pl, folder, model), model.error.update_count


def one_object_for_both_within_an_epoch(pl, folder):
    """An object for both knows at the end of the epoch what came after the last validation."""
    model = _sharing(pl, on_step=True)
    return _fit(pl, folder, model, val_check_interval=3), model.error.update_count


def one_object_for_both_updated_only(pl, folder):
    """The same with `update`, and a validation every other epoch."""
    model = _sharing(pl, update=True, on_step=False)
    return _fit(pl, folder, model, max_epochs=4, check_val_every_n_epoch=2)


def one_object_for_both_after_the_sanity_check(pl, folder):
    """The sanity check empties an object that it logs."""
    model = _sharing(pl, update=True, on_step=False)
    return _fit(pl, folder, model, max_epochs=1, num_sanity_val_steps=2)


def an_object_for_both_reset_by_hand(pl, folder):
    """An object for both that the module computes and resets itself is the module's to order."""
    seen = []

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def training_step(self, batch, batch_idx):
            self.error.update(self(batch[0]), batch[1])
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.error.update(self(batch[0]), batch[1])

        def _tell(self):
            seen.append([float(self.error.compute()), self.error.update_count])
            self.error.reset()

        def on_validation_epoch_start(self):
            self._tell()

        def on_validation_epoch_end(self):
            self._tell()

        def on_train_epoch_end(self):
            if self.error.update_count:
                self._tell()

    _fit(pl, folder, Measures(), max_epochs=2, val_check_interval=3)
    return seen


def an_object_in_several_loaders(pl, folder):
    """A metric that is logged with several loaders is computed after each, and goes on."""
    seen = []

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.error.update(self(batch[0]), batch[1])
            self.log("error", self.error)
            self.log("loss", self.loss(batch))

        def on_validation_epoch_end(self):
            metrics = self.trainer.callback_metrics
            seen.append({name: float(metrics[name]) for name in sorted(metrics)})

    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(Measures(), loader(), [loader(4), loader(8), loader(2)])
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, seen


def names_of_their_own_for_several_loaders(pl, folder):
    """With `add_dataloader_idx=False` a metric has a name for each loader."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.error.update(self(batch[0]), batch[1])
            self.log(f"error{dataloader_idx}", self.error, add_dataloader_idx=False)

    trainer = pl.Trainer(default_root_dir=folder, **QUIET)
    return trainer.test(Measures(), [loader(4), loader(8)], verbose=False)


def a_metric_tracker(pl, folder):
    """A `MetricTracker` takes a new metric for each epoch and knows the best."""

    class Measures(regression(pl)):
        def __init__(self):
            super().__init__()
            self.tracker = torchmetrics.MetricTracker(
                torchmetrics.MeanSquaredError(), maximize=False
            )

        def on_validation_epoch_start(self):
            self.tracker.increment()

        def validation_step(self, batch, batch_idx):
            self.tracker.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self):
            self.log("error", self.tracker.compute())

    model = Measures()
    logged = _fit(pl, folder, model, max_epochs=3)
    best, which = model.tracker.best_metric(return_step=True)
    return logged, best, which, model.tracker.compute_all().tolist()


def only_by_steps_in_validation(pl, folder):
    """With on_step=True and on_epoch=False validation reports nothing but to loggers."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), on_step=True, on_epoch=False)

    return _fit(pl, folder, _module(pl, validation_step=validation_step)())
