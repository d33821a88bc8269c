"""What `log` with `on_step` shows of each batch of a validation or a test."""

from small import QUIET, loader, regression


def _keeps(pl, lines):
    """A logger that keeps what it gets."""

    class Keeps(pl.loggers.logger.Logger):
        name = "keeps"
        version = "0"

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            values = {key: float(v) for key, v in metrics.items() if key != "epoch"}
            if values:
                lines.append([step, values])

    return Keeps()


def _seen(trainer):
    found = []
    for metrics in (trainer.callback_metrics, trainer.logged_metrics):
        names = [name for name in metrics if name.startswith("v")]
        found.append({name: float(metrics[name]) for name in sorted(names)})
    return found


def _model(pl, looks, *, each=None, **options):
    class Logs(regression(pl)):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if each is None or batch_idx % each == 0:
                self.log("v", self.loss(batch) + batch_idx + 10 * dataloader_idx, **options)

        test_step = validation_step

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def on_validation_batch_end(self, *rest):
            looks.append(["batch", _seen(self.trainer)])

        def on_validation_epoch_end(self):
            looks.append(["epoch", _seen(self.trainer)])

        def on_validation_end(self):
            looks.append(["end", _seen(self.trainer)])

        on_test_batch_end = on_validation_batch_end

    return Logs()


def _fit(pl, folder, lines, looks, loaders, each=None, flags=None, **options):
    flags = {**QUIET, "max_epochs": 2, **(flags or {}), "logger": _keeps(pl, lines)}
    trainer = pl.Trainer(**flags, default_root_dir=folder)
    trainer.fit(_model(pl, looks, each=each, **options), loader(), loaders)
    return trainer


BOTH = {"on_step": True, "on_epoch": True}


def loggers_get_each_batch_of_a_validation(pl, folder):
    """With `on_step` and `on_epoch` loggers get ``_step`` by batch, counted on over epochs."""
    lines, looks = [], []
    trainer = _fit(pl, folder, lines, looks, loader(6), **BOTH)
    return lines, sorted(trainer.logged_metrics)


def callbacks_see_each_batch_of_a_validation(pl, folder):
    """After a batch of a validation `callback_metrics` has its step value."""
    looks = []
    trainer = _fit(pl, folder, [], looks, loader(6), **BOTH)
    return looks, _seen(trainer)


def step_values_of_several_loaders(pl, folder):
    """Step values of several loaders carry the loader's number, each counted by itself."""
    lines, looks = [], []
    _fit(pl, folder, lines, looks, [loader(6), loader(4)], **BOTH)
    return lines, looks


def a_validation_that_logs_by_step_only(pl, folder):
    """With `on_step` alone a validation gives step values and no mean."""
    lines, looks = [], []
    trainer = _fit(pl, folder, lines, looks, loader(6), on_step=True, on_epoch=False)
    return lines, looks, _seen(trainer), sorted(trainer.logged_metrics)


def step_values_of_a_validation_that_loggers_do_not_get(pl, folder):
    """With ``logger=False`` the step values are for callbacks only."""
    lines, looks = [], []
    _fit(pl, folder, lines, looks, loader(6), logger=False, **BOTH)
    return lines, looks


def step_values_of_a_sanity_check(pl, folder):
    """The validation before training gives loggers nothing."""
    lines, looks = [], []
    _fit(pl, folder, lines, looks, loader(6), flags={"num_sanity_val_steps": 2}, **BOTH)
    return lines


def loggers_get_each_batch_of_a_test(pl, folder):
    """`test` and `validate` give step values too, counted from 0; results are the means."""
    lines, looks = [], []
    flags = {**QUIET, "logger": _keeps(pl, lines)}
    trainer = pl.Trainer(**flags, default_root_dir=folder)
    model = _model(pl, looks, **BOTH)
    found = [
        trainer.validate(model, loader(6), verbose=False),
        trainer.test(model, [loader(6), loader(4)], verbose=False),
        trainer.test(model, loader(6), verbose=False),
    ]
    return found, lines, looks
