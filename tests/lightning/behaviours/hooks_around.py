"""Hooks around the steps: transfer, evaluation, data modules, callbacks of the module."""

import importlib

import torch
from small import QUIET, loader, regression, weights


def _trainer(pl, folder, **flags):
    return pl.Trainer(default_root_dir=folder, **({"max_epochs": 1} | QUIET | flags))


def _noting(base, names, seen):
    """A subclass that notes what its hooks of these names are called with, by kind."""

    def method(name):
        def noted(self, *arguments, **named):
            told = [a for a in (*arguments, *named.values()) if isinstance(a, int | str)]
            seen.append((name, told))
            return getattr(base, name)(self, *arguments, **named)

        return noted

    return type("Noting", (base,), {name: method(name) for name in names})


_TRANSFER = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]


def transfer_hooks_run_before_the_batch_starts(pl, folder):
    """before, transfer, after with the loader's number, then on_train_batch_start."""
    seen = []
    names = [*_TRANSFER, "on_train_batch_start", "training_step"]
    _trainer(pl, folder).fit(_noting(regression(pl), names, seen)(), loader(4))
    return seen


def transfer_hooks_change_the_batch(pl, folder):
    """What they return is what the steps get, in training and evaluation."""

    class Changes(regression(pl)):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] + 1, batch[1]]

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            assert device == torch.device("cpu")
            return [part * 2 for part in batch]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return tuple(part - 1 for part in batch)

    model = Changes()
    trainer = _trainer(pl, folder)
    trainer.fit(model, loader(), loader(4))
    found = trainer.validate(model, loader(4), verbose=False)
    made = trainer.predict(model, loader(4))
    return weights(model), found, [one.tolist() for one in made]


def transfer_hooks_of_the_data_module_come_first(pl, folder):
    """A hook that the data module overrides replaces the module's of that name."""
    seen = []

    class Model(regression(pl)):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append("model before")
            return batch

        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append("model after")
            return batch

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(4)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append("data after")
            return [batch[0] * 3, batch[1]]

    model = Model()
    _trainer(pl, folder).fit(model, datamodule=Data())
    return seen, weights(model)


def transfer_to_device_moves_what_the_trainer_does_not_know(pl, folder):
    """A batch of a class of one's own."""

    class Pair:
        def __init__(self, x, y):
            self.x, self.y = x, y

    def collate(samples):
        return Pair(*(torch.stack(part) for part in zip(*samples, strict=True)))

    class Model(regression(pl)):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            if isinstance(batch, Pair):
                return batch.x.to(device), batch.y.to(device)
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    model = Model()
    _trainer(pl, folder).fit(model, loader(8, collate_fn=collate), loader(4))
    return weights(model)


_EVALUATION = [
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "validation_step",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_batch_end",
]


def hooks_of_a_validation_run_in_order(pl, folder):
    """Gradients are cleared and the module set to evaluation mode before, to training after."""
    seen = []
    model = _noting(regression(pl), _EVALUATION, seen)()
    _trainer(pl, folder, num_sanity_val_steps=1).fit(model, loader(4), loader(4))
    return seen


def hooks_of_a_test_run_in_order(pl, folder):
    """The same for `test`."""
    seen = []
    names = [n.replace("validation", "test") for n in _EVALUATION if "zero" not in n]
    names = [n for n in names if n != "on_train_batch_end"]
    model = _noting(regression(pl), names, seen)()
    _trainer(pl, folder).test(model, loader(4), verbose=False)
    return seen, model.training


def hooks_of_a_prediction_run_in_order(pl, folder):
    """The same for `predict`."""
    seen = []
    names = [
        "on_predict_model_eval",
        "on_predict_start",
        "on_predict_epoch_start",
        "on_predict_batch_start",
        "predict_step",
        "on_predict_batch_end",
        "on_predict_epoch_end",
        "on_predict_end",
    ]
    model = _noting(regression(pl), names, seen)()
    _trainer(pl, folder).predict(model, loader(4))
    return seen, model.training


def a_module_may_stay_in_training_mode(pl, folder):
    """`on_validation_model_eval` decides the mode of a validation."""
    seen = []

    class Stays(regression(pl)):
        def on_validation_model_eval(self):
            seen.append("eval")

        def validation_step(self, batch, batch_idx):
            seen.append(self.training)

    model = Stays()
    _trainer(pl, folder).fit(model, loader(4), loader(4))
    return seen, model.training


def modes_of_submodules_come_back(pl, folder):
    """A submodule that was in evaluation mode is so again after a validation."""
    seen = []

    class Frozen(regression(pl)):
        def __init__(self):
            super().__init__()
            self.part = torch.nn.Dropout()

        def on_train_start(self):
            self.part.eval()

        def on_train_batch_start(self, batch, batch_idx):
            seen.append((self.training, self.part.training))

    _trainer(pl, folder, max_epochs=2).fit(Frozen(), loader(4), loader(4))
    return seen


def batch_hooks_may_name_the_loader(pl, folder):
    """Evaluation hooks may have `dataloader_idx`, with a default where there is one loader."""
    seen = []

    class Model(regression(pl)):
        def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
            seen.append(("start", batch_idx, dataloader_idx))

    class Watch(pl.Callback):
        def on_validation_batch_end(
            self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
        ):
            seen.append(("end", outputs, batch_idx, dataloader_idx))

        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(("predict", outputs.tolist(), batch_idx))

    model = Model()
    trainer = _trainer(pl, folder, callbacks=[Watch()])
    trainer.validate(model, loader(4), verbose=False)
    trainer.predict(model, loader(4))
    return seen


