"""Where data come from: modules' own loaders, data modules, iterables, samplers."""

import torch
from small import QUIET, loader, regression, samples, weights
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler


class _Numbers(Dataset):
    def __init__(self, count, start=0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(float(self.start + index))


class _Stream(IterableDataset):
    def __init__(self, count=7):
        self.count = count

    def __iter__(self):
        return iter(torch.arange(float(self.count)))


class _Batches:
    """Can only be iterated over."""

    def __init__(self, count=3):
        self.count = count

    def __iter__(self):
        for number in range(self.count):
            yield torch.tensor([float(number), number + 0.5])


def _watching(pl):
    class Watching(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.seen = {"train": [], "val": [], "test": []}

        def training_step(self, batch, batch_idx):
            self.seen["train"].append((_plain(batch), batch_idx))
            self.log("mean", torch.as_tensor(batch).float().mean(), on_step=False, on_epoch=True)
            return self.weight.sum()

        def validation_step(self, batch, batch_idx):
            self.seen["val"].append((_plain(batch), batch_idx))
            self.log("val_mean", torch.as_tensor(batch).float().mean())

        def test_step(self, batch, batch_idx):
            self.seen["test"].append((_plain(batch), batch_idx))

        def predict_step(self, batch, batch_idx):
            return _plain(batch), batch_idx

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Watching


def _plain(batch):
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def _trainer(pl, folder, **flags):
    return pl.Trainer(**{"max_epochs": 1, "default_root_dir": folder, **QUIET, **flags})


def _train(pl, folder, data, epochs=1, **flags):
    model = _watching(pl)()
    trainer = _trainer(pl, folder, max_epochs=epochs, **flags)
    trainer.fit(model, data)
    return model.seen["train"], trainer.global_step, trainer.callback_metrics


def the_module_has_loaders_of_its_own(pl, folder):
    """`*_dataloader` methods of the module serve where nothing else is given."""

    class Own(_watching(pl)):
        def train_dataloader(self):
            return DataLoader(_Numbers(4), batch_size=2)

        def val_dataloader(self):
            return DataLoader(_Numbers(3), batch_size=2)

        def test_dataloader(self):
            return DataLoader(_Numbers(2), batch_size=2)

        def predict_dataloader(self):
            return DataLoader(_Numbers(1), batch_size=2)

    model, trainer = Own(), _trainer(pl, folder)
    trainer.fit(model)
    trainer.test(model)
    predicted = trainer.predict(model)
    trainer.validate(model)
    return model.seen, predicted


def given_loaders_come_before_the_modules_own(pl, folder):
    """What is given to `fit` is taken in place of the module's methods, each by itself."""

    class Own(_watching(pl)):
        def train_dataloader(self):
            return DataLoader(_Numbers(4), batch_size=2)

        def val_dataloader(self):
            return DataLoader(_Numbers(3), batch_size=2)

    model = Own()
    _trainer(pl, folder).fit(model, DataLoader(_Numbers(2, start=10), batch_size=2))
    return model.seen


def a_data_module_comes_before_the_modules_own(pl, folder):
    """With a data module the module's methods are not asked."""

    class Own(_watching(pl)):
        def train_dataloader(self):
            raise AssertionError

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(_Numbers(2), batch_size=2)

    model = Own()
    _trainer(pl, folder).fit(model, datamodule=Data())
    return model.seen


def loaders_are_asked_after_setup(pl, folder):
    """`prepare_data`, `setup` of data module and module, then loaders, then `teardown`."""
    calls = []

    class Data(pl.LightningDataModule):
        def prepare_data(self):
            calls.append("data.prepare_data")

        def setup(self, stage):
            calls.append("data.setup " + stage)

        def teardown(self, stage):
            calls.append("data.teardown " + stage)

        def _loader(self, name):
            calls.append(name)
            return DataLoader(_Numbers(2), batch_size=2)

        def train_dataloader(self):
            return self._loader("train")

        def val_dataloader(self):
            return self._loader("val")

        def test_dataloader(self):
            return self._loader("test")

        def predict_dataloader(self):
            return self._loader("predict")

    class Model(_watching(pl)):
        def prepare_data(self):
            calls.append("prepare_data")

        def setup(self, stage):
            calls.append("setup " + stage)

    model, data, trainer = Model(), Data(), _trainer(pl, folder)
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data)
    trainer.test(model, datamodule=data)
    trainer.predict(model, datamodule=data)
    # Where a loader is asked for among the other things before training differs by design.
    return [call for call in calls if call != "val"], calls.count("val")


def the_modules_setup_makes_its_data(pl, folder):
    """The module's `setup` runs before its own loaders are asked for."""

    class Own(_watching(pl)):
        def setup(self, stage):
            self.data = _Numbers(4)

        def train_dataloader(self):
            return DataLoader(self.data, batch_size=2)

    model = Own()
    _trainer(pl, folder).fit(model)
    return model.seen


def a_data_module_knows_the_trainer(pl, folder):
    """`LightningDataModule.trainer` is the trainer, None before."""
    found = []

    class Data(pl.LightningDataModule):
        def setup(self, stage):
            found.append(type(self.trainer).__name__)

        def train_dataloader(self):
            found.append((self.trainer.current_epoch, self.trainer.max_epochs))
            return DataLoader(_Numbers(2), batch_size=2)

    data = Data()
    found.append(data.trainer)
    trainer = _trainer(pl, folder)
    trainer.fit(_watching(pl)(), datamodule=data)
    found.append(trainer.datamodule is data)
    return found


def from_datasets_makes_loaders(pl, folder):
    """`from_datasets` makes a data module of datasets; several for evaluation in a list."""
    made = pl.LightningDataModule.from_datasets(
        train_dataset=_Numbers(4),
        val_dataset=[_Numbers(2), _Numbers(3)],
        test_dataset={"a": _Numbers(2)},
        predict_dataset=_Stream(3),
        batch_size=2,
        num_workers=0,
    )
    train, val = made.train_dataloader(), made.val_dataloader()
    return (
        type(train.sampler).__name__,
        train.batch_size,
        [len(one) for one in val],
        [type(one.sampler).__name__ for one in val],
        type(made.test_dataloader()).__name__,
        [_plain(batch) for batch in made.predict_dataloader()],
    )


def from_datasets_can_be_trained_with(pl, folder):
    """A data module from datasets trains; without a dataset there is no such loader."""
    made = pl.LightningDataModule.from_datasets(_Numbers(4), batch_size=2)
    model = _watching(pl)()
    _trainer(pl, folder).fit(model, datamodule=made)
    seen = sorted(number for batch, _ in model.seen["train"] for number in batch)
    return seen, model.seen["val"]


def data_modules_save_hyperparameters(pl, folder):
    """`save_hyperparameters` works in a data module."""

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=2, name="x"):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(_Numbers(4), batch_size=self.hparams.batch_size)

    model = _watching(pl)()
    _trainer(pl, folder).fit(model, datamodule=Data(batch_size=4))
    return model.seen, dict(Data(name="y").hparams)


