"""`save_hyperparameters`, `hparams` and `load_from_checkpoint`."""

import enum
import inspect
import sys
import types
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from small import QUIET, loader, weights

REFUSED = {
    "a_layer_as_hyperparameter_comes_back": r"Model\(extra=\) was Linear\(.*give it: Model\.load_",
}


class _Color(enum.Enum):
    RED = 1


@dataclass
class _Config:
    width: int = 3


# These are part of a script, whose module can be imported.
_SCRIPT = types.ModuleType("a_script_of_hyperparameters")
for _kind in (_Color, _Config):
    _kind.__module__ = _SCRIPT.__name__
    setattr(_SCRIPT, _kind.__qualname__, _kind)
sys.modules[_SCRIPT.__name__] = _SCRIPT


def _model(pl, save):
    """A class with three arguments that saves them in some way, and trains one layer."""

    class Model(pl.LightningModule):
        def __init__(self, lr=0.1, width=2, extra=None):
            super().__init__()
            save(self, lr, width, extra)
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    Model.__qualname__ = "Model"
    return Model


def _all(model, *_):
    model.save_hyperparameters()


def _saved(pl, folder, model, datamodule=None):
    """A file that a short training has left."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    flags = {**QUIET, "enable_checkpointing": True, "max_epochs": 1, "callbacks": [callback]}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(model, *([] if datamodule else [loader()]), datamodule=datamodule)
    return callback.best_model_path


def all_arguments_are_saved(pl, folder):
    """Without arguments everything that `__init__` takes is saved, defaults included."""
    return dict(_model(pl, _all)(width=5).hparams)


def named_arguments_are_saved(pl, folder):
    """Names choose which arguments are saved."""
    return dict(_model(pl, lambda self, *_: self.save_hyperparameters("lr", "extra"))().hparams)


def a_dict_is_saved(pl, folder):
    """A dict takes the place of the arguments."""
    model = _model(pl, lambda self, *_: self.save_hyperparameters({"a": 1, "b": {"c": [2]}}))()
    return dict(model.hparams), model.hparams.a


def a_namespace_is_saved(pl, folder):
    """A Namespace is saved by its attributes."""
    model = _model(pl, lambda self, lr, w, extra: self.save_hyperparameters(extra))
    return dict(model(extra=Namespace(a=1, b="x")).hparams)


def a_dataclass_is_no_container(pl, folder):
    """A single object that is no mapping and no Namespace is an error."""
    try:
        _model(pl, lambda self, *_: self.save_hyperparameters(_Config()))()
    except ValueError:
        return "refused"
    return "saved"


def a_dataclass_is_a_value(pl, folder):
    """An argument may be a dataclass."""
    return _model(pl, _all)(extra=_Config(7)).hparams.extra.width


def ignore_takes_a_name(pl, folder):
    """`ignore` leaves out one name."""
    return dict(_model(pl, lambda self, *_: self.save_hyperparameters(ignore="lr"))().hparams)


def ignore_takes_a_list(pl, folder):
    """`ignore` leaves out several names."""
    model = _model(pl, lambda self, *_: self.save_hyperparameters(ignore=["lr", "extra"]))()
    return dict(model.hparams)


def a_changed_argument_is_saved_as_it_is(pl, folder):
    """What is saved is the value of the argument at that moment."""

    class Model(pl.LightningModule):
        def __init__(self, lr=0.1):
            super().__init__()
            lr = lr * 2
            self.save_hyperparameters()

    return dict(Model(0.5).hparams)


def a_frame_says_where_arguments_are(pl, folder):
    """`frame` names the frame whose arguments are saved."""

    def elsewhere(model):
        model.save_hyperparameters(frame=inspect.currentframe().f_back)

    return dict(_model(pl, lambda self, *_: elsewhere(self))(width=9).hparams)


def a_method_of_init_may_save(pl, folder):
    """A method that `__init__` calls may save its arguments."""

    class Model(pl.LightningModule):
        def __init__(self, lr=0.1):
            super().__init__()
            self._keep()

        def _keep(self):
            self.save_hyperparameters()

    return dict(Model(3).hparams)


def after_init_there_are_no_arguments(pl, folder):
    """Outside of `__init__` there is nothing to save."""
    model = _model(pl, lambda self, *_: None)()
    model.save_hyperparameters()
    return dict(model.hparams)


def a_base_class_saves_for_its_subclass(pl, folder):
    """When a base class saves, the subclass's arguments are there as well, and win."""

    class Base(pl.LightningModule):
        def __init__(self, width, depth=1):
            super().__init__()
            self.save_hyperparameters()

    class Derived(Base):
        def __init__(self, lr, depth=5):
            super().__init__(width=lr * 10, depth=2)

    return dict(Derived(3).hparams)


