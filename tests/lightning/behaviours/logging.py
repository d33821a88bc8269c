"""What `log` makes of values: their names, when they can be read, and what loggers get."""

import torch
from small import QUIET, loader, regression


def _read(trainer, *names):
    """Those of the names that are there, with their values."""
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in names if name in metrics}


def _train(pl, folder, body, *, hooks=None, flags=None, callbacks=(), val=None, **loaders):
    """Train the small model with `body` as its training step; a callback sees each batch end."""

    class Logs(regression(pl)):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            body(self, loss, batch_idx)
            return loss

        def validation_step(self, batch, batch_idx):
            (val or (lambda *_: None))(self, self.loss(batch), batch_idx)

    for name, hook in (hooks or {}).items():
        setattr(Logs, name, hook)
    flags = {"max_epochs": 1, **(flags or {})}
    trainer = pl.Trainer(**{**QUIET, **flags}, default_root_dir=folder, callbacks=list(callbacks))
    trainer.fit(Logs(), loader(**loaders), loader(4) if val else None)
    return trainer


def _each_batch(pl, look):
    """A callback that looks at the trainer after each batch, and what it has seen."""
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(look(trainer))

    return Looks(), seen


def a_step_value_can_be_read_after_its_batch(pl, folder):
    """`callback_metrics` has what `training_step` logged as soon as its batch has ended."""
    callback, seen = _each_batch(pl, lambda trainer: _read(trainer, "a", "a_step", "a_epoch"))
    _train(pl, folder, lambda m, loss, i: m.log("a", loss), callbacks=[callback])
    return seen


def names_of_a_value_of_both_kinds(pl, folder):
    """With `on_step` and `on_epoch` there are the name itself, ``_step`` and ``_epoch``."""
    callback, seen = _each_batch(pl, lambda trainer: _read(trainer, "a", "a_step", "a_epoch"))
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("a", loss, on_step=True, on_epoch=True),
        callbacks=[callback],
    )
    return seen, _read(trainer, "a", "a_step", "a_epoch"), sorted(trainer.logged_metrics)


def an_epoch_value_is_there_at_the_end(pl, folder):
    """A value that is logged with `on_epoch` only can be read when the epoch ends."""
    callback, seen = _each_batch(pl, lambda trainer: _read(trainer, "a"))
    found = []

    def end(self):
        found.append(_read(self.trainer, "a"))

    _train(
        pl,
        folder,
        lambda m, loss, i: m.log("a", loss, on_step=False, on_epoch=True),
        callbacks=[callback],
        hooks={"on_train_epoch_end": end},
        flags={"max_epochs": 2},
    )
    return seen, found


def logged_in_on_train_epoch_end(pl, folder):
    """What the module logs at the end of an epoch is there for what comes after."""

    def end(self):
        self.log("double", 2.0 * (self.current_epoch + 1))

    found = []

    def start(self):
        found.append(_read(self.trainer, "double"))

    hooks = {"on_train_epoch_end": end, "on_train_epoch_start": start}
    trainer = _train(pl, folder, lambda *_: None, hooks=hooks, flags={"max_epochs": 2})
    return found, _read(trainer, "double"), sorted(trainer.logged_metrics)


def a_value_that_is_not_logged_in_each_batch(pl, folder):
    """The newest value stays until there is a newer one."""
    callback, seen = _each_batch(pl, lambda trainer: _read(trainer, "a"))

    def body(module, loss, index):
        if index % 2 == 0:
            module.log("a", float(index))

    _train(pl, folder, body, callbacks=[callback], count=10)
    return seen


def numbers_and_tensors_are_logged(pl, folder):
    """Numbers, integers, booleans and tensors of one element can be logged."""

    def body(module, loss, index):
        module.log("int", 3)
        module.log("float", 0.5)
        module.log("whole", torch.tensor(4))
        module.log("one", torch.tensor([2.0]))
        module.log("double", torch.tensor(0.25, dtype=torch.float64))

    names = ("int", "float", "whole", "one", "double")
    trainer = _train(pl, folder, body)
    return _read(trainer, *names), [trainer.callback_metrics[n].is_floating_point() for n in names]


def metrics_that_are_logged(pl, folder):
    """`logged_metrics` are those of the loggers, with their suffixes."""

    def body(module, loss, index):
        module.log("a", loss, on_step=True, on_epoch=True)
        module.log("hidden", loss, logger=False)

    callback, seen = _each_batch(pl, lambda trainer: sorted(trainer.logged_metrics))
    trainer = _train(pl, folder, body, callbacks=[callback])
    return seen, sorted(trainer.logged_metrics), sorted(trainer.callback_metrics)


def metrics_of_the_bar(pl, folder):
    """`progress_bar_metrics` are those with ``prog_bar=True``, as numbers."""

    def body(module, loss, index):
        module.log("shown", loss, prog_bar=True)
        module.log("both", loss, prog_bar=True, on_step=True, on_epoch=True)
        module.log("other", loss)

    callback, seen = _each_batch(pl, lambda trainer: dict(trainer.progress_bar_metrics))
    trainer = _train(pl, folder, body, callbacks=[callback])
    return seen, {name: type(v).__name__ for name, v in trainer.progress_bar_metrics.items()}


