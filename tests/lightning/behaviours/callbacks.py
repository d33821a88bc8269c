"""Callbacks that Lightning has, apart from `ModelCheckpoint`."""

import torch
from small import QUIET, loader, regression, weights


def _two_parts(pl):
    """A class with a backbone and a head."""

    class Parts(regression(pl)):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

        def forward(self, x):
            return self.layer(self.backbone(x))

        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.SGD(trained, lr=0.1, momentum=0.9)

    return Parts


def base_finetuning_freezes_and_unfreezes(pl, folder):
    """`BaseFinetuning` freezes before training, and adds a group when its epoch comes."""
    seen = []

    class Unfreezes(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.backbone)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)
            seen.append((epoch, [(g["lr"], len(g["params"])) for g in optimizer.param_groups]))

    model = _two_parts(pl)()
    flags = {**QUIET, "max_epochs": 3, "callbacks": [Unfreezes()]}
    pl.Trainer(default_root_dir=folder, **flags).fit(model, loader())
    return seen, weights(model)


def finetuning_helpers_find_parameters(pl, folder):
    """The static helpers freeze, unfreeze and filter parameters."""
    kind, model = pl.callbacks.BaseFinetuning, _two_parts(pl)()

    def trained(**options):
        return len(list(kind.filter_params(model.backbone, **options)))

    kind.freeze(model.backbone, train_bn=True)
    found = [trained(), trained(train_bn=False), trained(requires_grad=False)]
    kind.freeze(model.backbone, train_bn=False)
    found += [trained(), model.backbone[1].track_running_stats]
    kind.make_trainable(model.backbone)
    found += [trained(), len(kind.flatten_modules(model))]
    optimizer = torch.optim.SGD(model.layer.parameters(), lr=0.1)
    return found, len(kind.filter_on_optimizer(optimizer, list(model.parameters())))


def predictions_are_written_by_batch(pl, folder):
    """`BasePredictionWriter` hands on each batch, with the places of its samples."""
    seen = []

    class Writer(pl.callbacks.BasePredictionWriter):
        def write_on_batch_end(self, trainer, module, prediction, indices, batch, idx, loader_idx):
            seen.append((prediction, indices, len(batch), idx, loader_idx))

    trainer = pl.Trainer(default_root_dir=folder, callbacks=[Writer("batch")], **QUIET)
    trainer.predict(regression(pl)(), loader(5))
    return seen


def predictions_are_written_at_the_end(pl, folder):
    """With `write_interval="epoch"` all predictions come at once."""
    seen = []

    class Writer(pl.callbacks.BasePredictionWriter):
        def write_on_epoch_end(self, trainer, module, predictions, indices):
            seen.append(list(predictions))

    trainer = pl.Trainer(default_root_dir=folder, callbacks=[Writer("epoch")], **QUIET)
    trainer.predict(regression(pl)(), loader(5))
    return seen


def an_exception_leaves_a_file(pl, folder):
    """`OnExceptionCheckpoint` writes a file when training raises."""

    class Fails(regression(pl)):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ArithmeticError("stop")
            return super().training_step(batch, batch_idx)

    callback = pl.callbacks.OnExceptionCheckpoint(folder / "failed", filename="it")
    flags = {**QUIET, "enable_checkpointing": True, "max_epochs": 1, "callbacks": [callback]}
    try:
        pl.Trainer(default_root_dir=folder, **flags).fit(Fails(), loader())
    except ArithmeticError:
        found = torch.load(callback.ckpt_path, weights_only=True)
        return (
            callback.ckpt_path.endswith("failed/it.ckpt"),
            found["global_step"],
            found["state_dict"],
        )


def lambdas_are_hooks(pl, folder):
    """`LambdaCallback` takes functions by the names of hooks."""
    seen = []
    callback = pl.callbacks.LambdaCallback(
        on_train_start=lambda trainer, module: seen.append("start"),
        on_train_epoch_end=lambda trainer, module: seen.append(trainer.current_epoch),
        setup=lambda trainer, module, stage: seen.append(stage == "fit"),
    )
    flags = {**QUIET, "max_epochs": 2, "callbacks": [callback]}
    pl.Trainer(default_root_dir=folder, **flags).fit(regression(pl)(), loader())
    return seen