def outputs_of_evaluation_are_what_the_step_returns(pl, folder):
    """`on_validation_batch_end` gets the step's return value as it is."""
    seen = []

    class Model(regression(pl)):
        def validation_step(self, batch, batch_idx):
            return {"values": [1, 2], "batch": batch_idx}

        def on_validation_batch_end(self, outputs, batch, batch_idx):
            seen.append(outputs)

    trainer = _trainer(pl, folder)
    trainer.validate(Model(), loader(4), verbose=False)
    return seen, sorted(trainer.callback_metrics)


def hooks_of_data_module_and_module_run_in_order(pl, folder):
    """prepare_data and setup: data module, callbacks, module; teardown in the same order."""
    seen = []

    class Data(pl.LightningDataModule):
        def prepare_data(self):
            seen.append("data prepare_data")

        def setup(self, stage):
            seen.append(("data setup", str(getattr(stage, "value", stage))))

        def teardown(self, stage):
            seen.append(("data teardown", str(getattr(stage, "value", stage))))

        def train_dataloader(self):
            return loader(4)

    class Model(regression(pl)):
        def prepare_data(self):
            seen.append("model prepare_data")

        def setup(self, stage):
            seen.append("model setup")

        def configure_model(self):
            seen.append("configure_model")

        def configure_optimizers(self):
            seen.append("configure_optimizers")
            return super().configure_optimizers()

        def on_fit_start(self):
            seen.append("on_fit_start")

        def on_fit_end(self):
            seen.append("on_fit_end")

        def teardown(self, stage):
            seen.append("model teardown")

    class Watch(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            seen.append("callback setup")

        def teardown(self, trainer, pl_module, stage):
            seen.append("callback teardown")

        def on_fit_start(self, trainer, pl_module):
            seen.append("callback on_fit_start")

    _trainer(pl, folder, callbacks=[Watch()]).fit(Model(), datamodule=Data())
    return seen


def an_exception_reaches_callbacks_and_data_module(pl, folder):
    """`on_exception` of callbacks, then of the data module; teardown does not run."""
    seen = []

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(4)

        def on_exception(self, exception):
            seen.append(("data", type(exception).__name__))

        def teardown(self, stage):
            seen.append("teardown")

    class Model(regression(pl)):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("mine")

    class Watch(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(("callback", str(exception)))

    try:
        _trainer(pl, folder, callbacks=[Watch()]).fit(Model(), datamodule=Data())
    except ArithmeticError:
        seen.append("raised")
    return seen


def an_exception_before_training_reaches_callbacks(pl, folder):
    """Also what `configure_optimizers` raises."""
    seen = []

    class Model(regression(pl)):
        def configure_optimizers(self):
            raise ArithmeticError("early")

    class Watch(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(str(exception))

    try:
        _trainer(pl, folder, callbacks=[Watch()]).fit(Model(), loader(4))
    except ArithmeticError:
        seen.append("raised")
    return seen


def an_exception_of_a_test_reaches_callbacks(pl, folder):
    """`on_exception` is for every entry point."""
    seen = []

    class Model(regression(pl)):
        def test_step(self, batch, batch_idx):
            raise ArithmeticError("mine")

    class Watch(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(str(exception))

    try:
        _trainer(pl, folder, callbacks=[Watch()]).test(Model(), loader(4))
    except ArithmeticError:
        seen.append("raised")
    return seen


def configure_callbacks_adds_callbacks(pl, folder):
    """Callbacks that the module returns are the trainer's from then on."""
    callbacks = importlib.import_module(pl.__name__ + ".callbacks")

    class Count(pl.Callback):
        steps = 0

        def on_train_batch_end(self, *arguments):
            self.steps += 1

    class Model(regression(pl)):
        def configure_callbacks(self):
            return [callbacks.EarlyStopping("val_loss", patience=0, mode="max"), Count()]

    trainer = _trainer(pl, folder, max_epochs=5)
    trainer.fit(Model(), loader(), loader(4))
    count = next(c for c in trainer.callbacks if isinstance(c, Count))
    return count.steps, trainer.current_epoch


def configure_callbacks_replaces_callbacks_of_the_class(pl, folder):
    """One of the module takes the place of the trainer's of its class; one alone may be given."""
    seen = []

    class Named(pl.Callback):
        def __init__(self, name):
            self.name = name

        @property
        def state_key(self):
            return self.name

        def on_train_start(self, trainer, pl_module):
            seen.append(self.name)

    class Other(Named):
        pass

    class Model(regression(pl)):
        def configure_callbacks(self):
            return Named("model")

    given = [Named("trainer"), Other("other")]
    trainer = _trainer(pl, folder, callbacks=given)
    trainer.fit(Model(), loader(4))
    return seen


def configure_callbacks_is_asked_by_every_entry_point(pl, folder):
    """`validate` takes them too."""
    seen = []

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append("started")

    class Model(regression(pl)):
        def configure_callbacks(self):
            return [Watch()]

    _trainer(pl, folder).validate(Model(), loader(4), verbose=False)
    return seen


def configure_sharded_model_builds_layers(pl, folder):
    """The older name of `configure_model`."""
    seen = []

    class Model(regression(pl)):
        def configure_sharded_model(self):
            seen.append("built")

    model = Model()
    _trainer(pl, folder).fit(model, loader(4))
    return seen, weights(model)


def augmentation_after_the_transfer_is_what_the_step_sees(pl, folder):
    """`on_after_batch_transfer` may augment in training only."""

    class Model(regression(pl)):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return (x * 2 if self.training else x), y

    model = Model()
    trainer = _trainer(pl, folder)
    trainer.fit(model, loader(), loader(4))
    return weights(model), {k: float(v) for k, v in trainer.callback_metrics.items()}