def validation_values_are_means_over_the_epoch(pl, folder):
    """In validation the default is the mean over the samples of all batches."""
    found = []

    class Sizes(regression(pl)):
        def validation_step(self, batch, batch_idx):
            self.log("index", float(batch_idx))
            self.log("one", float(batch_idx), batch_size=1)

        def on_validation_end(self):
            found.append(_read(self.trainer, "index", "one"))

    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **QUIET)
    trainer.fit(Sizes(), loader(), loader(7, 3))
    return found


def validation_values_at_the_end_of_their_epoch(pl, folder):
    """In `on_validation_epoch_end` what `validation_step` logged can be read."""
    found = []

    class Reads(regression(pl)):
        def on_validation_epoch_end(self):
            found.append(_read(self.trainer, "val_loss"))
            self.log("more", 2 * self.trainer.callback_metrics["val_loss"])
            found.append(_read(self.trainer, "more"))

    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(Reads(), loader(), loader(4))
    return found


def validation_values_of_both_kinds(pl, folder):
    """In validation too, the name itself and ``_epoch`` are for callbacks."""
    trainer = _train(
        pl,
        folder,
        lambda *_: None,
        val=lambda m, loss, i: m.log("v", loss, on_step=True, on_epoch=True),
    )
    return _read(trainer, "v", "v_step", "v_epoch")


def test_values_of_both_kinds(pl, folder):
    """`test` gives epoch values, and its results can be read afterwards."""

    class Tests(regression(pl)):
        def test_step(self, batch, batch_idx):
            self.log("t", self.loss(batch), on_step=True, on_epoch=True)
            self.log("u", self.loss(batch))

    trainer = pl.Trainer(default_root_dir=folder, **QUIET)
    trainer.test(Tests(), loader(), verbose=False)
    return _read(trainer, "t", "t_step", "t_epoch", "u")


def a_mean_over_batches_of_different_sizes(pl, folder):
    """An epoch value of training weighs batches by their size."""
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("a", float(i), on_step=False, on_epoch=True),
        count=7,
        batch_size=3,
    )
    return _read(trainer, "a")


def log_dict_logs_each_entry(pl, folder):
    """`log_dict` logs each entry with the same arguments."""
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log_dict({"a": 1.0, "b": loss}, on_step=False, on_epoch=True),
    )
    return _read(trainer, "a", "b")


def a_name_logged_in_training_and_validation(pl, folder):
    """The same name in training and validation: who was newest is there."""
    seen = []

    def look(self):
        seen.append(_read(self.trainer, "x"))

    _train(
        pl,
        folder,
        lambda m, loss, i: m.log("x", 1.0),
        val=lambda m, loss, i: m.log("x", 2.0),
        hooks={"on_validation_end": look, "on_train_epoch_end": look, "on_train_end": look},
    )
    return seen


def logging_in_hooks_of_training(pl, folder):
    """`log` works in the hooks around a batch, and gives step values in some of them."""
    names = ("start", "end", "before", "epoch_start")

    def on_train_batch_start(self, batch, batch_idx):
        self.log("start", float(batch_idx))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("end", float(batch_idx))

    def on_before_backward(self, loss):
        self.log("before", loss)

    def on_train_epoch_start(self):
        self.log("epoch_start", 5.0)

    hooks = {
        hook.__name__: hook
        for hook in (
            on_train_batch_start,
            on_train_batch_end,
            on_before_backward,
            on_train_epoch_start,
        )
    }
    trainer = _train(pl, folder, lambda *_: None, hooks=hooks)
    return _read(trainer, *names)


def logging_in_a_callback(pl, folder):
    """A callback logs through the module."""

    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            module.log("mine", float(trainer.global_step))

    trainer = _train(pl, folder, lambda *_: None, callbacks=[Logs()])
    return _read(trainer, "mine")


def a_plateau_by_steps_sees_metrics_of_training(pl, folder):
    """A `ReduceLROnPlateau` with ``interval="step"`` gets the newest value of each step."""
    rates = []

    class Plateau(regression(pl)):
        def training_step(self, batch, batch_idx):
            self.log("steady", 1.0)
            return self.loss(batch)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-3)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "steady"},
            }

        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(Plateau(), loader())
    return rates


def a_plateau_by_epochs_sees_metrics_of_training(pl, folder):
    """A `ReduceLROnPlateau` gets the epoch's mean of what `training_step` logs."""
    rates = []

    class Plateau(regression(pl)):
        def training_step(self, batch, batch_idx):
            self.log("level", 1.0 + self.current_epoch, on_step=True, on_epoch=True)
            return self.loss(batch)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-3)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "level"}

        def on_train_epoch_start(self):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer = pl.Trainer(max_epochs=4, default_root_dir=folder, **QUIET)
    trainer.fit(Plateau(), loader())
    return rates


