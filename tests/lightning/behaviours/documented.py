"""Snippets of Lightning's public pages, as they stand there, in small."""

import os
from datetime import timedelta

import torch
from small import QUIET, loader, regression, weights


def _trainer(pl, folder, **flags):
    return pl.Trainer(**{**QUIET, "max_epochs": 1, "default_root_dir": folder, **flags})


def places_of_all_predictions(pl, folder):
    """`write_on_epoch_end` gets the places of samples by loader and batch."""
    seen = []

    class Writes(pl.callbacks.BasePredictionWriter):
        def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
            seen.append([len(predictions), batch_indices])

    trainer = _trainer(pl, folder, callbacks=[Writes("epoch")])
    trainer.predict(regression(pl)(), loader(6), return_predictions=False)
    return seen


def predictions_of_several_loaders_are_written(pl, folder):
    """A writer gets batches of several loaders with their number, and at the end lists of them."""
    seen = []

    class Writes(pl.callbacks.BasePredictionWriter):
        def write_on_batch_end(
            self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
        ):
            seen.append([batch_indices, batch_idx, dataloader_idx])

        def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
            seen.append([[len(one) for one in predictions], batch_indices])

    class Predicts(regression(pl)):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return self(batch[0])

    trainer = _trainer(pl, folder, callbacks=[Writes("batch_and_epoch")])
    found = trainer.predict(Predicts(), [loader(6), loader(2)])
    return seen, [len(one) for one in found]


def time_limits_in_all_forms(pl, folder):
    """`max_time` is a text, a mapping or a timedelta."""
    found = []
    for limit in ("00:01:00:00", {"minutes": 5}, timedelta(hours=1)):
        trainer = _trainer(pl, folder, max_time=limit, max_epochs=2)
        trainer.fit(regression(pl)(), loader())
        found.append(trainer.global_step)
    return found


def validations_by_the_clock(pl, folder):
    """`val_check_interval` may be a time."""
    trainer = _trainer(pl, folder, val_check_interval="00:00:10:00")
    trainer.fit(regression(pl)(), loader(), loader(4))
    return trainer.global_step


REFUSED = {"validations_by_the_clock": "cannot go by the clock; give a number of batches"}


def production_mode_is_a_plain_model(pl, folder):
    """A loaded module predicts in eval mode like any torch module."""
    trainer = _trainer(pl, folder, enable_checkpointing=True)
    model = regression(pl)()
    trainer.fit(model, loader())
    path = folder / "m.ckpt"
    trainer.save_checkpoint(path)
    again = type(model).load_from_checkpoint(path)
    again.eval()
    with torch.no_grad():
        return again(torch.ones(2, 4)).tolist(), again.training


def a_child_of_a_module_is_loaded_from_its_checkpoint(pl, folder):
    """Weights of a part are read from `state_dict` of the file."""
    trainer = _trainer(pl, folder, enable_checkpointing=True)
    trainer.fit(regression(pl)(), loader())
    path = folder / "m.ckpt"
    trainer.save_checkpoint(path)
    found = torch.load(path)["state_dict"]
    part = torch.nn.Linear(4, 1)
    part.load_state_dict({k.removeprefix("layer."): v for k, v in found.items()})
    return part.weight.tolist(), sorted(found)


def two_optimizers_with_schedulers_by_hand(pl, folder):
    """Manual optimization steps schedulers each N batches and at the end of the epoch."""
    rates = []

    class Manual(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            scheduler = self.lr_schedulers()
            if (batch_idx + 1) % 2 == 0:
                scheduler.step()
            if self.trainer.is_last_batch:
                scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    _trainer(pl, folder, max_epochs=2).fit(Manual(), loader(10))
    return rates


def a_warm_up_in_optimizer_step(pl, folder):
    """`optimizer_step` scales the rate of the first steps."""
    rates = []

    class Warm(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)
            if self.trainer.global_step < 5:
                scale = min(1.0, float(self.trainer.global_step + 1) / 5)
                for group in optimizer.param_groups:
                    group["lr"] = scale * 0.1
            rates.append([self.trainer.global_step, optimizer.param_groups[0]["lr"]])

    model = Warm()
    _trainer(pl, folder, max_epochs=2).fit(model, loader())
    return rates, weights(model)


def an_optimizer_of_every_second_batch(pl, folder):
    """`optimizer_step` may run the closure without a step."""

    class Every(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2 == 0:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    model, trainer = Every(), _trainer(pl, folder)
    trainer.fit(model, loader())
    return weights(model), trainer.global_step


def gradients_zeroed_to_none(pl, folder):
    """`optimizer_zero_grad` may set gradients to None."""

    class Zeroes(regression(pl)):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=True)

    model = Zeroes()
    _trainer(pl, folder).fit(model, loader())
    return weights(model)


def clipping_of_ones_own(pl, folder):
    """`configure_gradient_clipping` clips in some epochs only."""

    class Clips(regression(pl)):
        def configure_gradient_clipping(
            self, optimizer, gradient_clip_val, gradient_clip_algorithm
        ):
            if self.current_epoch > 0:
                gradient_clip_val = gradient_clip_val * 0.5
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )

    model = Clips()
    try:
        _trainer(pl, folder, max_epochs=2, gradient_clip_val=0.1).fit(model, loader())
    except Exception as error:
        return type(error).__name__ in ("MisconfigurationException", "ValueError")
    return weights(model)


