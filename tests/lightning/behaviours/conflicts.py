"""Flags, callbacks and loggers that exclude each other: the same errors."""

from small import QUIET, loader, regression

ON = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1}


def _raised(make):
    """The kind of error that comes out of a call; a misconfiguration is one in both."""
    try:
        make()
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return next(k for k in ("MisconfigurationException", *kinds) if k in kinds)
    return "nothing"


def checkpoints_without_checkpointing(pl, folder):
    """A callback that saves and `enable_checkpointing=False` exclude each other."""
    own = type("Own", (pl.callbacks.Checkpoint,), {})
    made = (
        pl.callbacks.ModelCheckpoint(folder),
        pl.callbacks.OnExceptionCheckpoint(folder),
        own(),
        pl.callbacks.EarlyStopping("a"),
    )
    return [
        _raised(lambda each=each: pl.Trainer(enable_checkpointing=False, callbacks=each))
        for each in made
    ]


def bars_without_a_bar(pl, folder):
    """A progress bar and `enable_progress_bar=False` exclude each other; there is one bar."""
    bars = pl.callbacks
    own = type("Own", (bars.ProgressBar,), {})
    made = ([bars.TQDMProgressBar()], [bars.RichProgressBar()], [own()])
    return (
        [_raised(lambda m=m: pl.Trainer(enable_progress_bar=False, callbacks=m)) for m in made],
        _raised(lambda: pl.Trainer(callbacks=[bars.TQDMProgressBar(), own()])),
    )


def barebones_with_what_it_leaves_out(pl, folder):
    """`barebones=True` with a checkpoint, a bar or a flag that asks for what it leaves out."""
    options = (
        {"callbacks": [pl.callbacks.ModelCheckpoint()]},
        {"callbacks": [pl.callbacks.TQDMProgressBar()]},
        {"callbacks": [pl.callbacks.LambdaCallback()]},
        {"logger": True},
        {"logger": [pl.loggers.CSVLogger(folder)]},
        {"logger": False},
        {"enable_checkpointing": True},
        {"enable_progress_bar": True},
        {"enable_model_summary": True},
        {"log_every_n_steps": 5},
        {"num_sanity_val_steps": 1},
        {"fast_dev_run": True},
        {"detect_anomaly": True},
        {"profiler": "simple"},
        {"enable_progress_bar": False, "logger": None, "fast_dev_run": False},
    )
    return [_raised(lambda o=o: pl.Trainer(barebones=True, **o)) for o in options]


def a_trial_run_saves_nothing(pl, folder):
    """In `fast_dev_run` a `ModelCheckpoint` writes no file, and early stopping does not look."""
    callback = pl.callbacks.ModelCheckpoint(folder / "kept", monitor="val_loss")
    stopping = pl.callbacks.EarlyStopping("nothing")
    flags = {**QUIET, "enable_checkpointing": True, "callbacks": [callback, stopping]}
    trainer = pl.Trainer(default_root_dir=folder, **{**flags, "fast_dev_run": 2})
    trainer.fit(regression(pl)(), loader(), loader(4))
    return callback.best_model_path, trainer.global_step, list(folder.rglob("*.ckpt"))


def arguments_of_callbacks_that_mean_nothing(pl, folder):
    """Arguments that mean nothing are refused when a callback is made."""
    c = pl.callbacks
    makes = (
        lambda: c.EarlyStopping("a", mode="best"),
        lambda: c.ModelCheckpoint(mode="best"),
        lambda: c.ModelCheckpoint(save_top_k=-2),
        lambda: c.ModelCheckpoint(save_top_k=2),
        lambda: c.ModelCheckpoint(every_n_epochs=-1),
        lambda: c.ModelCheckpoint(every_n_epochs=1, every_n_train_steps=1),
        lambda: c.LearningRateMonitor("minute"),
        lambda: c.GradientAccumulationScheduler({}),
        lambda: c.GradientAccumulationScheduler({-1: 2}),
        lambda: c.GradientAccumulationScheduler({1: 0}),
        lambda: c.BasePredictionWriter("sometimes"),
        lambda: c.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1.5),
        lambda: c.StochasticWeightAveraging(swa_lrs=-0.1),
        lambda: c.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=0),
        lambda: c.StochasticWeightAveraging(swa_lrs=0.1, avg_fn=3),
        lambda: c.OnExceptionCheckpoint(folder, filename=""),
        lambda: c.BatchSizeFinder(mode="guess"),
        lambda: c.LearningRateFinder(mode="guess"),
        lambda: c.Timer(interval="minute"),
        lambda: c.ModelCheckpoint(every_n_epochs=0),
    )
    return [_raised(make) for make in makes]


def a_metric_that_nobody_logs(pl, folder):
    """`EarlyStopping` with an unknown metric is an error, unless `strict=False`."""

    def fit(**options):
        stopping = pl.callbacks.EarlyStopping("nothing", **options)
        flags = {**QUIET, "max_epochs": 1, "callbacks": [stopping]}
        trainer = pl.Trainer(default_root_dir=folder / str(len(options)), **flags)
        trainer.fit(regression(pl)(), loader(), loader(4))

    return _raised(fit), _raised(lambda: fit(strict=False))


def a_monitor_of_rates_needs_a_logger(pl, folder):
    """`LearningRateMonitor` and `DeviceStatsMonitor` with `logger=False` are errors of fit."""
    found = []
    for kind in (pl.callbacks.LearningRateMonitor, pl.callbacks.DeviceStatsMonitor):
        flags = {**QUIET, "max_epochs": 1, "callbacks": [kind()]}
        trainer = pl.Trainer(default_root_dir=folder / kind.__name__, **flags)
        found.append(_raised(lambda t=trainer: t.fit(regression(pl)(), loader())))
    return found