def subclass_and_base_both_save(pl, folder):
    """What base and subclass save is merged."""

    class Base(pl.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters("width")

    class Derived(Base):
        def __init__(self, lr):
            super().__init__(width=7)
            self.save_hyperparameters("lr")

    return dict(Derived(3).hparams)


def a_subclass_ignores_what_its_base_saved(pl, folder):
    """`ignore` also drops what a base class has saved."""

    class Base(pl.LightningModule):
        def __init__(self, width, secret=1):
            super().__init__()
            self.save_hyperparameters()

    class Derived(Base):
        def __init__(self, lr):
            super().__init__(width=7)
            self.save_hyperparameters(ignore=["secret"])

    return dict(Derived(3).hparams)


def keywords_are_saved_by_name(pl, folder):
    """Of `**kwargs` each one counts by its name, and `*args` are left out."""

    class Model(pl.LightningModule):
        def __init__(self, first, *args, key=1, **kwargs):
            super().__init__()
            self.save_hyperparameters()

    return dict(Model(1, 2, 3, key=4, other=5).hparams)


def hparams_are_read_and_changed(pl, folder):
    """`hparams` is a mapping and an object, which can be changed."""
    hparams = _model(pl, _all)().hparams
    hparams.lr = 1
    hparams["width"] = 8
    hparams.update(new=3)
    del hparams["extra"]
    try:
        _ = hparams.unknown
    except AttributeError:
        return dict(hparams), hparams.get("lr"), "new" in hparams, isinstance(hparams, dict)


def hparams_are_shown_in_rows(pl, folder):
    """Printing `hparams` shows one row for each name."""
    return repr(_model(pl, _all)().hparams)


def hparams_initial_stays(pl, folder):
    """`hparams_initial` is a copy that later changes do not reach."""
    model = _model(pl, _all)(extra=[1])
    model.hparams.lr = 5
    model.hparams.extra.append(2)
    model.hparams_initial["width"] = 9
    return dict(model.hparams_initial), dict(model.hparams)


def no_hparams_are_an_empty_mapping(pl, folder):
    """Without a call `hparams` is empty, and so is `hparams_initial`."""
    model = _model(pl, lambda *_: None)()
    return dict(model.hparams), dict(model.hparams_initial)


def two_calls_are_merged(pl, folder):
    """A second call adds to the first."""

    def twice(self, *_):
        self.save_hyperparameters("lr")
        self.save_hyperparameters({"a": 1})

    return dict(_model(pl, twice)().hparams)


def a_data_module_saves_as_well(pl, folder):
    """A data module has the same method."""

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=4, name="x"):
            super().__init__()
            self.save_hyperparameters(ignore="name")

    return dict(Data().hparams), dict(Data(2).hparams_initial)


def a_model_is_made_from_its_checkpoint(pl, folder):
    """`load_from_checkpoint` makes the model with its saved arguments and weights."""
    kind = _model(pl, _all)
    model = kind(lr=0.3, width=7)
    found = kind.load_from_checkpoint(_saved(pl, folder, model))
    return dict(found.hparams), weights(found) == weights(model)


def arguments_can_be_given_anew(pl, folder):
    """Keywords of `load_from_checkpoint` win over what is saved."""
    kind = _model(pl, _all)
    found = kind.load_from_checkpoint(_saved(pl, folder, kind(width=7)), width=1, extra="new")
    return dict(found.hparams)


def arguments_that_a_class_does_not_take_are_left_out(pl, folder):
    """Saved hyperparameters that the class has no argument for are not passed."""
    kind = _model(pl, lambda self, *_: self.save_hyperparameters({"width": 4, "unknown": 5}))
    found = kind.load_from_checkpoint(_saved(pl, folder, kind()))
    return dict(found.hparams)


def a_container_goes_to_the_argument_it_came_from(pl, folder):
    """A dict that was one argument is passed as that argument again."""

    class Model(_model(pl, lambda *_: None)):
        def __init__(self, config):
            super().__init__()
            self.save_hyperparameters(config)
            self.width = config["width"]

    found = Model.load_from_checkpoint(_saved(pl, folder, Model({"width": 6})))
    return found.width, dict(found.hparams)


