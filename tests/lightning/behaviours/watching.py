"""Callbacks that watch: learning rates, early stopping's reasons, figures of the device."""

import csv
import importlib
import os

import torch
from small import QUIET, loader, regression


def _rows(logger):
    with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _fit(pl, folder, callback, model, **flags):
    logger = pl.loggers.CSVLogger(folder / "logs")
    flags = {"logger": logger, "max_epochs": 2, "log_every_n_steps": 2, **flags}
    trainer = pl.Trainer(default_root_dir=folder, **{**QUIET, **flags, "callbacks": [callback]})
    trainer.fit(model, loader(), loader(4))
    return trainer


def _scheduled(pl, interval, name=None):
    class Scheduled(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
            made = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            config = {"scheduler": made, "interval": interval}
            return [optimizer], [{**config, "name": name} if name else config]

    return Scheduled()


def _rates(trainer, callback):
    logged = [{k: v for k, v in row.items() if k.startswith(("lr-", "step", "rate"))}
              for row in _rows(trainer.logger)]  # fmt: skip
    seen = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(("lr-", "rate"))}
    return (
        [row for row in logged if len(row) > 1],
        seen,
        callback.lrs,
        callback.last_momentum_values,
        callback.last_weight_decay_values,
    )


def rates_are_logged_by_steps_and_epochs(pl, folder):
    """`LearningRateMonitor` logs by steps, by epochs, or as the scheduler steps."""
    found = []
    for interval in ("step", "epoch"):
        for given in (None, "step", "epoch"):
            callback = pl.callbacks.LearningRateMonitor(given)
            place = folder / f"{interval}{given}"
            trainer = _fit(pl, place, callback, _scheduled(pl, interval))
            found.append(_rates(trainer, callback))
    return found


def rates_without_a_scheduler(pl, folder):
    """Without a scheduler rates are logged by steps and by epochs, and by one if told so."""
    found = []
    for given in (None, "step", "epoch"):
        callback = pl.callbacks.LearningRateMonitor(given)
        trainer = _fit(pl, folder / str(given), callback, regression(pl)())
        found.append(_rates(trainer, callback))
    return found


def momentum_and_decay_are_logged_beside_rates(pl, folder):
    """`log_momentum` and `log_weight_decay` add those; a scheduler may have a name."""
    callback = pl.callbacks.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    trainer = _fit(pl, folder, callback, _scheduled(pl, "step", "rate"))
    return _rates(trainer, callback)


def groups_of_an_optimizer_have_names(pl, folder):
    """Groups are numbered, or called by their names."""
    found = []
    for names in ((None, None), ("a", None), ("a", "b"), ("a", "a")):

        class Groups(regression(pl)):
            def configure_optimizers(self, names=names):
                groups = [{"params": [p], "lr": 0.1 * (i + 1)}
                          for i, p in enumerate(self.parameters())]  # fmt: skip
                for group, name in zip(groups, names, strict=True):
                    if name is not None:
                        group["name"] = name
                return torch.optim.Adam(groups)

        callback = pl.callbacks.LearningRateMonitor(log_momentum=True)
        try:
            trainer = _fit(pl, folder / "-".join(map(str, names)), callback, Groups())
            found.append(_rates(trainer, callback))
        except Exception as error:
            found.append(isinstance(error, _misconfiguration(pl)))
    return found


def _misconfiguration(pl):
    module = importlib.import_module(pl.__name__ + ".utilities.exceptions")
    return module.MisconfigurationException


def several_optimizers_have_names(pl, folder):
    """Optimizers of one class are numbered."""

    class Two(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            first, second = self.parameters()
            return [torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.01)]

    callback = pl.callbacks.LearningRateMonitor("epoch")
    trainer = _fit(pl, folder, callback, Two())
    return sorted(callback.lrs), callback.lrs, trainer.global_step


def _early(pl, folder, values, **options):
    class Scored(regression(pl)):
        def on_validation_epoch_end(self):
            self.log("score", values[self.current_epoch])

    callback = pl.callbacks.EarlyStopping("score", **options)
    flags = {**QUIET, "max_epochs": len(values), "callbacks": [callback]}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(Scored(), loader(), loader(4))
    return callback, trainer