def a_step_counter_logged_as_hyperparameter_metrics(pl, folder):
    """Step outputs that a script keeps in a list can be used at the end of the epoch."""
    found = []

    class Collects(regression(pl)):
        def __init__(self):
            super().__init__()
            self.outputs = []

        def validation_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.outputs.append(loss)
            return loss

        def on_validation_epoch_end(self):
            average = torch.stack(self.outputs).mean()
            self.log("validation_epoch_average", average)
            self.outputs.clear()

        def on_fit_end(self):
            found.append(float(self.trainer.callback_metrics["validation_epoch_average"]))

    _trainer(pl, folder, max_epochs=2).fit(Collects(), loader(), loader(6))
    return found


def a_fixed_validation_of_the_loaders_name(pl, folder):
    """`dataloader_idx` tells several loaders apart; names may leave it out."""

    class Several(regression(pl)):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log(f"v{dataloader_idx}", self.loss(batch), add_dataloader_idx=False)

    trainer = _trainer(pl, folder)
    trainer.fit(Several(), loader(), [loader(4), loader(6)])
    return {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("v")}


def a_callback_with_state(pl, folder):
    """A callback counts what its `state_key` says and keeps it in checkpoints."""

    class Counter(pl.Callback):
        def __init__(self, what="epochs", verbose=True):
            self.what, self.verbose = what, verbose
            self.state = {"epochs": 0, "batches": 0}

        @property
        def state_key(self):
            return f"Counter[what={self.what}]"

        def on_train_epoch_end(self, *args):
            if self.what == "epochs":
                self.state["epochs"] += 1

        def on_train_batch_end(self, *args):
            if self.what == "batches":
                self.state["batches"] += 1

        def load_state_dict(self, state_dict):
            self.state.update(state_dict)

        def state_dict(self):
            return self.state.copy()

    def fit(epochs, path=None):
        counters = [Counter("epochs"), Counter("batches")]
        trainer = _trainer(
            pl, folder, max_epochs=epochs, callbacks=[*counters], enable_checkpointing=True
        )
        trainer.fit(regression(pl)(), loader(), ckpt_path=path)
        trainer.save_checkpoint(folder / f"{epochs}.ckpt")
        return [c.state for c in counters]

    return fit(1), fit(3, folder / "1.ckpt"), os.path.exists(folder / "3.ckpt")


def an_inference_of_several_models(pl, folder):
    """`predict` of dropout samples: `enable_dropout` within `predict_step`."""

    class Samples(regression(pl)):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def predict_step(self, batch, batch_idx):
            self.dropout.train()
            found = torch.stack([self.dropout(self(batch[0])) for _ in range(4)])
            return found.shape, self.dropout.training, self.training

    found = _trainer(pl, folder).predict(Samples(), loader(4))
    return [[list(shape), *rest] for shape, *rest in found]


def limits_of_debugging(pl, folder):
    """`limit_train_batches` and its like, `overfit_batches`, `num_sanity_val_steps` in one."""
    seen = []

    class Sees(pl.Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.append("sanity")

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch_idx)

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, loader=0):
            seen.append([trainer.sanity_checking, batch_idx])

    flags = {"limit_train_batches": 0.5, "limit_val_batches": 1, "num_sanity_val_steps": 2}
    _trainer(pl, folder, callbacks=[Sees()], **flags).fit(regression(pl)(), loader(), loader(6))
    flags = {"overfit_batches": 2}
    _trainer(pl, folder, callbacks=[Sees()], **flags).fit(regression(pl)(), loader(), loader(6))
    return seen


def a_data_module_as_documented(pl, folder):
    """A data module splits in `setup` by stage; its hooks come in order."""
    calls = []

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size: int = 2):
            super().__init__()
            self.save_hyperparameters()
            self.batch_size = batch_size

        def prepare_data(self):
            calls.append("prepare")

        def setup(self, stage):
            calls.append(getattr(stage, "value", stage))

        def teardown(self, stage):
            calls.append(["end", getattr(stage, "value", stage)])

        def train_dataloader(self):
            return loader(batch_size=self.hparams.batch_size)

        def val_dataloader(self):
            return loader(4, batch_size=self.batch_size)

        def test_dataloader(self):
            return loader(6, batch_size=self.batch_size)

        predict_dataloader = test_dataloader

    data, trainer, model = Data(), _trainer(pl, folder), regression(pl)()
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.test(model, datamodule=data, verbose=False)
    found = trainer.predict(model, datamodule=data)
    return calls, len(found), dict(data.hparams), trainer.datamodule is data