def what_is_missing_may_be_missing(pl, folder):
    """`strict=False` leaves alone what only one of model and checkpoint has."""
    kind = _model(pl, _all)
    path = _saved(pl, folder, kind())

    class Other(kind):
        def __init__(self, lr=0.1):
            super().__init__(lr)
            self.more = torch.nn.Linear(1, 1)

    try:
        Other.load_from_checkpoint(path)
    except RuntimeError:
        strict = "refused"
    return strict, len(weights(Other.load_from_checkpoint(path, strict=False)))


def map_location_says_where(pl, folder):
    """`map_location` says on which device the model comes to lie."""
    kind = _model(pl, _all)
    path = _saved(pl, folder, kind())
    return [
        str(kind.load_from_checkpoint(path, map_location=where).device)
        for where in ("cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, name: storage)
    ]


def values_of_many_kinds_come_back(pl, folder):
    """Paths, types, functions, enums, tensors and containers are hyperparameters as well."""
    kind = _model(pl, _all)
    values = {
        "path": Path("a/b"),
        "dtype": torch.bfloat16,
        "class": torch.nn.ReLU,
        "function": torch.nn.functional.relu,
        "enum": _Color.RED,
        "tensor": torch.arange(3),
        "tuple": (1, (2.5, "x")),
        "namespace": Namespace(a=1),
        "dataclass": _Config(4),
        "numbers": {1: float("inf"), 2: None},
    }
    path = _saved(pl, folder, kind(extra=values))
    found = kind.load_from_checkpoint(path, weights_only=False).hparams.extra
    same = {key: found[key] == value for key, value in values.items() if key != "tensor"}
    return {**same, "tensor": found["tensor"]}, [type(v).__name__ for v in found.values()]


def a_layer_as_hyperparameter_comes_back(pl, folder):
    """Lightning pickles what it is given, a layer for example; nothing is pickled here."""
    kind = _model(pl, _all)
    path = _saved(pl, folder, kind(extra=torch.nn.Linear(1, 1)))
    return type(kind.load_from_checkpoint(path, weights_only=False).hparams.extra).__name__


def a_layer_is_given_again(pl, folder):
    """What is ignored is given when the model is made from its checkpoint."""
    kind = _model(pl, lambda self, *_: self.save_hyperparameters(ignore="extra"))
    path = _saved(pl, folder, kind(extra=torch.nn.ReLU()))
    found = kind.load_from_checkpoint(path, extra=torch.nn.ReLU())
    return dict(found.hparams)


def a_data_module_is_made_from_its_checkpoint(pl, folder):
    """A data module comes back with its arguments and what its `state_dict` gave."""

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=4, root=None):
            super().__init__()
            self.save_hyperparameters()
            self.seen = 0

        def train_dataloader(self):
            self.seen = 5
            return loader(batch_size=self.hparams.batch_size)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    path = _saved(pl, folder, _model(pl, _all)(), Data(batch_size=2, root="here"))
    found = Data.load_from_checkpoint(path, root="there")
    return dict(found.hparams), found.seen


def a_file_of_hyperparameters_wins(pl, folder):
    """`hparams_file` takes the place of what the checkpoint says."""
    kind = _model(pl, _all)
    path = _saved(pl, folder, kind(width=7))
    (folder / "h.yaml").write_text("lr: 0.5\nwidth: 3\n")
    found = kind.load_from_checkpoint(path, hparams_file=str(folder / "h.yaml"))
    return found.hparams.lr, found.hparams.width


def the_logger_gets_them(pl, folder):
    """Hyperparameters go to the logger, unless `logger=False`."""
    seen = []
    for wanted in (True, False):

        class Logger(pl.loggers.CSVLogger):
            def log_hyperparams(self, params=None, *args, **kwargs):
                seen.append(dict(params or {}))

        kind = _model(pl, lambda self, *_, w=wanted: self.save_hyperparameters("lr", logger=w))
        logger = Logger(folder / str(wanted))
        flags = {**QUIET, "logger": logger, "max_epochs": 1}
        pl.Trainer(default_root_dir=folder / f"r{wanted}", **flags).fit(kind(), loader())
    return [one for one in seen if one]