def early_stopping_has_a_reason(pl, folder):
    """`stopping_reason` is an `EarlyStoppingReason`, with a message beside it."""
    module = importlib.import_module(pl.__name__ + ".callbacks.early_stopping")
    nan, found = float("nan"), []
    for values, options in (
        ([3.0, 2.0], {}),
        ([3.0, 3.0, 3.0], {"patience": 1}),
        ([3.0, nan, 2.0], {}),
        ([3.0, 0.5, 0.4, 0.3], {"stopping_threshold": 0.5}),
        ([3.0, 8.0, 8.5, 9.0], {"divergence_threshold": 8.0}),
        ([3.0, 8.0, 8.5, 9.0], {"stopping_threshold": 8.0, "mode": "max"}),
        ([3.0, 2.0, 1.9, 1.9], {"divergence_threshold": 2.0, "mode": "max"}),
        ([3.0, 2.95, 2.92, 2.85], {"patience": 2, "min_delta": 0.1}),
        ([3.0, 3.05, 3.2], {"patience": 1, "min_delta": 0.1, "mode": "max"}),
    ):
        callback, trainer = _early(pl, folder / str(len(found)), values, **options)
        reason = callback.stopping_reason
        found.append(
            (
                reason == module.EarlyStoppingReason(reason),
                reason.name,
                callback.stopping_reason_message is None,
                callback.wait_count,
                callback.stopped_epoch,
                callback.best_score,
                callback.min_delta,
                trainer.current_epoch,
            )
        )
    return found, {each.name: each.value for each in module.EarlyStoppingReason}


def early_stopping_compares(pl, folder):
    """`monitor_op`, `mode_dict` and `order_dict` say what is better."""
    kind = pl.callbacks.EarlyStopping
    found = [kind("a", mode=mode).monitor_op(torch.tensor(1), torch.tensor(2)) for mode in
             ("min", "max")]  # fmt: skip
    return found, kind.order_dict, sorted(kind.mode_dict), kind("a").log_rank_zero_only


def early_stopping_is_restored(pl, folder):
    """Reason, patience and best value are in a file, and come back from it."""
    callback, trainer = _early(pl, folder / "a", [3.0, 2.0, 2.0], patience=1)
    trainer.save_checkpoint(folder / "it.ckpt")
    saved = torch.load(folder / "it.ckpt", weights_only=True)["callbacks"][callback.state_key]
    names = ("wait_count", "stopped_epoch", "best_score", "patience", "stopping_reason")
    again = pl.callbacks.EarlyStopping("score")
    again.load_state_dict(saved)
    return (
        {name: float(saved[name]) for name in names},
        again.stopping_reason.name,
        again.stopping_reason_message == callback.stopping_reason_message,
        again.wait_count,
    )


def figures_of_the_device_are_logged(pl, folder):
    """`DeviceStatsMonitor` logs figures at the begin and end of batches, under its hooks' names."""
    found = []
    for options in ({}, {"cpu_stats": False}):
        callback = pl.callbacks.DeviceStatsMonitor(**options)
        place = folder / str(len(found))
        trainer = _fit(pl, place, callback, regression(pl)(), max_epochs=1, log_every_n_steps=1)
        trainer.test(trainer.lightning_module, loader(4), verbose=False)
        rows = _rows(trainer.logger)
        found.append([(row["step"], sorted(row)) for row in rows if "epoch" not in row])
    return found


def _summed(pl, folder, callback, **flags):
    """What a summary callback is told, with a model in two parts."""
    told = []

    class Parts(regression(pl)):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
            self.body.requires_grad_(False)
            self.own = torch.nn.Parameter(torch.zeros(3))
            self.example_input_array = torch.zeros(2, 4)

        def forward(self, x):
            return self.layer(self.body(x)) + self.own.sum()

    class Told(callback):
        @staticmethod
        def summarize(data, total, trainable, size, modes, total_flops, **options):
            columns = [(title, [text.strip() for text in column]) for title, column in data]
            told.append((columns, total, trainable, size, modes, total_flops, options))

    def fit(*arguments, **options):
        given = {**QUIET, "max_epochs": 1, "callbacks": [Told(*arguments, **options)], **flags}
        trainer = pl.Trainer(default_root_dir=folder / str(len(told)), **given)
        trainer.fit(Parts(), loader())
        return told

    return fit