def data_modules_load_from_checkpoints(pl, folder):
    """`load_from_checkpoint` of a data module restores its hyperparameters."""

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=2, name="x"):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(_Numbers(4), batch_size=self.hparams.batch_size)

    trainer = _trainer(pl, folder, enable_checkpointing=True)
    trainer.fit(_watching(pl)(), datamodule=Data(batch_size=4))
    path = folder / "saved.ckpt"
    trainer.save_checkpoint(path)
    return dict(Data.load_from_checkpoint(path).hparams), dict(
        Data.load_from_checkpoint(path, name="z").hparams
    )


def a_data_module_has_a_state(pl, folder):
    """`state_dict` of a data module is in the checkpoint and is given back."""
    found = []

    class Data(pl.LightningDataModule):
        count = 0

        def train_dataloader(self):
            return DataLoader(_Numbers(4), batch_size=2)

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            found.append(state_dict["count"])

    data = Data()
    data.count = 5
    trainer = _trainer(pl, folder, enable_checkpointing=True)
    trainer.fit(_watching(pl)(), datamodule=data)
    path = folder / "saved.ckpt"
    trainer.save_checkpoint(path)
    again = _trainer(pl, folder / "again", max_epochs=2, enable_checkpointing=True)
    again.fit(_watching(pl)(), datamodule=Data(), ckpt_path=path)
    return found