def a_plateau_by_steps_comes_after_the_validation(pl, folder):
    """A plateau scheduler by steps sees the validation of its step."""
    rates = []

    class Plateau(regression(pl)):
        def validation_step(self, batch, batch_idx):
            self.log("val", float(self.global_step))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-3)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": scheduler,
                    "interval": "step",
                    "frequency": 2,
                    "monitor": "val",
                },
            }

        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer = pl.Trainer(max_epochs=2, val_check_interval=2, default_root_dir=folder, **QUIET)
    trainer.fit(Plateau(), loader(), loader(4))
    return rates


def a_plateau_whose_metric_is_missing(pl, folder):
    """A monitored value that nobody logged is an error that names it."""

    class Plateau(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-3)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "nowhere"}

    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **QUIET)
    try:
        trainer.fit(Plateau(), loader())
    except Exception as error:
        return "nowhere" in str(error)
    return "nothing was refused"


def rates_when_the_epoch_is_validated(pl, folder):
    """A scheduler by epochs has stepped before the epoch's validation."""
    rates = []

    class Decays(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

        def _rate(self, place):
            rates.append([place, self.trainer.optimizers[0].param_groups[0]["lr"]])

        def on_train_batch_end(self, *rest):
            self._rate("batch")

        def on_validation_start(self):
            self._rate("validation")

        def on_train_epoch_end(self):
            self._rate("epoch")

    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(Decays(), loader(), loader(4))
    return rates


def a_frequency_of_steps_counts_batches_of_the_epoch(pl, folder):
    """`frequency` of a scheduler by steps is counted anew in each epoch."""
    rates = []

    class Decays(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-2)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 3}]

        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    for flags in ({}, {"accumulate_grad_batches": 2}):
        trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, **QUIET, **flags)
        trainer.fit(Decays(), loader(12 if flags else 10))
    return rates


def a_schedule_of_an_epoch_that_ends_early(pl, folder):
    """An epoch that `max_steps` cuts short moves no scheduler by epochs."""
    schedulers = []

    class Decays(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedulers.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
            return [optimizer], schedulers

    trainer = pl.Trainer(max_steps=6, default_root_dir=folder, **QUIET)
    trainer.fit(Decays(), loader())
    return schedulers[0].get_last_lr()


def early_stopping_on_a_metric_of_training(pl, folder):
    """`EarlyStopping` may watch what `training_step` logs; it looks at the end of the epoch."""
    stopping = pl.callbacks.EarlyStopping("level", patience=2)
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("level", 1.0),
        flags={"max_epochs": 9},
        callbacks=[stopping],
    )
    return trainer.current_epoch, stopping.wait_count, stopping.stopped_epoch


def early_stopping_on_an_epoch_value_by_its_plain_name(pl, folder):
    """`EarlyStopping` finds a value of both kinds by its name without a suffix."""
    stopping = pl.callbacks.EarlyStopping("level", patience=1)
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("level", float(i), on_step=True, on_epoch=True),
        flags={"max_epochs": 9},
        callbacks=[stopping],
    )
    return trainer.current_epoch, float(stopping.best_score), stopping.wait_count


def _recorder(pl, lines):
    """A logger that keeps what it gets."""

    class Keeps(pl.loggers.logger.Logger):
        name = "keeps"
        version = "0"

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            lines.append([step, {key: float(value) for key, value in metrics.items()}])

    return Keeps()


def no_name_but_a_string(pl, folder):
    """A name that is no string is refused."""
    try:
        _train(pl, folder, lambda m, loss, i: m.log(3, loss))
    except Exception:
        return "refused"
    return "nothing was refused"


def a_value_of_many_elements_is_refused(pl, folder):
    """A tensor of several elements cannot be logged."""
    try:
        _train(pl, folder, lambda m, loss, i: m.log("a", torch.ones(3)))
    except Exception as error:
        return "a" in str(error)
    return "nothing was refused"


def neither_kind_is_refused(pl, folder):
    """``on_step=False, on_epoch=False`` is refused."""
    try:
        _train(pl, folder, lambda m, loss, i: m.log("a", loss, on_step=False, on_epoch=False))
    except Exception as error:
        return "on_step=False" in str(error)
    return "nothing was refused"


def callback_metrics_of_a_finished_fit(pl, folder):
    """After `fit` the last values can be read, and are tensors."""
    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("a", float(i)),
        val=lambda m, loss, i: m.log("v", 3.0),
        flags={"max_epochs": 2},
    )
    return _read(trainer, "a", "v"), isinstance(trainer.callback_metrics["v"], torch.Tensor)


def logging_each_so_many_steps(pl, folder):
    """Loggers get step values each `log_every_n_steps` steps, epoch values at its end."""
    lines = []

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            lines.append(float(trainer.callback_metrics["a"]))

    trainer = _train(
        pl,
        folder,
        lambda m, loss, i: m.log("a", float(i)),
        flags={"log_every_n_steps": 3},
        callbacks=[Reads()],
    )
    return lines, trainer.log_every_n_steps