def a_result_of_test_and_callback_metrics(pl, folder):
    """After `test` its metrics are those of the callbacks, and none of training."""
    trainer, model = _trainer(pl, folder), regression(pl)()
    trainer.fit(model, loader(), loader(4))
    before = sorted(trainer.callback_metrics)
    found = trainer.test(model, loader(6), verbose=False)
    return before, found, sorted(trainer.callback_metrics), sorted(trainer.logged_metrics)


def a_hook_of_every_batch_counts(pl, folder):
    """`global_step`, `current_epoch` and `batch_idx` in hooks of accumulated training."""
    seen = []

    class Counts(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(["start", trainer.current_epoch, trainer.global_step, batch_idx])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(["end", trainer.global_step, trainer.is_last_batch, sorted(outputs)])

        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(["epoch", trainer.current_epoch, trainer.global_step])

        def on_train_end(self, trainer, pl_module):
            seen.append(["train", trainer.current_epoch, trainer.global_step])

    flags = {"accumulate_grad_batches": 2, "max_epochs": 2}
    _trainer(pl, folder, callbacks=[Counts()], **flags).fit(regression(pl)(), loader(10))
    return seen


def a_frozen_backbone_of_another_module(pl, folder):
    """A pretrained part is frozen by `freeze` or left out of the optimizer."""

    class Feature(regression(pl)):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Linear(4, 4)
            torch.nn.init.eye_(self.backbone.weight)
            torch.nn.init.zeros_(self.backbone.bias)

        def forward(self, x):
            self.backbone.eval()
            with torch.no_grad():
                found = self.backbone(x)
            return self.layer(found)

        def configure_optimizers(self):
            return torch.optim.Adam(self.layer.parameters(), lr=0.1)

    model = Feature()
    _trainer(pl, folder, gradient_clip_val=0.5).fit(model, loader())
    return weights(model), model.backbone.weight.grad is None


def a_sum_of_two_losses_by_toggling(pl, folder):
    """The documented GAN's step: toggled optimizers, one after the other."""

    class Two(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.other = torch.nn.Linear(4, 1)
            torch.nn.init.zeros_(self.other.weight)
            torch.nn.init.zeros_(self.other.bias)

        def training_step(self, batch):
            x, y = batch
            first, second = self.optimizers()
            for optimizer in (first, second):
                self.toggle_optimizer(optimizer)
                loss = ((self.layer(x) + self.other(x) - y) ** 2).mean()
                self.log("loss", loss, prog_bar=True)
                self.manual_backward(loss)
                self.clip_gradients(optimizer, 0.5, "norm")
                optimizer.step()
                optimizer.zero_grad()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self):
            one = torch.optim.Adam(self.layer.parameters(), lr=0.1, betas=(0.5, 0.9))
            two = torch.optim.Adam(self.other.parameters(), lr=0.1, betas=(0.5, 0.9))
            return [one, two], []

    model, trainer = Two(), _trainer(pl, folder, max_epochs=2)
    trainer.fit(model, loader())
    return weights(model), trainer.global_step, float(trainer.callback_metrics["loss"])


def checkpoints_by_documented_names(pl, folder):
    """`filename` with metrics and `save_top_k`, `every_n_epochs`, `save_on_train_epoch_end`."""
    kept = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "my",
        filename="sample-{epoch:02d}-{val_loss:.2f}",
        monitor="val_loss",
        save_top_k=2,
        every_n_epochs=2,
        save_last=True,
    )
    flags = {"enable_checkpointing": True, "callbacks": [kept], "max_epochs": 5}
    _trainer(pl, folder, **flags).fit(regression(pl)(), loader(), loader(4))
    return sorted(os.listdir(folder / "my")), os.path.basename(kept.best_model_path)


def the_x_axis_of_loggers_by_a_logged_step(pl, folder):
    """A logged ``step`` is the axis of loggers."""

    class Logs(regression(pl)):
        def on_train_epoch_end(self):
            self.log("step", float(self.current_epoch))

    _trainer(pl, folder).fit(Logs(), loader())
    return "logged"


REFUSED["the_x_axis_of_loggers_by_a_logged_step"] = "R6 metric key 'step' is reserved"


def a_value_logged_twice_in_a_batch_is_the_later_one(pl, folder):
    """A step has the last value of a name, its epoch the mean of all."""

    class Twice(regression(pl)):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            for part in (1.0, 5.0 + batch_idx):
                self.log("part", part, on_step=True, on_epoch=True)
            return loss

    trainer = _trainer(pl, folder, max_epochs=1)
    trainer.fit(Twice(), loader())
    found = trainer.callback_metrics
    return float(found["part_step"]), float(found["part_epoch"])