def loaders_are_made_anew_every_n_epochs(pl, folder):
    """`reload_dataloaders_every_n_epochs` asks for the training loader again."""
    calls = []

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            calls.append(self.trainer.current_epoch)
            return DataLoader(_Numbers(2), batch_size=2)

    flags = {"max_epochs": 5, "reload_dataloaders_every_n_epochs": 2}
    _trainer(pl, folder, **flags).fit(_watching(pl)(), datamodule=Data())
    return calls


def loaders_of_the_module_are_made_anew(pl, folder):
    """`reload_dataloaders_every_n_epochs` asks the module too; the data may be others."""

    class Own(_watching(pl)):
        def train_dataloader(self):
            epoch = self.trainer.current_epoch
            return DataLoader(_Numbers(4 + 2 * epoch, start=100 * epoch), batch_size=2)

    model = Own()
    trainer = _trainer(pl, folder, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(model)
    return model.seen, trainer.global_step


def validation_loaders_are_made_anew(pl, folder):
    """`reload_dataloaders_every_n_epochs` is for validation loaders too."""

    class Own(_watching(pl)):
        def train_dataloader(self):
            return DataLoader(_Numbers(2), batch_size=2)

        def val_dataloader(self):
            epoch = self.trainer.current_epoch
            return DataLoader(_Numbers(2 + epoch, start=100 * epoch), batch_size=2)

    model = Own()
    _trainer(pl, folder, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model)
    return model.seen


def training_with_an_iterable_dataset(pl, folder):
    """An `IterableDataset` trains, in batches of the loader, epoch after epoch."""
    return _train(pl, folder, DataLoader(_Stream(), batch_size=3), epochs=2)


def an_iterable_dataset_drops_the_last(pl, folder):
    """`drop_last` leaves out a short batch at the end of a stream."""
    return _train(pl, folder, DataLoader(_Stream(), batch_size=3, drop_last=True), epochs=2)


def an_iterable_dataset_with_limits(pl, folder):
    """`limit_train_batches` counts batches of a stream; a share of it is an error."""
    found = _train(pl, folder, DataLoader(_Stream(), batch_size=2), limit_train_batches=2)
    try:
        _train(pl, folder, DataLoader(_Stream(), batch_size=2), limit_train_batches=0.5)
    except Exception:
        return found, "refused"
    return found, "ran"


def training_with_any_iterable(pl, folder):
    """Anything that can be iterated over is a loader: each item is a batch."""
    return _train(pl, folder, _Batches(), epochs=2)


def training_with_any_iterable_accumulates(pl, folder):
    """`accumulate_grad_batches` counts the batches of an iterable."""
    found = _train(pl, folder, _Batches(5), accumulate_grad_batches=2, epochs=2)
    return found[:2]


def training_with_a_range(pl, folder):
    """A range is an iterable of batches."""
    seen = []

    class Model(_watching(pl)):
        def training_step(self, batch, batch_idx):
            seen.append((batch, batch_idx))
            return self.weight.sum()

    _trainer(pl, folder, max_epochs=2).fit(Model(), range(4))
    return seen


def training_with_a_dataset(pl, folder):
    """A dataset by itself is an iterable too: its samples are the batches."""
    return _train(pl, folder, _Samples(3))


class _Samples(_Numbers):
    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return super().__getitem__(index)


def training_with_an_iterable_loses_no_weight(pl, folder):
    """What an epoch logs is weighted by the batch's size, whatever the data are."""

    class Uneven:
        def __iter__(self):
            yield torch.tensor([1.0, 2.0, 3.0])
            yield torch.tensor([10.0])

    return _train(pl, folder, Uneven())[2]


def evaluation_of_iterables(pl, folder):
    """Streams and iterables are validated, tested and predicted as they come."""
    model, trainer = _watching(pl)(), _trainer(pl, folder, limit_test_batches=2)
    trainer.validate(model, DataLoader(_Stream(), batch_size=3))
    metrics = dict(trainer.callback_metrics)
    trainer.test(model, _Batches())
    predicted = trainer.predict(model, DataLoader(_Stream(5), batch_size=2))
    return model.seen, predicted, metrics


def validation_of_a_stream_while_training(pl, folder):
    """A stream is validated in each epoch."""
    model = _watching(pl)()
    trainer = _trainer(pl, folder, max_epochs=2, limit_val_batches=2, num_sanity_val_steps=1)
    trainer.fit(model, DataLoader(_Numbers(2), batch_size=2), DataLoader(_Stream(), batch_size=3))
    return model.seen, trainer.callback_metrics


def training_with_a_batch_sampler(pl, folder):
    """A `batch_sampler` says which samples a batch has."""
    batches = [[3, 1], [0], [2, 4, 5]]
    return _train(pl, folder, DataLoader(_Numbers(6), batch_sampler=batches), epochs=2)


def a_batch_sampler_weighs_each_batch(pl, folder):
    """Each batch of a `batch_sampler` is a step, whatever its size."""
    model = regression(pl)()
    data = DataLoader(samples(6), batch_sampler=[[3, 1], [0], [2, 4, 5]])
    _trainer(pl, folder).fit(model, data)
    return weights(model)


def a_batch_sampler_as_the_loader_makes_it(pl, folder):
    """torch's `BatchSampler` around a sampler is the same as batch_size and drop_last."""
    sampler = BatchSampler(range(5), batch_size=2, drop_last=True)
    return _train(pl, folder, DataLoader(_Numbers(5), batch_sampler=sampler))


def training_with_a_sampler_of_its_own(pl, folder):
    """A sampler decides which samples are read, and in which order."""
    return _train(
        pl, folder, DataLoader(_Numbers(6), batch_size=2, sampler=[5, 0, 0, 2, 1]), epochs=2
    )


def a_sampler_is_told_the_epoch(pl, folder):
    """`set_epoch` of a sampler is called before each epoch."""

    class Turning(Sampler):
        epoch = 0

        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(number + self.epoch) % 4 for number in range(4)])

    return _train(pl, folder, DataLoader(_Numbers(4), batch_size=2, sampler=Turning()), epochs=3)


