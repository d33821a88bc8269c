"""Several loaders: lists, dicts, `CombinedLoader`, and what tells them apart."""

import importlib
import warnings

import torch
from small import QUIET, loader, regression, weights
from torch.utils.data import DataLoader, Dataset


def _combined(pl, loaders, mode):
    where = f"{pl.__name__}.utilities.combined_loader"
    return importlib.import_module(where).CombinedLoader(loaders, mode)


def _numbers(count, batch_size=2, **options):
    return DataLoader(torch.arange(count, dtype=torch.float32), batch_size=batch_size, **options)


def _seen(batch):
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, dict):
        return {key: _seen(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_seen(value) for value in batch]
    return batch


def _watching(pl):
    """Keeps what each step was given."""

    class Watching(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append((_seen(batch), batch_idx))
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Watching


def _train(pl, folder, loaders, epochs=1, **flags):
    model = _watching(pl)()
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, **{**QUIET, **flags})
    trainer.fit(model, loaders)
    return model.seen, trainer.global_step


def training_with_a_dict_of_loaders_gives_a_dict_of_batches(pl, folder):
    """A dict of loaders trains with dicts of batches; the shorter one begins again."""
    return _train(pl, folder, {"a": _numbers(5), "b": _numbers(4, batch_size=1)}, epochs=2)


def training_with_a_list_of_loaders_gives_a_list_of_batches(pl, folder):
    """A list of loaders trains with lists of batches."""
    return _train(pl, folder, [_numbers(4), _numbers(6, batch_size=3)])


def training_with_a_list_of_one(pl, folder):
    """A list with one loader gives lists with one batch."""
    return _train(pl, folder, [_numbers(4)])


def training_with_nested_loaders(pl, folder):
    """Collections of loaders may be nested."""
    return _train(pl, folder, {"a": [_numbers(4), _numbers(2)], "b": _numbers(6)})


def training_min_size_ends_with_the_shortest(pl, folder):
    """`CombinedLoader` of mode min_size ends with the shortest loader."""
    return _train(pl, folder, _combined(pl, [_numbers(4), _numbers(10)], "min_size"))


def training_max_size_fills_with_none(pl, folder):
    """`CombinedLoader` of mode max_size gives None for a loader that has ended."""
    return _train(pl, folder, _combined(pl, {"a": _numbers(2), "b": _numbers(5)}, "max_size"))


def training_max_size_cycle_repeats_the_shorter(pl, folder):
    """`CombinedLoader` of mode max_size_cycle begins the shorter loader again."""
    return _train(pl, folder, _combined(pl, [_numbers(3), _numbers(9)], "max_size_cycle"), epochs=2)


def training_does_not_take_sequential(pl, folder):
    """`fit` refuses a `CombinedLoader` of mode sequential."""
    try:
        _train(pl, folder, _combined(pl, [_numbers(2), _numbers(2)], "sequential"))
    except ValueError:
        return "ValueError"
    return "ran"


def training_limits_count_combined_batches(pl, folder):
    """`limit_train_batches` limits batches of the combination."""
    loaders = [_numbers(10), _numbers(4)]
    return [
        _train(pl, folder, loaders, limit_train_batches=3),
        _train(pl, folder, loaders, limit_train_batches=0.6),
    ]


def training_shuffles_each_of_several(pl, folder):
    """Each of several shuffled loaders reads all of its samples in each epoch."""
    seen, _ = _train(
        pl, folder, {"a": _numbers(6, shuffle=True), "b": _numbers(3, shuffle=True)}, epochs=2
    )
    batches = [batch for batch, _ in seen]
    return [
        sorted(number for batch in part for number in batch["a"])
        for part in (batches[:3], batches[3:])
    ]


def training_combines_a_loader_and_an_iterable(pl, folder):
    """An iterable without a length may be one of several."""

    class Endless:
        def __iter__(self):
            return iter(torch.arange(3.0).reshape(3, 1))

    return _train(pl, folder, {"a": _numbers(4), "b": Endless()})


def accumulates_combined_batches(pl, folder):
    """`accumulate_grad_batches` counts combined batches."""
    return _train(pl, folder, [_numbers(8), _numbers(8)], accumulate_grad_batches=2)


def _evaluating(pl, **log):
    class Evaluating(regression(pl)):
        def __init__(self):
            super().__init__()
            self.seen = []

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.seen.append((len(batch[0]), batch_idx, dataloader_idx))
            self.log("val_loss", self.loss(batch), **log)

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.seen.append((len(batch[0]), batch_idx, dataloader_idx))
            self.log("test_loss", self.loss(batch), **log)

        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return len(batch[0]), batch_idx, dataloader_idx

    return Evaluating


def _trainer(pl, folder, **flags):
    return pl.Trainer(max_epochs=1, default_root_dir=folder, **{**QUIET, **flags})


def validation_tells_which_loader(pl, folder):
    """With several validation loaders steps get `dataloader_idx`, names its suffix."""
    model, trainer = _evaluating(pl)(), _trainer(pl, folder)
    trainer.fit(model, loader(4), [loader(4), loader(3)])
    return model.seen, {k: v for k, v in trainer.callback_metrics.items() if k != "loss"}


def validation_with_a_dict_of_loaders(pl, folder):
    """A dict of validation loaders is read one after the other."""
    model, trainer = _evaluating(pl)(), _trainer(pl, folder)
    trainer.validate(model, {"a": loader(4), "b": loader(3)})
    return model.seen, trainer.callback_metrics


def names_without_the_loader(pl, folder):
    """`add_dataloader_idx=False` leaves names as they are, for names that say it themselves."""

    class Named(regression(pl)):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            name = f"part_{dataloader_idx}"
            self.log(name, self.loss(batch), add_dataloader_idx=False)

    trainer = _trainer(pl, folder)
    trainer.validate(Named(), [loader(4), loader(6)])
    return trainer.callback_metrics


def one_loader_has_no_suffix(pl, folder):
    """A list with one loader is like that loader."""
    model, trainer = _evaluating(pl)(), _trainer(pl, folder)
    trainer.validate(model, [loader(4)])
    return model.seen, trainer.callback_metrics


def log_dict_of_several_loaders(pl, folder):
    """`log_dict` names the loader too."""

    class Named(regression(pl)):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log_dict({"a": self.loss(batch), "b": float(dataloader_idx)})

    trainer = _trainer(pl, folder)
    trainer.validate(Named(), [loader(4), loader(6)])
    return trainer.callback_metrics


def forked_names_of_several_loaders(pl, folder):
    """With `on_step` and `on_epoch` the suffix of the loader comes last."""
    model, trainer = _evaluating(pl, on_step=True, on_epoch=True)(), _trainer(pl, folder)
    trainer.validate(model, [loader(4), loader(6)])
    return sorted(name for name in trainer.callback_metrics if "_epoch" in name)


def values_at_the_end_of_a_validation_of_several(pl, folder):
    """What is logged at the end of the epoch belongs to no loader."""

    class Ending(_evaluating(pl)):
        def on_validation_epoch_end(self):
            self.log("whole", 3.0)

    trainer = _trainer(pl, folder)
    trainer.validate(Ending(), [loader(4), loader(6)])
    return trainer.callback_metrics


def test_gives_a_dict_for_each_loader(pl, folder):
    """`test` returns a dict for each loader, with what belongs to none in all of them."""

    class Ending(_evaluating(pl)):
        def on_test_epoch_end(self):
            self.log("whole", 3.0)

    trainer = _trainer(pl, folder)
    return trainer.test(Ending(), [loader(4), loader(6)])


def predict_gives_a_list_for_each_loader(pl, folder):
    """`predict` with several loaders returns a list of lists."""
    trainer = _trainer(pl, folder)
    return (
        trainer.predict(_evaluating(pl)(), [loader(4), loader(3)]),
        trainer.predict(_evaluating(pl)(), [loader(4)]),
    )


def predict_takes_sequential_only(pl, folder):
    """`predict` refuses combinations other than sequential."""
    trainer = _trainer(pl, folder)
    try:
        trainer.predict(_evaluating(pl)(), _combined(pl, [loader(4), loader(3)], "max_size"))
    except ValueError:
        return "ValueError"
    return "ran"


def evaluation_by_another_rule(pl, folder):
    """A `CombinedLoader` decides how several loaders are evaluated: together, or in turn."""
    found = []
    for mode in ("min_size", "max_size_cycle", "max_size", "sequential"):

        class Together(regression(pl)):
            def __init__(self):
                super().__init__()
                self.seen = []

            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                self.seen.append((_seen(batch), batch_idx, dataloader_idx))

        model = Together()
        both = _combined(pl, {"a": _numbers(4), "b": _numbers(3)}, mode)
        _trainer(pl, folder).validate(model, both)
        found.append(model.seen)
    return found


def hooks_are_told_which_loader(pl, folder):
    """Hooks around evaluation steps get `dataloader_idx` when there are several loaders."""
    told = []

    class Watch(importlib.import_module(pl.__name__ + ".callbacks").Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            told.append(("start", batch_idx, dataloader_idx))

        def on_validation_batch_end(self, t, m, outputs, batch, batch_idx, dataloader_idx=0):
            told.append(("end", batch_idx, dataloader_idx))

        def on_predict_batch_end(self, t, m, outputs, batch, batch_idx, dataloader_idx=0):
            told.append(("predicted", batch_idx, dataloader_idx))

    trainer = _trainer(pl, folder, callbacks=[Watch()])
    trainer.validate(_evaluating(pl)(), [loader(4), loader(2)])
    trainer.predict(_evaluating(pl)(), [loader(2), loader(4)])
    return told


def limits_are_for_each_loader(pl, folder):
    """`limit_val_batches` and the like limit each loader."""
    model = _evaluating(pl)()
    trainer = _trainer(pl, folder, limit_val_batches=1, limit_test_batches=0.5)
    trainer.validate(model, [loader(4), loader(6)])
    trainer.test(model, [loader(4), loader(8)])
    return model.seen


def sanity_steps_are_for_each_loader(pl, folder):
    """`num_sanity_val_steps` counts batches of each loader."""
    model = _evaluating(pl)()
    trainer = _trainer(pl, folder, num_sanity_val_steps=1, limit_train_batches=1)
    trainer.fit(model, loader(4), [loader(4), loader(6)])
    return model.seen


def a_step_has_to_take_the_index(pl, folder):
    """Several loaders and a step without `dataloader_idx` is an error, as is the reverse."""

    class Needs(regression(pl)):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            pass

    found = []
    for module, data in ((regression(pl)(), [loader(4), loader(4)]), (Needs(), loader(4))):
        try:
            _trainer(pl, folder).validate(module, data)
        except Exception as error:
            found.append("dataloader_idx" in str(error))
        else:
            found.append("ran")
    return found


def combined_loader_by_itself(pl, folder):
    """`CombinedLoader` can be iterated over, has a length and limits."""
    found = []
    for mode in ("min_size", "max_size_cycle", "max_size", "sequential"):
        both = _combined(pl, {"a": _numbers(6, 4), "b": _numbers(15, 5)}, mode)
        iter(both)
        found.append((len(both), [(_seen(b), i, d) for b, i, d in both]))
        both.limits = 1
        iter(both)
        found.append((len(both), both.limits))
    return found


def combined_loader_knows_what_it_holds(pl, folder):
    """`flattened` lists the iterables and can be set; `iterables` keeps their structure."""
    one, two = _numbers(2), _numbers(4)
    both = _combined(pl, {"a": one, "b": [two, range(3)]}, "min_size")
    before = [both.flattened.index(each) for each in (one, two)]
    both.flattened = [two, one, [1, 2]]
    return before, both.iterables["a"] is two, both.iterables["b"][1], len(both.sampler["b"])


def combined_loader_refuses(pl, folder):
    """A mode that there is not, a length before iterating, and another number of iterables."""
    found = []
    both = _combined(pl, [_numbers(2), _numbers(4)], "min_size")
    for attempt in (
        lambda: _combined(pl, [], "longest"),
        lambda: len(both),
        lambda: setattr(both, "flattened", [1]),
        lambda: setattr(both, "limits", [1]),
    ):
        try:
            attempt()
        except Exception as error:
            found.append(type(error).__name__)
    return found


class _Pairs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((4,), float(index)), torch.ones(1)


def training_with_two_kinds_of_samples(pl, folder):
    """Losses of several loaders add up to the same weights."""

    class Both(regression(pl)):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch["plain"]) + self.loss(batch["pairs"])
            self.log("loss", loss)
            return loss

    model = Both()
    _trainer(pl, folder).fit(model, {"plain": loader(8), "pairs": DataLoader(_Pairs(), 2)})
    return weights(model)


def validation_data_without_a_step(pl, folder):
    """Data to validate with are left alone, with a warning, when there is no `validation_step`."""

    class Bare(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Bare(), loader(), loader(4))
    told = any("validation_step" in str(one.message) for one in said)
    return told, trainer.global_step, sorted(trainer.callback_metrics)
