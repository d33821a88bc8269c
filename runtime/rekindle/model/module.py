"""The user's model: a network together with the steps that train it.

A `Module` is a plain `torch.nn.Module` with a few methods more. It runs without a trainer, and the
trainer does not wrap it: `training_step` is called directly, so that a stack trace shows the
user's code right below the loop.
"""

import inspect
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch

from rekindle.model import loading, metrics
from rekindle.model.exporting import Exporting, scripting
from rekindle.model.hyperparameters import HyperparametersMixin
from rekindle.model.manual import Manual
from rekindle.model.step_hooks import StepHooks
from rekindle.model.surroundings import Surroundings
from rekindle.model.transfer import TransferHooks

if TYPE_CHECKING:
    from rekindle.loggers.logger import Logger
    from rekindle.metrics.logged_values import Logs
    from rekindle.trainer.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What `training_step` may return instead of the loss alone, and other steps for its metrics.

    Other returned values are only handed to hooks.
    """

    loss: torch.Tensor | None = None
    """Scalar with a gradient: the mean over the batch. Only `training_step` must give it."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Logged as if each one had been given to `self.log`; names of nested ones are joined by /."""


def refuse_logging(name: str, *, enable_graph: bool) -> NoReturn:
    """Say what to do instead of what `log` cannot do."""
    if enable_graph:
        raise ValueError(
            f"log({name!r}, enable_graph=True) is not supported: what is logged is never "
            f"differentiated. Keep the tensor in an attribute if you need its gradient."
        )
    raise ValueError(
        f"log({name!r}, sync_dist_group=...) is not supported: values are reduced over all ranks. "
        f"Reduce the value over your group first, then log it."
    )


