"""The user's data: where it comes from and which loaders read it.

The trainer takes the loaders apart: dataset, batch size, shuffle flag, collate function and worker
settings are kept, order and sharding are its own (see `rekindle.data.sampling.order`). So a data
module is written as for one process, and knows nothing about ranks or resuming.
"""

import dis
import os
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rekindle.model import loading
from rekindle.model.hyperparameters import HyperparametersMixin
from rekindle.model.transfer import TransferHooks

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


class DataModule(HyperparametersMixin, TransferHooks):
    """Base class of data modules. Define `train_dataloader` at least."""

    prepare_data_per_node: bool = False
    """Whether `prepare_data` runs once on each node instead of once: for disks that no two share.

    Processes that do not run it wait for those that do, for as long as it takes.
    """
    name: str | None = None
    """A name for people; nothing reads it."""

    # Where Lightning's checkpoint files have the saved arguments.
    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    trainer: "Trainer | None" = None
    """The trainer that has the data module, from `prepare_data` on."""

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is missing, so it costs nothing while all is well.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        places = _assigned_in(type(self), name)
        if "setup" in places:
            raise AttributeError(
                f"R10 {type(self).__name__} has no attribute {name!r}: datasets are made in "
                f"setup(stage), which comes before any loader. The trainer calls it; without one, "
                f"call setup('fit') first."
            )
        fix = "Assign it in __init__, or in setup(stage) if it is made of data."
        if "prepare_data" in places or "prepare" in places:
            fix = "prepare_data runs on one process only: assign it in setup(stage)."
        elif places:
            fix = f"It is assigned in {', '.join(places)}, which has not done so."
        raise AttributeError(f"R10 {type(self).__name__} has no attribute {name!r}. {fix}")

    def __getstate__(self) -> dict[str, Any]:
        # Loader workers and other processes get the data module without what it belongs to.
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """A data module of datasets, or of lists and dicts of them; training data are shuffled.

        `datamodule_kwargs` go to the constructor, and `batch_size` and `num_workers` too if it
        takes them.
        """

        def loaders(data: Any, *, shuffle: bool) -> Any:
            if isinstance(data, Mapping):
                return {name: loaders(one, shuffle=shuffle) for name, one in data.items()}
            if isinstance(data, Sequence) and not isinstance(data, Dataset):
                return [loaders(one, shuffle=shuffle) for one in data]
            return DataLoader(
                data,
                batch_size=batch_size,
                shuffle=shuffle and not isinstance(data, IterableDataset),
                num_workers=num_workers,
                pin_memory=torch.cuda.is_available(),
            )

        makes: Any = cls.__init__
        taken = {} if makes is object.__init__ else signature(makes).parameters
        anything = any(p.kind is Parameter.VAR_KEYWORD for p in taken.values())
        sizes = {"batch_size": batch_size, "num_workers": num_workers}
        made = cls(
            **datamodule_kwargs, **{n: v for n, v in sizes.items() if anything or n in taken}
        )
        for name, data in (
            ("train", train_dataset),
            ("val", val_dataset),
            ("test", test_dataset),
            ("predict", predict_dataset),
        ):
            if data is not None:
                method = partial(loaders, data, shuffle=name == "train")
                setattr(made, f"{name}_dataloader", method)
        return made

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: "str | os.PathLike[str]",
        map_location: Any = None,
        hparams_file: "str | os.PathLike[str] | None" = None,
        weights_only: bool | None = None,
        **override: Any,
    ) -> Self:
        """A new instance with the arguments that a checkpoint has stored, and its state.

        `override` goes over the stored arguments; the rest is as in the module's method.
        """
        return loading.datamodule(
            cls, checkpoint_path, hparams_file=hparams_file, override=override
        )

    def prepare_data(self) -> None:
        """Download and unpack; runs on one process only, before `setup`. Assign no attributes."""

    def prepare(self) -> None:
        """Another name of `prepare_data`."""

    def setup(self, stage: str) -> None:
        """Make the datasets; runs on every process.

        `stage` is ``fit``, ``validate``, ``test`` or ``predict``.
        """

    def teardown(self, stage: str) -> None:
        """After everything else."""

    def train_dataloader(self) -> Any:
        """A `torch.utils.data.DataLoader` over the training samples."""
        raise NotImplementedError(
            f"{type(self).__name__} has no train_dataloader(self). Define it and return a "
            f"torch.utils.data.DataLoader."
        )

    def val_dataloader(self) -> Any:
        """A `torch.utils.data.DataLoader` over the validation samples; None means no validation."""
        return None

    def test_dataloader(self) -> Any:
        """A loader over the test samples; without one, `test` takes the validation samples."""
        return None

    def predict_dataloader(self) -> Any:
        """A loader over what to predict; without one, the test or the validation samples."""
        return None

    def on_exception(self, exception: BaseException) -> None:
        """Something raised, in `fit` or another call. No collective operation may run here."""

    def state_dict(self) -> dict[str, Any]:
        """State to save: plain values and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def _assigned_in(cls: type, name: str) -> list[str]:
    """Methods that assign an attribute of this name, by their code."""
    found = []
    for method, value in (pair for each in cls.__mro__ for pair in vars(each).items()):
        code = getattr(value, "__code__", None)
        if code is None or name not in code.co_names:
            continue
        if any(i.opname == "STORE_ATTR" and i.argval == name for i in dis.get_instructions(code)):
            found.append(method)
    return found
