"""The small models of `lightning.pytorch.demos`."""

import importlib

import torch
from small import QUIET, weights
from torch.utils.data import DataLoader


def _demos(pl, module="boring_classes"):
    return importlib.import_module(f"{pl.__name__}.demos.{module}")


def _trainer(pl, folder, **options):
    return pl.Trainer(default_root_dir=folder, **{**QUIET, "max_epochs": 1, **options})


def a_boring_model_trains_on_a_boring_data_module(pl, folder):
    """`BoringModel` is fitted with `BoringDataModule`."""
    demos = _demos(pl)
    torch.manual_seed(3)
    model, data = demos.BoringModel(), demos.BoringDataModule()
    trainer = _trainer(pl, folder, max_epochs=2, limit_train_batches=8, limit_val_batches=2)
    trainer.fit(model, datamodule=data)
    return weights(model), trainer.global_step


def a_boring_model_has_loaders_of_its_own(pl, folder):
    """`BoringModel` brings its loaders, of 64 random samples."""
    model = _demos(pl).BoringModel()
    trainer = _trainer(pl, folder, limit_train_batches=4, limit_val_batches=2)
    trainer.fit(model)
    return trainer.global_step, len(model.train_dataloader().dataset)


def a_manual_boring_model_steps_by_itself(pl, folder):
    """`ManualOptimBoringModel` steps its optimizer in `training_step`."""
    demos = _demos(pl)
    torch.manual_seed(3)
    model, data = demos.ManualOptimBoringModel(), demos.RandomDataset(32, 8)
    trainer = _trainer(pl, folder)
    trainer.fit(model, DataLoader(data))
    return weights(model), trainer.global_step


def a_derived_boring_model_may_log(pl, folder):
    """A class derived from `BoringModel` changes a step, as the template of bug reports does."""
    demos = _demos(pl)

    class Own(demos.BoringModel):
        def training_step(self, batch, batch_idx):
            loss = self(batch).sum()
            self.log("train_loss", loss)
            return {"loss": loss}

        def validation_step(self, batch, batch_idx):
            self.log("valid_loss", self(batch).sum())

    torch.manual_seed(3)
    model, data = Own(), demos.RandomDataset(32, 8)
    trainer = _trainer(pl, folder, limit_val_batches=2)
    trainer.fit(model, DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))
    return dict(trainer.callback_metrics), weights(model)


def a_demo_model_takes_its_rate(pl, folder):
    """`DemoModel` has a learning rate to choose."""
    demos = _demos(pl)
    torch.manual_seed(3)
    model = demos.DemoModel(out_dim=4, learning_rate=0.5)
    _trainer(pl, folder).fit(model, DataLoader(demos.RandomDataset(32, 4)))
    return weights(model), model.configure_optimizers().param_groups[0]["lr"]


def random_datasets_have_their_shapes(pl, folder):
    """The random datasets give vectors, dicts and streams of the size that is asked for."""
    demos = _demos(pl)
    data, dicts = demos.RandomDataset(3, 5), demos.RandomDictDataset(2, 4)
    stream, sized = demos.RandomIterableDataset(3, 4), demos.RandomIterableDatasetWithLen(2, 6)
    sample = dicts[1]
    return (
        len(data), list(data[0].shape), len(dicts), (sample["b"] - sample["a"]).round().tolist(),
        [list(x.shape) for x in stream], hasattr(stream, "__len__"), len(sized), len(list(sized)),
    )  # fmt: skip


def boring_data_modules_have_four_stages(pl, folder):
    """The data modules of the demos make the samples of a stage in `setup`."""
    demos = _demos(pl)
    found = []
    for kind in (demos.BoringDataModule, demos.BoringDataModuleNoLen):
        data = kind()
        for stage in ("fit", "test", "predict"):
            data.setup(stage)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(),
                   data.predict_dataloader())  # fmt: skip
        found.append([sum(1 for _ in loader) for loader in loaders])
    both = demos.IterableBoringDataModule()
    both.setup("fit")
    found.append([sum(1 for _ in loader) for loader in both.train_dataloader()])
    return found


def the_convolutional_net_has_ten_classes(pl, folder):
    """`Net` gives logarithms of ten probabilities for images of 28 x 28."""
    torch.manual_seed(3)
    net = _demos(pl).Net().eval()
    output = net(torch.ones(2, 1, 28, 28))
    return list(output.shape), output[0].exp().sum().item(), output[0, 0].item()


def the_transformer_is_the_same_model(pl, folder):
    """`Transformer` gives logarithms of the next words' probabilities."""
    torch.manual_seed(3)
    model = _demos(pl, "transformer").Transformer(vocab_size=12, ninp=8, nhid=8).eval()
    words = torch.arange(10).view(2, 5)
    output = model(words, words + 1)
    return list(output.shape), output[0].tolist()


def the_lstm_is_the_same_model(pl, folder):
    """`SimpleLSTM` gives logarithms of the next words' probabilities and its state."""
    torch.manual_seed(3)
    model = _demos(pl, "lstm").SimpleLSTM(vocab_size=12, ninp=8, nhid=8, nlayers=2).eval()
    output, state = model(torch.arange(10).view(2, 5), model.init_hidden(2))
    return output[0].tolist(), [list(part.shape) for part in state]


def _text(folder):
    (folder / "wikitext-2.txt").write_text("the cat sat\non the mat and the dog ran\n" * 4)


def wikitext_is_read_in_blocks(pl, folder):
    """`WikiText2` gives blocks of words' numbers and the words that follow each."""
    _text(folder)
    data = _demos(pl, "transformer").WikiText2(folder, block_size=5, download=False)
    return len(data), data.vocab_size, data[1], data.dictionary.idx2word[:3]


def a_text_that_is_there_is_not_downloaded(pl, folder):
    """`WikiText2` downloads only what is not there."""
    _text(folder)
    return len(_demos(pl, "transformer").WikiText2(folder, block_size=3))


def a_sequence_sampler_goes_on_row_by_row(pl, folder):
    """`SequenceSampler` has each row of a batch go on where it was in the one before."""
    sampler = _demos(pl, "lstm").SequenceSampler(range(11), batch_size=3)
    return len(sampler), list(sampler)


def a_lightning_transformer_trains(pl, folder):
    """`LightningTransformer` trains on pairs of words and the words that follow."""
    _text(folder)
    demos = _demos(pl, "transformer")
    data = demos.WikiText2(folder, block_size=5)
    torch.manual_seed(3)
    model = demos.LightningTransformer(vocab_size=data.vocab_size).eval()
    model.prepare_data = lambda: None
    trainer = _trainer(pl, folder, max_steps=2)
    trainer.fit(model, DataLoader(data, batch_size=2))
    return trainer.global_step