def a_summary_lists_layers_to_a_depth(pl, folder):
    """`ModelSummary` has parameters, shapes and operations by layer, to a depth; 0 is none."""
    fit = _summed(pl, folder, pl.callbacks.ModelSummary)
    for depth in (1, 2, -1, 0):
        fit(depth)
    return fit(max_depth=1, color="red")


def a_summary_of_rich_is_told_the_same(pl, folder):
    """`RichModelSummary` is a `ModelSummary` with rich's table."""
    kind = pl.callbacks.RichModelSummary
    return _summed(pl, folder, kind)(2), issubclass(kind, pl.callbacks.ModelSummary)


def a_summary_may_stand_beside_the_flag(pl, folder):
    """A `ModelSummary` with `enable_model_summary=False` is there all the same, as is one alone."""
    found = []
    for flag in (True, False):
        place = folder / str(flag)
        fit = _summed(pl, place, pl.callbacks.ModelSummary, enable_model_summary=flag)
        found.append(len(fit()))
    return found


def intervals_of_a_prediction_writer(pl, folder):
    """`WriteInterval` says when predictions are handed on."""
    module = importlib.import_module(pl.__name__ + ".callbacks.prediction_writer")
    found = []
    for each in module.WriteInterval:
        writer = pl.callbacks.BasePredictionWriter(each)
        same = pl.callbacks.BasePredictionWriter(each.value).interval == each
        found.append((each.name, each.value, writer.interval.on_batch, each.on_epoch, same))
    return found


def a_rate_that_doubles(pl, folder):
    """`multiplicative` is the factor of `BackboneFinetuning`."""
    module = importlib.import_module(pl.__name__ + ".callbacks.finetuning")
    return [module.multiplicative(epoch) for epoch in range(3)]


def standard_metrics_of_a_bar(pl, folder):
    """`get_standard_metrics` is the first logger's version, shortened."""
    module = importlib.import_module(pl.__name__ + ".callbacks.progress.progress_bar")
    found = []
    for version in (None, 3, "a_long_one", ""):
        logger = pl.loggers.CSVLogger(folder, version=version)
        trainer = pl.Trainer(**{**QUIET, "logger": logger})
        found.append(module.get_standard_metrics(trainer))
    return found, module.get_standard_metrics(pl.Trainer(**QUIET))


def a_spike_ends_training(pl, folder):
    """`SpikeDetection` raises when a loss jumps, and writes which batches to leave out."""
    found = []
    for options in ({}, {"atol": 5.0, "rtol": None}, {"rtol": 50.0}, {"warmup": 7}):

        class Jumps(regression(pl)):
            def training_step(self, batch, batch_idx):
                loss = self.loss(batch)
                return loss * (40.0 if batch_idx == 5 else 1.0)

        place = folder / str(len(found))
        callback = pl.callbacks.SpikeDetection(exclude_batches_path=place, **options)
        flags = {**QUIET, "max_epochs": 1, "callbacks": [callback]}
        trainer = pl.Trainer(default_root_dir=folder, **flags)
        try:
            trainer.fit(Jumps(), loader(16))
            told = "no spike"
        except RuntimeError as error:
            told = (type(error).__name__, str(error).partition("\n")[0])
        path = place / "skip_batches.json"
        found.append((told, callback.bad_batches, path.read_text() if path.exists() else None))
    return found


def throughput_goes_to_the_loggers(pl, folder):
    """`ThroughputMonitor` gives loggers totals, and rates once its window is full."""
    callback = pl.callbacks.ThroughputMonitor(
        lambda batch: len(batch[0]), length_fn=lambda batch: batch[0].numel(), window_size=3
    )
    model = regression(pl)()
    model.flops_per_batch = 100
    trainer = _fit(pl, folder, callback, model, log_every_n_steps=1, max_epochs=1)
    trainer.test(model, loader(8), verbose=False)
    found = []
    for row in _rows(trainer.logger):
        names = sorted(name for name in row if "/" in name)
        totals = {n: row[n] for n in names if n.endswith(("samples", "batches", "lengths"))}
        if names:
            found.append((row["step"], row.get("epoch"), names, totals))
    return found
