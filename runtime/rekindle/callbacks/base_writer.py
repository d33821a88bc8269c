"""`BasePredictionWriter`: a script's own way to write predictions, by batch or all at the end."""

from typing import TYPE_CHECKING, Any, Literal

from rekindle.callback import Callback
from rekindle.enumeration import LightningEnum
from rekindle.errors.misconfiguration import MisconfigurationException

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class WriteInterval(LightningEnum):
    """When predictions are handed on."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after each batch."""
        return self in (WriteInterval.BATCH, WriteInterval.BATCH_AND_EPOCH)

    @property
    def on_epoch(self) -> bool:
        """Whether all at the end."""
        return self in (WriteInterval.EPOCH, WriteInterval.BATCH_AND_EPOCH)


class BasePredictionWriter(Callback):
    """Define `write_on_batch_end`, `write_on_epoch_end`, or both; each process has its own share.

    To go on with an interrupted `predict`, use `PredictionWriter`.
    """

    # What it has is written, or made again.
    optional = True
    every_loader = True

    def __init__(
        self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch"
    ) -> None:
        if write_interval not in list(WriteInterval):
            raise MisconfigurationException(
                f"{type(self).__name__}(write_interval={write_interval!r}): allowed are "
                f"{', '.join(repr(each.value) for each in WriteInterval)}"
            )
        self.interval = WriteInterval(write_interval)
        self._ids: list[int] = []
        self._outputs: dict[int, list[Any]] = {}
        self._indices: dict[int, list[list[int]]] = {}

    def write_on_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        prediction: Any,
        batch_indices: "list[int] | None",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch; `batch_indices` are the places of its samples in the data."""
        raise NotImplementedError(f"{type(self).__name__} has no write_on_batch_end()")

    def write_on_epoch_end(
        self, trainer: "Trainer", pl_module: "Module", predictions: Any, batch_indices: Any
    ) -> None:
        """Write all batches of this process, of several loaders a list for each.

        `batch_indices` are the places of samples by loader, batch and sample.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write_on_epoch_end()")

    def on_predict_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin anew."""
        self._outputs, self._indices = {}, {}

    def predicted(self, batch_idx: int, ids: Any) -> tuple[Any] | None:
        """Note which samples come; nothing is known already."""
        self._ids = [int(one) for one in ids]
        return None

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a batch on."""
        ids = list(self._ids)
        if self.interval.on_batch:
            self.write_on_batch_end(
                trainer, pl_module, outputs, ids, batch, batch_idx, dataloader_idx
            )
        if self.interval.on_epoch:
            self._outputs.setdefault(dataloader_idx, []).append(outputs)
            self._indices.setdefault(dataloader_idx, []).append(ids)

    def on_predict_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Hand all batches on."""
        if self.interval.on_epoch:
            loaders = range(len(trainer.num_predict_batches))
            outputs = [self._outputs.get(number, []) for number in loaders]
            indices = [self._indices.get(number, []) for number in loaders]
            given = outputs[0] if len(outputs) == 1 else outputs
            self.write_on_epoch_end(trainer, pl_module, given, indices)
            self._outputs, self._indices = {}, {}