def patience_ends_training(pl, folder):
    """`EarlyStopping` counts values that are no better, and says when and why it stopped."""

    class Scored(regression(pl)):
        def on_validation_epoch_end(self):
            self.log("score", [3.0, 1.0, 2.0, 2.0, 0.5][self.current_epoch])

    callback = pl.callbacks.EarlyStopping("score", patience=2)
    flags = {**QUIET, "max_epochs": 5, "callbacks": [callback]}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(Scored(), loader(), loader(4))
    return (
        trainer.global_step,
        callback.wait_count,
        callback.stopped_epoch,
        callback.best_score,
        callback.patience,
    )


def thresholds_end_training(pl, folder):
    """`stopping_threshold`, `divergence_threshold` and `check_finite` end training at once."""

    def epochs(values, **options):
        class Scored(regression(pl)):
            def on_validation_epoch_end(self):
                self.log("score", values[self.current_epoch])

        callback = pl.callbacks.EarlyStopping("score", patience=9, **options)
        flags = {**QUIET, "max_epochs": 3, "callbacks": [callback]}
        trainer = pl.Trainer(default_root_dir=folder / str(len(options)), **flags)
        trainer.fit(Scored(), loader(), loader(4))
        return trainer.global_step // 4

    nan = float("nan")
    return (
        epochs([3.0, 1.0, 2.0], stopping_threshold=1.5),
        epochs([3.0, 9.0, 2.0], divergence_threshold=8.0),
        epochs([3.0, nan, 2.0]),
        epochs([3.0, nan, 2.0], check_finite=False),
    )


def swa_trains_with_a_rate_of_its_own(pl, folder):
    """`StochasticWeightAveraging` takes a rate and a first epoch."""
    callback = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    flags = {**QUIET, "max_epochs": 3, "callbacks": [callback]}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(regression(pl)(), loader())
    return trainer.global_step


def accumulation_by_epoch(pl, folder):
    """`GradientAccumulationScheduler` changes how many batches a step has."""
    callback = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    model = regression(pl)()
    flags = {**QUIET, "max_epochs": 3, "callbacks": [callback]}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(model, loader())
    return trainer.global_step, weights(model)


def a_timer_tells_the_time_of_each_stage(pl, folder):
    """`Timer` has start, end and elapsed time of each stage, and what remains of training."""
    timer = pl.callbacks.Timer("00:01:00:00")
    flags = {**QUIET, "max_epochs": 1, "callbacks": [timer]}
    pl.Trainer(default_root_dir=folder, **flags).fit(regression(pl)(), loader(), loader(4))
    return (
        timer.end_time("train") > timer.start_time("train"),
        timer.start_time("test"),
        timer.time_elapsed("validate") > 0,
        timer.time_elapsed("test"),
        0 < timer.time_elapsed() < 3600,
        3500 < timer.time_remaining("train") < 3600,
    )


def early_stopping_has_a_key_of_its_own(pl, folder):
    """Two of these may watch two metrics; their state keys say so."""
    return [pl.callbacks.EarlyStopping(name).state_key for name in ("a", "b")]


def an_average_becomes_the_model(pl, folder):
    """`EMAWeightAveraging` averages as told, is measured by validations, and is the end's model."""
    found = []
    for options in (
        {"decay": 0.5},
        {"decay": 0.9, "update_every_n_steps": 3, "update_starting_at_step": 2},
        {"decay": 0.9, "update_every_n_steps": 0, "update_starting_at_epoch": 1},
    ):
        model = regression(pl)()
        callback = pl.callbacks.EMAWeightAveraging(**options)
        flags = {**QUIET, "max_epochs": 3, "callbacks": [callback]}
        trainer = pl.Trainer(default_root_dir=folder / str(len(found)), **flags)
        trainer.fit(model, loader(), loader(4))
        found.append((weights(model), trainer.callback_metrics["val_loss"]))
    return found


def a_script_says_when_to_average(pl, folder):
    """`WeightAveraging` asks `should_update`, and takes the arguments of `AveragedModel`."""

    class Late(pl.callbacks.WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx >= 5

    model = _two_parts(pl)()
    flags = {**QUIET, "max_epochs": 2, "callbacks": [Late(use_buffers=False)]}
    pl.Trainer(default_root_dir=folder, **flags).fit(model, loader(), loader(4))
    return weights(model)