def evaluation_with_a_sampler(pl, folder):
    """Samplers and batch samplers hold in evaluation."""
    model, trainer = _watching(pl)(), _trainer(pl, folder)
    trainer.validate(model, DataLoader(_Numbers(6), batch_size=2, sampler=[5, 1, 4]))
    trainer.test(model, DataLoader(_Numbers(6), batch_sampler=[[1], [0, 5]]))
    return model.seen


def drop_last_holds_everywhere(pl, folder):
    """`drop_last` leaves out the short batch in training and in evaluation."""
    model = _watching(pl)()
    data = DataLoader(_Numbers(5), batch_size=2, drop_last=True)
    trainer = _trainer(pl, folder)
    trainer.fit(model, data, data)
    return model.seen, trainer.predict(model, data)


def items_may_be_batches(pl, folder):
    """With `batch_size=None` the items of a dataset are the batches."""
    items = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0, 5.0, 6.0])]
    found = _train(pl, folder, DataLoader(items, batch_size=None), epochs=2)
    model = _watching(pl)()
    trainer = _trainer(pl, folder)
    trainer.validate(model, DataLoader(items, batch_size=None))
    return found, model.seen, trainer.callback_metrics


def shuffling_reads_every_sample_once(pl, folder):
    """A shuffled loader reads every sample once per epoch."""
    seen, steps, _ = _train(
        pl, folder, DataLoader(_Numbers(6), batch_size=2, shuffle=True), epochs=2
    )
    batches = [batch for batch, _ in seen]
    return steps, [sorted(sum(part, [])) for part in (batches[:3], batches[3:])]


def overfitting_does_not_shuffle(pl, folder):
    """`overfit_batches` reads the same first batches in order."""
    data = DataLoader(_Numbers(8), batch_size=2, shuffle=True)
    return _train(pl, folder, data, epochs=2, overfit_batches=2)


def no_distributed_sampler(pl, folder):
    """`use_distributed_sampler=False` leaves the loader as it is."""
    return _train(pl, folder, DataLoader(_Numbers(4), batch_size=2), use_distributed_sampler=False)


def without_validation_data(pl, folder):
    """No loader, an empty list or a limit of 0: nothing is validated."""
    found = []
    for data, flags in ((None, {}), ([], {}), (loader(4), {"limit_val_batches": 0})):
        model = regression(pl)()
        trainer = _trainer(pl, folder, **flags)
        trainer.fit(model, loader(4), data)
        found.append(sorted(trainer.callback_metrics))
    return found


def something_that_is_no_data(pl, folder):
    """What cannot be iterated over is refused."""
    try:
        _train(pl, folder, 3)
    except TypeError:
        return "TypeError"
    return "ran"