class Module(HyperparametersMixin, Manual, StepHooks, TransferHooks, Surroundings, Exporting):
    """Base class of models. Define `training_step` and `configure_optimizers` at least.

    The hooks without a trainer argument are those of `rekindle.Callback` under the same names; its
    module docstring shows when each one runs.
    """

    example_batch: Any = None
    """What a batch looks like, with any number of samples: compared with the data (R2)."""

    strict_loading: bool = True
    """Whether a checkpoint must have all parameters of the module, and no others."""

    # Where Lightning's checkpoint files have the saved arguments.
    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    _trainer: "weakref.ref[Trainer] | None" = None
    _logs: "Logs | None" = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | StepOutput:
        """Return the mean loss over the batch.

        `batch_idx` is the number of the micro-batch within the epoch, counted over all ranks.
        """
        raise NotImplementedError(
            f"R1 {type(self).__name__} has no training_step(self, batch, batch_idx). Define it and "
            f"return the loss."
        )

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute metrics and give them to `self.log`, or return them as a `StepOutput`."""
        raise NotImplementedError(
            f"R1 {type(self).__name__} has no validation_step(self, batch, batch_idx). Define it, "
            f"or give no validation data."
        )

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute metrics of a test batch; without one, `validation_step` is used."""
        raise NotImplementedError(
            f"R1 {type(self).__name__} has no test_step(self, batch, batch_idx). Define it, or "
            f"define validation_step, which test() uses in its place."
        )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """What `predict` collects: `forward` of the batch, or of its first element."""
        return self(batch[0] if isinstance(batch, list | tuple) else batch)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, alone or with learning-rate schedulers.

        Accepted are an optimizer; ``{"optimizer": o, "lr_scheduler": s}`` where s is a scheduler or
        ``{"scheduler": s, "interval": "epoch"|"step", "frequency": 1, "monitor": name}``; a pair
        ``([o], [s, ...])``.
        """
        raise NotImplementedError(
            f"R1 {type(self).__name__} has no configure_optimizers(self). Define it and return an "
            f"optimizer, for example torch.optim.AdamW(self.parameters())."
        )

    def configure_model(self) -> None:
        """Build layers here instead of in `__init__` to have them built without memory.

        Runs once, before `configure_optimizers`. What it builds gets its values on the device of
        the run, the same ones that a model built directly would have; see `deferred`.
        """

    def prepare_data(self) -> None:
        """Download what the model needs; runs on one process only, before `setup`."""

    def prepare(self) -> None:
        """Another name of `prepare_data`."""

    def train_dataloader(self) -> Any:
        """The training data, where neither a data module nor an argument of `fit` gives any."""
        raise NotImplementedError(f"{type(self).__name__} has no train_dataloader(self)")

    def val_dataloader(self) -> Any:
        """The same for validation: a loader, or several in a list or dict."""
        raise NotImplementedError(f"{type(self).__name__} has no val_dataloader(self)")

    def test_dataloader(self) -> Any:
        """The same for `test`."""
        raise NotImplementedError(f"{type(self).__name__} has no test_dataloader(self)")

    def predict_dataloader(self) -> Any:
        """The same for `predict`."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_dataloader(self)")

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: "str | os.PathLike[str]",
        map_location: Any = None,
        hparams_file: "str | os.PathLike[str] | None" = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **override: Any,
    ) -> Self:
        """A new instance with the weights of a checkpoint; see `Trainer.fit` for forms of the path.

        Files that Lightning or `Trainer.save_checkpoint` wrote are taken as well. Arguments are
        those that `save_hyperparameters` has stored (or `hparams_file` says), with `override` over
        them. The class is the one this is called on, and nothing in a checkpoint is run, whatever
        `weights_only` says. `strict` False leaves alone what only one of the two has; None is as
        `strict_loading` says. Raises FileNotFoundError, or R16 when the checkpoint is damaged, and
        TypeError for an argument that is stored nowhere.
        """
        return loading.module(
            cls,
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            override=override,
        )

    @classmethod
    def from_checkpoint(cls, path: "str | os.PathLike[str]", **options: Any) -> Self:
        """Another name of `load_from_checkpoint`."""
        return cls.load_from_checkpoint(path, **options)

    def export(self, uri: "str | os.PathLike[str]", format: str = "safetensors") -> None:
        """Write parameters and buffers to one file, for programs that know nothing of Rekindle.

        `uri` is a path or an ``s3://`` URL of the file. Raises ValueError for other formats.
        """
        if format != "safetensors":
            raise ValueError(f"export(format={format!r}): allowed is 'safetensors'")
        from rekindle.interop import safetensors_file

        safetensors_file.write(self.state_dict(), os.fspath(uri))

    @property
    def trainer(self) -> "Trainer":
        """The trainer that runs this module; raises RuntimeError when none does."""
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None:
            if scripting():
                return None  # type: ignore[return-value]
            raise RuntimeError(f"{type(self).__name__} is not attached to a trainer")
        return trainer

    def attach(self, trainer: "Trainer | None", logs: "Logs | None") -> None:
        """Connect with the trainer that is about to run this module, or with none."""
        if trainer is not None and trainer.flags.barebones:
            logs = None
        # object.__setattr__: nn.Module's own walks over parameters and modules first.
        object.__setattr__(self, "_trainer", weakref.ref(trainer) if trainer else None)
        object.__setattr__(self, "_logs", logs)

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: "str | Callable[[Any], Any]" = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Note a scalar or a `torchmetrics.Metric`. Costs no synchronisation with the device.

        In training the default is `on_step`, in validation `on_epoch`; with both, the names get the
        suffixes ``_step`` and ``_epoch``. An epoch value is the mean over all samples of all ranks,
        weighted by `batch_size` (by default the true size of the batch); a step value the mean over
        the step, in validation and test that of the batch, which loggers get under its number.
        `reduce_fx` says what else to take: ``sum``, ``max`` or ``min`` over the batches. With
        several loaders the name gets the loader's number, unless `add_dataloader_idx` is False.
        With `logger` False the trainer's loggers do not get the value.

        Values are reduced over all ranks whatever `sync_dist` says, because that costs nothing per
        step; with `rank_zero_only` they are those of rank 0. Refused are `sync_dist_group`, and
        `enable_graph`, as what is logged is never differentiated.
        """
        logs = self._logs
        # Without a trainer there is nobody to log to; the module stays usable on its own.
        if logs is None:
            return
        if enable_graph or sync_dist_group is not None or rank_zero_only:
            if enable_graph or sync_dist_group is not None:
                refuse_logging(name, enable_graph=enable_graph)
            if not self.trainer.is_global_zero:
                return
        logs.note(
            name,
            value,
            prog_bar,
            on_step,
            on_epoch,
            batch_size,
            logger is not False,
            reduce_fx,
            add_dataloader_idx,
            metric_attribute,
        )

    @property
    def logger(self) -> "Logger | None":
        """The trainer's first logger; None without a trainer."""
        trainer = self._trainer() if self._trainer is not None else None
        return None if trainer is None else trainer.logger

    @property
    def loggers(self) -> "list[Logger]":
        """The trainer's loggers; none without a trainer."""
        trainer = self._trainer() if self._trainer is not None else None
        return [] if trainer is None else trainer.loggers

    def log_dict(
        self,
        dictionary: "Mapping[str, Any]",
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: "str | Callable[[Any], Any]" = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log each entry of a mapping or of a `torchmetrics.MetricCollection`; see `log`."""
        for name, value in metrics.entries(dictionary):
            self.log(
                name,
                value,
                prog_bar,
                logger,
                on_step,
                on_epoch,
                reduce_fx,
                enable_graph,
                sync_dist,
                sync_dist_group,
                add_dataloader_idx,
                batch_size,
                rank_zero_only=rank_zero_only,
            )

    def setup(self, stage: str) -> None:
        """Before anything else; `stage` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, stage: str) -> None:
        """After everything else."""

    def on_fit_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_fit_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_epoch_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_epoch_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """See `rekindle.Callback`; to return -1 ends the epoch before this batch."""
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """See `rekindle.Callback`."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """See `rekindle.Callback`."""

    def on_after_backward(self) -> None:
        """See `rekindle.Callback`."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """See `rekindle.Callback`."""

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """See `rekindle.Callback`."""

    def on_validation_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_validation_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_validation_epoch_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_validation_epoch_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `rekindle.Callback`."""

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `rekindle.Callback`."""

    def on_test_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_epoch_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_epoch_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See `rekindle.Callback`."""

    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `rekindle.Callback`."""

    def on_predict_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_epoch_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_epoch_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See `rekindle.Callback`."""

    def on_predict_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See `rekindle.Callback`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `rekindle.Callback`."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `rekindle.Callback`."""

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be pickled, and a copy belongs to no trainer.
        left = ("_trainer", "_logs", "_updating", "_schedulers", "_wrapped")
        return {k: v for k, v in self.__dict__.items() if k not in left}


# TorchScript compiles what `forward` uses; properties of a class it would compile all.
Module.__jit_unused_properties__ = [  # type: ignore[attr-defined]
    name for name in dir(Module) if isinstance(inspect.getattr_static(Module, name), property)
]
