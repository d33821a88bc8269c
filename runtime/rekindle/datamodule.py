"""The user's data: where it comes from and which loaders read it.

The trainer takes the loaders apart: dataset, batch size, shuffle flag, collate function and worker
settings are kept, order and sharding are its own (see `rekindle.data.order`). So a data module is
written as for one process, and knows nothing about ranks or resuming.
"""

import os
from typing import Any, Self

from rekindle.model import loading
from rekindle.model.hyperparameters import HyperparametersMixin


class DataModule(HyperparametersMixin):
    """Base class of data modules. Define `train_dataloader` at least."""

    prepare_data_per_node: bool = False
    """Whether `prepare_data` runs once on each node instead of once: for disks that no two share.

    Processes that do not run it wait for those that do, for as long as it takes.
    """

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is missing, so it costs nothing while all is well.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(
            f"R10 {type(self).__name__} has no attribute {name!r}: datasets are made in "
            f"setup(stage), which comes before any loader. The trainer calls it; without one, call "
            f"setup('fit') first."
        )

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

    def state_dict(self) -> dict[str, Any]:
        """State to save: plain values and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
