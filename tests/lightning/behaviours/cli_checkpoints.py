"""Checkpoints of what `LightningCLI` has made: they make it again."""

import importlib
import sys

import torch
from small import QUIET, loader, regression, weights

TRAINER = [
    f"--trainer.{name}={str(value).lower()}"
    for name, value in {**QUIET, "max_epochs": 1, "enable_checkpointing": True}.items()
]


def _placed(cls, name=None):
    """The class where an import finds it, so that a file may name it."""
    cls.__qualname__ = cls.__name__ = name or cls.__name__
    cls.__module__ = __name__
    sys.modules.setdefault(__name__, type(sys)(__name__))
    setattr(sys.modules[__name__], cls.__name__, cls)
    return cls


class _Block(torch.nn.Module):
    """A part to be configured."""

    def __init__(self, width: int = 2, scale: float = 1.0):
        super().__init__()
        self.layer = torch.nn.Linear(4, width)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.layer(x).sum(1, keepdim=True)


class _Other(_Block):
    """Another part."""

    def __init__(self, width: int = 3, extra: str = "none"):
        super().__init__(width, 0.5)
        self.extra = extra


def _run(pl, folder, model_class, arguments, data_class=None, **options):
    command = importlib.import_module(pl.__name__ + ".cli").LightningCLI

    class Short(command):
        @staticmethod
        def subcommands():
            return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    cli = Short(
        model_class,
        data_class,
        args=["fit", *TRAINER, f"--trainer.default_root_dir={folder}", *arguments],
        save_config_callback=None,
        **options,
    )
    path = folder / "saved.ckpt"
    cli.trainer.save_checkpoint(path)
    return cli, path


def _nested(pl, save=True):
    """A model of which one argument is an object."""
    _placed(_Block, "Block")
    _placed(_Other, "Other")

    class Nested(regression(pl)):
        """A model to be configured."""

        def __init__(self, part: _Block, rate: float = 0.1):
            super().__init__()
            if save:
                self.save_hyperparameters()
            self.part = part
            self.rate = rate

        def forward(self, x):
            return self.layer(x) + self.part(x)

        def train_dataloader(self):
            return loader()

    return _placed(Nested)


def a_model_of_the_command_is_loaded(pl, folder):
    """`load_from_checkpoint` makes a model of a command, nested objects included."""
    model = _nested(pl)
    place = f"{__name__}.Other"
    cli, path = _run(
        pl, folder, model, [f"--model.part={place}", "--model.part.width=5", "--model.rate=0.2"]
    )
    again = model.load_from_checkpoint(path)
    return (
        type(again).__name__,
        type(again.part).__name__,
        again.part.layer.out_features,
        again.rate,
        weights(again) == weights(cli.model),
    )


def a_loaded_model_takes_other_arguments(pl, folder):
    """An argument of `load_from_checkpoint` wins over what the command had."""
    model = _nested(pl)
    _, path = _run(pl, folder, model, [f"--model.part={__name__}.Block"])
    again = model.load_from_checkpoint(path, rate=0.7)
    return again.rate, type(again.part).__name__


def _derived(pl, folder, base):
    """What a checkpoint of a class derived from `base` gives when `base` loads it."""
    _placed(base, "Base")

    class Derived(base):
        """A derived one."""

        def __init__(self, more: int = 1, rate: float = 0.1):
            super().__init__(rate)
            self.save_hyperparameters()
            self.more = more

    _placed(Derived)
    arguments = [f"--model={__name__}.Derived", "--model.more=4", "--model.rate=0.3"]
    _, path = _run(pl, folder, base, arguments, subclass_mode_model=True)
    again = base.load_from_checkpoint(path)
    found = torch.load(path, weights_only=False)["hyper_parameters"]
    return (
        type(again).__name__,
        getattr(again, "more", None),
        again.rate,
        sorted(found),
        found["_class_path"].rpartition(".")[2],
    )


def a_subclass_of_the_command_is_loaded_by_its_base(pl, folder):
    """With `subclass_mode_model` a base of fixed arguments is made as itself."""

    class Base(regression(pl)):
        """A base to be configured."""

        def __init__(self, rate: float = 0.1):
            super().__init__()
            self.rate = rate

        def train_dataloader(self):
            return loader()

    return _derived(pl, folder, Base)


def a_subclass_of_the_command_is_loaded_by_a_base_of_any_arguments(pl, folder):
    """A base that takes **kwargs makes the class that the checkpoint names."""

    class Base(regression(pl)):
        """A base to be configured."""

        def __init__(self, rate: float = 0.1, **others):
            super().__init__()
            self.rate = rate

        def train_dataloader(self):
            return loader()

    return _derived(pl, folder, Base)


def a_model_without_saved_hyperparameters_has_none(pl, folder):
    """Without `save_hyperparameters` the checkpoint says nothing of arguments."""
    model = _nested(pl, save=False)
    cli, path = _run(pl, folder, model, [f"--model.part={__name__}.Block"])
    found = torch.load(path, weights_only=False)
    return sorted(found.get("hyper_parameters", {})), dict(cli.model.hparams)


def what_a_checkpoint_says_of_the_command(pl, folder):
    """The checkpoint's hyperparameters are what was written on the command line."""
    model = _nested(pl)
    _, path = _run(pl, folder, model, [f"--model.part={__name__}.Other"])
    found = dict(torch.load(path, weights_only=False)["hyper_parameters"])
    maker = found.pop("_instantiator").split(".", 1)[1]
    part = found["part"]
    return maker, found["rate"], part["class_path"], dict(part["init_args"])


def a_data_module_of_the_command_is_loaded(pl, folder):
    """A data module that saves its hyperparameters is made again, too."""
    model = _nested(pl)

    class Data(pl.LightningDataModule):
        """Data to be configured."""

        def __init__(self, part: _Block, size: int = 2):
            super().__init__()
            self.save_hyperparameters()
            self.part, self.size = part, size

        def train_dataloader(self):
            return loader(batch_size=self.size)

    _placed(Data)
    _, path = _run(
        pl,
        folder,
        model,
        [
            f"--model.part={__name__}.Block",
            f"--data.part={__name__}.Other",
            "--data.part.extra=some",
            "--data.size=4",
        ],
        Data,
    )
    again = Data.load_from_checkpoint(path)
    return type(again.part).__name__, again.part.extra, again.size
