"""What the trainer's calls return, and what the steps of a module may return."""

from collections import OrderedDict

import torch
from small import QUIET, loader, regression, weights


def _trainer(pl, folder, **options):
    return pl.Trainer(**{"max_epochs": 1, "default_root_dir": folder, **QUIET, **options})


def validate_returns_a_list_of_dicts(pl, folder):
    """`validate` returns one dictionary of metrics for each loader, in a list."""
    return _trainer(pl, folder).validate(regression(pl)(), loader(), verbose=False)


def test_returns_a_list_of_dicts(pl, folder):
    """`test` returns one dictionary of metrics for each loader, in a list."""
    return _trainer(pl, folder).test(regression(pl)(), loader(), verbose=False)


def test_takes_its_arguments_in_order(pl, folder):
    """The positional order is model, dataloaders, ckpt_path, verbose, datamodule."""
    return _trainer(pl, folder).test(regression(pl)(), loader(), None, False, None)


def metrics_returned_are_floats(pl, folder):
    """The returned values are plain numbers."""
    (found,) = _trainer(pl, folder).test(regression(pl)(), loader(), verbose=False)
    return {name: type(value).__name__ for name, value in found.items()}


def nothing_logged_is_an_empty_dict(pl, folder):
    """A test that logs nothing returns a dictionary without entries."""

    class Silent(regression(pl)):
        def test_step(self, batch, batch_idx):
            return None

    return _trainer(pl, folder).test(Silent(), loader(), verbose=False)


def fit_returns_none(pl, folder):
    """`fit` returns nothing."""
    return {"found": _trainer(pl, folder).fit(regression(pl)(), loader())}


def a_value_not_for_loggers_is_not_returned(pl, folder):
    """With `logger=False` a value reaches `callback_metrics` only."""

    class Quiet(regression(pl)):
        def test_step(self, batch, batch_idx):
            self.log("shown", 1.0)
            self.log("hidden", 2.0, logger=False)

    trainer = _trainer(pl, folder)
    found = trainer.test(Quiet(), loader(), verbose=False)
    return found, sorted(trainer.callback_metrics)


def a_returned_dict_is_not_logged(pl, folder):
    """What `validation_step` returns is for hooks; only `log` logs."""

    class Returning(regression(pl)):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))
            return {"val_loss": torch.tensor(9.0), "other": torch.tensor(1.0)}

    trainer = _trainer(pl, folder)
    return trainer.validate(Returning(), loader(), verbose=False), sorted(trainer.callback_metrics)


def a_step_may_return_any_dict(pl, folder):
    """Evaluation steps may return dictionaries of anything, which batch-end hooks see."""
    seen = []

    class Returning(regression(pl)):
        def validation_step(self, batch, batch_idx):
            return {"x": batch[0], "names": ["a", "b"], 3: None}

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append((sorted(map(str, outputs)), outputs["x"].shape[0]))

    return _trainer(pl, folder).validate(Returning(), loader(), verbose=False), seen


def a_step_may_return_a_tensor(pl, folder):
    """An evaluation step may return a tensor of any shape."""
    seen = []

    class Returning(regression(pl)):
        def test_step(self, batch, batch_idx):
            return batch[0]

        def on_test_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append(list(outputs.shape))

    _trainer(pl, folder).test(Returning(), loader(), verbose=False)
    return seen


def predict_returns_the_outputs_of_all_batches(pl, folder):
    """`predict` returns a list with one entry for each batch."""
    return _trainer(pl, folder).predict(regression(pl)(), loader())


def predict_can_return_nothing(pl, folder):
    """With `return_predictions=False` nothing is collected."""
    found = _trainer(pl, folder).predict(regression(pl)(), loader(), return_predictions=False)
    return {"found": found}


def predict_keeps_dicts_as_they_are(pl, folder):
    """A dictionary comes back as the type that `predict_step` gave, with texts and numbers."""

    class Named(regression(pl)):
        def predict_step(self, batch, batch_idx):
            return OrderedDict(name=f"b{batch_idx}", y=self(batch[0]), n=3, nothing=None)

    found = _trainer(pl, folder).predict(Named(), loader())
    return [type(each).__name__ for each in found], found


def predict_keeps_objects_of_any_class(pl, folder):
    """An object that is no tensor comes back as it is."""

    class Box:
        def __init__(self, value):
            self.value = value

    class Boxing(regression(pl)):
        def predict_step(self, batch, batch_idx):
            return Box(batch_idx)

    return [(type(b).__name__, b.value) for b in _trainer(pl, folder).predict(Boxing(), loader())]


def predict_gives_none_where_a_step_did(pl, folder):
    """A `predict_step` without a result leaves a None in the list."""

    class Some(regression(pl)):
        def predict_step(self, batch, batch_idx):
            return batch_idx if batch_idx % 2 else None

    return _trainer(pl, folder).predict(Some(), loader())


def predict_calls_forward_by_default(pl, folder):
    """Without a `predict_step` of its own a module's `forward` gets the batch."""

    class Plain(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x)

    data = torch.utils.data.DataLoader(torch.ones(4, 4), batch_size=2)
    return _trainer(pl, folder).predict(Plain(), data)


def predict_runs_without_gradients(pl, folder):
    """Predictions need no gradient, in inference mode and without it."""
    found = [
        _trainer(pl, folder, inference_mode=mode).predict(regression(pl)(), loader())
        for mode in (True, False)
    ]
    return [(each[0].requires_grad, each[0].is_inference()) for each in found]


def limits_bound_what_is_predicted(pl, folder):
    """`limit_predict_batches` bounds the list."""
    return len(_trainer(pl, folder, limit_predict_batches=2).predict(regression(pl)(), loader()))


def a_trained_model_is_validated_as_it_is(pl, folder):
    """A model that is given again is measured with the weights that `fit` has left."""
    trainer = _trainer(pl, folder)
    model = regression(pl)()
    trainer.fit(model, loader())
    return trainer.validate(model, loader(), verbose=False), weights(model)


def the_training_loss_may_be_in_a_dict(pl, folder):
    """`training_step` may return a dictionary with a key `loss` and others."""

    class Returning(regression(pl)):
        def training_step(self, batch, batch_idx):
            return {"loss": self.loss(batch), "names": ["x"], "x": batch[0]}

    model = Returning()
    _trainer(pl, folder).fit(model, loader())
    return weights(model)
